"""Find the ready drops again and again, at a cost that follows what changed instead of what ever arrived.

A full comparison hashes every manifest and lists the files of every drop (`inbox.ready_batches`). A look remembers what
it saw. The next one compares only some drops in full:

* new drops, and drops with another manifest or another row in the ledger;
* drops that were new or changed within YOUNG seconds;
* every drop once in FULL_EVERY seconds, spread evenly. This finds files of old drops that were replaced in place, which
  changes neither the manifest nor the folder.

Another manifest is one with another size or stamp. These are read at every look; of drops that have not changed for
SETTLED seconds, once in STAMPS_EVERY seconds, spread evenly too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mm_core.core.records import write_bytes
from mm_core.ingest.inbox import (
    MANIFESTS,
    Folder,
    ReadyBatch,
    compare_with_ledger,
    folders_of,
    in_order_of_writing,
    latest_arrivals,
)
from mm_core.storage.run import StorageRun

YOUNG = 600.0
"""Seconds for which a new or changed drop is compared in full at every look."""
FULL_EVERY = 3600.0
"""Seconds between two full comparisons of a drop."""
SETTLED, STAMPS_EVERY = 86_400.0, 600.0
MOMENT = FULL_EVERY / 2**32
"""Seconds by which the moments of two drops differ whose keys differ by one in their first 8 digits."""


class Look(NamedTuple):
    """What a full comparison saw of a drop that needs no ingest."""

    manifest: str
    """Its key in the inbox."""
    size: int
    stamp: str
    key: str
    """Key of the drop in the ledger."""
    since: float
    """Time since which the drop is as it is."""

    def is_due(self, last: float, now: float) -> bool:
        """Return whether the drop must be compared in full, `last` being the time of the last look."""
        return now - self.since < YOUNG or self._had_its_moment(FULL_EVERY, last, now)

    def is_asked(self, last: float, now: float) -> bool:
        """Return whether the manifest's stamp must be read; this includes each drop that is due."""
        return now - self.since < SETTLED or self._had_its_moment(STAMPS_EVERY, last, now)

    def _had_its_moment(self, period: float, last: float, now: float) -> bool:
        # Each drop has its moment, by a number that only depends on the drop. FULL_EVERY is a multiple of STAMPS_EVERY,
        # so a moment of the longer period is one of the shorter period too.
        moment = MOMENT * int(self.key[:8], 16)
        return (now - moment) // period != (last - moment) // period


@dataclass
class Looks:
    """The memory of the last look."""

    ledger: int = -2
    """Version of the table `batches`; -2 before the first look."""
    drops: dict[Folder, Look] = field(default_factory=dict)
    last: float = 0.0
    """Time of the last look."""

    @staticmethod
    def read(path: Path, inbox: str) -> Looks:
        """Read the memory of an inbox; an empty one if there is none, or one of another inbox."""
        try:
            content = json.loads(path.read_bytes())
            if content["inbox"] != inbox:
                return Looks()
            kinds, batches, *fields = content["columns"]
            drops = dict(zip(zip(kinds, batches, strict=True), map(Look._make, zip(*fields, strict=True)), strict=True))
            return Looks(content["ledger"], drops, float(_time_file(path).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return Looks()

    def write(self, path: Path, inbox: str) -> None:
        """Replace the memory of an inbox."""
        # Columns are read in half the time of rows, and they keep their number without a drop.
        rows = [(*folder, *look) for folder, look in self.drops.items()]
        columns = [[row[n] for row in rows] for n in range(2 + len(Look._fields))]
        write_bytes(path, json.dumps({"inbox": inbox, "ledger": self.ledger, "columns": columns}).encode())


def look_again(run: StorageRun, now: float | None = None) -> list[ReadyBatch]:
    """Return the drops that must be ingested, as `ready_batches` does, but see the module for replaced files.

    Args:
        run: Gives the inbox, the catalog, the store and the file of the memory (`Layout.inbox_looks`).
        now: Time in seconds; the present time if None.
    """
    now = time.time() if now is None else now
    path = run.layout.inbox_looks
    before = Looks.read(path, run.inbox.url)
    folders = folders_of(run.inbox)
    quiet = {f: look for f, look in before.drops.items() if not look.is_asked(before.last, now)}
    # Stamps and version are read before the contents: a later change differs from them at the next look.
    stamps = run.inbox.stamps([key for folder in folders if folder not in quiet for key in _keys_of(folder)])
    version = run.catalog.version("batches")
    known = {
        folder: look
        for folder in folders
        if (look := before.drops.get(folder)) and (folder in quiet or _is_as_before(look, folder, stamps))
    }
    if version != before.ledger:
        # Rows of the ledger may have been replaced or removed.
        latest = latest_arrivals(run.catalog) if known else {}
        known = {f: look for f, look in known.items() if f in latest and latest[f]["key"] == look.key}
    looks = {f: look for f, look in known.items() if f in quiet or not look.is_due(before.last, now)}
    compared = compare_with_ledger(run, [folder for folder in folders if folder not in looks])
    for folder, batch, ready in compared:
        # A drop that must be ingested stays due, and so does a refused one, which has no manifest key.
        if ready is None and batch.manifest_key in stamps:
            since = known[folder].since if folder in known else now
            looks[folder] = Look(batch.manifest_key, *stamps[batch.manifest_key], batch.key, since)
    if version != before.ledger or looks != before.drops:
        Looks(version, looks).write(path, run.inbox.url)
    # The time comes last: a look that was killed is repeated with the same moments.
    write_bytes(_time_file(path), repr(now).encode())
    return in_order_of_writing(run.inbox, [ready for _, _, ready in compared if ready])


def _time_file(path: Path) -> Path:
    """Return the small file with the time of the last look; the large one is written only when something changed."""
    return path.with_suffix(".time")


def _is_as_before(look: Look, folder: Folder, stamps: Mapping[str, tuple[int, str]]) -> bool:
    """Return whether the drop's manifest is the same file, and no other manifest has come."""
    return {key: stamps[key] for key in _keys_of(folder) if key in stamps} == {look.manifest: (look.size, look.stamp)}


def _keys_of(folder: Folder) -> list[str]:
    """Return the keys under which a drop's manifest may lie."""
    return [f"{folder[0]}/{folder[1]}/{name}" for name in MANIFESTS]
