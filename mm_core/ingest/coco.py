"""COCO annotation files: instances (polygons, RLE) and captions as photos with mattes, and back.

A matte of a photo shows one subject. It is the union of the instances of the photo's category: the one with the largest
area. COCO masks have no soft values: alpha is 0 or 1, and an export cuts it at 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from pydantic import JsonValue

from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES, parse_finite_json
from mm_core.core.spellings import category_of

if TYPE_CHECKING:
    from types import ModuleType

MOST_PIXELS = 1 << 28
"""Largest picture that a mask is made for; a file may claim any size."""
CLASS_CATEGORY: Mapping[str, str] = {"person": "portrait", "cat": "pets", "dog": "pets"}
"""Classes of COCO's own data set → category; several persons are `multi_person`."""
SUPERCATEGORY: Mapping[str, str] = {"food": "delicacy", "accessory": "accessories"}
"""Groups of classes of COCO's own data set → category."""
ROW_KEYS = ("group", "role", "source", "license", "taken_at")
"""Manifest columns that `write_coco` keeps in the entries of `images`, beside COCO's own keys."""


@dataclass
class CocoPhoto:
    """One entry of `images` with its annotations."""

    file_name: str
    width: int
    height: int
    category: str = ""
    segmentations: list[JsonValue] = field(default_factory=list)
    """COCO segmentations of the subject: lists of polygons, or RLE objects."""
    caption: str = ""
    row: dict[str, str] = field(default_factory=dict)
    """Further columns of the manifest."""

    def mask(self) -> np.ndarray:
        """Return the union of the segmentations, float32 (H, W) of 0 and 1; raises InputError if one is malformed."""
        coco = load_pycocotools()
        union = np.zeros((self.height, self.width), bool)
        for segmentation in self.segmentations:
            union |= _decode(coco, segmentation, self)
        return union.astype(np.float32)


def load_pycocotools() -> ModuleType:
    """Return `pycocotools.mask`; raise InputError with the remedy if it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError("COCO masks need pycocotools: run `make coco` in the project") from None
    return mask


def read_coco(path: Path) -> list[CocoPhoto]:
    """Read a COCO file of instances or captions.

    Args:
        path: JSON file with `images` and `annotations`, and `categories` for instances.

    Returns:
        One entry per image, in the file's order; without segmentations if nothing is annotated.

    Raises:
        InputError: The file is no COCO file, or an entry lacks a field or refers to a missing one.
    """
    data = read_json(path)
    if not is_coco(data):
        raise InputError(f"{path}: no COCO file: it needs the lists `images` and `annotations`")
    # Annotations refer to classes and images by id.
    classes = {_key(entry["id"]): entry for entry in _objects(path, data, "categories", ("id", "name"))}
    photos: dict[str, CocoPhoto] = {}
    for entry in _objects(path, data, "images", ("id", "file_name")):
        width, height = (_side(path, entry, name) for name in ("width", "height"))
        if width * height > MOST_PIXELS:
            raise InputError(f"{path}: images: {entry['file_name']}: {width} × {height} pixels are too many")
        row = {name: str(entry[name]) for name in ROW_KEYS if isinstance(entry.get(name), str)}
        photos[_key(entry["id"])] = CocoPhoto(str(entry["file_name"]), width, height, row=row)
    found: dict[str, list[_Instance]] = {}
    for entry in _objects(path, data, "annotations", ("image_id",)):
        photo = photos.get(_key(entry["image_id"]))
        if photo is None:
            raise InputError(f"{path}: annotations: image_id {entry['image_id']!r} is not in `images`")
        if entry.get("segmentation"):
            found.setdefault(_key(entry["image_id"]), []).append(_instance(path, entry, classes))
        # COCO has several captions per photo; the first one is kept.
        photo.caption = photo.caption or str(entry.get("caption") or "").strip()
    for key, instances in found.items():
        photos[key].category, photos[key].segmentations = _subject(instances)
    return list(photos.values())


def is_coco(data: JsonValue) -> TypeGuard[dict[str, JsonValue]]:
    """Return whether a parsed JSON file has COCO's two lists."""
    return isinstance(data, dict) and all(isinstance(data.get(name), list) for name in ("images", "annotations"))


def read_json(path: Path) -> JsonValue:
    """Return the content of a JSON file from elsewhere; raises InputError if it is missing or malformed."""
    try:
        return parse_finite_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name a COCO or FiftyOne json file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {' '.join(str(error).split())[:200]}") from None


def write_coco(photos: Iterable[tuple[CocoPhoto, np.ndarray | None]], path: Path) -> None:
    """Write a COCO file of instances with one RLE mask per photo, and captions.

    Args:
        photos: Photos, and the matte of each, float (H, W) in [0, 1], or None; it is cut at 0.5.
        path: The JSON file.
    """
    coco = load_pycocotools()
    images, annotations = [], []
    for number, (photo, matte) in enumerate(photos, 1):
        images.append(
            {"id": number, "file_name": photo.file_name, "width": photo.width, "height": photo.height} | photo.row
        )
        about: dict[str, object] = {"id": number, "image_id": number}
        if photo.caption:
            about["caption"] = photo.caption
        if matte is not None:
            # pycocotools takes masks in column order.
            mask = np.asfortranarray(matte >= 0.5).astype(np.uint8)
            rle = coco.encode(mask)
            about |= {
                "category_id": (ALL_CATEGORIES.index(photo.category) if photo.category else len(ALL_CATEGORIES)) + 1,
                "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
                "bbox": [float(value) for value in coco.toBbox(rle)],
                "area": int(coco.area(rle)),
                "iscrowd": 0,
            }
        # A photo without matte and caption has no annotation, but it stays in `images`.
        if len(about) > 2:
            annotations.append(about)
    names = (*ALL_CATEGORIES, "unknown")
    classes = [{"id": n, "name": name, "supercategory": "subject"} for n, name in enumerate(names, 1)]
    data = {"info": {"description": "Matting Moments"}, "images": images, "annotations": annotations}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data | {"categories": classes}))


@dataclass(frozen=True)
class _Instance:
    category: str
    person: bool
    crowd: bool
    area: float
    segmentation: JsonValue


def _instance(path: Path, entry: Mapping[str, JsonValue], classes: Mapping[str, Mapping[str, JsonValue]]) -> _Instance:
    kind = classes.get(_key(entry.get("category_id")))
    if kind is None:
        raise InputError(f"{path}: annotations: category_id {entry.get('category_id')!r} is not in `categories`")
    name, above = str(kind["name"]).strip().lower(), str(kind.get("supercategory") or "").strip().lower()
    plain = category_of(name)
    category = plain if plain in ALL_CATEGORIES else CLASS_CATEGORY.get(name) or SUPERCATEGORY.get(above, "")
    area = entry.get("area")
    if not isinstance(area, (int, float)):
        box = entry.get("bbox")
        # Without an area, the size of the box decides which category is the subject.
        sides = box[2:4] if isinstance(box, list) and len(box) == 4 else [0]
        area = float(np.prod([side if isinstance(side, (int, float)) else 0 for side in sides]))
    return _Instance(category, name == "person", bool(entry.get("iscrowd")), float(area), entry["segmentation"])


def _subject(instances: Sequence[_Instance]) -> tuple[str, list[JsonValue]]:
    """Return the category of the photo and the segmentations of its subject."""
    known = [one for one in instances if one.category]
    # Without a known class the subject is everything that is annotated.
    if not known:
        return "", [one.segmentation for one in instances]
    areas: dict[str, float] = {}
    for one in known:
        areas[one.category] = areas.get(one.category, 0.0) + one.area
    category = max(areas, key=lambda name: areas[name])
    chosen = [one for one in known if one.category == category]
    # A crowd region stands for several people.
    several = len(chosen) > 1 or any(one.crowd for one in chosen)
    persons = [one for one in chosen if one.person]
    return "multi_person" if persons and several else category, [one.segmentation for one in chosen]


def _side(path: Path, entry: Mapping[str, JsonValue], name: str) -> int:
    """Return the width or height of an entry of `images`; raises InputError unless it is a positive whole number."""
    side = entry.get(name)
    if type(side) is not int or side < 1:
        raise InputError(f"{path}: images: {entry['file_name']}: {name} must be a number of pixels, not {side!r}")
    return side


def _objects(
    path: Path, data: Mapping[str, JsonValue], name: str, fields: Sequence[str]
) -> Iterator[dict[str, JsonValue]]:
    """Yield the entries of a list; raises InputError for one that lacks a field."""
    entries = data.get(name) or []
    if not isinstance(entries, list):
        raise InputError(f"{path}: {name} is no list")
    for number, value in enumerate(entries):
        entry = value if isinstance(value, dict) else {}
        missing = [key for key in fields if entry.get(key) in (None, "")]
        if missing:
            raise InputError(f"{path}: {name}[{number}]: {missing[0]!r} is missing")
        yield entry


def _key(identity: JsonValue) -> str:
    """Return the id of an entry as a key: 1 and 1.0 are one id, 1 and "1" are two."""
    if isinstance(identity, float) and identity.is_integer():
        return repr(int(identity))
    return repr(identity)


def _decode(coco: ModuleType, segmentation: JsonValue, photo: CocoPhoto) -> np.ndarray:
    """Return one segmentation as bool (H, W)."""
    height, width = photo.height, photo.width
    where = f"{photo.file_name}: segmentation"
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise InputError(f"{where}: size {segmentation.get('size')}, the photo is {[height, width]}")
        counts = segmentation.get("counts")
        _check_counts(where, counts, height * width)
        rle = coco.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
        return coco.decode(rle).astype(bool)
    polygons = segmentation if isinstance(segmentation, list) else []
    points = [polygon for polygon in polygons if _is_polygon(polygon)]
    if not polygons or len(points) < len(polygons):
        raise InputError(f"{where}: neither polygons ([[x, y, x, y, x, y, …]]) nor an RLE object")
    # The library computes with whole coordinates of any size, so points are kept near the picture.
    edge = [[min(max(float(v), -1.0), float(max(height, width) + 1)) for v in polygon] for polygon in points]
    return coco.decode(coco.merge(coco.frPyObjects(edge, height, width))).astype(bool)


def _is_polygon(value: JsonValue) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)


def _check_counts(where: str, counts: JsonValue, pixels: int) -> None:
    """Raise InputError unless the runs cover exactly `pixels`: the library writes past its memory otherwise."""
    runs = counts if isinstance(counts, list) else _runs_of(where, counts)
    lengths = [run for run in runs if isinstance(run, int) and not isinstance(run, bool) and run >= 0]
    if len(lengths) < len(runs) or sum(lengths) != pixels:
        raise InputError(f"{where}: the runs of the RLE do not cover the {pixels} pixels of the photo")


def _runs_of(where: str, text: JsonValue) -> list[int]:
    """Return the run lengths of a compressed RLE: signed numbers of 5 bits a character; later ones are differences."""
    if not isinstance(text, str) or not text or any(not 48 <= ord(sign) < 112 for sign in text):
        raise InputError(f"{where}: counts are neither a list of numbers nor a compressed RLE")
    runs: list[int] = []
    value = shift = 0
    for sign in text:
        code = ord(sign) - 48
        # Five bits of the value per character, the lowest first; bit 6 says that more follow.
        value |= (code & 31) << shift
        shift += 5
        if code & 32 and shift < 60:
            continue
        # The highest bit of the last group is the sign.
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError(f"{where}: the compressed RLE ends within a number")
    return runs
