"""Locks between processes on one machine. The only module that knows `filelock`.

Each lock is an advisory `flock` on a file that stays: the kernel releases it when its process ends, however it ends.
Where a file system has no `flock`, filelock falls back to lock files that name their process.

Two locks guard a workspace:

- the **cycle lock**: whatever writes `cycle/` or `inputs.json`, or removes what a cycle reads, holds it. Every door
  (`mm`, `dvc repro`, Dagster) goes through `mm_core.stages`, which takes it. It is re-entrant within a thread.
- the **removal lock**: whatever deletes photos or old catalog files (`mm forget`, `mm catalog compact`) and whatever
  copies all of them (`mm backup`) holds it. Who needs both takes the cycle lock first.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.records import write_json

POLL_SECONDS = 0.1
"""Pause between two attempts of a process that waits."""
_log = logging.getLogger(__name__)


class _Held(threading.local):
    """How often the present thread has entered each lock that it holds."""

    def __init__(self) -> None:
        self.depth: dict[Path, int] = {}


_held = _Held()


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the body; wait for as long as another process or thread holds it.

    Args:
        path: The lock file; it is made where it is missing, and stays.
        waiting: Called once if the lock is not free.

    Raises:
        InputError: The file system takes no locks, or the file cannot be opened.
    """
    lock = _open(path)
    if not _acquire(lock, path, 0):
        if waiting is not None:
            waiting()
        _acquire(lock, path, -1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def cycle_lock(layout: Layout, what: str) -> Iterator[bool]:
    """Hold the workspace's cycle lock for the body, and say on the log for whom it has to wait.

    Args:
        layout: The workspace.
        what: The `mm` verb that asks, for those who wait.

    Yields:
        Whether this is the outermost hold of the present thread.
    """
    with _reentrant(_cycle_path(layout), what, _wait_for_cycle(layout, what)) as outermost:
        yield outermost


@contextmanager
def try_cycle_lock(layout: Layout, what: str, seconds: float = 0.0) -> Iterator[bool]:
    """Hold the cycle lock for the body if it is free within `seconds`; yields whether it is held.

    A thread that holds it already gets it.
    """
    path = _cycle_path(layout)
    if path in _held.depth:
        yield True
        return
    lock = _open(path)
    if not _acquire(lock, path, seconds):
        yield False
        return
    with _entered(path, what, lock):
        yield True


@contextmanager
def removal_lock(layout: Layout, what: str) -> Iterator[None]:
    """Hold the workspace's removal lock for the body."""
    path = layout.locks / "removal.lock"

    def wait() -> None:
        _log.warning("mm %s waits for %s", what, holder_of(path) or "another process that removes or copies photos")

    with _reentrant(path, what, wait):
        yield


def cycle_holder(layout: Layout) -> str | None:
    """Return who holds the cycle lock and since when, in words; None where nobody does."""
    path = _cycle_path(layout)
    if not path.exists():
        return None
    with try_cycle_lock(layout, "status") as free:
        return None if free else holder_of(path) or "another process"


def holder_of(path: Path) -> str:
    """Return what the last holder of a lock wrote about itself; empty where it wrote nothing."""
    try:
        entry = json.loads(_about(path).read_text())
        return f"`mm {entry['what']}` of {entry['who']} (process {entry['process']}), at work since {entry['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _wait_for_cycle(layout: Layout, what: str) -> Callable[[], None]:
    def wait() -> None:
        holder = holder_of(_cycle_path(layout)) or "another process"
        _log.warning("mm %s waits: %s has the cycle of %s", what, holder, layout.root)

    return wait


def _cycle_path(layout: Layout) -> Path:
    return layout.locks / "cycle.lock"


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def _reentrant(path: Path, what: str, waiting: Callable[[], None]) -> Iterator[bool]:
    if path in _held.depth:
        _held.depth[path] += 1
        try:
            yield False
        finally:
            _held.depth[path] -= 1
        return
    lock = _open(path)
    if not _acquire(lock, path, 0):
        waiting()
        _acquire(lock, path, -1)
    with _entered(path, what, lock):
        yield True


@contextmanager
def _entered(path: Path, what: str, lock: FileLock) -> Iterator[None]:
    """The time between taking a lock that is new to this thread and letting it go."""
    _held.depth[path] = 1
    try:
        with suppress(OSError):  # what others are told; the lock itself holds without it
            since = datetime.now(UTC).isoformat(timespec="seconds")
            who = {"who": f"{_user()}@{socket.gethostname()}", "process": os.getpid()}
            write_json(_about(path), {"what": what, "since": since, **who})
        yield
    finally:
        del _held.depth[path]
        lock.release()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return str(os.getuid())


def _open(path: Path) -> FileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}: make the workspace (MM_WORKSPACE) writable") from error
    return FileLock(path)


def _acquire(lock: FileLock, path: Path, seconds: float) -> bool:
    """Whether the lock is held after at most `seconds` (below 0: however long it takes)."""
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
    except Timeout:
        return False
    except OSError as error:
        raise InputError(
            f"{path} cannot be locked ({error.strerror or error}): put the workspace (MM_WORKSPACE) on a file system "
            "with flock that this user may write to"
        ) from error
    return True
