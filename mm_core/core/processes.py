"""Child processes that end with their parent: a run's worker and steps, the servers of `mm ui` and `mm label serve`.

Dagster starts a run's worker from the code location, and the worker starts its steps, with `multiprocessing`. A SIGKILL
of one process leaves its children running. An orphaned step would train in parallel with its replacement. Orphaned
servers would keep their ports, and Dagster's daemon would start unwanted runs.

`start` also runs this file as a script, with the Python of environments without our packages. The file therefore uses
the standard library only.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

LOOK_EVERY = 1.0
"""Seconds between two checks of the parent."""


def end_with_parent() -> None:
    """Kill this process as soon as its parent ends; does nothing outside of multiprocessing's children.

    SIGKILL is safe here: all stages survive it, and no process waits for a result.
    """
    if parent := multiprocessing.parent_process():
        # The parent of a step is the worker; the parent id of the system is that of the fork server between them.
        above = os.getppid()
        _watch(lambda: parent.is_alive() and os.getppid() == above, lambda: os.kill(os.getpid(), signal.SIGKILL))


def start(command: Iterable[str], *, python: str = sys.executable, **options: Any) -> subprocess.Popen:
    """Start a console script of a Python environment that ends with this process.

    The script gets a session of its own. Ctrl-C therefore reaches it only through this process, which stops it in
    order. The script and all its children are killed if this process ends.

    Args:
        command: The script's path and its arguments.
        python: The Python of the script's environment.
        options: Options of Popen.
    """
    # -P keeps this file's folder, which is full of modules with common names, out of sys.path.
    watched = [python, "-P", __file__, str(os.getpid()), *command]
    return subprocess.Popen(watched, start_new_session=True, **options)


def end(processes: Sequence[subprocess.Popen], how: signal.Signals, seconds: float) -> None:
    """Send a signal to processes of `start`, wait for them, and kill the rest of their sessions.

    Args:
        processes: Processes that `start` returned.
        how: The signal to send first, such as SIGINT.
        seconds: Total time to wait before the kill.
    """
    # One deadline for all processes together.
    until = time.monotonic() + seconds
    # All get the signal first, so that they end in parallel.
    for process in processes:
        if process.poll() is None:
            process.send_signal(how)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        # The session may still hold children of a process that has ended.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _watch(alive: Callable[[], bool], die: Callable[[], None]) -> None:
    def look() -> None:
        while alive():
            time.sleep(LOOK_EVERY)
        die()

    threading.Thread(target=look, name="lifeline", daemon=True).start()


def _main(above: int, program: str) -> None:
    """Watch the parent with process id `above`, and run `program` in this process."""
    # A given id also detects a parent that ended before the watch began.
    _watch(lambda: os.getppid() == above, lambda: os.killpg(0, signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT by default
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _, above_, *sys.argv = sys.argv
    _main(int(above_), sys.argv[0])
