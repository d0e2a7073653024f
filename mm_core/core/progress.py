"""Callbacks by which long work reports how much of it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

Progress = Callable[[str, int, int], None]
"""Callback with (what, done, total). The CLI draws bars, Dagster logs observations."""


def quiet(what: str, done: int, total: int) -> None:
    """Ignore all progress; the default Progress."""


@runtime_checkable
class Listener(Protocol):
    """Progress callback that also receives the numbers of training."""

    def numbers(self, values: Mapping[str, float]) -> None:
        """Receive losses, learning rate or validation errors by name.

        Args:
            values: Values by name; `epoch` is the number of passes over the labelled photos so far.
        """
        ...
