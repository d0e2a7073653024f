"""Label Studio's formats: tasks out, annotations in. The only module that knows them.

What the server stores is whatever somebody sent (it validates nothing), so nothing of an annotation is believed
before it was checked; see `read_annotation`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.errors import InputError
from mm_core.layout import Layout
from mm_core.records import ALL_CATEGORIES

MATTE, FOREGROUND, CATEGORY, IMAGE = "matte", "Foreground", "category", "image"
"""Names in the label config that tasks and annotations refer to."""

LABEL_CONFIG = f"""<View>
  <Header value="Paint the subject; the category is asked below"/>
  <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="{MATTE}" toName="{IMAGE}">
    <Label value="{FOREGROUND}" background="#19a974"/>
  </BrushLabels>
  <Choices name="{CATEGORY}" toName="{IMAGE}" choice="single" required="true" showInline="true">
{chr(10).join(f'    <Choice value="{category}"/>' for category in ALL_CATEGORIES)}
  </Choices>
</View>
"""

_CHANNELS = 4
"""Brush masks are RGBA; the matte is the last channel."""


class BadAnnotation(InputError):
    """An annotation is refused; the text is the reason."""


@dataclass(frozen=True)
class Annotation:
    """What a person made of one task, checked and decoded."""

    alpha: np.ndarray
    """uint8 (H, W), at the size of the upright photo."""
    category: str
    annotator: str
    updated_at: str
    """ISO 8601, UTC."""


def outbox(layout: Layout) -> Path:
    """Tasks for people: `<batch>.json`, `<batch>/` with its photos, `label_config.xml`."""
    return layout.root / "labels" / "outbox"


def inbox(layout: Layout) -> Path:
    """Where Label Studio's JSON exports are put."""
    return layout.root / "labels" / "inbox"


def collected(layout: Layout) -> Path:
    """Exports that were read, by content; `*.refused.json` beside one says what of it was refused and why."""
    return layout.root / "labels" / "collected"


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


def make_task(
    sample_id: str, image: str, shown: Mapping[str, Any], alpha: np.ndarray | None, category: str | None, version: str
) -> dict[str, Any]:
    """One task of Label Studio's import format.

    `image`: URL or path for the server; `shown`: more columns of its table; `alpha`: the matte to begin with, uint8
    (H, W) at the upright photo's size, or None; `category`: pre-selected where known; `version`: of the model.
    """
    task: dict[str, Any] = {"data": {**shown, "image": image, "key": sample_id}}
    if alpha is not None:
        region = _choice(category) if category else []
        task["predictions"] = [{"model_version": version, "result": [brush_region(alpha), *region]}]
    return task


def brush_region(alpha: np.ndarray) -> dict[str, Any]:
    """The region that holds a soft matte uint8 (H, W) bit for bit."""
    height, width = alpha.shape
    return {
        "id": "fg",
        "type": "brushlabels",
        "from_name": MATTE,
        "to_name": IMAGE,
        "image_rotation": 0,
        "original_width": width,
        "original_height": height,
        "value": {"format": "rle", "rle": encode_rle(alpha), "brushlabels": [FOREGROUND]},
    }


def encode_rle(alpha: np.ndarray) -> list[int]:
    """8-bit run-length code of a matte uint8 (H, W), as the server stores it.

    The SDK's `mask2rle`; its sibling `image2rle` thresholds at 128 and is never the right one.
    """
    from label_studio_sdk.converter.brush import mask2rle

    return mask2rle(alpha)


def _choice(category: str) -> list[dict[str, Any]]:
    value = {"choices": [category]}
    return [{"id": "cat", "type": "choices", "from_name": CATEGORY, "to_name": IMAGE, "value": value}]


# ── in ───────────────────────────────────────────────────────────────────────────────────────────


def read_annotation(annotation: Any, width: int, height: int) -> Annotation:
    """Checks and decodes one annotation of a photo of the given upright size; raises BadAnnotation with the reason.

    Several painted regions are united (the larger alpha counts).
    """
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise BadAnnotation("the annotation has no list `result`")
    alpha: np.ndarray | None = None
    category: str | None = None
    for region in annotation["result"]:
        if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
            raise BadAnnotation("a region is no object with a `value`")
        name, kind = region.get("from_name"), region.get("type")
        if region.get("to_name") != IMAGE or (name, kind) not in ((MATTE, "brushlabels"), (CATEGORY, "choices")):
            raise BadAnnotation(f"a region of type {kind!r} from {name!r}, which the label config does not have")
        _check_score(region.get("score"))
        if name == CATEGORY:
            category = _read_category(region["value"], category)
        else:
            painted = _read_brush(region, width, height)
            alpha = painted if alpha is None else np.maximum(alpha, painted)
    if alpha is None or not alpha.any():
        raise BadAnnotation("nothing is painted as Foreground")
    if category is None:
        raise BadAnnotation("no category is chosen")
    return Annotation(alpha, category, _annotator(annotation.get("completed_by")), updated_at(annotation))


def updated_at(annotation: Mapping[str, Any]) -> str:
    """When an annotation was last changed, ISO 8601 in UTC; raises BadAnnotation."""
    text = annotation.get("updated_at") or annotation.get("created_at")
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise BadAnnotation(f"updated_at {str(text)[:40]!r} is no ISO 8601 time")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def decode_rle(rle: Any, width: int, height: int) -> np.ndarray:
    """The matte uint8 (H, W) of a brush region of the given size; raises BadAnnotation.

    The stream (thi.ng/rle-pack): 32 bits number of values, 5 bits word size - 1, four times 4 bits run size - 1; then
    blocks of 1 bit (run or literals), 2 bits which run size, that many bits length - 1, and one word or `length` words.
    Nothing is allocated before the header has agreed with the photo's size.
    """
    count = width * height * _CHANNELS
    if not isinstance(rle, list) or not 8 <= len(rle) <= 3 * count + 64:
        raise BadAnnotation("rle is no list of bytes of a plausible length")
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise BadAnnotation("rle is no list of bytes") from None
    claimed = int.from_bytes(data[:4], "big")
    if claimed != count:
        raise BadAnnotation(f"rle claims {claimed} values, the photo of {width}x{height} needs {count}")
    header = int.from_bytes(data[4:8], "big")
    if header >> 27 != 7:
        raise BadAnnotation(f"rle has words of {(header >> 27) + 1} bits, not 8")
    run_bits = [(header >> shift & 15) + 1 for shift in (23, 19, 15, 11)]
    values, lengths = _blocks(data, run_bits, count)
    return np.repeat(values, lengths).reshape(height, width, _CHANNELS)[:, :, _CHANNELS - 1].copy()


def _blocks(data: bytes, run_bits: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values uint8 and how often each is repeated, together `count` long. One turn per block, not per pixel."""
    padded = data + bytes(8)
    end = 8 * len(data)
    values, lengths = bytearray(), []
    position, done = 53, 0
    while done < count:
        # The longest block head has 1 + 2 + 16 + 8 bits: 8 bytes hold it at any bit offset.
        start = position >> 3
        window = int.from_bytes(padded[start : start + 8], "big") << (position & 7) & 0xFFFFFFFFFFFFFFFF
        bits = run_bits[window >> 61 & 3]
        length = (window >> (61 - bits) & ((1 << bits) - 1)) + 1
        position += 3 + bits
        done += length
        if window >> 63:
            values.append(window >> (53 - bits) & 255)
            lengths.append(length)
            position += 8
        else:
            if position + 8 * length > end:
                raise BadAnnotation("rle ends before the picture is full")
            first, last = position >> 3, (position + 8 * length + 7) >> 3
            literal = np.unpackbits(np.frombuffer(padded, np.uint8, last - first, first))
            values += np.packbits(literal[position & 7 :][: 8 * length]).tobytes()
            lengths += [1] * length
            position += 8 * length
        if position > end or done > count:
            raise BadAnnotation("rle ends before the picture is full" if position > end else "rle overruns the picture")
    return np.frombuffer(bytes(values), np.uint8), np.array(lengths, np.int64)


def _read_brush(region: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    value = region["value"]
    if value.get("brushlabels") != [FOREGROUND]:
        raise BadAnnotation(f"a region labelled {str(value.get('brushlabels'))[:60]}, not {FOREGROUND}")
    if value.get("format") != "rle":
        raise BadAnnotation(f"a brush region in format {str(value.get('format'))[:20]!r}, not 'rle'")
    if region.get("image_rotation", 0) != 0:
        raise BadAnnotation("the photo was rotated in Label Studio")
    claimed = (region.get("original_width"), region.get("original_height"))
    if any(type(side) is not int for side in claimed) or claimed != (width, height):
        raise BadAnnotation(f"the region is of size {claimed}, the photo of {(width, height)}")
    return decode_rle(value.get("rle"), width, height)


def _read_category(value: Mapping[str, Any], before: str | None) -> str:
    choices = value.get("choices")
    if before is not None or not isinstance(choices, list) or len(choices) != 1 or choices[0] not in ALL_CATEGORIES:
        raise BadAnnotation(f"category {str(choices)[:60]} is not one of {', '.join(ALL_CATEGORIES)}")
    return str(choices[0])


def _check_score(score: Any) -> None:
    number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if score is not None and not (number and math.isfinite(score) and 0 <= score <= 1):
        raise BadAnnotation(f"score {str(score)[:20]} does not lie in [0, 1]")


def _annotator(who: Any) -> str:
    """A short printable name of the person: e-mail address or number."""
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    if isinstance(who, bool) or not isinstance(who, (str, int)):
        return "unknown"
    return re.sub(r"[^\w@.+ -]", "", str(who))[:100] or "unknown"
