"""The inbox: which drops have arrived, and which of them the catalog does not hold yet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from mm_core.core.errors import BlobNotFound, BlobTooLarge, InputError
from mm_core.core.records import KINDS, digest_of, sha256_bytes, sha256_file
from mm_core.ingest.batch_names import name_fault, safe_alias
from mm_core.ingest.manifest import MAX_BYTES
from mm_core.ingest.statements import Listing, Statement
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store

MANIFESTS = ("manifest.csv", "manifest.parquet")
LOOKS = 8
"""Manifests looked at once: one short request each, whether or not they changed."""


@dataclass(frozen=True)
class ReadyBatch:
    """A drop whose manifest is there."""

    kind: str
    batch: str
    """The folder's name; of a refused one an alias that is safe everywhere."""
    manifest_key: str
    """In the inbox."""
    manifest_sha256: str
    key: str
    """Of the ledger: digest over kind, batch and manifest digest."""
    uri: str
    refused: str = ""
    """Why the drop is held without being read: its name is not safe to use."""
    after: str = ""
    """What the ledger held of this drop before, or what its files have become: empty for one that is new."""

    @property
    def request(self) -> str:
        """Differs for each arrival that is to be ingested, also where the same manifest comes again."""
        return digest_of([self.key, self.after]) if self.after else self.key

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.batch}"

    @property
    def record_key(self) -> str:
        """Where the store keeps what was found and meant to be done."""
        return self.record_of(self.key)

    def reject_key(self, row: int) -> str:
        """Key of a refused row of this drop."""
        return sha256_bytes(f"{self.key}:{row}".encode())

    @staticmethod
    def record_of(key: str) -> str:
        return f"ingest/{key}.json"


def kept_matte(reject: str) -> str:
    """Where the store keeps the normalised matte of a refused row, by the key of the row."""
    return f"quarantine/mattes/{reject}.png"


def arrived_batches(inbox: Store) -> list[ReadyBatch]:
    """Every drop of the inbox whose manifest is there, ingested or not."""
    places = []
    for kind in KINDS:
        for entry in inbox.list(kind, delimiter=True):
            batch = entry.key.removeprefix(f"{kind}/").removesuffix("/")
            if entry.key.endswith("/") and batch and not is_hidden(batch):
                places.append((kind, batch))
    # S3 is asked for the manifest's ETag and sends one again only where that has changed.
    with ThreadPoolExecutor(LOOKS) as pool:
        found = pool.map(lambda place: _arrived(inbox, *place), places)
        return [batch for batch in found if batch is not None]


def named_batches(inbox: Store, name: str) -> list[ReadyBatch]:
    """The drops that a person names, as `batch` or `kind/batch`, by the folder's name or by the ledger's.

    Raises InputError where the name is not safe to use and no drop has it.
    """
    kind, _, batch = name.rpartition("/")
    alias = safe_alias(batch) if name_fault(batch) else batch
    arrived = [one for one in arrived_batches(inbox) if alias == one.batch and kind in ("", one.kind)]
    if not arrived and alias != batch:
        raise InputError(f"no drop of this name lies at {inbox.url}, and none would be read: {name_fault(batch)}")
    return arrived


def is_hidden(batch: str) -> bool:
    """Whether a folder is none of a producer's: systems and synchronisers keep theirs under a leading dot."""
    return batch.startswith(".") and batch not in (".", "..")


def _arrived(inbox: Store, kind: str, batch: str) -> ReadyBatch | None:
    if fault := name_fault(batch):
        # `.` and `..` would lead elsewhere. Of the others only whether they are drops is asked.
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
            digest = f"{error.size} bytes"  # what it is held for; nobody reads it
        except OSError as error:
            digest = f"unreadable: {error.strerror}"  # held until it can be read, as what it then is
        identity = digest_of([kind, batch, digest])
        return ReadyBatch(kind, batch, key, digest, identity, f"{inbox.url}/{kind}/{batch}")
    return None


def latest_arrivals(catalog: Catalog, state: str = "") -> dict[tuple[str, str], dict[str, Any]]:
    """The ledger's row of what each (kind, batch) brought last; with `state`, of the rows in that state."""
    rows: Any = catalog.read("batches", filters=[("state", "=", state)] if state else None).astype(object)
    ordered = rows.where(rows.notna(), None).sort_values("ingested_at", kind="stable")
    return {(row["kind"], row["batch"]): row for row in ordered.to_dict("records")}


def ready_batches(inbox: Store, catalog: Catalog, store: Store | None = None) -> list[ReadyBatch]:
    """The drops that say something which the ledger does not hold yet.

    These are new ones, those whose manifest is another one than the last (an earlier one that came back is another
    one, too), and, where `store` is given, those whose files were replaced in place.
    """
    latest = latest_arrivals(catalog)
    ready = []
    for batch in arrived_batches(inbox):
        row = latest.get((batch.kind, batch.batch))
        if row is None:
            ready.append(batch)
        elif row["key"] != batch.key:
            ready.append(replace(batch, after=str(row["arrival"] or row["key"])))
        elif store is not None and row["statement"]:
            listing = Listing.read(inbox, batch)
            if listing.digest != row["files"] and Statement.read(store, row["statement"]).replaced(listing):
                ready.append(replace(batch, after=listing.digest))
    return ready
