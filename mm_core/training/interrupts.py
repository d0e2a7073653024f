"""Signals wait for the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Pending:
    """Signals that arrived within a step."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.before: dict[int, Any] = {}

    def receive(self, number: int, frame: Any) -> None:
        impatient = bool(self.arrived)
        self.arrived.append(number)
        if impatient:
            self.deliver()

    def deliver(self) -> None:
        """Gives a signal that arrived to whoever would have had it."""
        if self.arrived:
            number = self.arrived.pop(0)
            self.restore()
            signal.raise_signal(number)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


@contextmanager
def deferred_signals() -> Iterator[Pending]:
    """Holds SIGINT and SIGTERM back until `deliver`: within a step the weights match no step count.

    Python runs handlers in the main thread only; elsewhere nothing is held back (and nothing arrives).
    """
    pending = Pending()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            pending.before[number] = signal.signal(number, pending.receive)
    try:
        yield pending
    finally:
        pending.restore()
    # One that came after the last step is not lost.
    pending.deliver()
