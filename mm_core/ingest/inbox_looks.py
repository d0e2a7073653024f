"""Find the ready drops again and again, at a cost that follows what changed instead of what ever arrived.

A full comparison hashes every manifest and lists the files of every drop (`inbox.ready_batches`). A look remembers what
it saw. The next one compares sizes and stamps of the manifests, and compares only some drops in full:

* new drops, and drops whose manifest or ledger row changed;
* drops that were new or changed within YOUNG seconds;
* every drop once in FULL_EVERY seconds, spread evenly. This finds files of old drops that were replaced in place, which
  changes neither the manifest nor the folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mm_core.core.records import write_bytes
from mm_core.ingest.inbox import MANIFESTS, Folder, ReadyBatch, compare_with_ledger, folders_of, latest_arrivals
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Entry

YOUNG = 600.0
"""Seconds for which a new or changed drop is compared in full at every look."""
FULL_EVERY = 3600.0
"""Largest number of seconds between two full comparisons of a drop."""


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
    compared: float
    """Time of the last full comparison."""

    def is_due(self, now: float) -> bool:
        """Return whether the drop must be compared in full."""
        # A number that only depends on the drop spreads the comparisons over the second half of the period.
        share = int(self.key[:8], 16) / 2**32
        return now - self.since < YOUNG or now - self.compared > FULL_EVERY * (1 + share) / 2


@dataclass
class Looks:
    """The memory of the last look."""

    ledger: int = -2
    """Version of the table `batches`; -2 before the first look."""
    drops: dict[Folder, Look] = field(default_factory=dict)

    @staticmethod
    def read(path: Path, inbox: str) -> Looks:
        """Read the memory of an inbox; an empty one if there is none, or one of another inbox."""
        try:
            content = json.loads(path.read_bytes())
            if content["inbox"] != inbox:
                return Looks()
            return Looks(content["ledger"], {(kind, batch): Look(*look) for kind, batch, *look in content["drops"]})
        except (OSError, ValueError, KeyError, TypeError):
            return Looks()

    def write(self, path: Path, inbox: str) -> None:
        """Replace the memory of an inbox."""
        drops = [(*folder, *look) for folder, look in self.drops.items()]
        write_bytes(path, json.dumps({"inbox": inbox, "ledger": self.ledger, "drops": drops}).encode())


def look_again(run: StorageRun, now: float | None = None) -> list[ReadyBatch]:
    """Return the drops that must be ingested, as `ready_batches` does, but see the module for replaced files.

    Args:
        run: Gives the inbox, the catalog, the store and the file of the memory (`Layout.inbox_looks`).
        now: Time in seconds; the present time if None.
    """
    now = time.time() if now is None else now
    before = Looks.read(run.layout.inbox_looks, run.inbox.url)
    folders = folders_of(run.inbox)
    # Stamps and version are read before the contents: a later change differs from them at the next look.
    entries = run.inbox.entries(list(_manifest_keys(folders, before.drops)))
    version = run.catalog.version("batches")
    known = {f: before.drops[f] for f in folders if f in before.drops and _is_as_before(before.drops[f], f, entries)}
    if version != before.ledger:
        # Rows of the ledger may have been replaced or removed.
        latest = latest_arrivals(run.catalog) if known else {}
        known = {f: look for f, look in known.items() if f in latest and latest[f]["key"] == look.key}
    quiet = {folder: look for folder, look in known.items() if not look.is_due(now)}
    compared = compare_with_ledger(run, [folder for folder in folders if folder not in quiet])
    for folder, batch, ready in compared:
        entry = entries.get(batch.manifest_key)
        # A drop that must be ingested stays due, and so does a refused one, which has no manifest key.
        if ready is None and entry is not None:
            since = known[folder].since if folder in known else now
            quiet[folder] = Look(entry.key, entry.size, entry.stamp, batch.key, since, now)
    if compared or version != before.ledger or quiet.keys() != before.drops.keys():
        Looks(version, quiet).write(run.layout.inbox_looks, run.inbox.url)
    return [ready for _, _, ready in compared if ready]


def _manifest_keys(folders: list[Folder], looks: Mapping[Folder, Look]) -> Iterator[str]:
    """Yield the keys under which a drop's manifest may lie, up to the one that was read."""
    for folder in folders:
        look = looks.get(folder)
        for name in MANIFESTS:
            key = "/".join((*folder, name))
            yield key
            if look and look.manifest == key:
                break


def _is_as_before(look: Look, folder: Folder, entries: Mapping[str, Entry]) -> bool:
    """Return whether the drop's manifest is the same file, and none has come that precedes it."""
    first = next((key for name in MANIFESTS if (key := "/".join((*folder, name))) in entries), "")
    return first == look.manifest and (entries[first].size, entries[first].stamp) == (look.size, look.stamp)
