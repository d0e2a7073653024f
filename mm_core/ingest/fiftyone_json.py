"""FiftyOne's json export (`FiftyOneDataset`): a folder with `metadata.json`, `samples.json`, `data/` and `fields/`.

| label | matte |
|---|---|
| Heatmap | soft alpha, by its `range` |
| Segmentation | 1 wherever the class is not 0: class numbers are no grey values |
| Detections | union of the instance masks |
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TypeGuard

import cv2
import numpy as np
from pydantic import JsonValue

from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES, write_json
from mm_core.core.spellings import category_of
from mm_core.imaging.images import load_alpha
from mm_core.ingest.coco import MOST_PIXELS, ROW_KEYS, read_json
from mm_core.ingest.decode_sandbox import safely

SAMPLES = "samples.json"
LABELS = ("Heatmap", "Segmentation", "Detections")
"""Label classes that can hold a matte."""
TRUTH = "ground_truth"
"""FiftyOne's usual name of the field with the true labels; exports use it."""


@dataclass(frozen=True)
class FiftyOnePhoto:
    """One sample of the dataset."""

    filepath: str
    """Relative to the dataset's folder."""
    category: str
    label: Mapping[str, JsonValue] | None
    """The label with the matte, or None."""
    row: dict[str, str] = field(default_factory=dict)
    """Further columns of the manifest."""

    def matte(self, folder: Path, size: tuple[int, int]) -> np.ndarray:
        """Return the matte, float32 (H, W) in [0, 1].

        Args:
            folder: The dataset's folder.
            size: Width and height of the photo; detections are drawn at this size.

        Raises:
            InputError: The label's file is missing or outside of the folder, or its data is malformed.
        """
        label, where = self.label or {}, f"{folder / SAMPLES}: {self.filepath}"
        kind = label.get("_cls")
        # Detections hold a mask per instance, at the size of its box.
        if kind == "Detections":
            return _drawn(label, where, size)
        path, data = (label.get(name) for name in (("map_path", "map") if kind == "Heatmap" else ("mask_path", "mask")))
        # Masks are in files next to the json file, or in the json file itself.
        if path:
            alpha = safely(load_alpha, inside(folder, str(path), where))
        else:
            alpha = _array(data, where)
            if kind == "Heatmap":
                low, high = _range(label, alpha, where)
                alpha = (alpha.astype(np.float32) - low) / (high - low)
        if kind == "Segmentation":
            # Classes may be numbers or colours; every class but 0 is foreground.
            alpha = np.atleast_3d(alpha).any(axis=2)
        return np.clip(alpha.astype(np.float32), 0, 1)


def read_fiftyone(folder: Path, field_name: str = "") -> list[FiftyOnePhoto]:
    """Read the samples of a dataset's folder.

    Args:
        folder: Folder with `samples.json`.
        field_name: The field with the mattes; by default `ground_truth`, or the only field that can hold one.

    Returns:
        One entry per sample.

    Raises:
        InputError: The file is malformed, the field is missing, or several fields can hold mattes.
    """
    path = folder / SAMPLES
    data = read_json(path)
    if not is_fiftyone(data):
        raise InputError(f"{path}: no FiftyOne dataset: it needs the list `samples`, each with `filepath`")
    samples = data["samples"]
    # Fields are found by their content, because each data set names them in its own way.
    fields = sorted({name for sample in samples for name, value in sample.items() if _is_label(value)})
    if field_name and field_name not in fields:
        raise InputError(f"{path}: no field {field_name!r} with mattes; there are: {', '.join(fields) or 'none'}")
    chosen = field_name or (TRUTH if TRUTH in fields else fields[0] if len(fields) == 1 else "")
    if not chosen and fields:
        raise InputError(f"{path}: several fields hold mattes ({', '.join(fields)}): name one with --field")
    return [
        FiftyOnePhoto(
            str(sample["filepath"]),
            _category(sample),
            label if _is_label(label := sample.get(chosen)) else None,
            {name: str(sample[name]) for name in ("caption", *ROW_KEYS) if isinstance(sample.get(name), str)},
        )
        for sample in samples
    ]


def is_fiftyone(data: JsonValue) -> TypeGuard[dict[str, list[dict[str, JsonValue]]]]:
    """Return whether a parsed JSON file is a list of FiftyOne samples."""
    samples = data.get("samples") if isinstance(data, dict) else None
    return isinstance(samples, list) and all(isinstance(s, dict) and s.get("filepath") for s in samples)


def inside(folder: Path, name: str, where: str) -> Path:
    """Return a file below the folder that a data set names; raises InputError if it is missing or elsewhere."""
    path = folder / name.replace("\\", "/")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{where}: {name} is outside of {folder}: export the data set with its media")
    if not path.is_file():
        raise InputError(f"{where}: {path} is missing: export the data set with its media")
    return path


def write_fiftyone(samples: Iterable[Mapping[str, object]], folder: Path, name: str) -> None:
    """Write `samples.json` and `metadata.json`, which FiftyOne's importer reads.

    Args:
        samples: Fields of each sample; values are strings, numbers, lists of strings, or labels with `_cls`.
        folder: The dataset's folder.
        name: Name of the dataset.
    """
    rows = [{"tags": [], "_media_type": "image", **sample} for sample in samples]
    write_json(folder / SAMPLES, {"samples": rows})
    types: dict[str, str] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("filepath", "tags", "_media_type") and value is not None:
                types.setdefault(key, _field_type(value))
    fields = [_field("filepath", "StringField"), _field("tags", "ListField")]
    fields += [_field(key, kind) for key, kind in types.items()]
    about = {"name": name, "media_type": "image", "sample_fields": fields, "info": {}, "version": "1.0.0"}
    write_json(folder / "metadata.json", about)


def heatmap(path: str) -> dict[str, object]:
    """Return the label of a soft matte in an 8- or 16-bit picture, `path` relative to the dataset's folder."""
    return {"_cls": "Heatmap", "tags": [], "map_path": path}


def _field(name: str, kind: str) -> dict[str, str | None]:
    label = "." in kind
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{'EmbeddedDocumentField' if label else kind}",
        "embedded_doc_type": kind if label else None,
        "subfield": "fiftyone.core.fields.StringField" if kind == "ListField" else None,
    }


def _field_type(value: object) -> str:
    if isinstance(value, Mapping):
        return f"fiftyone.core.labels.{value['_cls']}"
    kinds = {bool: "BooleanField", int: "IntField", float: "FloatField", list: "ListField"}
    return kinds.get(type(value), "StringField")


def _is_label(value: JsonValue) -> TypeGuard[dict[str, JsonValue]]:
    if not isinstance(value, dict) or value.get("_cls") not in LABELS:
        return False
    if value["_cls"] != "Detections":
        return any(value.get(name) for name in ("mask", "mask_path", "map", "map_path"))
    return any(detection.get("mask") for detection in _detections(value))


def _detections(label: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
    """Return the detections of a label; empty for a label of another class."""
    values = label.get("detections")
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _category(sample: Mapping[str, JsonValue]) -> str:
    """Return the category of a sample: its field `category`, the label of a detection, or a tag."""
    value = sample.get("category")
    named = [value.get("label") if isinstance(value, dict) else value]
    # Labels and tags are free texts; the first one that names a category is used.
    named += [detection.get("label") for v in sample.values() if _is_label(v) for detection in _detections(v)]
    tags = sample.get("tags")
    named += tags if isinstance(tags, list) else []
    texts = (category_of(text) for text in named if isinstance(text, str))
    return next((text for text in texts if text in ALL_CATEGORIES), "")


def _array(data: JsonValue, where: str) -> np.ndarray:
    """Return an array that FiftyOne stores in json: a compressed .npy file in base64."""
    try:
        text = data.get("$binary") if isinstance(data, dict) else data
        text = text.get("base64") if isinstance(text, dict) else text
        if not isinstance(text, str):
            raise ValueError("no base64")
        packed = base64.b64decode(text, validate=True)
        reader = zlib.decompressobj()
        # A small file may claim to unpack to any size.
        plain = reader.decompress(packed, 8 * MOST_PIXELS)
        array = np.load(BytesIO(plain), allow_pickle=False)
    except (TypeError, ValueError, EOFError, zlib.error):
        raise InputError(f"{where}: the mask in the json cannot be read: export the data set again") from None
    if array.ndim not in (2, 3) or not array.size:
        raise InputError(f"{where}: the mask in the json has shape {array.shape}, not height and width")
    return array


def _range(label: Mapping[str, JsonValue], values: np.ndarray, where: str) -> tuple[float, float]:
    """Return the lowest and highest value of a heatmap; FiftyOne's defaults are 0 to 1, and 0 to 255 for integers."""
    if not label.get("range"):
        return 0.0, 1.0 if np.issubdtype(values.dtype, np.floating) else 255.0
    limits = _numbers(label["range"])
    if len(limits) != 2 or not limits[1] > limits[0]:
        raise InputError(f"{where}: range {label['range']} of the heatmap is empty")
    return limits[0], limits[1]


def _numbers(value: JsonValue) -> list[float]:
    """Return a list of numbers; empty if the value is anything else."""
    values = value if isinstance(value, list) else []
    numbers = [float(one) for one in values if isinstance(one, (int, float))]
    return numbers if len(numbers) == len(values) else []


def _drawn(label: Mapping[str, JsonValue], where: str, size: tuple[int, int]) -> np.ndarray:
    """Return the union of the instance masks of detections, float32 (H, W)."""
    width, height = size
    union = np.zeros((height, width), np.float32)
    for detection in _detections(label):
        box = _numbers(detection.get("bounding_box"))
        if not detection.get("mask"):
            continue
        if len(box) != 4 or not all(0 <= value <= 1 for value in box):
            raise InputError(
                f"{where}: bounding_box {detection.get('bounding_box')} is not [x, y, width, height] from 0 to 1"
            )
        # Boxes are fractions of the width and height of the photo.
        left, top = round(box[0] * width), round(box[1] * height)
        right, bottom = min(width, left + round(box[2] * width)), min(height, top + round(box[3] * height))
        if right <= left or bottom <= top:
            continue
        mask = _array(detection["mask"], where).astype(np.uint8)
        # Masks have two values, and nearest neighbour adds no others.
        fitted = cv2.resize(mask, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
        area = union[top:bottom, left:right]
        np.maximum(area, fitted > 0, out=area, casting="unsafe")
    return union
