"""Defer SIGINT and SIGTERM to the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Pending:
    """Signals that arrived during a step."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Keep a signal; deliver it at once if one waits already."""
        # A second signal is delivered immediately: the user does not want to wait for the step.
        impatient = bool(self.arrived)
        self.arrived.append(number)
        if impatient:
            self.deliver()

    def deliver(self) -> None:
        """Raise the first pending signal again under the handler that was installed before."""
        if self.arrived:
            number = self.arrived.pop(0)
            self.restore()
            signal.raise_signal(number)

    def restore(self) -> None:
        """Install the handlers that were there before."""
        # Restoring twice is harmless: the second time the dict is empty.
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """Hold SIGINT and SIGTERM back until `deliver`, because the weights within a step belong to no step count.

    Python runs signal handlers only in the main thread. In other threads nothing is deferred.
    """
    pending = Pending()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # Remember the previous handlers; `deliver` and the exit restore them.
            pending.before[number] = signal.signal(number, pending.receive)
    try:
        yield pending
    finally:
        pending.restore()
    # Deliver a signal that arrived after the last step.
    pending.deliver()
