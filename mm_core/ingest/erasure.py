"""Forgetting: photos leave the store and the catalog with all that was made of them, and do not come back.

First the ids are remembered, then rows go, then blobs, then the data files of old catalog versions that still hold the
rows: killed anywhere, the same call again ends the same. An ingest that took such a photo in the same moment erases it
itself (it looks after its commit, this looks after its own), so that one of the two sees it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mm_core.core.errors import InputError
from mm_core.core.records import sha256_file
from mm_core.ingest.inbox import kept_matte
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.store import Store, blob_key

FORGOTTEN = "forgotten"
"""Reason of a row that would bring such a photo back, and of the blanked rows that were about one."""


SHORTEST_PREFIX = 6
"""Hex digits that the beginning of an id must have: fewer are a slip more often than a choice."""


def forget_photos(catalog: Catalog, store: Store, samples: Sequence[str], group: str | None = None) -> list[str]:
    """Forget the photos that these names lead to (`find_photos`); returns their ids, sorted.

    Repeating it is no error and finishes what was killed. Raises InputError for what never was.
    """
    ids = find_photos(catalog, samples, group)
    erase(catalog, store, ids)
    return ids


def find_photos(catalog: Catalog, names: Sequence[str], group: str | None = None) -> list[str]:
    """Return the ids of the photos that are meant, sorted; those that were forgotten before are among them.

    Args:
        catalog: The catalog.
        names: Each a sample's id or its beginning, the path of a photo's file (also of a refused one
            that quarantine keeps), or a drop as `batch` or `kind/batch`:
            the photos that this drop brought first.
        group: A declared group, all of whose photos are meant.

    Raises:
        InputError: A name or the group leads to no photo, or to more than one meaning; nothing was named.
    """
    whole = [name for name in names if re.fullmatch("[0-9a-f]{64}", name)]
    ids = _known(catalog, ("id", "in", whole)) if whole else set()
    for name in names:
        if name not in ids:
            ids |= _meant_by(name, catalog)
    if group is not None:
        members = _known(catalog, ("group", "=", group))
        if not members:
            raise InputError(f"group {group!r}: the catalog holds no sample of it")
        ids |= members
    if not ids:
        raise InputError("nothing to forget: name sample ids, photo files, drops or --group")
    return sorted(ids)


def _known(catalog: Catalog, *filters: Filter) -> set[str]:
    """The ids of samples, present or forgotten, for which the filters hold."""
    return {i for table in ("samples", "forgotten") for i in catalog.read(table, columns=["id"], filters=filters)["id"]}


def _kept_refused(catalog: Catalog, digest: str) -> set[str]:
    """The digest, where quarantine keeps a copy of the photo."""
    refused = catalog.read("rejects", columns=["key"], filters=[("where", "=", f"quarantine/{digest}")])
    return {digest} if len(refused) else set()


def _meant_by(name: str, catalog: Catalog) -> set[str]:
    """The ids that one name leads to; raises InputError where these are none, or of more than one meaning."""
    meanings: dict[str, set[str]] = {}
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", name):
        # "g" follows "f": the ids between the two begin with the name.
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
    if (path := Path(name)).is_file():
        digest = sha256_file(path)
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


def describe_photos(catalog: Catalog, ids: Collection[str]) -> list[dict[str, Any]]:
    """What would go of each photo, by drop and name: `id, drop, name, category, mattes`; no rows of what has gone.

    Copies that quarantine keeps come first, with `refused` for a category.
    """
    chosen: list[Filter] = [("id", "in", list(ids))]
    samples = catalog.read("samples", columns=["id", "kind", "batch", "name", "category"], filters=chosen).fillna("")
    labels = catalog.read("labels", columns=["sample_id"], filters=[("sample_id", "in", list(ids))])
    mattes = Counter(labels["sample_id"])
    kept: list[Filter] = [("where", "in", [f"quarantine/{i}" for i in set(ids) - set(samples["id"])])]
    refused = catalog.read("rejects", columns=["where", "kind", "batch", "image"], filters=kept)
    return [
        {"id": row["where"].rpartition("/")[2][:12], "drop": f"{row['kind']}/{row['batch']}", "name": row["image"]}
        | {"category": "refused", "mattes": 0}
        for row in refused.sort_values(["kind", "batch", "image"]).to_dict("records")
    ] + [
        {"id": row["id"][:12], "drop": f"{row['kind']}/{row['batch']}", "name": row["name"]}
        | {"category": row["category"] or "unknown", "mattes": mattes[row["id"]]}
        for row in samples.sort_values(["kind", "batch", "name"]).to_dict("records")
    ]


def forgotten_among(catalog: Catalog, ids: Collection[str]) -> frozenset[str]:
    """Those of the ids that must not come back."""
    return frozenset(catalog.read("forgotten", columns=["id"], filters=[("id", "in", list(ids))])["id"])


def erase(catalog: Catalog, store: Store, ids: Collection[str]) -> None:
    """Remembers the ids and removes every row, blob and old data file that is about them; safe to repeat.

    Other photos' rows in the same tables stay, versions of these tables from before cannot be read any more. A matte
    that is another photo's too, byte for byte, stays. Refused rows about the photos stay as counts, without words.
    """
    alphas = _remember(catalog, ids)
    for table, column in (
        ("samples", "id"),
        *((t, "sample_id") for t in ("labels", "reviews", "features", "corrections")),
    ):
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
    for table in ("samples", "labels", "reviews", "features", "corrections", "rejects"):
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
