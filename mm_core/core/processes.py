"""Processes end with those that started them: a run's worker and steps, the servers of `mm ui` and `mm label serve`.

Dagster starts a run's worker from the code location, and the worker its steps, by `multiprocessing`: a SIGKILL of one
leaves what is below it at work. A step that nobody waits for would train beside the one that is started in its place;
servers that nobody waits for hold their ports, and their daemon starts runs that nobody asked for.

It is run as a script too (`start`), by the Python of environments without our packages: the standard library alone.
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
"""Seconds."""


def end_with_parent() -> None:
    """From now on this process dies at once where its parent does; without effect but in multiprocessing's children.

    By SIGKILL: what is in work is safe against that anyway, and nobody is left to hear more.
    """
    if parent := multiprocessing.parent_process():
        # A step's parent is the worker; what the system calls its parent is the fork server between them.
        above = os.getppid()
        _watch(lambda: parent.is_alive() and os.getppid() == above, lambda: os.kill(os.getpid(), signal.SIGKILL))


def start(command: Iterable[str], *, python: str = sys.executable, **options: Any) -> subprocess.Popen[Any]:
    """Python's console script with its words, in a session of its own: Ctrl-C reaches it through us alone, so that it
    is asked once and waited for. It and all that it starts die at once where this process does.

    `python`: of the script's environment; `options`: of Popen.
    """
    # -P: this script's folder is full of modules with common names.
    watched = [python, "-P", __file__, str(os.getpid()), *command]
    return subprocess.Popen(watched, start_new_session=True, **options)


def end(processes: Sequence[subprocess.Popen[Any]], how: signal.Signals, seconds: float) -> None:
    """Asks what `start` made to end and waits for all; whatever of their sessions is then left is killed."""
    until = time.monotonic() + seconds
    for process in processes:
        if process.poll() is None:
            process.send_signal(how)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
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
    """`above` by number: a parent that has died already would not be missed else."""
    _watch(lambda: os.getppid() == above, lambda: os.killpg(0, signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _, above_, *sys.argv = sys.argv
    _main(int(above_), sys.argv[0])
