"""Write the pools of a snapshot in the forms that `mm drop` reads: folders, COCO, FiftyOne.

| form | files | what is lost |
|---|---|---|
| `folders` | `image/<category>/`, `alpha/<category>/`, `captions.csv` | group, role, source, licence, time |
| `coco` | `data/<category>/`, `labels.json` | soft alpha: masks are cut at 0.5 |
| `fiftyone` | `data/<category>/`, `fields/ground_truth/`, `samples.json`, `metadata.json` | nothing |
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.pins import read_snapshot
from mm_core.core.records import Report, write_bytes
from mm_core.core.spellings import PHOTOS, SUFFIXES
from mm_core.imaging.images import load_alpha
from mm_core.ingest.coco import ROW_KEYS, CocoPhoto, load_pycocotools, write_coco
from mm_core.ingest.csv_text import csv_bytes
from mm_core.ingest.drop import copy_file
from mm_core.ingest.fiftyone_json import TRUTH, heatmap, write_fiftyone
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, fetch_blob

FORMS = ("folders", "coco", "fiftyone")
UNKNOWN = "unknown"
"""Folder of photos without a category; `mm drop` gives them none."""


@dataclass(frozen=True)
class Exported:
    """One photo of a pool."""

    place: str
    """`<category>/<file name>`, different for every photo of the pool."""
    photo: Path
    """The blob."""
    alpha: Path | None
    """The blob of the matte, a grey PNG; None without a label."""
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    category: str
    row: dict[str, str]
    """Columns of the manifest that have a value."""

    @property
    def matte_place(self) -> str:
        """Path of the matte with the stem of the photo."""
        return str(PurePosixPath(self.place).with_suffix(".png"))


def export_pools(run: StorageRun, out: Path, report: Report, *, form: str, pools: Sequence[str] = ()) -> Report:
    """Write one data set per pool, `<out>/<pool>/`.

    Args:
        run: Workspace with a snapshot, storage and progress.
        out: A new or empty folder.
        report: Receives a row per pool.
        form: One of FORMS.
        pools: Some of `POOLS`; all that have photos by default.

    Returns:
        `report`.

    Raises:
        InputError: An argument is unknown, `out` is not empty or a folder of the system, or no pool has photos.
    """
    if form not in FORMS:
        raise InputError(f"--as {form}: unknown; one of {', '.join(FORMS)}")
    if unknown := [pool for pool in pools if pool not in POOLS]:
        raise InputError(f"--pool {unknown[0]}: unknown; some of {', '.join(POOLS)}")
    run.layout.require_free(out, "name a new folder elsewhere")
    # The present folder has no name, and a link is no folder that could be replaced.
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already: name a new folder")
    if form == "coco":
        # A missing package must show before the work, not at its end.
        load_pycocotools()
    snapshot = run.layout.snapshot
    version = read_snapshot(run.layout)["catalog"]["samples"]
    frames = {pool: frame for pool in pools or POOLS if len(frame := read_pool(snapshot, pool))}
    if not frames:
        raise InputError(
            f"{snapshot}: no photos in {', '.join(pools) or 'any pool'}: `mm snapshot` freezes the catalog"
        )
    about = run.catalog.read("samples", version=version).set_index("id")
    write = {"folders": _write_folders, "coco": _write_coco, "fiftyone": _write_fiftyone}[form]
    # The folder appears under its name only when it is complete.
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for pool, frame in frames.items():
            photos = _photos(frame, about, run.store, partial(run.progress, f"export {pool}"))
            write(photos, unfinished / pool, pool)
            mattes = sum(photo.alpha is not None for photo in photos)
            report.tables.setdefault("pools", []).append({"pool": pool, "photos": len(photos), "mattes": mattes})
        if out.exists():
            # An existing `out` is empty: any other was refused above.
            out.rmdir()
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    report.facts |= {"folder": str(out), "form": form}
    return report


def photo_name(name: str, sample: str, form: str, taken: set[str]) -> str:
    """Return a file name for a photo, and add it to `taken`.

    Args:
        name: The photo's name in its manifest.
        sample: Its id.
        form: Its format, such as JPEG.
        taken: Stems in use, in lower case: a matte has the stem of its photo.

    Returns:
        The last part of `name` without special characters; with digits of the id if the stem is in use.
    """
    plain = PurePosixPath(re.sub(r"[^\w. -]", "_", PurePosixPath(name.replace("\\", "/")).name).lstrip(". "))
    stem, suffix = plain.stem or sample[:12], plain.suffix
    if suffix.lower() not in PHOTOS:
        suffix = SUFFIXES.get(form, (".img",))[0]
    if stem.lower() in taken:
        stem = f"{stem}-{sample[:12]}"
    taken.add(stem.lower())
    return f"{stem}{suffix}"


def _photos(frame: pd.DataFrame, about: pd.DataFrame, store: Store, done: Callable[[int, int], None]) -> list[Exported]:
    photos: list[Exported] = []
    taken: dict[str, set[str]] = {}
    for number, row in enumerate(frame.to_dict("records"), 1):
        sample = about.loc[row["sample_id"]]
        # Missing values of a frame are NaN, not empty texts.
        category = row["category"] if isinstance(row["category"], str) else ""
        folder = category or UNKNOWN
        names = taken.setdefault(folder, set())
        name = photo_name(str(sample["name"] or ""), row["sample_id"], str(sample["format"]), names)
        # The manifest columns are those of the catalog at the version of the snapshot.
        values = {key: sample[key] for key in ROW_KEYS} | {"caption": row["caption"]}
        alpha = fetch_blob(store, row["alpha_sha256"]) if isinstance(row["alpha_sha256"], str) else None
        photos.append(
            Exported(
                f"{folder}/{name}",
                fetch_blob(store, row["sample_id"]),
                alpha,
                (int(row["width"]), int(row["height"])),
                category,
                {key: value for key, value in values.items() if isinstance(value, str) and value},
            )
        )
        done(number, len(frame))
    return photos


def _write_folders(photos: Sequence[Exported], folder: Path, pool: str) -> None:
    captions = [("image", "caption")]
    for photo in photos:
        copy_file(photo.photo, folder / "image" / photo.place)
        if photo.alpha:
            copy_file(photo.alpha, folder / "alpha" / photo.matte_place)
        if caption := photo.row.get("caption"):
            captions.append((f"image/{photo.place}", caption))
    if len(captions) > 1:
        write_bytes(folder / "captions.csv", csv_bytes(captions))


def _write_coco(photos: Sequence[Exported], folder: Path, pool: str) -> None:
    # A generator, so that only one matte is in memory.
    def entries() -> Iterator[tuple[CocoPhoto, np.ndarray | None]]:
        for photo in photos:
            copy_file(photo.photo, folder / "data" / photo.place)
            row = {key: photo.row[key] for key in ROW_KEYS if key in photo.row}
            caption = photo.row.get("caption", "")
            about = CocoPhoto(photo.place, *photo.size, photo.category, caption=caption, row=row)
            yield about, load_alpha(photo.alpha) if photo.alpha else None

    write_coco(entries(), folder / "labels.json")


def _write_fiftyone(photos: Sequence[Exported], folder: Path, pool: str) -> None:
    samples = []
    for photo in photos:
        place = f"data/{photo.place}"
        sample: dict[str, object] = {"filepath": place, "tags": [pool], **photo.row}
        copy_file(photo.photo, folder / place)
        if photo.category:
            sample["category"] = photo.category
        if photo.alpha:
            matte = f"fields/{TRUTH}/{photo.matte_place}"
            sample[TRUTH] = heatmap(matte)
            copy_file(photo.alpha, folder / matte)
        samples.append(sample)
    write_fiftyone(samples, folder, f"matting-moments-{pool}")
