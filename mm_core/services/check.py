"""`mm check`: compare everything that is stored with its digests and with the records that refer to it.

Every blob is compared with its digest, and every row with its blobs. Pins, registry, bundles, checkpoints and snapshots
are compared with the files they refer to. Every database and table is read as a whole. Only `--repair`
(`mm_core.services.repair`) changes anything.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

import pyarrow as pa

from mm_core.core.errors import InputError, MattingError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import ROLES, parse_inputs
from mm_core.core.progress import Progress
from mm_core.core.records import Report, Verdict, digest_of, sha256_file
from mm_core.export.bundle_manifest import checked_manifest
from mm_core.export.registry import Registry
from mm_core.export.signature import SUFFIX, signature_fault
from mm_core.export.start_weights import PREFIX
from mm_core.ingest.placement import POOLS, SCHEMA, table_digest
from mm_core.ingest.snapshot import read_pool
from mm_core.services.backup import is_sqlite
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import archive_fault, plain_fault
from mm_core.storage.run import catalog_of, store_of
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.seals import (
    DATABASES,
    SEALED_KEYS,
    broken_files,
    broken_seals,
    database_fault,
    database_seals,
    databases_of,
    forget_comparisons,
    lost_database,
    unsealed,
)
from mm_core.storage.store import BLOBS, LocalStore, Store, blob_key


@dataclass
class Fault:
    """One stored thing that is not in its original state."""

    kind: str
    """blob | record | table | database | pin | registry | bundle | checkpoint | snapshot | cycle | ledger."""
    where: str
    """Path or key."""
    fault: str
    """Description in words."""
    remedy: str
    digest: str = ""
    """Expected digest of the blob or file, if known."""
    repaired: str = ""
    """How it was repaired; empty if it was not."""


def check(layout: Layout, report: Report, *, progress: Progress) -> list[Fault]:
    """Return every fault of a workspace and its store; fill the metrics `check/…` and the table `faults`."""
    store, catalog = store_of(layout), catalog_of(layout)
    forget_comparisons()
    faults: list[Fault] = []
    present: set[str] = set()
    # Each part yields faults; the blobs are first, because later parts need the set of intact ones.
    parts: list[tuple[str, Iterator[Fault]]] = [
        ("blobs", _blobs(store, present, progress)),
        ("records", _records(store)),
        ("tables", _tables(store, catalog, report)),
        ("rows", _rows(catalog, present)),
        ("databases", _databases(layout)),
        ("pins", _pins(layout, present)),
        ("registry", _registry(layout, store, present)),
        ("start weights", _starts(store, present)),
        ("bundles", _bundles(layout)),
        ("checkpoints", _checkpoints(layout)),
        ("cycle", _cycle(layout)),
    ]
    for name, part in parts:
        try:
            faults += list(part)
        except (MattingError, OSError) as error:
            faults.append(Fault(name, name, plain_fault(error) or str(error), "repair that file, then check again"))
    # A blob may be reported by several parts.
    faults = list({(fault.kind, fault.where): fault for fault in faults}.values())
    report.metrics |= {"check/blobs": len(present), "check/faults": len(faults)}
    report.tables["faults"] = [asdict(fault) for fault in faults]
    return faults


def _blobs(store: Store, present: set[str], progress: Progress) -> Iterator[Fault]:
    """Compare every blob with its name; add the intact ones to `present`."""
    entries = list(store.list(BLOBS))
    for n, entry in enumerate(entries):
        digest = entry.key.rpartition("/")[2]
        # Read from the store itself and not from the local copy.
        store.drop_copy(entry.key)
        if entry.key != blob_key(digest) or sha256_file(store.fetch(entry.key)) != digest:
            store.drop_copy(entry.key)
            yield Fault("blob", entry.key, "its bytes are not those of its digest", "mm check --repair", digest)
        else:
            present.add(digest)
        progress("check blobs", n + 1, len(entries))


def _records(store: Store) -> Iterator[Fault]:
    """Compare the store's other objects with the digests in their names or with their seals."""
    remedy = "restore it from a backup, or delete it: its contents are then lost"
    for key in (entry.key for prefix in SEALED_KEYS for entry in store.list(prefix.rstrip("/"))):
        if isinstance(store, LocalStore) and (what := store.seals.fault(key)):
            yield Fault("record", f"{store.url}/{key}", what, remedy)
            continue
        digest = key.rpartition("/")[2].removesuffix(".parquet")
        is_named = key.startswith("ingest/statements/") or key == f"quarantine/{digest}"
        if is_named and sha256_file(store.fetch(key)) != digest:
            yield Fault("record", f"{store.url}/{key}", "its bytes are not those of its digest", remedy)


def _tables(store: Store, catalog: Catalog, report: Report) -> Iterator[Fault]:
    """Read each table as a whole and compare its sealed files with their digests."""
    restore = "restore the store's catalog/ from a backup (`mm restore` into an empty place)"
    for table in SCHEMAS:
        # Seals are files next to the table's own, so they exist in folders only.
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
    """Find rows with missing blobs, labels without a sample, and impossible states in the ledger."""
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
    known_ids = set(samples["id"])
    for sample in sorted(set(labels.loc[labels["withdrawn_at"].isna(), "sample_id"]) - known_ids):
        yield Fault("table", "labels", f"a matte of photo {sample[:12]}, which has no row in samples", "mm ingest")
    for row in catalog.read("batches", columns=["kind", "batch", "state", "rows", "accepted"]).to_dict("records"):
        if row["state"] not in ("ingested", "held") or not 0 <= int(row["accepted"]) <= int(row["rows"]):
            where = f"{row['kind']}/{row['batch']}"
            yield Fault("ledger", where, f"an impossible row: {row}", f"mm quarantine retry {row['batch']}")


def _databases(layout: Layout) -> Iterator[Fault]:
    """Check every sqlite file of the workspace by sqlite's own check, and by its seal if it was not written since."""
    try:
        database_seals(layout.root)
    except InputError as error:
        yield Fault("database", str(layout.root / DATABASES), str(error), "delete it")
    databases = databases_of(layout.root, layout.cache)
    # Dagster removes databases of its own, MLflow never.
    mlflow = layout.settings.mlflow_database
    for path in sorted({*databases, mlflow} - {None} if mlflow is None else {*databases, mlflow}):
        if lost := lost_database(layout.root, path):
            yield Fault("database", str(path), lost, "restore it from a backup")
    for path in databases:
        status = "not a database" if path.stat().st_size and not is_sqlite(path) else "ok"
        try:
            if status == "ok":
                # Open read-only: a check must not create journal files.
                with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
                    status = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
        except sqlite3.Error as error:
            status = str(error)
        status = database_fault(layout.root, path) or status if status == "ok" else status
        if status != "ok":
            yield Fault("database", str(path), status[:300], "restore it from a backup")


def _pins(layout: Layout, present: set[str]) -> Iterator[Fault]:
    """Check that the pinned catalog versions and model files exist."""
    if not has_file(layout.inputs):
        return
    remedy = f"delete {layout.inputs}; `mm ingest` pins again"
    pinned = parse_inputs(layout.inputs.read_bytes())
    if pinned is None:
        yield Fault("pin", str(layout.inputs), "not the pinned inputs", remedy)
        return
    pins = [pin for role in ROLES if (pin := pinned[role])]
    digests = {digest for pin in pins for digest in (pin["digest"], *pin["files"].values())}
    if "start" in pinned:
        digests |= {pinned["start"]["digest"], pinned["start"]["provenance"]}
    catalog = Catalog(layout.settings.store)
    # A pin of a version that does not exist yet, for example after a restore.
    for table, version in pinned["catalog"].items():
        if version > catalog.version(table):
            yield Fault("pin", str(layout.inputs), f"{table} has no version {version}", remedy)
    for digest in sorted(digests - present):
        yield Fault("blob", blob_key(digest), "missing: a pinned model's file", "mm check --repair", digest)


def _registry(layout: Layout, store: Store, present: set[str]) -> Iterator[Fault]:
    """Check that weights, int8 files and provenance of every registered version exist."""
    registry = Registry(layout.settings)
    for version in registry.versions():
        tags = registry.tags(version)
        try:
            if tags is None:
                raise KeyError(version)
            digests = {tags["model_digest"], tags["provenance"], *json.loads(tags["files"]).values()}
            digests |= _frames(store, tags["provenance"], present)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            yield Fault("registry", f"version {version}", "its tags are not those of `mm promote`", "restore a backup")
            continue
        for digest in sorted(digests - present):
            yield Fault("blob", blob_key(digest), f"missing: a file of version {version}", "mm check --repair", digest)


def _starts(store: Store, present: set[str]) -> Iterator[Fault]:
    """Check that weights and provenance of every kept start of later cycles exist.

    No row and no registered version refers to them, but later cycles and `mm lineage` do.
    """
    remedy = "restore it from a backup"
    for entry in store.list(PREFIX):
        if not entry.key.endswith(".json"):
            continue
        try:
            record = json.loads(store.fetch(entry.key).read_bytes())
            digests = {record["digest"], record["provenance"]} | _frames(store, record["provenance"], present)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MattingError) as error:
            what = str(error)[:300] if isinstance(error, MattingError) else "not the record of a kept candidate"
            yield Fault("record", f"{store.url}/{entry.key}", what, remedy)
            continue
        for digest in sorted(digests - present):
            what = f"missing: a file of the kept candidate {record['digest'][:12]}"
            yield Fault("blob", blob_key(digest), what, "mm check --repair", digest)


def _frames(store: Store, provenance: str, present: set[str]) -> set[str]:
    """Return the digests of the frames of snapshot and split that a provenance refers to, if it can be read."""
    if provenance not in present:
        return set()
    made = json.loads(store.fetch(blob_key(provenance)).read_bytes())
    return {*made["snapshot_files"].values(), *made["split_files"].values()}


def _bundles(layout: Layout) -> Iterator[Fault]:
    """Check every bundle against its manifest and its signature."""
    for path in sorted(layout.bundles.glob("*/manifest.json")):
        if what := signature_fault(path):
            yield Fault("bundle", f"{path}{SUFFIX}", what[:300], "delete it; `mm export` signs the bundle again")
        try:
            checked_manifest(path.parent)
        except MattingError as error:
            yield Fault("bundle", str(path.parent), str(error)[:300], "delete the folder; `mm export` makes it again")


def _checkpoints(layout: Layout) -> Iterator[Fault]:
    """Compare models of finished stages with their digests, and states of unfinished ones with their checksums."""
    remedy = "mm check --repair: the stage trains again"
    for path in sorted(layout.checkpoints.glob("*/done.json")):
        model = path.with_name("model.safetensors")
        try:
            digest = json.loads(path.read_bytes())["facts"]["digest"]
        except (ValueError, KeyError, TypeError, RecursionError, OSError):
            yield Fault("checkpoint", str(path), "not written by training", remedy)
            continue
        if not model.is_file() or sha256_file(model) != digest:
            yield Fault("checkpoint", str(model), "its bytes differ from those that training wrote", remedy, digest)
    # A finished stage has no state any more.
    for path in sorted(layout.checkpoints.glob("*/state.pt")):
        if fault := archive_fault(path):
            yield Fault("checkpoint", str(path), fault, remedy)


def _snapshot_fault(layout: Layout) -> str:
    """Return how the snapshot's frames differ from its digest; empty if they do not, or if there is no snapshot."""
    snapshot = layout.snapshot / "snapshot.json"
    if not has_file(snapshot):
        return ""
    try:
        facts = json.loads(snapshot.read_bytes())
        # Compute the digest of the frames as `mm snapshot` did, and compare it with the recorded one.
        frames = {
            pool: pa.Table.from_pandas(read_pool(layout.snapshot, pool), schema=SCHEMA, preserve_index=False)
            for pool in POOLS
        }
        digest = digest_of({pool: table_digest(frame, SCHEMA.names) for pool, frame in frames.items()})
        return "" if digest == facts["digest"] else "its frames do not match its digest"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, MattingError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__


def _cycle(layout: Layout) -> Iterator[Fault]:
    """Compare the files of the current cycle with one another."""
    sealed = [(layout.split, "mm split"), (layout.evaluation, "mm evaluate")]
    if what := _snapshot_fault(layout):
        yield Fault("snapshot", str(layout.snapshot), what, "mm snapshot")
    else:
        sealed.append((layout.snapshot, "mm snapshot"))
    for stage in TRAIN_STAGES:
        # The digest in the report names the bytes that training wrote.
        report, model = layout.stage_report(f"train-{stage}"), layout.model(stage)
        if has_file(report) and has_file(model):
            try:
                digest = Report.read(report).facts.get("digest")
            except MattingError:
                yield Fault("cycle", str(report), "not a stage's report", f"mm train-{stage}")
                continue
            if digest and sha256_file(model) != digest:
                yield Fault("cycle", str(model), "its bytes differ from those that training wrote", f"mm train-{stage}")
    # A sealed folder lists its files with their digests.
    for folder, remedy in sealed:
        for path, what in broken_files(folder):
            yield Fault("cycle", str(path), what, remedy)
    if has_file(layout.verdict):
        try:
            Verdict.model_validate_json(layout.verdict.read_bytes())
        except ValueError:
            yield Fault("cycle", str(layout.verdict), "not a verdict", "mm gate")
