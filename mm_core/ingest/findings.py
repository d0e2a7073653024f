"""What was found about the rows of a drop, in their order, on disk: memory does not grow with the drop."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mm_core.ingest.expectations import Fault
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe

PIECE = 4096
"""Rows that are measured and judged together, and stand in memory at once."""


class Finding(NamedTuple):
    """A row, what was measured of it, and the first rule that it breaks."""

    row: ManifestRow
    probe: Probe
    fault: Fault | None


class Measured:
    """Findings in the order of the manifest; can be gone through again and again."""

    def __init__(self, folder: Path):
        """`folder`: this process's own, it goes when the batch is done."""
        self._folder, self._rows, self._pieces = folder, 0, 0
        self._newest: list[Finding] = []

    def add(self, findings: Sequence[Finding]) -> None:
        self._newest = list(findings)
        self._place(self._pieces).write_bytes(pickle.dumps(self._newest, pickle.HIGHEST_PROTOCOL))
        self._rows += len(findings)
        self._pieces += 1

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Finding]:
        for piece in self.pieces():
            yield from piece

    def pieces(self) -> Iterator[list[Finding]]:
        """Some thousand findings at a time."""
        for number in range(self._pieces):
            is_newest = number + 1 == self._pieces
            yield self._newest if is_newest else pickle.loads(self._place(number).read_bytes())  # noqa: S301 - own

    def _place(self, number: int) -> Path:
        return self._folder / f"findings-{number}.pickle"
