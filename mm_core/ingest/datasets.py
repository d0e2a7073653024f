"""Package published data sets as drops: COCO files and FiftyOne's json exports.

Folders of photos and mattes are packaged by `mm_core.ingest.drop`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.folders import require_folder
from mm_core.core.records import KINDS, sha256_file, write_bytes
from mm_core.imaging.images import encode_alpha, read_header
from mm_core.ingest.batch_names import name_fault
from mm_core.ingest.coco import is_coco, read_coco, read_json
from mm_core.ingest.decode_sandbox import safely
from mm_core.ingest.drop import DropSummary, LeftOut, copy_file, matte_place, write_manifest
from mm_core.ingest.fiftyone_json import SAMPLES, FiftyOnePhoto, inside, is_fiftyone, read_fiftyone

PHOTO_PLACES = ("", "data", "images", "image", "photos")
"""Folders, relative to that of a COCO file, in which its photos are searched; `file_name` may have folders too."""
NO_CATEGORY = "(none)"


@dataclass(frozen=True)
class DatasetPhoto:
    """One photo of a data set."""

    path: Path
    name: str
    """Path below `images/` of the drop."""
    row: dict[str, str]
    """Columns of the manifest: category, caption, group, …"""
    matte: Callable[[], np.ndarray] | None
    """Returns the matte, float32 (H, W) in [0, 1]; None without one."""


@dataclass
class Dataset:
    """The photos of a data set, and its entries that are not among them."""

    folder: Path
    photos: list[DatasetPhoto] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    """`file` and `reason` of each."""


def labels_file(folder: Path, labels: Path | None) -> Path | None:
    """Return the COCO or FiftyOne file of a folder, or None for a folder of plain photos.

    Args:
        folder: The folder that the user names.
        labels: The file that the user names; otherwise `samples.json` or `labels.json` in the folder, if it is one.
    """
    if labels is not None:
        return labels
    # Other tools use these file names too, so the content decides.
    for name, is_ours in ((SAMPLES, is_fiftyone), ("labels.json", is_coco)):
        path = folder / name
        if path.is_file() and is_ours(read_json(path)):
            return path
    return None


def read_dataset(folder: Path, labels: Path, field_name: str = "") -> Dataset:
    """Read a data set.

    Args:
        folder: Folder with the photos.
        labels: A COCO file, or the `samples.json` of a FiftyOne export.
        field_name: The field with the mattes of a FiftyOne export.

    Raises:
        InputError: The file is malformed, or names files outside of the folder.
    """
    require_folder(folder)
    if is_fiftyone(read_json(labels)):
        # Paths in a FiftyOne export begin at the folder of its json file.
        return _fiftyone(labels.parent, field_name)
    return _coco(folder, labels)


def package_dataset(dataset: Dataset, inbox: Path, kind: str, batch: str) -> DropSummary:
    """Write a data set as the drop `<inbox>/<kind>/<batch>`.

    Photos without a matte (pixel_labeled) or caption (text_image) are left out and named. The other kinds ignore
    mattes.

    Args:
        dataset: The data set.
        inbox: Root of the inbox.
        kind: One of KINDS.
        batch: Name of the new drop.

    Returns:
        The summary for `mm drop`.

    Raises:
        InputError: An argument is invalid, the drop exists, a mask is malformed, or no photo is left.
    """
    if kind not in KINDS:
        raise InputError(f"--kind {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if fault := name_fault(batch):
        raise InputError(f"--batch: {fault}")
    target = inbox / kind / batch
    if target.exists():
        raise InputError(f"{target}: --batch {batch!r} already exists; choose another batch name")
    needed = {"pixel_labeled": "no matte", "text_image": "no caption"}.get(kind, "")
    left_out: list[LeftOut] = list(dataset.left_out)
    taken: list[DatasetPhoto] = []
    for photo in dataset.photos:
        has = photo.matte is not None if kind == "pixel_labeled" else bool(photo.row.get("caption"))
        if needed and not has:
            left_out.append({"file": photo.name, "reason": needed})
        else:
            taken.append(photo)
    if not taken:
        raise InputError(f"{dataset.folder}: no photo with a {needed.removeprefix('no ') or 'file'}: see --kind")
    # Under a hidden name until it is complete: a malformed mask leaves no half drop.
    unfinished = inbox / f".{kind}-{batch}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        rows: list[dict[str, str]] = []
        seen: Counter[str] = Counter()
        for photo in taken:
            rows.append(_write(photo, unfinished, kind, seen[photo.name]))
            seen[photo.name] += 1
        write_manifest(unfinished, rows)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {
        "drop": str(target),
        "photos": len(taken),
        "categories": _counts(taken, kind),
        "left_out": left_out,
        "other_folders": [],
    }


def _write(photo: DatasetPhoto, batch: Path, kind: str, earlier: int) -> dict[str, str]:
    """Write the files of one photo; return its row of the manifest.

    Args:
        photo: The photo.
        batch: Folder of the drop.
        kind: Kind of the drop.
        earlier: Number of rows that list this photo already. Each keeps a matte of its own: ingest compares them.
    """
    row = {name: value for name, value in photo.row.items() if value and (name != "caption" or kind == "text_image")}
    row |= {"image": f"images/{photo.name}", "sha256": sha256_file(photo.path)}
    copy_file(photo.path, batch / row["image"])
    if kind == "pixel_labeled" and photo.matte:
        suffix = f".{earlier + 1}.png" if earlier else ".png"
        row["alpha"] = f"alphas/{matte_place(PurePath(photo.name), suffix, row['sha256'])}"
        alpha = photo.matte()
        write_bytes(batch / row["alpha"], encode_alpha(alpha, sixteen_bit=_is_sixteen_bit(alpha)))
    return row


def _is_sixteen_bit(alpha: np.ndarray) -> bool:
    """Return whether 8 bits would lose values of the matte."""
    # Rounding in float32 changes a level by less than 0.001; one step of 16 bits is 0.004.
    levels = alpha * 255
    return bool(np.abs(levels - np.rint(levels)).max() > 1e-3)


def _counts(photos: Sequence[DatasetPhoto], kind: str) -> dict[str, dict[str, int]]:
    counts = Counter(photo.row.get("category") or NO_CATEGORY for photo in photos)
    # Every photo of a labelled drop has a matte. The photos without a category come last.
    ordered = sorted(counts.items(), key=lambda item: (item[0] == NO_CATEGORY, item))
    return {name: {"photos": n, "mattes": n if kind == "pixel_labeled" else 0} for name, n in ordered}


def _coco(folder: Path, labels: Path) -> Dataset:
    dataset = Dataset(folder)
    for photo in read_coco(labels):
        place = next((p for p in PHOTO_PLACES if (folder / p / photo.file_name).is_file()), None)
        if place is None:
            dataset.left_out.append({"file": photo.file_name, "reason": f"not below {folder}"})
            continue
        # A foreign `file_name` may hold `..`, which `inside` refuses.
        path = inside(folder, str(Path(place) / photo.file_name), str(labels))
        row = {"category": photo.category, "caption": photo.caption, **photo.row}
        matte = photo.mask if photo.segmentations else None
        dataset.photos.append(DatasetPhoto(path, _safe(folder, path), row, matte))
    return dataset


def _fiftyone(folder: Path, field_name: str) -> Dataset:
    dataset = Dataset(folder)
    for photo in read_fiftyone(folder, field_name):
        path = inside(folder, photo.filepath, str(folder / SAMPLES))
        matte = partial(_label_matte, photo, folder, path) if photo.label is not None else None
        row = {"category": photo.category, **photo.row}
        dataset.photos.append(DatasetPhoto(path, _safe(folder, path), row, matte))
    return dataset


def _label_matte(photo: FiftyOnePhoto, folder: Path, path: Path) -> np.ndarray:
    header = safely(read_header, path)
    return photo.matte(folder, (header.width, header.height))


def _safe(folder: Path, path: Path) -> str:
    return path.resolve().relative_to(folder.resolve()).as_posix()
