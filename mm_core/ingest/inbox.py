"""List the drops in the inbox and find those that are not ingested yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypedDict

from mm_core.core.errors import BlobNotFound, BlobTooLarge, InputError
from mm_core.core.records import KINDS, digest_of, sha256_bytes, sha256_file
from mm_core.ingest.batch_names import name_fault, safe_alias
from mm_core.ingest.drop import MANIFEST_COLUMNS
from mm_core.ingest.manifest import MAX_BYTES, Manifest
from mm_core.ingest.statements import Listing, Statement
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.rows import BatchRow, records
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store

MANIFESTS = ("manifest.csv", "manifest.parquet")
Folder = tuple[str, str]
"""Kind, and the folder's name as the inbox lists it."""
TWO = f"{' and '.join(MANIFESTS)} lie there: delete the one that does not count"
MISPLACED = f"a drop is a folder <kind>/<batch>, and the kinds are {', '.join(KINDS)}: move it"
FORBIDDEN = "it cannot be read: change its rights"
LOOKS = 8
"""Manifests checked in parallel; each needs one short request, changed or not."""


class Unread(TypedDict):
    """A folder, column or file of the inbox that is not used, and why."""

    kind: str
    batch: str
    reason: str


@dataclass(frozen=True)
class ReadyBatch:
    """A drop with a manifest."""

    kind: str
    batch: str
    """The folder's name, or a safe alias if the name is refused."""
    manifest_key: str
    """Key of the manifest in the inbox."""
    manifest_sha256: str
    key: str
    """Key in the ledger: digest over kind, batch and manifest digest."""
    uri: str
    refused: str = ""
    """Reason for holding the drop unread: its name is not safe to use, or it has two manifests."""
    after: str = ""
    """The previous arrival of this drop, or the digest of its replaced files; empty for a new drop."""

    @property
    def request(self) -> str:
        """A key that differs for each arrival, also if the same manifest arrives again."""
        return digest_of([self.key, self.after]) if self.after else self.key

    @property
    def name(self) -> str:
        """Name for messages and reports: `kind/batch`."""
        return f"{self.kind}/{self.batch}"

    @property
    def record_key(self) -> str:
        """Key in the store of the batch's record: validation results, mix and planned changes."""
        return self.record_of(self.key)

    def reject_key(self, row: int) -> str:
        """Return the key of a refused row of this drop."""
        return sha256_bytes(f"{self.key}:{row}".encode())

    @staticmethod
    def record_of(key: str) -> str:
        """Return the store's key of the record of the batch with this ledger key."""
        return f"ingest/{key}.json"


def kept_matte(reject: str) -> str:
    """Return the store's key of the normalised matte of a refused row.

    Args:
        reject: Key of the row (`ReadyBatch.reject_key`).
    """
    return f"quarantine/mattes/{reject}.png"


def folders_of(inbox: Store) -> list[Folder]:
    """Return the folders of the inbox that may be drops."""
    folders = []
    for kind in KINDS:
        for entry in inbox.list(kind, delimiter=True):
            batch = entry.key.removeprefix(f"{kind}/").removesuffix("/")
            if entry.key.endswith("/") and batch and not is_hidden(batch):
                folders.append((kind, batch))
    return folders


def arrived_batches(inbox: Store) -> list[ReadyBatch]:
    """Return every drop of the inbox with a manifest, ingested or not."""
    return [batch for _, batch in _arrived_among(inbox, folders_of(inbox))]


def _arrived_among(inbox: Store, folders: Sequence[Folder]) -> list[tuple[Folder, ReadyBatch]]:
    # S3 compares the manifest's ETag and sends the file again only if it has changed.
    with ThreadPoolExecutor(LOOKS) as pool:
        batches = pool.map(lambda folder: _arrived(inbox, *folder), folders)
        return [(folder, batch) for folder, batch in zip(folders, batches, strict=True) if batch is not None]


def named_batches(inbox: Store, name: str) -> list[ReadyBatch]:
    """Return the drops with a given name.

    Args:
        inbox: The inbox.
        name: `batch` or `kind/batch`; the name of the folder or the name in the ledger.

    Raises:
        InputError: The name is not safe to use and no drop has it.
    """
    kind, _, batch = name.rpartition("/")
    # The ledger lists a refused drop under its alias. Both names must find it.
    alias = safe_alias(batch) if name_fault(batch) else batch
    arrived = [one for one in arrived_batches(inbox) if alias == one.batch and kind in ("", one.kind)]
    if not arrived and alias != batch:
        raise InputError(f"no drop of this name lies at {inbox.url}, and none would be read: {name_fault(batch)}")
    return arrived


def is_hidden(batch: str) -> bool:
    """Return whether a folder belongs to a system or a synchroniser; their names have a leading dot."""
    return batch.startswith(".") and batch not in (".", "..")


def _arrived(inbox: Store, kind: str, batch: str) -> ReadyBatch | None:
    if fault := name_fault(batch):
        # `.` and `..` point outside the drop, so they are not opened. Other names need a manifest to count as drops.
        if batch not in (".", "..") and not any(inbox.exists(f"{kind}/{batch}/{name}") for name in MANIFESTS):
            return None
        alias = safe_alias(batch)
        return ReadyBatch(kind, alias, "", "", digest_of([kind, alias]), f"{inbox.url}/{kind}", fault)
    for manifest in MANIFESTS:
        key = f"{kind}/{batch}/{manifest}"
        try:
            digest = sha256_file(inbox.fetch(key, most=MAX_BYTES))
        except (BlobNotFound, FileNotFoundError):
            continue
        except BlobTooLarge as error:
            digest = f"{error.size} bytes"  # the drop will be held for its size, unread
        except OSError as error:
            digest = f"unreadable: {error.strerror}"  # held; a readable manifest later is a new arrival
        # Nothing tells which of two manifests is the producer's last word.
        two = manifest == MANIFESTS[0] and inbox.exists(f"{kind}/{batch}/{MANIFESTS[1]}")
        identity = digest_of([kind, batch, digest, *MANIFESTS[1:]] if two else [kind, batch, digest])
        return ReadyBatch(kind, batch, key, digest, identity, f"{inbox.url}/{kind}/{batch}", TWO if two else "")
    return None


def latest_arrivals(
    catalog: Catalog, state: str = "", *, batches: Sequence[str] | None = None
) -> dict[tuple[str, str], BatchRow]:
    """Return the ledger's newest row of each drop.

    Args:
        catalog: The catalog.
        state: Only rows in this state (`ingested`, `held`); all if empty.
        batches: Only drops with these names; all if None.

    Returns:
        (kind, batch) → row.
    """
    filters: list[Filter] = [("state", "=", state)] if state else []
    if batches is not None:
        filters.append(("batch", "in", batches))
    rows = catalog.read("batches", filters=filters)
    ordered = records(rows.sort_values("ingested_at", kind="stable"), BatchRow)
    # Later rows overwrite earlier ones, so the newest row remains.
    return {(row["kind"], row["batch"]): row for row in ordered}


def ready_batches(run: StorageRun) -> list[ReadyBatch]:
    """Return the drops that must be ingested.

    A drop is ready if it is new or if its manifest differs from its last one. A restored earlier manifest also counts.
    A drop whose files were replaced in place is ready too.

    Args:
        run: Gives the inbox, the catalog with the ledger, and the store with the statements of earlier arrivals.
    """
    compared = compare_with_ledger(run, folders_of(run.inbox))
    return in_order_of_writing(run.inbox, [ready for _, _, ready in compared if ready])


def in_order_of_writing(inbox: Store, drops: Sequence[ReadyBatch]) -> list[ReadyBatch]:
    """Sort drops by kind, then by the time of their manifests, so that the newest statement about a photo counts.

    The kinds keep their order because a label that comes with its photo may make it an evaluation photo.
    """
    if len(drops) < 2:
        return list(drops)
    with ThreadPoolExecutor(LOOKS) as pool:
        times = pool.map(lambda drop: inbox.written_at(drop.manifest_key) if drop.manifest_key else 0.0, drops)
        ordered = sorted(zip(drops, times, strict=True), key=lambda at: (KINDS.index(at[0].kind), at[1], at[0].batch))
    return [drop for drop, _ in ordered]


def unread_folders(run: StorageRun, ready: Sequence[ReadyBatch]) -> Iterator[Unread]:
    """Yield the folders of the inbox that are not read: without a manifest, or with one in a place that is no drop.

    Args:
        run: Gives the inbox, and the catalog with the ledger of the drops that were read before.
        ready: The drops that are ready.
    """
    inbox = run.inbox
    known = {*latest_arrivals(run.catalog), *((drop.kind, drop.batch) for drop in ready)}
    for kind, batch in folders_of(inbox):
        if (kind, safe_alias(batch) if name_fault(batch) else batch) in known or batch in (".", ".."):
            continue
        keys = [entry.key for entry in inbox.list(f"{kind}/{batch}", delimiter=True)]
        names = (key.rpartition("/")[2] for key in keys)
        misnamed = next((name for name in names if name.lower() in MANIFESTS and name not in MANIFESTS), "")
        remedy = f"rename {misnamed} to {misnamed.lower()}" if misnamed else "it is written last"
        reason = f"there is no manifest.csv yet: {remedy}"
        if keys == [f"{kind}/{batch}"]:
            reason = FORBIDDEN
        elif any(_holds_manifest(inbox, key) for key in keys[:LOOKS]):
            reason = MISPLACED
        yield {"kind": kind, "batch": batch, "reason": reason}
    places = [entry.key for entry in inbox.list(delimiter=True) if entry.key.endswith("/")]
    for place in ["", *(place for place in places if not is_hidden(place))]:
        kind = place.rstrip("/")
        if _holds_manifest(inbox, place):
            yield {"kind": kind, "batch": "", "reason": MISPLACED}
        keys = [entry.key for entry in islice(inbox.list(kind, delimiter=True), LOOKS)] if kind else []
        if keys == [kind]:
            yield {"kind": kind, "batch": "", "reason": FORBIDDEN}
        for key in keys if kind not in KINDS else ():
            if _holds_manifest(inbox, key):
                yield {"kind": kind, "batch": key[len(place) : -1], "reason": MISPLACED}


def unread_parts(drop: ReadyBatch, manifest: Manifest, listing: Listing) -> list[Unread]:
    """Return what a drop holds and nobody reads: other columns, mattes of another kind, pictures without a row."""
    reasons = []
    if manifest.ignored:
        known = ", ".join(MANIFEST_COLUMNS)
        reasons.append(f"columns that are not read: {', '.join(manifest.ignored)}; the columns are {known}")
    mattes = sum(bool(row.alpha) for row in manifest) if drop.kind != "pixel_labeled" else 0
    if mattes:
        reasons.append(f"alpha is not read in a drop of kind {drop.kind}: send the {mattes} mattes as pixel_labeled")
    if names := listing.unlisted(manifest):
        shown = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        reasons.append(f"{len(names)} pictures that no row names: {shown}: add their rows, or delete them")
    return [{"kind": drop.kind, "batch": drop.batch, "reason": reason} for reason in reasons]


def _holds_manifest(inbox: Store, place: str) -> bool:
    """Return whether a folder of the inbox, a key that ends in `/` or the root "", holds a manifest directly."""
    return place[-1:] in ("", "/") and any(inbox.exists(f"{place}{name}") for name in MANIFESTS)


def compare_with_ledger(
    run: StorageRun, folders: Sequence[Folder]
) -> list[tuple[Folder, ReadyBatch, ReadyBatch | None]]:
    """Compare drops in full with the ledger: the manifest by its digest, the files by sizes and stamps.

    Args:
        run: Gives the inbox, the catalog and the store.
        folders: Folders of the inbox.

    Returns:
        Each folder with a manifest, its drop, and the drop as it must be ingested; None if it is ingested already.
    """
    arrived = _arrived_among(run.inbox, folders)
    if not arrived:
        return []
    latest = latest_arrivals(run.catalog, batches=[batch.batch for _, batch in arrived])
    return [(folder, batch, _ready(run, batch, latest)) for folder, batch in arrived]


def _ready(run: StorageRun, batch: ReadyBatch, latest: Mapping[tuple[str, str], BatchRow]) -> ReadyBatch | None:
    row = latest.get((batch.kind, batch.batch))
    # The ledger has no row of this drop: it is new.
    if row is None:
        return batch
    if row["key"] != batch.key:
        return replace(batch, after=str(row["arrival"] or row["key"]))
    if row["statement"]:
        # Compare the digest of the listing first. Only a difference needs the statement.
        listing = Listing.read(run.inbox, batch)
        if listing.digest != row["files"] and Statement.read(run.store, row["statement"]).replaced(listing):
            return replace(batch, after=listing.digest)
    return None
