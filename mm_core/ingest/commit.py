"""Write a decided batch: blobs, labels, samples, refused rows with kept files, and the ledger row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from mm_core.core.progress import Progress
from mm_core.core.records import digest_of
from mm_core.ingest.changes import Change, History, apply_changes, cell, label_in_use
from mm_core.ingest.expectations import Fault
from mm_core.ingest.findings import Measured
from mm_core.ingest.inbox import ReadyBatch, kept_matte
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe, Prober
from mm_core.ingest.row_decisions import Decision, Known, label_id, read_history
from mm_core.ingest.statements import ALPHA, COLUMNS, OtherDrops, word
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.rows import CorrectionRow, LabelRow, NewLabelRow, RejectRow, SampleRow, records
from mm_core.storage.store import Store, put_blob

WRITERS = 8
"""Blobs written in parallel; each write waits for disk or network most of the time."""
KEEP_BYTES = 32 << 20
"""Largest refused file, in bytes, that is kept for review."""
REFUSED = ("quarantine", "duplicate", "conflict")
SAID = ("verdict", "reason", "detail", "where")
"""Columns that are compared with an earlier run; a refused row is written again if one differs."""


class Writes:
    """The writes of one batch; each can be repeated without effect."""

    def __init__(
        self, catalog: Catalog, store: Store, batch: ReadyBatch, prober: Prober, measured: Measured, now: str
    ) -> None:
        self.catalog, self.store, self.batch, self.prober = catalog, store, batch, prober
        self.measured, self.now = measured, now

    def accepted(self, decisions: Sequence[Decision], known: Known, progress: Progress) -> None:
        """Write the accepted rows: first blobs, then labels, then samples.

        Args:
            decisions: One decision per row, in the order of the rows.
            known: The part of the catalog on which the decisions are based.
            progress: Called with a title, the number of rows done and the total.

        Raises:
            CatalogMoved: The catalog changed after the decisions.
            StoreError: A file has changed since it was measured.
        """
        total, done = sum(d.is_taken for d in decisions), 0
        verdicts = iter(decisions)
        # Write the blobs first: a row must never refer to a missing blob.
        with ThreadPoolExecutor(WRITERS) as pool:
            for piece in self.measured.pieces():
                # Findings are read from disk piece by piece. Take the decisions in the same pieces.
                decided = zip(piece, islice(verdicts, len(piece)), strict=True)
                accepted = [(row, probe, d, known) for (row, probe, _), d in decided if d.is_taken]
                for _ in pool.map(self._blobs, *zip(*accepted, strict=True)) if accepted else ():
                    done += 1
                    os.utime(self.prober.spool)  # a fresh time stamp protects the folder from clean-up
                    progress(f"{self.batch.name} store", done, total)
        # Upsert instead of add: a producer may restore an earlier matte. Its row then becomes the newest version.
        self.catalog.upsert("labels", self._labels(decisions, known), at=known.labels_version)
        self.catalog.upsert("samples", self._samples(decisions, known), columns=COLUMNS, at=known.samples_version)

    def _accepted(self, decisions: Sequence[Decision]) -> Iterator[tuple[ManifestRow, Probe, Decision]]:
        for (row, probe, _), decision in zip(self.measured, decisions, strict=True):
            if decision.is_taken:
                yield row, probe, decision

    def _blobs(self, row: ManifestRow, probe: Probe, decision: Decision, known: Known) -> None:
        if brings_label(probe, decision, known):
            put_blob(self.store, self.prober.alpha_copy(row.row), probe.alpha_sha256)
        # The photo of an update is in the store already.
        if decision.sample_id not in known.samples:
            put_blob(self.store, self.prober.path_of(row.image), decision.sample_id)

    def _labels(self, decisions: Sequence[Decision], known: Known) -> Iterator[NewLabelRow]:
        for _, probe, decision in self._accepted(decisions):
            if brings_label(probe, decision, known):
                assert probe.alpha_sha256
                # A label that counts again at its old version keeps the time of its first statement.
                earlier = known.labels.get(decision.sample_id, ())
                times = {(label["alpha_sha256"], label["version"]): label["created_at"] for label in earlier}
                yield {
                    "id": label_id(decision.sample_id, probe.alpha_sha256),
                    "sample_id": decision.sample_id,
                    "alpha_sha256": probe.alpha_sha256,
                    "version": decision.label_version,
                    "origin": "drop",
                    "batch": self.batch.batch,
                    "annotator": None,
                    "binary": probe.alpha_binary,
                    "created_at": times.get((probe.alpha_sha256, decision.label_version), self.now),
                }

    def _samples(self, decisions: Sequence[Decision], known: Known) -> Iterator[Mapping[str, object]]:
        for row, probe, decision in self._accepted(decisions):
            sample, values = known.samples.get(decision.sample_id), decision.values
            if sample is not None:
                changes = [change for change in decision.changes if change.column != ALPHA]
                # An interrupted run may have applied the changes already. Write only real differences.
                if any(cell(sample, change.column) != change.new for change in changes):
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
        """Record the changes of all updates.

        Args:
            decisions: One decision per row, in the order of the rows.
            arrival: Id of the arrival.

        Returns:
            The number of rows that changed a photo.
        """
        updates = [(row, decision) for row, _, decision in self._accepted(decisions) if decision.changes]
        rows = (
            self._correction(arrival, decision.sample_id, change, row.row, row.image)
            for row, decision in updates
            for change in decision.changes
        )
        self.catalog.add("corrections", rows)
        return len(updates)

    def _correction(self, arrival: str, sample: str, change: Change, row: int, image: str) -> CorrectionRow:
        return {
            # The same change of the same arrival has the same key, so a repeated run adds no second row.
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

    def withdraw(self, gone: Mapping[str, str], others: OtherDrops, arrival: str) -> None:
        """Withdraw this drop's statements about photos that it no longer lists, and record the removal.

        Args:
            gone: Digest of the photo's id → digest of its last matte (`Arrival.gone`).
            others: What other drops state about these photos. A label with the matte of another drop is kept and
                assigned to that drop.
            arrival: Id of the arrival.
        """
        holders = others.holders
        if not gone:
            return
        # Statements hold digests of ids only. Find the ids by hashing every id of the catalog.
        everyone = (i for piece in self.catalog.scan("samples", columns=["id"]) for i in piece["id"].to_pylist())
        ids = [i for i in everyone if word(i) in gone]
        labels = records(self.catalog.read("labels", filters=[("sample_id", "in", ids)]), LabelRow)
        samples = records(
            self.catalog.read(
                "samples", columns=["id", "kind", "batch", "name", *COLUMNS], filters=[("id", "in", ids)]
            ),
            SampleRow,
        )
        history = read_history(self.catalog, ids)
        why = f"no longer in the manifest of {self.batch.name}"
        name_of = {row["id"]: row.get("name") or "" for row in samples}
        mine = [
            row
            # Keep the labels of this drop with the matte of its last statement.
            for row in labels
            if (row["origin"], row["batch"]) == ("drop", self.batch.batch)
            and word(row["alpha_sha256"]) == gone[word(row["sample_id"])]
        ]
        # A label that another drop also states is not withdrawn.
        handed_over = [row for row in mine if word(row["sample_id"]) in holders]
        mine = [row for row in mine if word(row["sample_id"]) not in holders]
        again = [found for row in handed_over if (found := self._counted_before(row, labels, history))]
        withdrawn = {row["sample_id"]: row["alpha_sha256"] for row in mine}
        rows = [
            CorrectionRow(
                {
                    **self._correction(arrival, i, Change("removed", withdrawn.get(i), "", 0), -1, name_of[i]),
                    "verdict": "removed",
                    "column": ALPHA,
                    "new": None,
                    "row": None,
                }
            )
            for i in ids
        ]
        # A repeated run keeps the first time and reason of a withdrawal.
        fresh = [row for row in mine if not row["withdrawn_at"]]
        self.catalog.upsert(
            "labels",
            [LabelRow({**row, "withdrawn_at": self.now, "withdrawn_why": why}) for row in fresh]
            + [LabelRow({**row, "batch": holders[word(row["sample_id"])]}) for row in handed_over]
            + again,
        )
        self.catalog.add("corrections", rows)
        self._restore(samples, history, others, arrival)

    def _counted_before(self, label: LabelRow, labels: Sequence[LabelRow], history: History) -> LabelRow | None:
        """Return the label that this drop's label replaced, as the photo's newest version.

        None if this drop's label is not in use, or if the one before was withdrawn.
        """
        in_force = [row for row in labels if row["sample_id"] == label["sample_id"] and not row["withdrawn_at"]]
        if label_in_use(in_force) != label:
            return None
        changes = history.get((label["sample_id"], ALPHA), [])
        replaced = next((change["old"] for change in reversed(changes) if self._is_ours(change)), None)
        found = next((row for row in in_force if row["alpha_sha256"] == replaced), None)
        return LabelRow({**found, "version": int(label["version"]) + 1}) if found else None

    def _restore(self, samples: Sequence[SampleRow], history: History, others: OtherDrops, arrival: str) -> None:
        """Give photos back the values that they had before this drop changed them.

        A value stays if a person or another drop has stated it since. Photos that this drop brought keep their values.
        """
        corrections, restored = [], []
        for sample in samples:
            if (sample.get("kind"), sample.get("batch")) == (self.batch.kind, self.batch.batch):
                continue
            undone = (self._undone(sample, column, history, arrival) for column in COLUMNS)
            changes = [
                change
                for change in undone
                if change and not others.states(sample["id"], change.column, change.old or "")
            ]
            corrections += [
                CorrectionRow(
                    {
                        **self._correction(arrival, sample["id"], change, -1, sample.get("name") or ""),
                        "verdict": "removed",
                        "row": None,
                    }
                )
                for change in changes
            ]
            if changes:
                restored.append(apply_changes(sample, changes))
        # The record comes first: without it a repeated run could not tell what was restored.
        self.catalog.add("corrections", corrections)
        self.catalog.upsert("samples", restored, columns=COLUMNS)

    def _undone(self, sample: SampleRow, column: str, history: History, arrival: str) -> Change | None:
        """Return the change of a column back to its value before this drop; None if this drop did not change it."""
        changes, value = list(history.get((sample["id"], column), ())), cell(sample, column)
        # A run that was killed may have recorded this change already.
        if changes and (changes[-1]["verdict"], changes[-1].get("arrival")) == ("removed", arrival):
            value = changes.pop()["old"]
        number, before = len(changes), value
        # The newest changes come last.
        while changes and self._is_ours(changes[-1]) and changes[-1]["new"] == before:
            before = changes.pop()["old"]
        return Change(column, value, before or "", number) if before != value else None

    def _is_ours(self, row: CorrectionRow) -> bool:
        drop = ("drop", self.batch.kind, self.batch.batch)
        return row["verdict"] == "update" and (row["origin"], row["kind"], row["batch"]) == drop

    def rejects(self, decisions: Sequence[Decision], *, partial: bool) -> None:
        """Replace the refused rows of the batch, also those of its older manifests, with the current ones.

        Args:
            decisions: One decision per measured row.
            partial: Whether only some rows were measured. The other rows are then kept.
        """
        filters = [("kind", "=", self.batch.kind), ("batch", "=", self.batch.batch)]
        # Unchanged rows are not written again, so that their time stays the same.
        before = self.catalog.read("rejects", columns=["key", *SAID], filters=filters).fillna("")
        old = {key: words for key, *words in before.itertuples(index=False)}
        refused = {self.batch.reject_key(d.row) for d in decisions if d.verdict in REFUSED}
        # A partial run must not delete rows that it did not measure.
        looked_at = {self.batch.reject_key(d.row) for d in decisions} if partial else set(old)
        if gone := sorted(looked_at & set(old) - refused):
            self.catalog.delete("rejects", "key", gone)
        told = (self._reject(*one) for one in self._refused(decisions))
        self.catalog.upsert("rejects", (row for row in told if old.get(row["key"]) != [row[n] or "" for n in SAID]))

    def _refused(self, decisions: Sequence[Decision]) -> Iterator[tuple[ManifestRow, Probe, Decision]]:
        for (row, probe, _), decision in zip(self.measured, decisions, strict=True):
            if decision.verdict in REFUSED:
                yield row, probe, decision

    def _reject(self, row: ManifestRow, probe: Probe, decision: Decision) -> RejectRow:
        """Store the files of a refused row, then return its catalog row."""
        where, key = None, self.batch.reject_key(row.row)
        suspect = Fault(decision.reason, "").suspect
        kept = 0 < (probe.image_bytes or 0) <= KEEP_BYTES or suspect
        # A suspect photo is kept at any size, because a person must be able to review it.
        if decision.verdict == "quarantine" and probe.sha256 and kept:
            where = f"quarantine/{probe.sha256}"
            # Several rows may have the same refused file. It is stored once per digest.
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
    """Return whether the row's matte becomes the newest label, for the first time or again.

    Args:
        probe: Measures of the row.
        decision: Decision about the row.
        known: The part of the catalog on which the decision is based.
    """
    is_there = any(
        (label["alpha_sha256"], label["version"]) == (probe.alpha_sha256, decision.label_version)
        and not label["withdrawn_at"]
        for label in known.labels.get(decision.sample_id, ())
    )
    return bool(decision.label_version) and not is_there


@dataclass(frozen=True)
class LedgerEntry:
    """The ledger row of an arrival, without its counts."""

    state: str
    """ingested | held"""
    reason: str
    """The reason for a held drop; empty for an ingested one."""
    rows: int
    arrival: str
    statement: str | None = None
    files: str | None = None


def write_ledger(catalog: Catalog, batch: ReadyBatch, now: str, entry: LedgerEntry) -> None:
    """Write the ledger row, the last write of a batch.

    The counts are computed from the tables, so that they are also correct after a retry.

    Args:
        catalog: The catalog.
        batch: The drop.
        now: Time of the run, ISO 8601 in UTC.
        entry: The values besides the counts.
    """
    filters = [("kind", "=", batch.kind), ("batch", "=", batch.batch)]
    # An unread drop has no rows to count.
    verdicts = catalog.read("rejects", columns=["verdict"], filters=filters)["verdict"].tolist() if entry.rows else []
    refused = [verdicts.count(verdict) for verdict in REFUSED]
    # A partial run changes rows in several runs. The arrival's table rows give the total.
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
