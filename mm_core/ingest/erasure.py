"""Erase photos with all derived data from the store and the catalog, and block them from later drops.

The order is: record the ids, delete the rows, delete the blobs, delete the data files of old catalog versions. A killed
call can be repeated with the same result. An ingest may accept such a photo at the same time. It reads the recorded ids
after its commit, and this module reads the catalog after recording the ids. One of the two therefore finds the photo.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.records import sha256_file
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.ingest.inbox import kept_matte
from mm_core.ingest.learnt import uses_of
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.store import Store, blob_key

FORGOTTEN = "forgotten"
"""Reason of rows that list an erased photo, and of blanked rows about one."""


SHORTEST_PREFIX = 6
"""Least number of hex digits of an abbreviated id; a shorter one is more likely a mistake."""


def forget_photos(catalog: Catalog, store: Store, samples: Sequence[str], group: str | None = None) -> list[str]:
    """Erase the photos that these names refer to (`find_photos`).

    The call can be repeated, for example after it was killed.

    Args:
        catalog: The catalog.
        store: The store of blobs.
        samples: Names of photos, as in `find_photos`.
        group: A declared group.

    Returns:
        The ids of the photos, sorted.

    Raises:
        InputError: A name or the group refers to no photo or is ambiguous.
    """
    ids = find_photos(catalog, samples, group)
    erase(catalog, store, ids)
    return ids


def clear_decoded(layout: Layout) -> None:
    """Remove all decoded photos and kept scores, also of interrupted measurements in their own cache folders."""
    for cache in (layout.cache, *(layout.root / "scratch").rglob("cache")):
        PixelCache.clear(cache)
        # Scores name their photos.
        shutil.rmtree(cache / layout.scores.name, ignore_errors=True)


def find_photos(catalog: Catalog, names: Sequence[str], group: str | None = None) -> list[str]:
    """Return the ids of the photos that the names refer to, including erased photos.

    Args:
        catalog: The catalog.
        names: Each is a sample's id or its beginning, the path of a photo's file (also of a refused photo in
            quarantine), or a drop as `batch` or `kind/batch`. A drop refers to the photos that it added first.
        group: A declared group; it refers to all its photos.

    Returns:
        The ids, sorted.

    Raises:
        InputError: A name or the group refers to no photo or is ambiguous, or no name was given.
    """
    # Look up all complete ids in one query.
    # A whole id is the common case and needs no search.
    whole = [name for name in names if re.fullmatch("[0-9a-f]{64}", name)]
    ids = _known(catalog, ("id", "in", whole)) if whole else set()
    for name in names:
        if name not in ids:
            ids |= _meant_by(name, catalog)
    if group is not None:
        # A group is a person or an occasion: all of its photos go together.
        members = _known(catalog, ("group", "=", group))
        if not members:
            raise InputError(f"group {group!r}: the catalog holds no sample of it")
        ids |= members
    if not ids:
        raise InputError("nothing to forget: name sample ids, photo files, drops or --group")
    return sorted(ids)


def _known(catalog: Catalog, *filters: Filter) -> set[str]:
    """Return the ids of present and erased samples that match the filters."""
    return {i for table in ("samples", "forgotten") for i in catalog.read(table, columns=["id"], filters=filters)["id"]}


def _kept_refused(catalog: Catalog, digest: str) -> set[str]:
    """Return the digest if quarantine keeps a copy of the photo, otherwise an empty set."""
    refused = catalog.read("rejects", columns=["key"], filters=[("where", "=", f"quarantine/{digest}")])
    return {digest} if len(refused) else set()


def _meant_by(name: str, catalog: Catalog) -> set[str]:
    """Return the ids that one name refers to.

    Raises:
        InputError: The name refers to no photo or is ambiguous.
    """
    # Try every interpretation. Erasing is irreversible, so an ambiguous name is an error.
    meanings: dict[str, set[str]] = {}
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", name):
        # "g" follows "f" in order, so exactly the ids in this range begin with the name.
        begun = _known(catalog, ("id", ">=", name), ("id", "<", f"{name}g"))
        if len(begun) > 1:
            raise InputError(f"{name!r} begins {len(begun)} ids of the catalog: give more digits")
        meanings["the beginning of an id"] = begun
    kind, _, batch = name.rpartition("/")
    of_drop: list[Filter] = [("batch", "=", batch), *([("kind", "=", kind)] if kind else [])]
    brought = catalog.read("samples", columns=["id", "kind"], filters=of_drop)
    if len(kinds := sorted(set(brought["kind"]))) > 1:
        raise InputError(f"{name!r} names drops of {' and '.join(kinds)}: write kind/batch, as {kinds[0]}/{batch}")
    meanings["a drop"] = set(brought["id"])
    # Unlike `Path.is_file`, this is False for a text that is too long for a path.
    if os.path.isfile(name):
        digest = sha256_file(Path(name))
        meanings["a file"] = _known(catalog, ("id", "=", digest)) or _kept_refused(catalog, digest)
        if not any(meanings.values()):
            raise InputError(f"{name}: the catalog holds no photo of exactly these bytes ({digest[:12]})")
    found = {what: ids for what, ids in meanings.items() if ids}
    if not found:
        raise InputError(
            f"{name!r} is no sample's id or its beginning ({SHORTEST_PREFIX} digits or more), no photo's file and no "
            "drop with photos in the catalog: see `mm status`, or a report"
        )
    if len(found) > 1:
        raise InputError(f"{name!r} is {' and '.join(found)}: write ./{name} for the file, or kind/batch for the drop")
    return next(iter(found.values()))


class ErasedPhoto(TypedDict):
    """A photo that would be erased."""

    id: str
    """First 12 digits."""
    drop: str
    """kind/batch"""
    name: str
    category: str
    """`refused` for a copy in quarantine, `unknown` without a category."""
    mattes: int


def describe_photos(catalog: Catalog, ids: Collection[str]) -> list[ErasedPhoto]:
    """Return a row for each photo that would be erased; photos that are already erased have none.

    Args:
        catalog: The catalog.
        ids: Ids of photos.

    Returns:
        Rows by drop and name; copies in quarantine are listed first.
    """
    chosen: list[Filter] = [("id", "in", list(ids))]
    samples = catalog.read("samples", columns=["id", "kind", "batch", "name", "category"], filters=chosen).fillna("")
    labels = catalog.read("labels", columns=["sample_id"], filters=[("sample_id", "in", list(ids))])
    mattes = Counter(labels["sample_id"])
    # Refused rows keep their file in quarantine under the same id.
    kept: list[Filter] = [("where", "in", [f"quarantine/{i}" for i in set(ids) - set(samples["id"])])]
    refused = catalog.read("rejects", columns=["where", "kind", "batch", "image"], filters=kept)
    copies: list[ErasedPhoto] = [
        {
            "id": row["where"].rpartition("/")[2][:12],
            "drop": f"{row['kind']}/{row['batch']}",
            "name": row["image"],
            "category": "refused",
            "mattes": 0,
        }
        for row in refused.sort_values(["kind", "batch", "image"]).to_dict("records")
    ]
    # Photos of the catalog, with the number of their labels.
    accepted: list[ErasedPhoto] = [
        {
            "id": row["id"][:12],
            "drop": f"{row['kind']}/{row['batch']}",
            "name": row["name"],
            "category": row["category"] or "unknown",
            "mattes": mattes[row["id"]],
        }
        for row in samples.sort_values(["kind", "batch", "name"]).to_dict("records")
    ]
    return copies + accepted


def forgotten_among(catalog: Catalog, ids: Collection[str]) -> frozenset[str]:
    """Return the ids among these that were erased and must not be accepted again."""
    return frozenset(catalog.read("forgotten", columns=["id"], filters=[("id", "in", list(ids))])["id"])


def erase(catalog: Catalog, store: Store, ids: Collection[str]) -> None:
    """Record the ids and remove all their rows, blobs and old data files; the call can be repeated.

    Rows of other photos are kept, but earlier versions of these tables become unreadable. A matte is kept if another
    photo has the same one byte for byte. Refused rows about the photos are kept for the counts, with blank texts.

    Args:
        catalog: The catalog.
        store: The store of blobs.
        ids: Ids of photos.
    """
    alphas = _remember(catalog, ids)
    for table, column in (
        ("samples", "id"),
        *((t, "sample_id") for t in ("labels", "reviews", "features", "corrections", "learnt")),
    ):
        catalog.delete(table, column, ids)
    # Quarantine keeps copies of refused photos under their own digest.
    copies = [f"quarantine/{i}" for i in sorted(ids)]
    # Blank all refused rows about the photos: file names and details may identify them.
    refused = {
        row["key"]: row | {"image": "", "reason": FORGOTTEN, "detail": "", "sample_id": None, "where": None}
        for column, values in (("sample_id", list(ids)), ("where", copies))
        for row in catalog.read("rejects", filters=[(column, "in", values)]).to_dict("records")
    }
    for key in refused:  # delete the files before the rows that name them
        store.delete(kept_matte(key))
    catalog.upsert("rejects", refused.values())
    # The rows of these photos are gone. The remaining labels with these mattes belong to other photos.
    shared = set(
        catalog.read("labels", columns=["alpha_sha256"], filters=[("alpha_sha256", "in", alphas)])["alpha_sha256"]
    )
    for key in (*map(blob_key, sorted(ids)), *copies, *(blob_key(alpha) for alpha in alphas if alpha not in shared)):
        store.delete(key)
    # Old table versions still hold the deleted rows on disk.
    for table in ("samples", "labels", "reviews", "features", "corrections", "learnt", "rejects"):
        catalog.vacuum(table, days=0)
    store.purge("catalog")  # a versioned bucket still keeps the vacuumed files


def _remember(catalog: Catalog, ids: Collection[str]) -> list[str]:
    """Record the ids with their groups, mattes and uses by training before the rows are deleted.

    Returns:
        The digests of all their mattes, sorted.
    """
    before = catalog.read("forgotten", filters=[("id", "in", list(ids))]).to_dict("records")
    rows = {row["id"]: row for row in before}
    samples = catalog.read("samples", columns=["id", "group"], filters=[("id", "in", list(ids))])
    group_of = dict(zip(samples["id"], samples["group"], strict=True))
    labels = catalog.read("labels", columns=["sample_id", "alpha_sha256"], filters=[("sample_id", "in", list(ids))])
    learnt, now = uses_of(catalog, ids), datetime.now(UTC).isoformat(timespec="seconds")
    for i in ids:
        new = {"id": i, "group": group_of.get(i), "alphas": "", "forgotten_at": now, "learnt": None}
        row = rows.setdefault(i, new)
        row["learnt"] = learnt.get(i) or row["learnt"]
        # Merge with the record of a killed call, which may have deleted the labels already.
        found = {*row["alphas"].split(), *labels.loc[labels["sample_id"] == i, "alpha_sha256"]}
        row["alphas"] = " ".join(sorted(found))
    # This record is the first write. A repeated call reads the ids and mattes from it.
    catalog.upsert("forgotten", rows.values())
    return sorted({alpha for row in rows.values() for alpha in row["alphas"].split()})
