"""What a decided batch leaves behind: blobs, labels, samples, refused rows with kept files, and its ledger row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from mm_core.catalog import Catalog
from mm_core.data.expectations import Fault
from mm_core.data.inbox import ReadyBatch, kept_matte
from mm_core.data.manifest import ManifestRow
from mm_core.data.measured import Measured
from mm_core.data.probe import Probe, Prober
from mm_core.data.verdicts import Decision, Known, label_id
from mm_core.store import Store, put_blob

WRITERS = 8
"""Blobs written at once: each waits for its disk or network most of the time."""
KEEP_BYTES = 32 << 20
"""Refused files up to this size are kept for people to look at."""
REFUSED = ("quarantine", "duplicate")
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
        total, done = sum(d.verdict == "accept" for d in decisions), 0
        verdicts = iter(decisions)
        with ThreadPoolExecutor(WRITERS) as pool:
            for piece in self.measured.pieces():
                decided = zip(piece, islice(verdicts, len(piece)), strict=True)
                accepted = [(row, probe, d, known) for (row, probe, _), d in decided if d.verdict == "accept"]
                for _ in pool.map(self._blobs, *zip(*accepted, strict=True)) if accepted else ():
                    done += 1
                    os.utime(self.prober.spool)  # still in use, says its time to others who tidy up
                    progress(f"{self.batch.name} store", done, total)
        self.catalog.add("labels", self._labels(decisions, known), at=known.labels_version)
        self.catalog.fill("samples", self._samples(decisions, known), ("caption", "category"), at=known.samples_version)

    def _accepted(self, decisions: Sequence[Decision]) -> Iterator[tuple[ManifestRow, Probe, Decision]]:
        for (row, probe, _), decision in zip(self.measured, decisions, strict=True):
            if decision.verdict == "accept":
                yield row, probe, decision

    def _blobs(self, row: ManifestRow, probe: Probe, decision: Decision, known: Known) -> None:
        if brings_label(probe, decision, known):
            put_blob(self.store, self.prober.alpha_copy(row.row), probe.alpha_sha256)
        if brings_sample(decision, known):
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
            if brings_sample(decision, known):
                yield {
                    "id": decision.sample_id,
                    "kind": self.batch.kind,
                    "batch": self.batch.batch,
                    "category": probe.category,
                    "caption": row.caption or None,
                    "group": decision.group or decision.sample_id,
                    "role": row.role,
                    "width": probe.width,
                    "height": probe.height,
                    "format": probe.format,
                    "phash": probe.phash,
                    "landmarks": bytes.fromhex(probe.landmarks or ""),
                    "near": list(decision.near) or None,
                    "source": row.source,
                    "license": row.license,
                    "taken_at": row.taken_at,
                    "name": row.image,
                    "accepted_at": self.now,
                }

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
    have = {label["alpha_sha256"] for label in known.labels.get(decision.sample_id, ())}
    return bool(decision.label_version) and probe.alpha_sha256 not in have


def brings_sample(decision: Decision, known: Known) -> bool:
    """Or fills one."""
    return decision.fills or decision.sample_id not in known.samples


def write_ledger(catalog: Catalog, batch: ReadyBatch, now: str, state: str, reason: str, rows: int) -> None:
    """The last write of a batch. Counts come from the rejects, so that a retry leaves them right too."""
    filters = [("kind", "=", batch.kind), ("batch", "=", batch.batch)]
    verdicts = catalog.read("rejects", columns=["verdict"], filters=filters)["verdict"].tolist() if rows else []
    quarantined, duplicates = verdicts.count("quarantine"), verdicts.count("duplicate")
    row = {
        "key": batch.key,
        "kind": batch.kind,
        "batch": batch.batch,
        "manifest_sha256": batch.manifest_sha256,
        "state": state,
        "reason": reason or None,
        "rows": rows,
        "accepted": 0 if state == "held" else rows - quarantined - duplicates,
        "quarantined": quarantined,
        "duplicates": duplicates,
        "uri": batch.uri,
        "ingested_at": now,
    }
    catalog.upsert("batches", [row])
