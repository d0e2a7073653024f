"""Keep the findings about the rows of a drop on disk, so that memory does not grow with the drop."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mm_core.ingest.expectations import Fault
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe

PIECE = 4096
"""Number of rows that are measured and validated together and held in memory."""


class Finding(NamedTuple):
    """A row, its measures, and the first rule that it breaks (None for a good row)."""

    row: ManifestRow
    probe: Probe
    fault: Fault | None


class Measured:
    """Findings in the order of the manifest; they can be iterated any number of times."""

    def __init__(self, folder: Path) -> None:
        """Create an empty list.

        Args:
            folder: A temporary folder of this process; the caller deletes it after the batch.
        """
        self._folder, self._rows, self._pieces = folder, 0, 0
        self._newest: list[Finding] = []

    def add(self, findings: Sequence[Finding]) -> None:
        """Append a piece of findings and write it to disk."""
        # Keep the newest piece in memory. Small drops have one piece and need no read.
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
        """Yield the findings in the pieces in which they were added."""
        for number in range(self._pieces):
            is_newest = number + 1 == self._pieces
            yield self._newest if is_newest else pickle.loads(self._place(number).read_bytes())  # noqa: S301 - own

    def _place(self, number: int) -> Path:
        return self._folder / f"findings-{number}.pickle"
