"""Ingest drops of the inbox as samples, labels and rejects of the catalog.

For each batch: manifest → probe → expectations → decisions → blobs → labels → samples → rejects → ledger.
The ledger row is written last and marks the batch as done. All earlier writes can be repeated without effect, so a
killed run is started again. Labels are written before their samples, so that no snapshot sees a labelled photo as
unlabelled. Two workers may process the same batch, or batches with common photos. Decisions are valid for one catalog
version and are repeated if the version changes before the commit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from mm_core.core.errors import BlobNotFound, BlobTooLarge, CatalogError, DropError, DropMoved, InputError, StoreError
from mm_core.core.records import Report, digest_of, parse_record, sha256_file
from mm_core.imaging.images import load_rgb
from mm_core.imaging.near_duplicates import LOOK_SIDE, glance
from mm_core.ingest.batch_mix import Mix, catalog_mix, classes_of, mix_of
from mm_core.ingest.changes import Change
from mm_core.ingest.commit import LedgerEntry, Writes, write_ledger
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.decode_sandbox import safely
from mm_core.ingest.erasure import erase, forgotten_among
from mm_core.ingest.expectations import BatchRecord, Judge
from mm_core.ingest.findings import PIECE, Finding, Measured
from mm_core.ingest.inbox import (
    ReadyBatch,
    Unread,
    latest_arrivals,
    named_batches,
    ready_batches,
    unread_folders,
    unread_parts,
)
from mm_core.ingest.manifest import MAX_BYTES, Manifest, read_manifest
from mm_core.ingest.probe import Probe, Prober
from mm_core.ingest.row_decisions import NEAR_DUPLICATE, Decision, Known, decide, label_id, photos_of
from mm_core.ingest.statements import ALPHA, Arrival, Listing, OtherDrops, SaidRow, Statement, stated, word
from mm_core.storage.catalog import Catalog, CatalogMoved
from mm_core.storage.local_files import remove_left_over
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.rows import BatchRow, CorrectionRow, RejectRow
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, fetch_blob

WORKERS = min(8, os.cpu_count() or 1)
"""Rows probed in parallel; the number bounds the decoded photos in memory."""
ATTEMPTS = 50
"""Largest number of decisions about one batch while other workers change the catalog."""


def ingest_ready(run: StorageRun, report: Report, *, batch: str | None = None) -> Report:
    """Ingest every ready drop, or one named drop; a drop that is already ingested is only reported.

    A drop that cannot be read is held with its reason. The other drops are still ingested.

    Args:
        run: Params, workspace, storage and progress.
        report: The report to fill.
        batch: Name of one drop, as `batch` or `kind/batch`; None for all ready drops.

    Returns:
        `report` with the metrics ingest/{batches,held,accepted,updated,quarantined,duplicates,conflicts}; the tables
        `batches` (ledger rows), `rejects`, `updates` (old and new values), `removed` (photos that a corrected manifest
        no longer lists), `expectations`, `vanished` (drops that were moved during the run) and `unread` (folders of the
        inbox, columns and pictures that are not used); the fact `data_docs`.

    Raises:
        InputError: `batch` is unknown.
        StoreError: The store or the inbox fails.
        CatalogError: The catalog fails.
    """
    layout, chosen = run.layout, ready_batches(run)
    unread = list(unread_folders(run, chosen))
    if batch is not None:
        chosen = named_batches(run.inbox, batch)
        if not chosen:
            raise InputError(
                f"batch {batch!r}: no manifest at {run.inbox.url}/<kind>/{batch}: check --batch and --inbox"
            )
    docs = DataDocs(layout.data_docs)
    vanished = []
    for one in chosen:
        try:
            with disk_faults_of(layout.spool):
                work = Ingest(run, one, docs)
                work.run()
                unread += work.unread
        except StoreError as error:
            # A drop that a producer moved or changed is not an error of the store. Report it and continue.
            if not isinstance(error, DropMoved) and is_as_it_arrived(run.inbox, one):
                raise
            vanished.append({"kind": one.kind, "batch": one.batch, "reason": str(error)})
    with disk_faults_of(layout.data_docs):
        docs.build()
    describe(report, run, chosen)
    report.tables |= {"vanished": vanished, "unread": unread}
    return report


def describe(report: Report, run: StorageRun, batches: Sequence[ReadyBatch]) -> Report:
    """Fill the report from the catalog and the records of these batches, and return it."""
    catalog, keys = run.catalog, [one.key for one in batches]
    # Version -1 reads the empty table with its columns.
    ledger = catalog.read("batches", filters=[("key", "in", keys)]) if keys else catalog.read("batches", version=-1)
    lines = cast(list[BatchRow], ledger.fillna("").sort_values(["kind", "batch"]).to_dict("records"))
    report.tables["batches"] = lines
    report.tables["rejects"] = [row for one in batches for row in rejects_of(catalog, one)]
    results = (read_record(run.store, one).get("expectations", []) for one in batches)
    report.tables["expectations"] = [result for listed in results for result in listed]
    changes = corrections_of(catalog, [line["arrival"] for line in lines])
    report.tables["updates"] = [row for row in changes if row["verdict"] == "update"]
    report.tables["removed"] = [row for row in changes if row["verdict"] == "removed"]
    report.metrics |= {"ingest/batches": len(lines), "ingest/held": sum(line["state"] == "held" for line in lines)}
    for count in ("accepted", "updated", "quarantined", "duplicates", "conflicts"):
        report.metrics[f"ingest/{count}"] = int(np.sum(ledger[count].fillna(0).to_numpy()))
    report.facts["data_docs"] = str(run.layout.data_docs / "index.html")
    return report


def corrections_of(catalog: Catalog, arrivals: Iterable[str | None]) -> list[CorrectionRow]:
    """Return the changes of known photos by these arrivals, in the order of their rows, without nulls."""
    columns = ["kind", "batch", "row", "image", "verdict", "column", "old", "new", "sample_id"]
    named = sorted(filter(None, arrivals))
    frame = catalog.read("corrections", columns=columns, filters=[("arrival", "in", named)])
    ordered = frame.sort_values(["kind", "batch", "row", "image", "column"]).astype(object)
    return cast(list[CorrectionRow], ordered.where(ordered.notna(), "").to_dict("records"))


def rejects_of(catalog: Catalog, batch: ReadyBatch) -> list[RejectRow]:
    """Return the refused rows of a batch in the order of the manifest, without nulls."""
    filters = [("kind", "=", batch.kind), ("batch", "=", batch.batch)]
    columns = ["kind", "batch", "row", "image", "verdict", "reason", "detail"]
    frame = catalog.read("rejects", columns=columns, filters=filters)
    return cast(list[RejectRow], frame.fillna("").sort_values("row").to_dict("records"))


def read_record(store: Store, batch: ReadyBatch) -> BatchRecord:
    """Return the record of a batch, empty before its first run.

    Args:
        store: The store with the records.
        batch: The drop.
    """
    try:
        content, where = store.fetch(batch.record_key).read_bytes(), f"{store.url}/{batch.record_key}"
        return parse_record(content, BatchRecord, where, "restore it from a backup, or delete it")
    except BlobNotFound:
        return {}


class Ingest:
    """The ingest of one batch."""

    def __init__(self, run: StorageRun, batch: ReadyBatch, docs: DataDocs) -> None:
        self.params, self.catalog, self.store, self.inbox = run.params.ingest, run.catalog, run.store, run.inbox
        self.batch, self.docs, self.spool, self.progress = batch, docs, run.layout.spool, run.progress
        self.unread: list[Unread] = []
        """Columns and pictures of the drop that are not used, after `run`."""
        self.now = _now()

    def run(self, *, again: bool = False, only: frozenset[int] | None = None) -> None:
        """Ingest the batch unless the ledger already holds it in its current state.

        Rows with replaced files are always measured again.

        Args:
            again: Ingest the batch even if the ledger holds it.
            only: Ingest only these rows, even if the ledger holds the batch. They cannot cause the drop to be held.

        Raises:
            DropMoved: The drop was removed or changed during the run.
        """
        if self.batch.refused:
            return self._hold_unread(again)
        arrival, before = self._arrival()
        if before and not again:
            replaced = frozenset()
            if before["statement"] and arrival.listing.digest != before["files"]:
                replaced = arrival.seen.replaced(arrival.listing)
            if only is None and not replaced:
                return
            # A held manifest has no accepted rows, so it is measured as a whole.
            only = (only or frozenset()) | replaced if before["state"] == "ingested" else None
        self.spool.mkdir(parents=True, exist_ok=True)
        # Killed runs leave temporary folders.
        remove_left_over(self.spool)
        with TemporaryDirectory(dir=self.spool) as spool:
            try:
                manifest = read_manifest(self._manifest(Path(spool)))
            except DropError as error:
                return write_ledger(self.catalog, self.batch, self.now, LedgerEntry("held", str(error), 0, arrival.id))
            if only is None:
                self.unread = unread_parts(self.batch, manifest, arrival.listing)
            held, after = "", arrival.seen
            if only is None or only:
                held, after = self._take(manifest, only, Path(spool), arrival)
            # The statement is stored before the ledger row that names it.
            entry = LedgerEntry("held" if held else "ingested", held, len(manifest), arrival.id)
            entry = replace(entry, statement=after.write(self.store), files=arrival.listing.digest)
            write_ledger(self.catalog, self.batch, self.now, entry)

    def _hold_unread(self, again: bool) -> None:
        """Record a drop with an unsafe name or with two manifests as held without reading its files."""
        last = latest_arrivals(self.catalog).get((self.batch.kind, self.batch.batch))
        if again or last is None or last["key"] != self.batch.key:
            entry = LedgerEntry("held", self.batch.refused, 0, self.batch.key)
            write_ledger(self.catalog, self.batch, self.now, entry)

    def _arrival(self) -> tuple[Arrival, BatchRow | None]:
        """Return the current arrival, and the ledger's row if its last manifest of this drop is the same one."""
        name = (self.batch.kind, self.batch.batch)
        last = latest_arrivals(self.catalog).get(name)
        counts = latest_arrivals(self.catalog, "ingested").get(name)
        seen, said = (Statement.read(self.store, row["statement"] if row else None) for row in (last, counts))
        listing = Listing.read(self.inbox, self.batch)
        if last and last["key"] == self.batch.key:
            return Arrival(last["arrival"] or self.batch.key, listing, seen, said), last
        # The id includes the previous arrival: a restored earlier manifest is a new arrival.
        return Arrival(digest_of([self.batch.key, last["arrival"] if last else None]), listing, seen, said), None

    def _manifest(self, spool: Path) -> Path:
        """Return a copy of the manifest.

        It is read several times, and the producer may replace the file during the run.

        Raises:
            DropError: The manifest is too large or not readable.
            DropMoved: It was removed or changed since the inbox was listed.
        """
        try:
            source = self.inbox.fetch(self.batch.manifest_key, most=MAX_BYTES)
            copy = Path(shutil.copyfile(source, spool / source.name))
        except BlobTooLarge as error:
            raise DropError(f"{error}: split the drop") from None
        except (BlobNotFound, FileNotFoundError):
            raise DropMoved(f"{self.batch.uri} left the inbox while it was read: put it there again") from None
        except PermissionError as error:
            raise DropError(f"{source.name} cannot be read: {error.strerror}: change its rights") from None
        # The digest was taken when the drop was found complete; a later change starts again.
        if sha256_file(copy) != self.batch.manifest_sha256:
            raise DropMoved(f"{self.batch.uri}/{source.name} changed while it was read: run again")
        return copy

    def _take(
        self, manifest: Manifest, only: frozenset[int] | None, spool: Path, arrival: Arrival
    ) -> tuple[str, Statement]:
        """Process the batch up to the ledger row.

        Returns:
            The reason for holding the drop ("" if it is not held), and its new statement.
        """
        while True:
            prober, judge, measured = self._measure(manifest, only, spool)
            # A replaced file may now be the photo of another row. Rows of one photo are decided together.
            photos = {word(probe.sha256) for _, probe, _ in measured if probe.sha256}
            more = arrival.seen.rows_of(photos) - only if only is not None else frozenset()
            if only is None or not more:
                break
            only |= more
        # Files of a removed drop look missing. Do not record them as rejects.
        if not self.inbox.exists(self.batch.manifest_key):
            raise DropMoved(f"{self.batch.uri} left the inbox while it was read: put it there again")
        return self._settle(prober, judge, measured, arrival, partial=only is not None)

    def _measure(self, manifest: Manifest, only: frozenset[int] | None, spool: Path) -> tuple[Prober, Judge, Measured]:
        """Measure and judge the rows, or some of them."""
        # Delete the downloads with the batch. A permanent cache would grow with every drop.
        inbox = self.inbox.apart(spool)
        prober = Prober(inbox, self.batch.manifest_key, self.batch.kind, self.params, spool)
        judge = Judge(self.params, self.batch.kind, self.batch.batch, self.docs)
        measured = Measured(spool)
        rows = (row for row in manifest if only is None or row.row in only)
        total = len(manifest) if only is None else len(only)
        self.progress(self.batch.name, 0, total)
        with ThreadPoolExecutor(WORKERS) as pool:
            # Measure and validate in pieces, so that memory does not grow with the drop.
            while piece := list(islice(rows, PIECE)):
                probes = []
                for probe in pool.map(prober, piece):
                    probes.append(probe)
                    os.utime(spool)  # a fresh time stamp protects the folder from clean-up
                    self.progress(self.batch.name, len(measured) + len(probes), total)
                faults = judge.rows(probes, self._reviewed(probes))
                measured.add([Finding(row, p, faults.get(row.row)) for row, p in zip(piece, probes, strict=True)])
        return prober, judge, measured

    def _reviewed(self, probes: Sequence[Probe]) -> frozenset[int]:
        """Return the rows with exactly a matte that a person has reviewed and accepted."""
        if self.batch.kind != "pixel_labeled":
            return frozenset()
        known = set(self.catalog.read("reviews", columns=["id"])["id"])
        return frozenset(p.row for p in probes if p.sha256 and label_id(p.sha256, p.alpha_sha256 or "") in known)

    def _settle(
        self, prober: Prober, judge: Judge, measured: Measured, arrival: Arrival, *, partial: bool
    ) -> tuple[str, Statement]:
        """Decide the rows and write the result; repeat if the catalog has changed.

        Returns:
            The reason for holding the drop ("" if it is not held), and its new statement.
        """
        earlier = read_record(self.store, self.batch)
        meant = _meant(earlier, arrival)
        glances = self._glances(prober, measured)
        near_bits = self.params.near_duplicate_bits
        held: str | None = None
        if partial:  # keep the earlier results about the whole drop, because only some rows are measured now
            held = ""
            judge.results += [line for line in earlier.get("expectations", ()) if line["scope"] == "batch"]
        taken = mix_of(probe for _, probe, fault in measured if not fault)
        mix = earlier["mix"] if partial and "mix" in earlier else taken
        # The photos of the drop are fixed. Only the catalog changes between the attempts.
        photos = photos_of(measured)
        # Optimistic concurrency: decide on one catalog version, and decide again if the commit finds another.
        for _ in range(ATTEMPTS):
            known = Known.read(self.catalog, photos, near_bits)
            # The commit fails if another drop was committed after this time. Arrivals therefore have the order in which
            # snapshots see them, also where a drop was measured for longer than a later one.
            self.now = _now()
            writes = Writes(self.catalog, self.store, self.batch, prober, measured, self.now)
            decisions = decide(self.batch, measured, known, glances, arrival.said, meant)
            if held is None:
                held = self._judge_whole(judge, measured, decisions)
            if held:
                decisions = [d if d.verdict == "quarantine" else replace(d, verdict="held") for d in decisions]
            # The record is written before the commit, so that an interrupted run can be completed.
            self._write_record(judge, decisions, mix, arrival)
            try:
                writes.accepted(decisions, known, self.progress)
            except CatalogMoved:
                # The catalog may have changed by this commit, if its answer was lost. Remember the planned changes.
                meant |= {d.row: d.changes for d in decisions if d.changes}
                continue
            # Another process erased a photo during the commit. Remove it and decide again.
            if late := forgotten_among(self.catalog, known.photos) - known.forgotten:
                erase(self.catalog, self.store, late)
                continue
            copies = {d.row: word(d.sample_id) for d in decisions if d.reason == NEAR_DUPLICATE}
            after = arrival.statement(said_rows(measured, decisions, arrival.listing), copies, partial)
            if not held:
                # A held drop changes nothing, so it also removes nothing.
                gone = arrival.gone(after)
                writes.withdraw(gone, other_drops(self.catalog, self.store, self.batch, gone), arrival.id)
                writes.corrections(decisions, arrival.id)
            writes.rejects(decisions, partial=partial)
            return held, after
        raise CatalogError(f"{self.batch.name}: the catalog moved {ATTEMPTS} times under it: run again")

    def _judge_whole(self, judge: Judge, measured: Measured, decisions: Sequence[Decision]) -> str:
        """Return the reason for holding the drop, or "" if it is not held."""
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
        # Rules over the whole drop compare its mix with that of the catalog.
        broken = judge.whole(verdicts, catalog_mix(self.catalog, self.store, self.batch))
        reasons = Counter(d.reason for d in decisions if d.verdict == "quarantine")
        # Ties are broken by name, so that the reason does not depend on the order of the rows.
        most = max(sorted(reasons), key=lambda reason: reasons[reason], default="")
        return f"{broken}: {reasons.total()} of {len(measured)}, most often {most!r}" if broken else ""

    def _glances(self, prober: Prober, measured: Measured) -> Callable[[str], np.ndarray]:
        """Return a cached function that loads the reduced photo of a sha256 from the drop or from the store."""
        name_of = {probe.sha256: probe.image for _, probe, _ in measured if probe.image_decodes}

        # A photo is often compared several times. The cache bounds the memory.
        @lru_cache(maxsize=4096)
        def look(identity: str) -> np.ndarray:
            name = name_of.get(identity)
            path = prober.path_of(name) if name else fetch_blob(self.store, identity)
            return glance(safely(load_rgb, path, LOOK_SIDE))

        return look

    def _write_record(self, judge: Judge, decisions: Sequence[Decision], mix: Mix, arrival: Arrival) -> None:
        """Write the planned changes, so that a later run can tell them from values that were there before."""
        changes = {d.row: [astuple(change) for change in d.changes] for d in decisions if d.changes and d.is_taken}
        record = {"expectations": judge.results, "arrival": arrival.id, "changes": changes, "mix": mix}
        self.store.put(self.batch.record_key, json.dumps(record, sort_keys=True).encode())


def _now() -> str:
    """Return the time; microseconds keep the order of two manifests of one drop that arrive within a second."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _meant(record: BatchRecord, arrival: Arrival) -> dict[int, tuple[Change, ...]]:
    """Return row → changes that an interrupted run of this arrival planned."""
    changes = record.get("changes", {}) if record.get("arrival") == arrival.id else {}
    return {int(row): tuple(Change(*change) for change in listed) for row, listed in changes.items()}


def said_rows(measured: Measured, decisions: Sequence[Decision], listing: Listing) -> Iterator[SaidRow]:
    """Yield the rows of a drop in the form of its statement.

    Args:
        measured: Findings about the rows.
        decisions: One decision per row, in the same order.
        listing: Files of the drop.
    """
    for (row, probe, _), decision in zip(measured, decisions, strict=True):
        values = {column: word(value) for column, value in stated(row, probe).items()}
        yield SaidRow(row.row, word(probe.sha256) if probe.sha256 else None, decision.verdict, values, listing.of(row))


def other_drops(catalog: Catalog, store: Store, batch: ReadyBatch, gone: Mapping[str, str]) -> OtherDrops:
    """Find what other drops state about the removed photos.

    Args:
        catalog: The catalog with the ledger.
        store: The store with the statements.
        batch: The drop that no longer lists the photos.
        gone: Digest of the photo's id → digest of its last matte (`Arrival.gone`).

    Returns:
        The drops that state the same matte, and all values.
    """
    others = OtherDrops()
    # Reading all statements is slow. Most arrivals remove nothing and skip it.
    arrivals = latest_arrivals(catalog, "ingested") if gone else {}
    for (kind, name), row in arrivals.items():
        if (kind, name) == (batch.kind, batch.batch):
            continue
        values = Statement.read(store, row["statement"]).by_sample()
        for photo, matte in gone.items():
            stated_there = values.get(photo, {})
            others.values |= {(photo, *item) for item in stated_there.items()}
            if matte and stated_there.get(ALPHA) == matte:
                others.holders[photo] = name
    return others


def is_as_it_arrived(inbox: Store, batch: ReadyBatch) -> bool:
    """Return whether the inbox still holds the drop with the same manifest."""
    try:
        return sha256_file(inbox.fetch(batch.manifest_key, most=MAX_BYTES)) == batch.manifest_sha256
    except (BlobNotFound, BlobTooLarge, FileNotFoundError):
        return False
