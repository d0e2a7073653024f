"""The locks between processes: one holder at a time, freed by its death, and told to those who wait."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mm_core.core import locks
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings

HOLD = """
import sys, time
from mm_core.core.layout import Layout
from mm_core.core.locks import cycle_lock
from mm_core.core.settings import Settings
with cycle_lock(Layout(Settings.from_env(sys.argv[1])), "run"):
    print("held", flush=True)
    time.sleep(120)
"""


@contextmanager
def another_process(layout: Layout) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the cycle lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Settings.from_env(tmp_path / "data"))


def test_the_second_process_gets_the_lock_when_the_first_is_killed(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    with another_process(layout) as holder:
        with locks.try_cycle_lock(layout, "forget") as free:
            assert not free
        killer = threading.Timer(0.6, lambda: holder.send_signal(signal.SIGKILL))
        killer.start()
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), locks.cycle_lock(layout, "forget"):
            assert time.monotonic() - began > 0.4
    assert "mm forget waits: `mm run` of" in caplog.text
    assert f"process {holder.pid}" in caplog.text and "at work since 20" in caplog.text


def test_the_cache_may_be_deleted_while_a_cycle_runs(layout: Layout) -> None:
    """The lock lay in the cache, which people delete to free space: a second cycle then began beside the first."""
    with another_process(layout) as holder:
        layout.cache.mkdir(exist_ok=True)
        shutil.rmtree(layout.cache)
        with locks.try_cycle_lock(layout, "run") as free:
            assert not free
        assert f"process {holder.pid}" in (locks.cycle_holder(layout) or "")


def test_status_says_who_is_at_work_and_nothing_after_a_kill(layout: Layout) -> None:
    assert locks.cycle_holder(layout) is None and not layout.locks.exists(), "asking leaves nothing"
    with another_process(layout) as holder:
        assert f"process {holder.pid}" in (locks.cycle_holder(layout) or "")
    assert locks.cycle_holder(layout) is None


def test_status_names_what_started_the_work_where_that_was_not_mm(layout: Layout) -> None:
    with locks.cycle_lock(layout, "snapshot", started_by="dagster retrain"), locks.cycle_lock(layout, "gate"):
        entry = locks.cycle_entry(layout)
        assert entry["what"] == "snapshot" and locks.command_of(entry) == "dagster retrain"
        assert locks.holder_of(layout.locks / "cycle.lock").startswith("`dagster retrain` of ")
    with locks.cycle_lock(layout, "gate"):
        assert locks.command_of(locks.cycle_entry(layout)) == "mm gate"
    assert locks.command_of({}) == ""


def test_a_thread_enters_the_lock_again_and_another_thread_does_not(layout: Layout) -> None:
    seen = []

    def other() -> None:
        with locks.try_cycle_lock(layout, "export") as free:
            seen.append(free)

    with locks.cycle_lock(layout, "run") as outermost, locks.cycle_lock(layout, "gate") as inner:
        assert outermost and not inner
        with locks.try_cycle_lock(layout, "pin-inputs") as free:
            assert free
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert seen == [False, True]


def test_the_locks_of_two_workspaces_are_two(layout: Layout, tmp_path: Path) -> None:
    another = Layout(Settings.from_env(tmp_path / "other"))
    with another_process(layout), locks.try_cycle_lock(another, "run") as free:
        assert free


def test_a_file_system_without_flock_still_lets_one_in_at_a_time(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """As some network file systems answer."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    seen = []
    with locks.cycle_lock(layout, "run"):

        def other() -> None:
            with locks.try_cycle_lock(layout, "gate") as free:
                seen.append(free)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert seen == [False, True]


def test_a_file_system_that_refuses_locks_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(InputError, match=r"cycle.lock cannot be locked \(No locks available\): put the workspace"),
        locks.cycle_lock(layout, "run"),
    ):
        raise AssertionError("not reached")


def test_a_workspace_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="MM_WORKSPACE"),
        locks.cycle_lock(Layout(Settings.from_env(tmp_path / "file")), "run"),
    ):
        raise AssertionError("not reached")
