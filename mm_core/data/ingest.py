"""Ingest: drops of the inbox become samples, labels and rejects of the catalog.

For each batch: manifest → probe → expectations → verdicts → blobs → labels → samples → rejects → ledger.
The ledger row comes last and is what makes a batch done; everything before it is repeated to no effect, so
a killed run is simply run again. Labels come before the samples that they are about, so that no snapshot
ever sees a labelled photo as an unlabelled one. Two workers may do the same batch, or batches that share
photos: verdicts hold for one catalog version, and are made again where it moved before the commit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mm_core.catalog import Catalog, CatalogMoved
from mm_core.data.duplicates import LOOK_SIDE, glance
from mm_core.data.expectations import DataDocs, Fault, Judge
from mm_core.data.forget import erase, forgotten_among
from mm_core.data.images import load_rgb
from mm_core.data.inbox import ReadyBatch, arrived_batches, kept_matte, ready_batches
from mm_core.data.manifest import ManifestRow, read_manifest
from mm_core.data.mix import Mix, catalog_mix, classes_of, mix_of
from mm_core.data.probe import Probe, Prober
from mm_core.data.verdicts import Decision, Known, decide, label_id
from mm_core.errors import BlobNotFound, CatalogError, DropError, InputError, StoreError
from mm_core.faults import disk_faults_of
from mm_core.params import IngestParams
from mm_core.records import Report
from mm_core.store import Store, fetch_blob, put_blob, remove_left_over

WORKERS = 2
"""Rows probed at once: bounds the decoded photos in memory."""
KEEP_BYTES = 32 << 20
"""Refused files up to this size are kept for people to look at."""
ATTEMPTS = 50

Progress = Callable[[str, int, int], None]


def ingest_ready(
    params: IngestParams,
    catalog: Catalog,
    store: Store,
    inbox: Store,
    report: Report,
    *,
    batch: str | None = None,
    data_docs: Path,
    spool: Path,
    progress: Progress,
) -> Report:
    """Takes every ready drop, or the one named `batch` or `kind/batch`; one that is done already is only reported.

    Fills `report`: metrics ingest/{batches,accepted,quarantined,duplicates}; tables `batches` (ledger rows),
    `rejects`, `expectations`; fact `data_docs`. Raises InputError for an unknown `batch`, StoreError and
    CatalogError where those fail; a drop that cannot be read is held with its reason and the others go on.
    """
    chosen = ready_batches(inbox, catalog)
    if batch is not None:
        chosen = [one for one in arrived_batches(inbox) if batch in (one.batch, one.name)]
        if not chosen:
            raise InputError(f"batch {batch!r}: no manifest at {inbox.url}/<kind>/{batch}: check --batch and --inbox")
    docs = DataDocs(data_docs)
    for one in chosen:
        with disk_faults_of(spool):
            Ingest(params, catalog, store, inbox, one, docs, spool, progress).run()
    with disk_faults_of(data_docs):
        docs.build()
    return describe(report, catalog, store, chosen, data_docs)


def describe(report: Report, catalog: Catalog, store: Store, batches: Sequence[ReadyBatch], data_docs: Path) -> Report:
    """Fills the report from what the catalog and the records say about these batches."""
    keys = [one.key for one in batches]
    ledger = catalog.read("batches", filters=[("key", "in", keys)]) if keys else catalog.read("batches", version=-1)
    report.tables["batches"] = ledger.fillna("").sort_values(["kind", "batch"]).to_dict("records")
    report.tables["rejects"], report.tables["expectations"] = [], []
    for one in batches:
        report.tables["rejects"] += rejects_of(catalog, one)
        report.tables["expectations"] += read_record(store, one).get("expectations", [])
    lines = report.tables["batches"]
    report.metrics |= {"ingest/batches": len(lines), "ingest/held": sum(line["state"] == "held" for line in lines)}
    for count in ("accepted", "quarantined", "duplicates"):
        report.metrics[f"ingest/{count}"] = sum(int(line[count]) for line in lines)
    report.facts["data_docs"] = str(data_docs / "index.html")
    return report


def rejects_of(catalog: Catalog, batch: ReadyBatch) -> list[dict[str, Any]]:
    """The refused rows of a batch, in the order of the manifest, as a report shows them."""
    filters = [("kind", "=", batch.kind), ("batch", "=", batch.batch)]
    columns = ["kind", "batch", "row", "image", "verdict", "reason", "detail"]
    frame = catalog.read("rejects", columns=columns, filters=filters)
    return frame.fillna("").sort_values("row").to_dict("records")


def read_record(store: Store, batch: ReadyBatch) -> dict[str, Any]:
    """What was found about a batch, empty before its first run: `expectations` (lines), `fills` (rows), `mix`."""
    try:
        return json.loads(store.fetch(batch.record_key).read_text())
    except BlobNotFound:
        return {}


class Ingest:
    """One batch on its way into the catalog."""

    def __init__(
        self,
        params: IngestParams,
        catalog: Catalog,
        store: Store,
        inbox: Store,
        batch: ReadyBatch,
        docs: DataDocs,
        spool: Path,
        progress: Progress,
    ):
        self.params, self.catalog, self.store, self.inbox = params, catalog, store, inbox
        self.batch, self.docs, self.spool, self.progress = batch, docs, spool, progress
        self.now = datetime.now(UTC).isoformat(timespec="seconds")

    def run(self, *, again: bool = False, only: frozenset[int] | None = None) -> None:
        """Does the batch unless the ledger holds it.

        `again`: whatever the ledger says; `only`: as `again`, these rows alone, which no longer can hold the drop.
        """
        again = again or only is not None
        if not again and len(self.catalog.read("batches", filters=[("key", "=", self.batch.key)])):
            return
        try:
            manifest = read_manifest(self.inbox.fetch(self.batch.manifest_key))
        except DropError as error:
            self._write_ledger("held", str(error), 0)
            return
        rows = [row for row in manifest if only is None or row.row in only]
        held = self._take(rows, partial=only is not None) if rows else ""
        self._write_ledger("held" if held else "ingested", held, len(manifest))

    def _take(self, rows: Sequence[ManifestRow], *, partial: bool) -> str:
        """Everything up to the ledger; why the drop is held, or nothing."""
        self.spool.mkdir(parents=True, exist_ok=True)
        remove_left_over(self.spool)
        with TemporaryDirectory(dir=self.spool) as spool:
            # Downloads go with the batch: a cache of drops would grow with everything that ever arrived.
            inbox = self.inbox.apart(Path(spool))
            prober = Prober(inbox, self.batch.manifest_key, self.batch.kind, self.params.max_pixels, Path(spool))
            probes = self._probe(prober, rows)
            judge = Judge(self.params, self.batch.kind, self.batch.batch, self.docs)
            faults = judge.rows(probes, self._reviewed(probes))
            return self._settle(prober, judge, rows, probes, faults, partial=partial)

    def _reviewed(self, probes: Sequence[Probe]) -> frozenset[int]:
        """Rows whose very matte a person has looked at and taken."""
        if self.batch.kind != "pixel_labeled":
            return frozenset()
        known = set(self.catalog.read("reviews", columns=["id"])["id"])
        return frozenset(p.row for p in probes if p.sha256 and label_id(p.sha256, p.alpha_sha256 or "") in known)

    def _probe(self, prober: Prober, rows: Sequence[ManifestRow]) -> list[Probe]:
        probes = []
        self.progress(self.batch.name, 0, len(rows))
        with ThreadPoolExecutor(WORKERS) as pool:
            for probe in pool.map(prober, rows):
                probes.append(probe)
                os.utime(prober.spool)  # still in use, says its time to others who tidy up
                self.progress(self.batch.name, len(probes), len(rows))
        return probes

    def _settle(
        self,
        prober: Prober,
        judge: Judge,
        rows: Sequence[ManifestRow],
        probes: Sequence[Probe],
        faults: dict[int, Fault],
        *,
        partial: bool,
    ) -> str:
        """Verdicts and their writes, again where the catalog moved; why the drop is held, or nothing."""
        earlier = read_record(self.store, self.batch)
        fills = frozenset(earlier.get("fills", ()))
        glances = self._glances(prober, probes)
        near_bits = self.params.near_duplicate_bits
        held: str | None = None
        if partial:  # the rows that were good are not looked at again: the drop as a whole stays judged
            held = ""
            judge.results += [line for line in earlier.get("expectations", ()) if line["scope"] == "batch"]
        taken = mix_of(probe for probe in probes if probe.row not in faults)
        for _ in range(ATTEMPTS):
            known = Known.read(self.catalog, probes, near_bits)
            decisions = decide(
                self.batch.kind, self.batch.batch, rows, probes, faults, known, glances, near_bits, filled_before=fills
            )
            if held is None:
                held = self._judge_whole(judge, probes, faults, decisions)
            if held:
                decisions = [d for d in decisions if d.verdict == "quarantine"]
            self._write_record(judge, decisions, earlier["mix"] if partial and "mix" in earlier else taken)
            try:
                accepted = [d for d in decisions if d.verdict == "accept"]
                self._write_accepted(prober, rows, probes, accepted, known)
            except CatalogMoved:
                # Perhaps by this very commit, whose answer was lost.
                fills |= {d.row for d in decisions if d.fills}
                continue
            if late := forgotten_among(self.catalog, known.photos) - known.forgotten:
                erase(self.catalog, self.store, late)
                continue
            self._write_rejects(prober, rows, probes, decisions, partial=partial)
            return held
        raise CatalogError(f"{self.batch.name}: the catalog moved {ATTEMPTS} times under it: run again")

    def _judge_whole(
        self, judge: Judge, probes: Sequence[Probe], faults: Mapping[int, Fault], decisions: Sequence[Decision]
    ) -> str:
        """Why the drop is held, in words; empty where it is not."""
        verdicts = []
        for probe, decision in zip(probes, decisions, strict=True):
            fault = faults.get(probe.row)
            classes = classes_of(probe) if fault is None else {}
            verdicts.append(
                {
                    "row": probe.row,
                    "bad": int(fault is not None and not fault.suspect),
                    "suspect": int(fault is not None and fault.suspect),
                    "duplicate": int(decision.verdict == "duplicate"),
                    "category": probe.category,
                    "alpha_binary": probe.alpha_binary,
                    **{f"{measure}_class": name for measure, name in classes.items()},
                }
            )
        broken = judge.whole(verdicts, catalog_mix(self.catalog, self.store, self.batch))
        reasons = [d.reason for d in decisions if d.verdict == "quarantine"]
        most = max(sorted(set(reasons)), key=reasons.count, default="")
        return f"{broken}: {len(reasons)} of {len(probes)}, most often {most!r}" if broken else ""

    def _glances(self, prober: Prober, probes: Sequence[Probe]) -> Callable[[str], np.ndarray]:
        name_of = {probe.sha256: probe.image for probe in probes if probe.image_decodes}

        @lru_cache(maxsize=4096)
        def look(identity: str) -> np.ndarray:
            name = name_of.get(identity)
            path = prober.path_of(name) if name else fetch_blob(self.store, identity)
            return glance(load_rgb(path, LOOK_SIDE))

        return look

    def _write_record(self, judge: Judge, decisions: Sequence[Decision], mix: Mix) -> None:
        """Said before it is done: an interrupted run can tell what it meant to fill from what was there."""
        record = {"expectations": judge.results, "fills": [d.row for d in decisions if d.fills], "mix": mix}
        self.store.put(self.batch.record_key, json.dumps(record, sort_keys=True).encode())

    def _write_accepted(
        self,
        prober: Prober,
        rows: Sequence[ManifestRow],
        probes: Sequence[Probe],
        accepted: Sequence[Decision],
        known: Known,
    ) -> None:
        """Blobs, then labels, then samples. Raises CatalogMoved where the verdicts are out of date."""
        row_of, probe_of = {row.row: row for row in rows}, {probe.row: probe for probe in probes}
        labels, samples = [], []
        for done, decision in enumerate(accepted):
            row, probe = row_of[decision.row], probe_of[decision.row]
            have = {label["alpha_sha256"] for label in known.labels.get(decision.sample_id, ())}
            if decision.label_version and probe.alpha_sha256 not in have:
                put_blob(self.store, prober.alpha_copy(row.row))
                labels.append(self._label(decision, probe))
            if decision.fills or decision.sample_id not in known.samples:
                if put_blob(self.store, prober.path_of(row.image)) != decision.sample_id:
                    raise StoreError(f"{self.batch.uri}/{row.image} changed while it was read: run again")
                samples.append(self._sample(decision, row, probe))
            self.progress(f"{self.batch.name} store", done + 1, len(accepted))
        if labels:
            self.catalog.add("labels", labels, at=known.labels_version)
        if samples:
            self.catalog.fill("samples", samples, ("caption", "category"), at=known.samples_version)

    def _label(self, decision: Decision, probe: Probe) -> dict[str, Any]:
        assert probe.alpha_sha256
        return {
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

    def _sample(self, decision: Decision, row: ManifestRow, probe: Probe) -> dict[str, Any]:
        return {
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

    def _write_rejects(
        self,
        prober: Prober,
        rows: Sequence[ManifestRow],
        probes: Sequence[Probe],
        decisions: Sequence[Decision],
        *,
        partial: bool,
    ) -> None:
        """Makes the batch's refused rows those decided now; rows of an older manifest of it go."""
        filters = [("kind", "=", self.batch.kind), ("batch", "=", self.batch.batch)]
        old = {row["key"]: row for row in self.catalog.read("rejects", filters=filters).to_dict("records")}
        row_of, probe_of = {row.row: row for row in rows}, {probe.row: probe for probe in probes}
        new = {}
        for decision in decisions:
            if decision.verdict != "accept":
                entry = self._reject(prober, row_of[decision.row], probe_of[decision.row], decision)
                new[entry["key"]] = entry
        looked_at = {self.batch.reject_key(row.row) for row in rows} if partial else set(old)
        if gone := sorted(looked_at & set(old) - set(new)):
            self.catalog.delete("rejects", "key", gone)
        said = ("verdict", "reason", "detail")
        changed = [row for k, row in new.items() if k not in old or any(old[k][name] != row[name] for name in said)]
        self.catalog.upsert("rejects", changed)

    def _reject(self, prober: Prober, row: ManifestRow, probe: Probe, decision: Decision) -> dict[str, Any]:
        where, key = None, self.batch.reject_key(row.row)
        suspect = Fault(decision.reason, "").suspect
        kept = 0 < (probe.image_bytes or 0) <= KEEP_BYTES or suspect
        if decision.verdict == "quarantine" and probe.image_found and kept:
            where = f"quarantine/{probe.sha256}"
            if not self.store.exists(where):
                self.store.put(where, prober.path_of(row.image))
        if suspect:
            self.store.put(kept_matte(key), prober.alpha_copy(row.row))
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

    def _write_ledger(self, state: str, reason: str, rows: int) -> None:
        """The last write of a batch. Counts come from the rejects, so that a retry leaves them right too."""
        verdicts = [reject["verdict"] for reject in rejects_of(self.catalog, self.batch)] if rows else []
        quarantined, duplicates = verdicts.count("quarantine"), verdicts.count("duplicate")
        row = {
            "key": self.batch.key,
            "kind": self.batch.kind,
            "batch": self.batch.batch,
            "manifest_sha256": self.batch.manifest_sha256,
            "state": state,
            "reason": reason or None,
            "rows": rows,
            "accepted": 0 if state == "held" else rows - quarantined - duplicates,
            "quarantined": quarantined,
            "duplicates": duplicates,
            "uri": self.batch.uri,
            "ingested_at": self.now,
        }
        self.catalog.upsert("batches", [row])
