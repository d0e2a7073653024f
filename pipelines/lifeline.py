"""A run's processes end with those that started them.

Dagster starts a run's worker from the code location, and the worker its steps, by `multiprocessing`: a SIGKILL of one
leaves what is below it at work. A step that nobody waits for would train beside the one that is started in its place.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess

LOOK_EVERY = 1.0
"""Seconds."""


def end_with_parent() -> None:
    """From now on this process dies at once where its parent does; without effect but in multiprocessing's children.

    By SIGKILL: what is in work is safe against that anyway, and nobody is left to hear more.
    """
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_watch, args=(parent, os.getppid()), name="lifeline", daemon=True).start()


def _watch(parent: BaseProcess, above: int) -> None:
    # A step's parent is the worker; what the system calls its parent is the fork server between them.
    while parent.is_alive() and os.getppid() == above:
        parent.join(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGKILL)
