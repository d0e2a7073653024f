"""Manage quarantine: list and show refused rows, retry repaired files, and accept suspect mattes after review."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pandas as pd

from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.records import Report, sha256_file, write_bytes
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.expectations import SUSPECT
from mm_core.ingest.inbox import arrived_batches, kept_matte, latest_arrivals, named_batches
from mm_core.ingest.ingest import Ingest, describe
from mm_core.ingest.matte_quality import fault_places
from mm_core.ingest.row_decisions import label_id
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.rows import RejectRow
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, blob_key

LOOK_SIDE = 640
"""Long side, in pixels, of each picture of the side-by-side view."""
FAULT_COLOUR = (255, 0, 255)
"""sRGB of the marks of a fault."""
SMALL_SHARE = 0.15
"""Longest side of a fault that is circled, per long side of the picture; larger ones are filled."""


class RejectView(RejectRow):
    """A refused row with its files."""

    file: str
    matte: str
    view: str


def list_rejects(catalog: Catalog) -> pd.DataFrame:
    """Return all refused rows, by kind, batch and row, with the columns of the catalog's `rejects` without nulls."""
    return catalog.read("rejects").fillna("").sort_values(["kind", "batch", "row"], ignore_index=True)


def show(catalog: Catalog, store: Store, key: str, views: Path) -> RejectView:
    """Return one refused row with its files.

    Args:
        catalog: The catalog.
        store: The store with the kept files.
        key: Key of the row, or an unambiguous beginning of it.
        views: Folder for the side-by-side view of a suspect matte.

    Returns:
        The columns of the row, and `file`, `matte` and `view`. `file` is the local path of the kept copy or of the
        repeated sample, possibly a broken picture; it is empty if no copy was kept. For a suspect matte, `matte` is its
        path and `view` a PNG with photo, matte, and the matte's edge and fault drawn over the photo.

    Raises:
        InputError: No row or several rows match the key.
    """
    row: RejectView = {**_one(list_rejects(catalog), key), "file": "", "matte": "", "view": ""}
    sample = row["sample_id"]
    if place := row["where"] or (blob_key(sample) if sample else ""):
        with suppress(BlobNotFound):
            row["file"] = str(store.fetch(place))
    if row["file"] and row["reason"].startswith(SUSPECT):
        row["matte"] = str(store.fetch(kept_matte(row["key"])))
        view = side_by_side(load_rgb(Path(row["file"]), LOOK_SIDE), load_alpha(Path(row["matte"])), row["reason"])
        row["view"] = str(views / f"{row['key']}.png")
        write_bytes(Path(row["view"]), cv2.imencode(".png", view[..., ::-1])[1].tobytes())
    return {**row, "row": int(row["row"])}


def _one(rejects: pd.DataFrame, key: str) -> RejectRow:
    """Return the only refused row with a key that begins with `key`."""
    found = rejects[rejects["key"].str.startswith(key)] if key else rejects.head(0)
    if found.empty:
        raise InputError(
            f"no refused row has the key {key!r}: copy one from `mm quarantine list`; an accepted row is not in it"
        )
    if len(found) > 1:
        raise InputError(f"key {key!r} fits {len(found)} refused rows: copy a longer one from `mm quarantine list`")
    return cast(RejectRow, found.iloc[0].to_dict())


def side_by_side(rgb: np.ndarray, alpha: np.ndarray, reason: str = "") -> np.ndarray:
    """Return the photo, the matte, and the photo with the matte's edge in red, next to each other.

    The fault is marked in the matte and on the photo: small parts by a magenta circle, areas by magenta.

    Args:
        rgb: Photo, uint8 (H, W, 3) sRGB.
        alpha: Matte in [0, 1], float32 of any size.
        reason: Reason of the suspicion; some faults, such as an inverted matte, have no place.

    Returns:
        uint8 (H, 3 W, 3) sRGB.
    """
    matte = cv2.resize(alpha, rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
    # Dilation minus erosion of the mask is its edge.
    edge = cv2.morphologyEx((matte > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    # Darken the background, so that the selected area is visible.
    dimmed = rgb * (0.45 + 0.55 * matte[..., None])
    dimmed[edge] = (255, 0, 0)
    grey = np.repeat(matte[..., None] * 255, 3, 2)
    places = fault_places(alpha, rgb, reason)
    if places is not None:
        fitted = cv2.resize(places.view(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        grey, dimmed = (_marked(picture, fitted) for picture in (grey, dimmed))
    return np.hstack([rgb, grey, dimmed]).astype(np.uint8)


def _marked(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return a copy of the picture with the places in FAULT_COLOUR; small ones are circled and keep their pixels."""
    marked = np.ascontiguousarray(picture, np.uint8)
    count, parts, stats, centres = cv2.connectedComponentsWithStats(places.view(np.uint8), connectivity=8)
    reach = max(4, round(0.015 * max(picture.shape)))
    for part in range(1, count):
        wide, high = stats[part, cv2.CC_STAT_WIDTH], stats[part, cv2.CC_STAT_HEIGHT]
        if max(wide, high) > SMALL_SHARE * max(picture.shape):
            marked[parts == part] = FAULT_COLOUR
        else:
            middle = (round(float(centres[part][0])), round(float(centres[part][1])))
            cv2.circle(marked, middle, round(np.hypot(wide, high) / 2) + reach, FAULT_COLOUR, 2)
    return marked


def accept(run: StorageRun, keys: Sequence[str], *, reviewer: str, why: str) -> Report:
    """Accept suspect mattes after review; the same matte of the same photo is never suspected again.

    The reviews are recorded before the rows are ingested. If the command is killed in between, the same command or
    `mm quarantine retry` completes it.

    Args:
        run: Params, workspace, storage and progress.
        keys: Keys of the rows, or unambiguous beginnings.
        reviewer: Name of the person.
        why: Reason for the acceptance.

    Returns:
        The report of the ingest, with the facts `reviewed` (count) and `waiting`. `waiting` lists photos of drops that
        are not in the inbox; they will be accepted when the drop arrives again.

    Raises:
        InputError: A key matches no row or several, or a row was refused for another reason.
    """
    rejects = list_rejects(run.catalog)
    rows = [_one(rejects, key) for key in keys]
    if refused := [row for row in rows if not row["reason"].startswith(SUSPECT)]:
        one = refused[0]
        raise InputError(
            f"{one['image']} was refused ({one['reason']}), not suspected: repair it, then `mm quarantine retry`"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    reviews = []
    for row in rows:
        sample, alpha = str(row["where"]).rpartition("/")[2], sha256_file(run.store.fetch(kept_matte(row["key"])))
        said = {"reason": row["reason"], "detail": row["detail"], "reviewer": reviewer, "why": why, "reviewed_at": now}
        reviews.append({"id": label_id(sample, alpha), "sample_id": sample, "alpha_sha256": alpha} | said)
    # A review belongs to the digest of the matte: another matte of the same photo is checked again.
    run.catalog.add("reviews", reviews)
    ledger = {row["key"]: row["state"] for row in latest_arrivals(run.catalog).values()}
    docs, taken, waiting = DataDocs(run.layout.data_docs), [], {row["key"]: row["image"] for row in rows}
    # Find the drops of the rows. Rows of missing drops remain in `waiting`.
    for one in arrived_batches(run.inbox):
        mine = {one.reject_key(int(row["row"])): int(row["row"]) for row in rows}
        numbers = frozenset(number for key, number in mine.items() if waiting.pop(key, None))
        if not numbers or one.key not in ledger:
            continue
        work = Ingest(run, one, docs)
        # A held drop is ingested as a whole. Its accepted mattes may now be enough to release it.
        work.run(again=True) if ledger[one.key] == "held" else work.run(only=numbers)
        taken.append(one)
    docs.build()
    report = describe(Report("quarantine-accept"), run, taken)
    report.facts |= {"reviewed": len(reviews), "waiting": sorted(waiting.values())}
    return report


def retry(run: StorageRun, batch: str) -> Report:
    """Ingest the refused rows of a drop again after a producer has repaired files under the same names.

    Rows with replaced files are also included. A held drop is ingested as a whole. Rows that are now valid are accepted
    and removed from quarantine. A changed manifest is a new arrival, which `mm ingest` handles.

    Args:
        run: Params, workspace, storage and progress.
        batch: Name of the drop, as `batch` or `kind/batch`.

    Returns:
        The report of the ingest.

    Raises:
        InputError: The batch was never ingested or is not in the inbox.
    """
    ledger = {row["key"]: row["state"] for row in latest_arrivals(run.catalog).values()}
    chosen = named_batches(run.inbox, batch)
    # A changed manifest has another key and needs a normal ingest.
    known = [one for one in chosen if one.key in ledger]
    if not known:
        kind = "" if "/" in batch else "<kind>/"
        nowhere = f"there is no manifest at {run.inbox.url}/{kind}{batch}; `mm status` lists the batches"
        remedy = "run `mm ingest`" if chosen else nowhere
        raise InputError(f"batch {batch!r} was not ingested as it lies in the inbox: {remedy}")
    docs = DataDocs(run.layout.data_docs)
    for one in known:
        work = Ingest(run, one, docs)
        if ledger[one.key] == "held":
            work.run(again=True)
        else:
            # Duplicates are left out: repaired files do not change them, and replaced files are found anyway.
            refused = ["quarantine", "conflict"]
            filters: list[Filter] = [("kind", "=", one.kind), ("batch", "=", one.batch), ("verdict", "in", refused)]
            work.run(only=frozenset(run.catalog.read("rejects", columns=["row"], filters=filters)["row"].tolist()))
    docs.build()
    return describe(Report("quarantine-retry"), run, known)
