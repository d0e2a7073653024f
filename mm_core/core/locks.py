"""Locks between processes on one machine. Only this module uses `filelock`.

Each lock is an advisory `flock` on a file that is never removed. The kernel releases it when its process ends, even
after a crash. On a file system without `flock`, filelock falls back to lock files that name their process.

Two locks guard a workspace:

- the **cycle lock** is held by code that writes `cycle/` or `inputs.json`, or removes files that a cycle reads. `mm`,
  `dvc repro` and Dagster all use `mm_core.stages`, which takes it. It is re-entrant within a thread.
- the **removal lock** is held by code that deletes photos or old catalog files (`mm forget`, `mm catalog compact`) or
  copies all of them (`mm backup`). Code that needs both locks takes the cycle lock first.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from filelock import FileLock, Timeout

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.records import write_json

POLL_SECONDS = 0.1
"""Pause between two attempts to take a lock, in seconds."""
_log = logging.getLogger(__name__)


class _Held(threading.local):
    """The depth of each lock that the present thread has entered."""

    def __init__(self) -> None:
        self.depth: dict[Path, int] = {}


_held = _Held()


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the body; wait while another process or thread holds it.

    Args:
        path: The lock file; it is created if it is missing, and is never removed.
        waiting: Called once if the lock is not free.

    Raises:
        InputError: The file system does not support locks, or the file cannot be opened.
    """
    lock = _wait_for(path, waiting)
    try:
        yield
    finally:
        lock.release()


def cycle_lock(layout: Layout, what: str, *, started_by: str = "") -> AbstractContextManager[bool]:
    """Hold the workspace's cycle lock for the body; log the holder if this process has to wait.

    Args:
        layout: The workspace.
        what: The `mm` verb that takes the lock; other processes show it while they wait.
        started_by: What they show instead, where it was not `mm`: `dagster retrain`, for example.

    Yields:
        True for the outermost hold of the present thread, False for a nested one.
    """
    path = _cycle_path(layout)

    def wait() -> None:
        _log.warning("mm %s waits: %s has the cycle of %s", what, holder_of(path) or "another process", layout.root)

    return _reentrant(path, what, wait, started_by)


@contextmanager
def try_cycle_lock(layout: Layout, what: str, seconds: float = 0.0) -> Iterator[bool]:
    """Hold the cycle lock for the body if it is free within `seconds`; yields whether it is held.

    A thread that already holds the lock gets it again.
    """
    # Re-entrance: the outer holder of this thread releases the lock.
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


def removal_lock(layout: Layout, what: str) -> AbstractContextManager[bool]:
    """Hold the workspace's removal lock for the body."""
    path = layout.locks / "removal.lock"

    def wait() -> None:
        _log.warning("mm %s waits for %s", what, holder_of(path) or "another process that removes or copies photos")

    return _reentrant(path, what, wait)


def cycle_holder(layout: Layout) -> str | None:
    """Return a text with the holder of the cycle lock and its start time; None if the lock is free."""
    path = _cycle_path(layout)
    # A question must not create the lock file.
    if not path.exists():
        return None
    # The lock itself is the truth: the file with the holder's name stays after its process has ended.
    with try_cycle_lock(layout, "status") as free:
        return None if free else holder_of(path) or "another process"


def holder_of(path: Path) -> str:
    """Return a text about the last holder of a lock; empty if the holder wrote none."""
    entry = _entry_of(path)
    if "who" not in entry or "process" not in entry or "since" not in entry:
        return ""
    return f"`{command_of(entry)}` of {entry['who']} (process {entry['process']}), at work since {entry['since']}"


class LockEntry(TypedDict, total=False):
    """The record of a lock's last holder; empty without one."""

    what: str
    """The verb of `mm`."""
    started_by: str
    """What started it where that was not `mm`, else empty; records of earlier versions lack it."""
    who: str
    """User and host, as `user@host`."""
    process: int
    since: str
    """ISO time."""


def command_of(entry: LockEntry) -> str:
    """Return the command that took a lock: `mm` with its verb, or what else started it; empty without a record."""
    return entry.get("started_by") or (f"mm {entry['what']}" if "what" in entry else "")


def cycle_entry(layout: Layout) -> LockEntry:
    """Return the record of the cycle lock's last holder.

    Empty without a holder, or if the record cannot be read. Processes that work for the holder may ask too.
    """
    return _entry_of(_cycle_path(layout))


def _entry_of(path: Path) -> LockEntry:
    try:
        entry = json.loads(_about(path).read_text())
    except (OSError, ValueError):
        return {}
    return cast(LockEntry, entry) if isinstance(entry, dict) else {}


def _cycle_path(layout: Layout) -> Path:
    return layout.locks / "cycle.lock"


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def _reentrant(path: Path, what: str, waiting: Callable[[], None], started_by: str = "") -> Iterator[bool]:
    # A nested hold only counts; the outermost one takes and releases the file lock.
    if path in _held.depth:
        _held.depth[path] += 1
        try:
            yield False
        finally:
            _held.depth[path] -= 1
        return
    with _entered(path, what, _wait_for(path, waiting), started_by):
        yield True


@contextmanager
def _entered(path: Path, what: str, lock: FileLock, started_by: str = "") -> Iterator[None]:
    """Record the holder of a newly taken lock, and release the lock after the body."""
    _held.depth[path] = 1
    try:
        with suppress(OSError):  # this file only informs others; the lock works without it
            since = datetime.now(UTC).isoformat(timespec="seconds")
            who = {"who": f"{user_name()}@{socket.gethostname()}", "process": os.getpid()}
            write_json(_about(path), {"what": what, "started_by": started_by, "since": since, **who})
        yield
    finally:
        del _held.depth[path]
        lock.release()


def user_name() -> str:
    """Return the login name of this process's user, or the numeric id if it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return str(os.getuid())


def _wait_for(path: Path, waiting: Callable[[], None] | None) -> FileLock:
    """Take a lock; call `waiting` once if another process or thread has it."""
    lock = _open(path)
    # First try without waiting, so that the caller can announce a wait.
    if not _acquire(lock, path, 0):
        if waiting is not None:
            waiting()
        _acquire(lock, path, -1)
    return lock


def _open(path: Path) -> FileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}: make the workspace (MM_WORKSPACE) writable") from error
    # A new object opens the file again, so that flock also excludes other threads of this process.
    return FileLock(path)


def _acquire(lock: FileLock, path: Path, seconds: float) -> bool:
    """Return whether the lock is held after at most `seconds`; a negative value waits without limit."""
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
