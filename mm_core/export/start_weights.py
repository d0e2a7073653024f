"""Candidates that later cycles start from while there is no champion.

Before the first promotion, each cycle would train from the pretrained encoder again, and the work of the cycles before
would be lost. The gate therefore keeps a candidate that is better than the blind matte, with its provenance. The next
cycle with new photos starts from the newest of them. Nothing of it is registered, exported or served.

The records stay after the first promotion, because the champion's weights descend from them: `learnt_by` follows the
start weights to all photos that were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime

from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.pins import StartPin, news_of, read_snapshot
from mm_core.core.records import Verdict, parse_record
from mm_core.export.provenance import gather, read_provenance
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, put_blob

PREFIX = "gate/starts"
"""Key of the records in the store: one per candidate, named by the digest of its weights."""

FIELDS = ("digest", "provenance", "catalog", "snapshot", "when")
"""Fields of a record that are always there."""


def keep_start(run: StorageRun, verdict: Verdict) -> str | None:
    """Keep the judged candidate as start weights of later cycles; a repeated call changes nothing.

    Args:
        run: Params, workspace, storage and progress; the cycle's files must belong to the verdict.
        verdict: The recorded verdict about the candidate.

    Returns:
        None if the candidate was kept, otherwise the reason why it was not.
    """
    if verdict.champion or verdict.decision == "PROMOTE":
        return "later cycles start from the champion"
    if run.params.gate.beat_blind:
        blind = [cell for cell in verdict.cells if cell.against == "blind" and cell.reference is not None]
        if not blind:
            return "there was no comparison with the blind matte"
        # The mean over the categories decides: one category may be too hard for the first photos.
        if sum(cell.candidate for cell in blind) >= sum(cell.reference or 0.0 for cell in blind):
            return "it is not better than the blind matte"
    key = f"{PREFIX}/{verdict.candidate}.json"
    if not run.store.exists(key):
        provenance, frozen = gather(run, verdict), read_snapshot(run.layout)
        before = frozen.get("start")
        record: StartPin = {
            "digest": put_blob(run.store, run.layout.model(TRAIN_STAGES[-1])),
            "provenance": put_blob(run.store, json.dumps(provenance, sort_keys=True).encode()),
            "catalog": frozen["catalog"],
            "snapshot": frozen["digest"],
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "before": {**before, "before": None} if before else None,
        }
        # The record comes last, when everything that it names exists.
        run.store.put(key, json.dumps(record, sort_keys=True).encode())
    return None


def kept_starts(store: Store) -> list[StartPin]:
    """Return the records of all kept candidates, oldest first, including those that are no longer usable.

    Raises:
        InputError: A record is damaged.
    """
    records: list[StartPin] = []
    for key in [entry.key for entry in store.list(PREFIX) if entry.key.endswith(".json")]:
        content, where = store.fetch(key).read_bytes(), f"{store.url}/{key}"
        records.append(parse_record(content, StartPin, where, "restore it from a backup, or delete it", FIELDS))
    return sorted(records, key=lambda record: (record["when"], record["digest"]))


def newest_start(store: Store, catalog: dict[str, int]) -> StartPin | None:
    """Return the newest usable candidate of an earlier cycle, or None.

    A candidate of the same catalog versions does not count. A cycle that is repeated on the same photos therefore
    starts from the same weights and reuses its finished stages.
    """
    usable = [
        record
        for record in kept_starts(store)
        if news_of(record["catalog"]) != news_of(catalog) and not store.exists(_withdrawn(record["digest"]))
    ]
    return usable[-1] if usable else None


def withdraw_starts(store: Store, digests: Collection[str]) -> None:
    """Exclude candidates, and those that were trained from them, from the start of later cycles.

    It is called when a photo that they learnt from was forgotten.
    """
    withdrawn = set(digests)
    # Oldest first, so that each candidate comes after its own start weights.
    for record in kept_starts(store):
        if record["digest"] in withdrawn or read_provenance(store, record["provenance"])["start"] in withdrawn:
            withdrawn.add(record["digest"])
            store.put(_withdrawn(record["digest"]), b"")


def _withdrawn(digest: str) -> str:
    return f"{PREFIX}/{digest}.withdrawn"
