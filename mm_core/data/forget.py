"""Forgetting: photos leave the store and the catalog with all that was made of them, and do not come back.

First the ids are remembered, then rows go, then blobs, then the data files of old catalog versions that still hold the
rows: killed anywhere, the same call again ends the same. An ingest that took such a photo in the same moment erases it
itself (it looks after its commit, this looks after its own), so that one of the two sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from mm_core.catalog import Catalog, Filter
from mm_core.data.inbox import kept_matte
from mm_core.errors import InputError
from mm_core.store import Store, blob_key

FORGOTTEN = "forgotten"
"""Reason of a row that would bring such a photo back, and of the blanked rows that were about one."""


def forget_photos(catalog: Catalog, store: Store, samples: Sequence[str], group: str | None = None) -> list[str]:
    """Forgets the samples of these ids and those of a declared group; returns their ids, sorted.

    Repeating it is no error and finishes what was killed. Raises InputError for an id or group that never was.
    """
    known = catalog.read("samples", columns=["id", "group"], filters=[("id", "in", list(samples))])
    before = catalog.read("forgotten", columns=["id", "group"], filters=[("id", "in", list(samples))])
    ids = {*known["id"], *before["id"]}
    if unknown := sorted(set(samples) - ids):
        raise InputError(
            f"sample {unknown[0]!r}: the catalog holds no such id; give whole ids, from `samples` or a report"
        )
    if group is not None:
        of_it: list[Filter] = [("group", "=", group)]
        members = {i for table in ("samples", "forgotten") for i in catalog.read(table, filters=of_it)["id"]}
        if not members:
            raise InputError(f"group {group!r}: the catalog holds no sample of it")
        ids |= members
    if not ids:
        raise InputError("nothing to forget: give sample ids or --group")
    erase(catalog, store, ids)
    return sorted(ids)


def forgotten_among(catalog: Catalog, ids: Collection[str]) -> frozenset[str]:
    """Those of the ids that must not come back."""
    return frozenset(catalog.read("forgotten", columns=["id"], filters=[("id", "in", list(ids))])["id"])


def erase(catalog: Catalog, store: Store, ids: Collection[str]) -> None:
    """Remembers the ids and removes every row, blob and old data file that is about them; safe to repeat.

    Other photos' rows in the same tables stay, versions of these tables from before cannot be read any more. A matte
    that is another photo's too, byte for byte, stays. Refused rows about the photos stay as counts, without words.
    """
    alphas = _remember(catalog, ids)
    for table, column in (("samples", "id"), *((t, "sample_id") for t in ("labels", "reviews", "features"))):
        catalog.delete(table, column, ids)
    copies = [f"quarantine/{i}" for i in sorted(ids)]
    refused = {
        row["key"]: row | {"image": "", "reason": FORGOTTEN, "detail": "", "sample_id": None, "where": None}
        for column, values in (("sample_id", list(ids)), ("where", copies))
        for row in catalog.read("rejects", filters=[(column, "in", values)]).to_dict("records")
    }
    for key in refused:  # before the rows that lead to them
        store.delete(kept_matte(key))
    catalog.upsert("rejects", refused.values())
    shared = set(
        catalog.read("labels", columns=["alpha_sha256"], filters=[("alpha_sha256", "in", alphas)])["alpha_sha256"]
    )
    for key in (*map(blob_key, sorted(ids)), *copies, *(blob_key(alpha) for alpha in alphas if alpha not in shared)):
        store.delete(key)
    for table in ("samples", "labels", "reviews", "features", "rejects"):
        catalog.vacuum(table, days=0)
    store.purge("catalog")  # a bucket that keeps versions keeps what was vacuumed


def _remember(catalog: Catalog, ids: Collection[str]) -> list[str]:
    """Writes the ids down with what must be known once their rows are gone; returns the digests of their mattes."""
    before = catalog.read("forgotten", filters=[("id", "in", list(ids))]).to_dict("records")
    rows = {row["id"]: row for row in before}
    samples = catalog.read("samples", columns=["id", "group"], filters=[("id", "in", list(ids))])
    group_of = dict(zip(samples["id"], samples["group"], strict=True))
    labels = catalog.read("labels", columns=["sample_id", "alpha_sha256"], filters=[("sample_id", "in", list(ids))])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for i in ids:
        row = rows.setdefault(i, {"id": i, "group": group_of.get(i), "alphas": "", "forgotten_at": now})
        found = {*row["alphas"].split(), *labels.loc[labels["sample_id"] == i, "alpha_sha256"]}
        row["alphas"] = " ".join(sorted(found))
    catalog.upsert("forgotten", rows.values())
    return sorted({alpha for row in rows.values() for alpha in row["alphas"].split()})
