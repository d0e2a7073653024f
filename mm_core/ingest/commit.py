"""What a decided batch leaves behind: blobs, labels, samples, refused rows with kept files, and its ledger row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mm_core.core.records import digest_of
from mm_core.ingest.changes import Change, apply_changes
from mm_core.ingest.expectations import Fault
from mm_core.ingest.findings import Measured
from mm_core.ingest.inbox import ReadyBatch, kept_matte
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe, Prober
from mm_core.ingest.row_decisions import Decision, Known, label_id
from mm_core.ingest.statements import ALPHA, COLUMNS, word
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.store import Store, put_blob

WRITERS = 8
"""Blobs written at once: each waits for its disk or network most of the time."""
KEEP_BYTES = 32 << 20
"""Refused files up to this size are kept for people to look at."""
REFUSED = ("quarantine", "duplicate", "conflict")
SAID = ("verdict", "reason", "detail", "where")
"""What makes a refused row another one than that of an earlier run."""

Progress = Callable[[str, int, int], None]


class Writes:
    """The writes of one batch, each of which can be repeated to no effect."""

    def __init__(self, catalog: Catalog, store: Store, batch: ReadyBatch, prober: Prober, measured: Measured, now: str):
        self.catalog, self.store, self.batch, self.prober = catalog, store, batch, prober
        self.measured, self.now = measured, now

    def accepted(self, decisions: Sequence[Decision], known: Known, progress: Progress) -> None:
        """Blobs, then labels, then samples. Raises CatalogMoved where the verdicts are out of date.

        Raises StoreError for a file that is no longer the one that was measured.
        """
        total, done = sum(d.is_taken for d in decisions), 0
        verdicts = iter(decisions)
        with ThreadPoolExecutor(WRITERS) as pool:
            for piece in self.measured.pieces():
                decided = zip(piece, islice(verdicts, len(piece)), strict=True)
                accepted = [(row, probe, d, known) for (row, probe, _), d in decided if d.is_taken]
                for _ in pool.map(self._blobs, *zip(*accepted, strict=True)) if accepted else ():
                    done += 1
                    os.utime(self.prober.spool)  # still in use, says its time to others who tidy up
                    progress(f"{self.batch.name} store", done, total)
        # By upsert: a producer may go back to an earlier matte, whose row then counts as the newest version again.
        self.catalog.upsert("labels", self._labels(decisions, known), at=known.labels_version)
        self.catalog.upsert("samples", self._samples(decisions, known), columns=COLUMNS, at=known.samples_version)

    def _accepted(self, decisions: Sequence[Decision]) -> Iterator[tuple[ManifestRow, Probe, Decision]]:
        for (row, probe, _), decision in zip(self.measured, decisions, strict=True):
            if decision.is_taken:
                yield row, probe, decision

    def _blobs(self, row: ManifestRow, probe: Probe, decision: Decision, known: Known) -> None:
        if brings_label(probe, decision, known):
            put_blob(self.store, self.prober.alpha_copy(row.row), probe.alpha_sha256)
        if decision.sample_id not in known.samples:
            put_blob(self.store, self.prober.path_of(row.image), decision.sample_id)

    def _labels(self, decisions: Sequence[Decision], known: Known) -> Iterator[dict[str, Any]]:
        for _, probe, decision in self._accepted(decisions):
            if brings_label(probe, decision, known):
                assert probe.alpha_sha256
                yield {
                    "id": label_id(decision.sample_id, probe.alpha_sha256),
                    "sample_id": decision.sample_id,
                    "alpha_sha256": probe.alpha_sha256,
                    "version": decision.label_version,
                    "origin": "drop",
                    "batch": self.batch.batch,
                    "annotator": None,
                    "binary": probe.alpha_binary,
                    "created_at": self.now,
                }

    def _samples(self, decisions: Sequence[Decision], known: Known) -> Iterator[dict[str, Any]]:
        for row, probe, decision in self._accepted(decisions):
            sample, values = known.samples.get(decision.sample_id), decision.values
            if sample is not None:
                changes = [change for change in decision.changes if change.column != ALPHA]
                if any(sample[change.column] != change.new for change in changes):
                    yield apply_changes(sample, decision.changes)
                continue
            yield {
                "id": decision.sample_id,
                "kind": self.batch.kind,
                "batch": self.batch.batch,
                "category": values.get("category"),
                "caption": values.get("caption"),
                "group": decision.group or decision.sample_id,
                **{name: values.get(name, "") for name in ("role", "source", "license", "taken_at")},
                "width": probe.width,
                "height": probe.height,
                "format": probe.format,
                "phash": probe.phash,
                "landmarks": bytes.fromhex(probe.landmarks or ""),
                "near": list(decision.near) or None,
                "name": row.image,
                "accepted_at": self.now,
            }

    def corrections(self, decisions: Sequence[Decision], arrival: str) -> int:
        """Writes down what the updates changed; returns how many rows changed a photo."""
        updates = [(row, decision) for row, _, decision in self._accepted(decisions) if decision.changes]
        rows = (
            self._correction(arrival, decision.sample_id, change, row.row, row.image)
            for row, decision in updates
            for change in decision.changes
        )
        self.catalog.add("corrections", rows)
        return len(updates)

    def _correction(self, arrival: str, sample: str, change: Change, row: int, image: str) -> dict[str, Any]:
        return {
            "key": digest_of([arrival, sample, change.column, change.number]),
            "arrival": arrival,
            "sample_id": sample,
            "verdict": "update",
            "column": change.column,
            "old": change.old,
            "new": change.new,
            "origin": "drop",
            "kind": self.batch.kind,
            "batch": self.batch.batch,
            "row": row,
            "image": image,
            "stated_at": self.now,
        }

    def withdraw(self, gone: Mapping[str, str], holders: Mapping[str, str], arrival: str) -> None:
        """Withdraws the labels that this drop brought of photos that it no longer lists, and writes down that they are
        gone.

        `gone`: digest of the photo's id → digest of what its matte was (`Arrival.gone`). `holders`: digest of the
        photo's id → the batch of another drop that states the same matte; the label stays and becomes that drop's.
        """
        if not gone:
            return
        everyone = (i for piece in self.catalog.scan("samples", columns=["id"]) for i in piece["id"].to_pylist())
        ids = [i for i in everyone if word(i) in gone]
        labels: Any = self.catalog.read("labels", filters=[("sample_id", "in", ids)]).astype(object)
        names: Any = self.catalog.read("samples", columns=["id", "name"], filters=[("id", "in", ids)])
        why = f"no longer in the manifest of {self.batch.name}"
        name_of = dict(zip(names["id"], names["name"], strict=True))
        mine = [
            row
            for row in labels.where(labels.notna(), None).to_dict("records")
            if (row["origin"], row["batch"]) == ("drop", self.batch.batch)
            and word(row["alpha_sha256"]) == gone[word(row["sample_id"])]
        ]
        handed_over = [row for row in mine if word(row["sample_id"]) in holders]
        mine = [row for row in mine if word(row["sample_id"]) not in holders]
        withdrawn = {row["sample_id"]: row["alpha_sha256"] for row in mine}
        rows = [
            self._correction(arrival, i, Change("removed", withdrawn.get(i), "", 0), -1, name_of[i])
            | {"verdict": "removed", "column": ALPHA, "new": None, "row": None}
            for i in ids
        ]
        fresh = [row for row in mine if not row["withdrawn_at"]]
        self.catalog.upsert(
            "labels",
            [row | {"withdrawn_at": self.now, "withdrawn_why": why} for row in fresh]
            + [row | {"batch": holders[word(row["sample_id"])]} for row in handed_over],
        )
        self.catalog.add("corrections", rows)

    def rejects(self, decisions: Sequence[Decision], *, partial: bool) -> None:
        """Makes the batch's refused rows those decided now; rows of an older manifest of it go.

        `partial`: rows that were not looked at stay.
        """
        filters = [("kind", "=", self.batch.kind), ("batch", "=", self.batch.batch)]
        before = self.catalog.read("rejects", columns=["key", *SAID], filters=filters).fillna("")
        old = {key: words for key, *words in before.itertuples(index=False)}
        refused = {self.batch.reject_key(d.row) for d in decisions if d.verdict in REFUSED}
        looked_at = {self.batch.reject_key(d.row) for d in decisions} if partial else set(old)
        if gone := sorted(looked_at & set(old) - refused):
            self.catalog.delete("rejects", "key", gone)
        told = (self._reject(*one) for one in self._refused(decisions))
        self.catalog.upsert("rejects", (row for row in told if old.get(row["key"]) != [row[n] or "" for n in SAID]))

    def _refused(self, decisions: Sequence[Decision]) -> Iterator[tuple[ManifestRow, Probe, Decision]]:
        for (row, probe, _), decision in zip(self.measured, decisions, strict=True):
            if decision.verdict in REFUSED:
                yield row, probe, decision

    def _reject(self, row: ManifestRow, probe: Probe, decision: Decision) -> dict[str, Any]:
        """The row of the catalog; what it names is kept first."""
        where, key = None, self.batch.reject_key(row.row)
        suspect = Fault(decision.reason, "").suspect
        kept = 0 < (probe.image_bytes or 0) <= KEEP_BYTES or suspect
        if decision.verdict == "quarantine" and probe.sha256 and kept:
            where = f"quarantine/{probe.sha256}"
            if not self.store.exists(where):
                self.store.put(where, self.prober.path_of(row.image))
        if suspect:
            self.store.put(kept_matte(key), self.prober.alpha_copy(row.row))
        return {
            "key": key,
            "kind": self.batch.kind,
            "batch": self.batch.batch,
            "row": row.row,
            "image": row.image,
            "verdict": decision.verdict,
            "reason": decision.reason,
            "detail": decision.detail,
            "sample_id": decision.sample_id or None,
            "where": where,
            "rejected_at": self.now,
        }


def brings_label(probe: Probe, decision: Decision, known: Known) -> bool:
    """Whether the row's matte becomes the label that counts, for the first time or again."""
    is_there = any(
        (label["alpha_sha256"], label["version"]) == (probe.alpha_sha256, decision.label_version)
        and not label["withdrawn_at"]
        for label in known.labels.get(decision.sample_id, ())
    )
    return bool(decision.label_version) and not is_there


@dataclass(frozen=True)
class LedgerEntry:
    """What the ledger says of a drop's arrival, beside its counts."""

    state: str
    """ingested | held"""
    reason: str
    """Why it is held."""
    rows: int
    arrival: str
    statement: str | None = None
    files: str | None = None


def write_ledger(catalog: Catalog, batch: ReadyBatch, now: str, entry: LedgerEntry) -> None:
    """The last write of a batch. Counts come from the tables, so that a retry leaves them right too."""
    filters = [("kind", "=", batch.kind), ("batch", "=", batch.batch)]
    verdicts = catalog.read("rejects", columns=["verdict"], filters=filters)["verdict"].tolist() if entry.rows else []
    refused = [verdicts.count(verdict) for verdict in REFUSED]
    changed: list[Filter] = [("arrival", "=", entry.arrival), ("verdict", "=", "update")]
    row = {
        "key": batch.key,
        "kind": batch.kind,
        "batch": batch.batch,
        "manifest_sha256": batch.manifest_sha256,
        "state": entry.state,
        "reason": entry.reason or None,
        "rows": entry.rows,
        "accepted": 0 if entry.state == "held" else entry.rows - sum(refused),
        "updated": catalog.read("corrections", columns=["row"], filters=changed)["row"].nunique(),
        **dict(zip(("quarantined", "duplicates", "conflicts"), refused, strict=True)),
        "arrival": entry.arrival,
        "statement": entry.statement,
        "files": entry.files,
        "uri": batch.uri,
        "ingested_at": now,
    }
    catalog.upsert("batches", [row])
