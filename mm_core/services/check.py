"""`mm check`: everything that is kept, against everything else that is kept.

Every blob against its digest; every row's blobs; pins, registry, bundles, checkpoints and snapshots against what they
name; every database and table read as a whole. Nothing is changed but by `--repair` (`mm_core.services.repair`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

from mm_core.core.errors import MattingError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import Report, Verdict, digest_of, sha256_file
from mm_core.export.bundle_manifest import checked_manifest
from mm_core.export.registry import Registry
from mm_core.ingest.snapshot import POOLS, SCHEMA, frame_digest, read_pool
from mm_core.services.backup import is_sqlite
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import archive_fault
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.seals import SEALED_KEYS, broken_files, broken_seals, database_fault, databases_of, unsealed
from mm_core.storage.store import BLOBS, LocalStore, Store, blob_key, open_store

Progress = Callable[[str, int, int], None]


@dataclass
class Fault:
    """One thing that is not as it was written."""

    kind: str
    """blob | record | table | database | pin | registry | bundle | checkpoint | snapshot | cycle | ledger."""
    where: str
    """Path or key."""
    fault: str
    remedy: str
    digest: str = ""
    """Of the blob or file as it should be, where that is known."""
    repaired: str = ""
    """How; empty: not."""


def check(layout: Layout, report: Report, *, progress: Progress) -> list[Fault]:
    """Return every fault of a workspace and its store; fills metrics `check/…` and the table `faults`."""
    store, catalog = open_store(layout.settings.store, layout.cache), Catalog(layout.settings.store)
    faults: list[Fault] = []
    present: set[str] = set()
    parts: list[tuple[str, Iterator[Fault]]] = [
        ("blobs", _blobs(store, present, progress)),
        ("records", _records(store)),
        ("tables", _tables(store, catalog, report)),
        ("rows", _rows(catalog, present)),
        ("databases", _databases(layout)),
        ("pins", _pins(layout, present)),
        ("registry", _registry(layout, store, present)),
        ("bundles", _bundles(layout)),
        ("checkpoints", _checkpoints(layout)),
        ("cycle", _cycle(layout)),
    ]
    for name, found in parts:
        try:
            faults += list(found)
        except MattingError as error:
            faults.append(Fault(name, name, str(error), "repair what is named above, then check again"))
    faults = list({(fault.kind, fault.where): fault for fault in faults}.values())
    report.metrics |= {"check/blobs": len(present), "check/faults": len(faults)}
    report.tables["faults"] = [asdict(fault) for fault in faults]
    return faults


def _blobs(store: Store, present: set[str], progress: Progress) -> Iterator[Fault]:
    """Every blob against its name; `present` gets those that are whole."""
    entries = list(store.list(BLOBS))
    for n, entry in enumerate(entries):
        digest = entry.key.rpartition("/")[2]
        store.drop_copy(entry.key)
        if entry.key != blob_key(digest) or sha256_file(store.fetch(entry.key)) != digest:
            store.drop_copy(entry.key)
            yield Fault("blob", entry.key, "its bytes are not those of its digest", "mm check --repair", digest)
        else:
            present.add(digest)
        progress("check blobs", n + 1, len(entries))


def _records(store: Store) -> Iterator[Fault]:
    """The store's other objects: against the digests in their names, or their seals."""
    remedy = "bring it back from a backup, or delete it: what it says is lost then"
    for key in (entry.key for prefix in SEALED_KEYS for entry in store.list(prefix.rstrip("/"))):
        if isinstance(store, LocalStore) and (what := store.seals.fault(key)):
            yield Fault("record", f"{store.url}/{key}", what, remedy)
            continue
        digest = key.rpartition("/")[2].removesuffix(".parquet")
        is_named = key.startswith("ingest/statements/") or key == f"quarantine/{digest}"
        if is_named and sha256_file(store.fetch(key)) != digest:
            yield Fault("record", f"{store.url}/{key}", "its bytes are not those of its digest", remedy)


def _tables(store: Store, catalog: Catalog, report: Report) -> Iterator[Fault]:
    """Each table read as a whole, its sealed files against their digests."""
    restore = "bring the store's catalog/ back from a backup (`mm restore` into an empty place)"
    for table in SCHEMAS:
        if isinstance(store, LocalStore):
            folder = store.root / "catalog" / table
            for path, what in broken_seals(folder):
                yield Fault("table", str(path), what, restore)
            report.metrics[f"check/unsealed/{table}"] = unsealed(folder)
        try:
            if catalog.version(table) >= 0:
                catalog.read(table)
        except MattingError as error:
            yield Fault("table", f"{catalog.url}/{table}", str(error)[:300], restore)


def _rows(catalog: Catalog, present: set[str]) -> Iterator[Fault]:
    """Every row's blobs, and the ledger's states."""
    samples = catalog.read("samples", columns=["id", "kind", "batch", "name"])
    for row in samples.to_dict("records"):
        if row["id"] not in present:
            what = f"missing: photo {row['name']} of {row['kind']}/{row['batch']}"
            yield Fault("blob", blob_key(row["id"]), what, "mm check --repair", row["id"])
    labels = catalog.read("labels", columns=["sample_id", "alpha_sha256", "batch", "withdrawn_at"])
    for row in labels.to_dict("records"):
        if row["alpha_sha256"] not in present:
            what = f"missing: matte of photo {row['sample_id'][:12]}, batch {row['batch']}"
            yield Fault("blob", blob_key(row["alpha_sha256"]), what, "mm check --repair", row["alpha_sha256"])
    known = set(samples["id"])
    for sample in sorted(set(labels.loc[labels["withdrawn_at"].isna(), "sample_id"]) - known):
        yield Fault("table", "labels", f"a matte of photo {sample[:12]}, which is in no row of samples", "mm ingest")
    for row in catalog.read("batches", columns=["kind", "batch", "state", "rows", "accepted"]).to_dict("records"):
        if row["state"] not in ("ingested", "held") or not 0 <= int(row["accepted"]) <= int(row["rows"]):
            where = f"{row['kind']}/{row['batch']}"
            yield Fault("ledger", where, f"a row that cannot be: {row}", f"mm quarantine retry {row['batch']}")


def _databases(layout: Layout) -> Iterator[Fault]:
    """Every sqlite file of the workspace, by sqlite's own check, and against its seal where nobody wrote since."""
    for path in databases_of(layout.root, layout.cache):
        said = "not a database" if path.stat().st_size and not is_sqlite(path) else "ok"
        try:
            if said == "ok":
                with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
                    said = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
        except sqlite3.Error as error:
            said = str(error)
        said = database_fault(layout.root, path) or said if said == "ok" else said
        if said != "ok":
            yield Fault("database", str(path), said[:300], "bring it back from a backup")


def _pins(layout: Layout, present: set[str]) -> Iterator[Fault]:
    if not layout.inputs.exists():
        return
    remedy = f"delete {layout.inputs}; `mm ingest` pins anew"
    try:
        pinned = json.loads(layout.inputs.read_bytes())
        versions = {table: int(pinned["catalog"][table]) for table in ("samples", "labels", "features")}
        named = [pinned[role] for role in ("champion", "anchor") if pinned[role]]
        digests = {digest for pin in named for digest in (pin["digest"], *pin["files"].values())}
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Fault("pin", str(layout.inputs), "not the pinned inputs", remedy)
        return
    catalog = Catalog(layout.settings.store)
    for table, version in versions.items():
        if version > catalog.version(table):
            yield Fault("pin", str(layout.inputs), f"{table} has no version {version}", remedy)
    for digest in sorted(digests - present):
        yield Fault("blob", blob_key(digest), "missing: a pinned model's file", "mm check --repair", digest)


def _registry(layout: Layout, store: Store, present: set[str]) -> Iterator[Fault]:
    """Weights, int8 files and provenance of every registered version."""
    registry = Registry(layout.settings)
    for version in registry.versions():
        tags = registry.tags(version)
        try:
            if tags is None:
                raise KeyError(version)
            digests = {tags["model_digest"], tags["provenance"], *json.loads(tags["files"]).values()}
            if tags["provenance"] in present:
                made = json.loads(store.fetch(blob_key(tags["provenance"])).read_bytes())
                digests |= {*made["snapshot_files"].values(), *made["split_files"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            yield Fault("registry", f"version {version}", "its tags are not those of `mm promote`", "restore a backup")
            continue
        for digest in sorted(digests - present):
            yield Fault("blob", blob_key(digest), f"missing: a file of version {version}", "mm check --repair", digest)


def _bundles(layout: Layout) -> Iterator[Fault]:
    for path in sorted(layout.bundles.glob("*/manifest.json")):
        try:
            checked_manifest(path.parent)
        except MattingError as error:
            yield Fault("bundle", str(path.parent), str(error)[:300], "delete the folder; `mm export` makes it again")


def _checkpoints(layout: Layout) -> Iterator[Fault]:
    """Finished stages against their digests; states of unfinished ones against the checksums of their archive."""
    remedy = "mm check --repair: the stage trains anew"
    for path in sorted(layout.checkpoints.glob("*/done.json")):
        model = path.with_name("model.safetensors")
        try:
            digest = json.loads(path.read_bytes())["facts"]["digest"]
        except (ValueError, KeyError, TypeError):
            yield Fault("checkpoint", str(path), "not what training wrote", remedy)
            continue
        if not model.is_file() or sha256_file(model) != digest:
            yield Fault("checkpoint", str(model), "its bytes are not those that training wrote", remedy, digest)
    for path in sorted(layout.checkpoints.glob("*/state.pt")):
        if fault := archive_fault(path):
            yield Fault("checkpoint", str(path), fault, remedy)


def _cycle(layout: Layout) -> Iterator[Fault]:
    """The files of the cycle in work against one another."""
    about = layout.snapshot / "snapshot.json"
    if about.is_file():
        try:
            facts = json.loads(about.read_bytes())
            frames = {pool: read_pool(layout.snapshot, pool) for pool in POOLS}
            digest = digest_of({pool: frame_digest(frame, SCHEMA.names) for pool, frame in frames.items()})
            good = digest == facts["digest"]
            what = "its frames are not those of its digest"
        except (ValueError, KeyError, TypeError, AttributeError, OSError, MattingError) as error:
            good, what = False, " ".join(str(error).split())[:200]
        if not good:
            yield Fault("snapshot", str(layout.snapshot), what, "mm snapshot")
    for stage in TRAIN_STAGES:
        said, model = layout.stage_report(f"train-{stage}"), layout.model(stage)
        if said.is_file() and model.is_file():
            try:
                digest = Report.read(said).facts.get("digest")
            except MattingError:
                yield Fault("cycle", str(said), "not a stage's report", f"mm train-{stage}")
                continue
            if digest and sha256_file(model) != digest:
                yield Fault("cycle", str(model), "its bytes are not those that training wrote", f"mm train-{stage}")
    for path, what in broken_files(layout.evaluation):
        yield Fault("cycle", str(path), what, "mm evaluate")
    if layout.verdict.is_file():
        try:
            Verdict.model_validate_json(layout.verdict.read_bytes())
        except ValueError:
            yield Fault("cycle", str(layout.verdict), "not a verdict", "mm gate")
