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
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mm_core.catalog import Catalog, CatalogMoved
from mm_core.data.data_docs import DataDocs
from mm_core.data.duplicates import LOOK_SIDE, glance
from mm_core.data.expectations import Judge
from mm_core.data.forget import erase, forgotten_among
from mm_core.data.guard import safely
from mm_core.data.images import load_rgb
from mm_core.data.inbox import ReadyBatch, arrived_batches, ready_batches
from mm_core.data.manifest import MAX_BYTES, Manifest, read_manifest
from mm_core.data.measured import PIECE, Finding, Measured
from mm_core.data.mix import Mix, catalog_mix, classes_of, mix_of
from mm_core.data.probe import Probe, Prober
from mm_core.data.verdicts import Decision, Known, decide, label_id, photos_of
from mm_core.data.writes import Progress, Writes, write_ledger
from mm_core.errors import BlobNotFound, BlobTooLarge, CatalogError, DropError, InputError, StoreError
from mm_core.faults import disk_faults_of
from mm_core.params import IngestParams
from mm_core.records import Report, sha256_file
from mm_core.store import Store, fetch_blob, remove_left_over

WORKERS = min(8, os.cpu_count() or 1)
"""Rows probed at once: bounds the decoded photos in memory."""
ATTEMPTS = 50


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
        if self.batch.refused:
            return self._write_ledger("held", self.batch.refused, 0)
        self.spool.mkdir(parents=True, exist_ok=True)
        remove_left_over(self.spool)
        with TemporaryDirectory(dir=self.spool) as spool:
            try:
                manifest = read_manifest(self._manifest(Path(spool)))
            except DropError as error:
                return self._write_ledger("held", str(error), 0)
            held = self._take(manifest, only, Path(spool)) if only is None or only else ""
            self._write_ledger("held" if held else "ingested", held, len(manifest))

    def _manifest(self, spool: Path) -> Path:
        """A copy of the manifest, which is read several times: the producer may replace the file in between."""
        try:
            source = self.inbox.fetch(self.batch.manifest_key, most=MAX_BYTES)
        except BlobTooLarge as error:
            raise DropError(f"{error}: split the drop") from None
        copy = Path(shutil.copyfile(source, spool / source.name))
        if sha256_file(copy) != self.batch.manifest_sha256:
            raise StoreError(f"{self.batch.uri}/{source.name} changed while it was read: run again")
        return copy

    def _write_ledger(self, state: str, reason: str, rows: int) -> None:
        write_ledger(self.catalog, self.batch, self.now, state, reason, rows)

    def _take(self, manifest: Manifest, only: frozenset[int] | None, spool: Path) -> str:
        """Everything up to the ledger; why the drop is held, or nothing."""
        # Downloads go with the batch: a cache of drops would grow with everything that ever arrived.
        inbox = self.inbox.apart(spool)
        prober = Prober(inbox, self.batch.manifest_key, self.batch.kind, self.params, spool)
        judge = Judge(self.params, self.batch.kind, self.batch.batch, self.docs)
        measured = Measured(spool)
        rows = (row for row in manifest if only is None or row.row in only)
        total = len(manifest) if only is None else len(only)
        self.progress(self.batch.name, 0, total)
        with ThreadPoolExecutor(WORKERS) as pool:
            while piece := list(islice(rows, PIECE)):
                probes = []
                for probe in pool.map(prober, piece):
                    probes.append(probe)
                    os.utime(spool)  # still in use, says its time to others who tidy up
                    self.progress(self.batch.name, len(measured) + len(probes), total)
                faults = judge.rows(probes, self._reviewed(probes))
                measured.add([Finding(row, p, faults.get(row.row)) for row, p in zip(piece, probes, strict=True)])
        return self._settle(prober, judge, measured, partial=only is not None)

    def _reviewed(self, probes: Sequence[Probe]) -> frozenset[int]:
        """Rows whose very matte a person has looked at and taken."""
        if self.batch.kind != "pixel_labeled":
            return frozenset()
        known = set(self.catalog.read("reviews", columns=["id"])["id"])
        return frozenset(p.row for p in probes if p.sha256 and label_id(p.sha256, p.alpha_sha256 or "") in known)

    def _settle(self, prober: Prober, judge: Judge, measured: Measured, *, partial: bool) -> str:
        """Verdicts and their writes, again where the catalog moved; why the drop is held, or nothing."""
        earlier = read_record(self.store, self.batch)
        fills = frozenset(earlier.get("fills", ()))
        glances = self._glances(prober, measured)
        near_bits = self.params.near_duplicate_bits
        writes = Writes(self.catalog, self.store, self.batch, prober, measured, self.now)
        held: str | None = None
        if partial:  # the rows that were good are not looked at again: the drop as a whole stays judged
            held = ""
            judge.results += [line for line in earlier.get("expectations", ()) if line["scope"] == "batch"]
        taken = mix_of(probe for _, probe, fault in measured if not fault)
        photos = photos_of(measured)
        for _ in range(ATTEMPTS):
            known = Known.read(self.catalog, photos, near_bits)
            decisions = decide(
                self.batch.kind, self.batch.batch, measured, known, glances, near_bits, filled_before=fills
            )
            if held is None:
                held = self._judge_whole(judge, measured, decisions)
            if held:
                decisions = [d if d.verdict == "quarantine" else replace(d, verdict="held") for d in decisions]
            self._write_record(judge, decisions, earlier["mix"] if partial and "mix" in earlier else taken)
            try:
                writes.accepted(decisions, known, self.progress)
            except CatalogMoved:
                # Perhaps by this very commit, whose answer was lost.
                fills |= {d.row for d in decisions if d.fills}
                continue
            if late := forgotten_among(self.catalog, known.photos) - known.forgotten:
                erase(self.catalog, self.store, late)
                continue
            writes.rejects(decisions, partial=partial)
            return held
        raise CatalogError(f"{self.batch.name}: the catalog moved {ATTEMPTS} times under it: run again")

    def _judge_whole(self, judge: Judge, measured: Measured, decisions: Sequence[Decision]) -> str:
        """Why the drop is held, in words; empty where it is not."""
        verdicts = (
            {
                "row": probe.row,
                "bad": int(fault is not None and not fault.suspect),
                "suspect": int(fault is not None and fault.suspect),
                "duplicate": int(decision.verdict == "duplicate"),
                "category": probe.category,
                "alpha_binary": probe.alpha_binary,
                **{f"{measure}_class": name for measure, name in (classes_of(probe) if not fault else {}).items()},
            }
            for (_, probe, fault), decision in zip(measured, decisions, strict=True)
        )
        broken = judge.whole(verdicts, catalog_mix(self.catalog, self.store, self.batch))
        reasons = Counter(d.reason for d in decisions if d.verdict == "quarantine")
        most = max(sorted(reasons), key=lambda reason: reasons[reason], default="")
        return f"{broken}: {reasons.total()} of {len(measured)}, most often {most!r}" if broken else ""

    def _glances(self, prober: Prober, measured: Measured) -> Callable[[str], np.ndarray]:
        name_of = {probe.sha256: probe.image for _, probe, _ in measured if probe.image_decodes}

        @lru_cache(maxsize=4096)
        def look(identity: str) -> np.ndarray:
            name = name_of.get(identity)
            path = prober.path_of(name) if name else fetch_blob(self.store, identity)
            return glance(safely(load_rgb, path, LOOK_SIDE))

        return look

    def _write_record(self, judge: Judge, decisions: Sequence[Decision], mix: Mix) -> None:
        """Said before it is done: an interrupted run can tell what it meant to fill from what was there."""
        record = {"expectations": judge.results, "fills": [d.row for d in decisions if d.fills], "mix": mix}
        self.store.put(self.batch.record_key, json.dumps(record, sort_keys=True).encode())
