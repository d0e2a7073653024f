"""Label Studio's formats: tasks out, annotations in. With `rle`, the only module that knows them.

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

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.records import ALL_CATEGORIES
from mm_core.labeling.rle import BadRle, decode_rle, encode_rle

MATTE, CATEGORY, REJECT, IMAGE = "matte", "category", "reject", "image"
"""Names of controls in the label config that tasks and annotations refer to."""
FOREGROUND, UNKNOWN = "Foreground", "Unknown"
"""What can be painted: the subject, and where hair, fur, glass or blur make it partly see-through."""
REASONS = ("no clear subject", "bad photo", "private", "other")
"""Why a person may refuse a photo instead of painting it."""


def _choices(values: Sequence[str]) -> str:
    return "\n".join(f'    <Choice value="{value}"/>' for value in values)


LABEL_CONFIG = f"""<View>
  <Header size="5" value="Paint the subject; what is partly see-through (hair, fur, glass, blur) as {UNKNOWN}"/>
  <BrushLabels name="{MATTE}" toName="{IMAGE}">
    <Label value="{FOREGROUND}" background="#19a974"/>
    <Label value="{UNKNOWN}" background="#f5a623"/>
  </BrushLabels>
  <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true"/>
  <Header size="5" value="What is it?"/>
  <Choices name="{CATEGORY}" toName="{IMAGE}" choice="single" required="true" showInline="true"
      visibleWhen="choice-unselected" whenTagName="{REJECT}">
{_choices(ALL_CATEGORIES)}
  </Choices>
  <Header size="5" value="Or refuse the photo"/>
  <Choices name="{REJECT}" toName="{IMAGE}" choice="single" showInline="true">
{_choices(REASONS)}
  </Choices>
</View>
"""


_CONTROLS = ((MATTE, "brushlabels"), (CATEGORY, "choices"), (REJECT, "choices"))


class BadAnnotation(InputError):
    """An annotation is refused; the text is the reason."""


@dataclass(frozen=True)
class Annotation:
    """What a person made of one task, checked and decoded."""

    alpha: np.ndarray | None
    """uint8 (H, W), at the size of the upright photo; None where the photo was refused."""
    unknown: np.ndarray | None
    """bool (H, W): painted as Unknown, `alpha` is to be solved there; None where nothing was."""
    category: str
    rejected: str
    """One of REASONS where the person refused the photo, else empty."""
    annotator: str
    updated_at: str
    """ISO 8601, UTC."""


def outbox(layout: Layout) -> Path:
    """Tasks for people: `<batch>.json`, `<batch>/` with its photos, `label_config.xml`."""
    return layout.labels / "outbox"


def inbox(layout: Layout) -> Path:
    """Where Label Studio's JSON exports are put."""
    return layout.labels / "inbox"


def collected(layout: Layout) -> Path:
    """Exports that were read, by content; `*.refused.json` beside one says what of it was refused and why."""
    return layout.labels / "collected"


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
        region = [choice_region(CATEGORY, category)] if category else []
        task["predictions"] = [{"model_version": version, "result": [brush_region(alpha), *region]}]
    return task


def brush_region(alpha: np.ndarray, label: str = FOREGROUND) -> dict[str, Any]:
    """The region that holds a soft matte uint8 (H, W) bit for bit."""
    height, width = alpha.shape
    return {
        "id": label.lower(),
        "type": "brushlabels",
        "from_name": MATTE,
        "to_name": IMAGE,
        "image_rotation": 0,
        "original_width": width,
        "original_height": height,
        "value": {"format": "rle", "rle": encode_rle(alpha), "brushlabels": [label]},
    }


def choice_region(name: str, value: str) -> dict[str, Any]:
    """The region that holds a choice of the control `name`: CATEGORY or REJECT."""
    shown = {"choices": [value]}
    return {"id": name, "type": "choices", "from_name": name, "to_name": IMAGE, "value": shown}


# ── in ───────────────────────────────────────────────────────────────────────────────────────────


def read_annotation(annotation: Any, width: int, height: int) -> Annotation:
    """Checks and decodes one annotation of a photo of the given upright size; raises BadAnnotation with the reason.

    Several regions of one label are united (the larger alpha counts); what is Unknown is so over Foreground.
    """
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise BadAnnotation("the annotation has no list `result`")
    painted: dict[str, np.ndarray] = {}
    chosen: dict[str, str] = {}
    for region in annotation["result"]:
        if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
            raise BadAnnotation("a region is no object with a `value`")
        name, kind = str(region.get("from_name")), region.get("type")
        if region.get("to_name") != IMAGE or (name, kind) not in _CONTROLS:
            raise BadAnnotation(f"a region of type {kind!r} from {name!r}, which the label config does not have")
        _check_score(region.get("score"))
        if name == MATTE:
            label, mask = _read_brush(region, width, height)
            painted[label] = np.maximum(painted[label], mask) if label in painted else mask
        elif name in chosen:
            raise BadAnnotation(f"{name} is chosen twice")
        else:
            chosen[name] = _read_choice(name, region["value"])
    who, when = _annotator(annotation.get("completed_by")), updated_at(annotation)
    if reason := chosen.get(REJECT):
        return Annotation(None, None, chosen.get(CATEGORY, ""), reason, who, when)
    unknown = painted[UNKNOWN] > 0 if UNKNOWN in painted else None
    if FOREGROUND not in painted or not painted[FOREGROUND].any():
        raise BadAnnotation("nothing is painted as Foreground")
    if CATEGORY not in chosen:
        raise BadAnnotation("no category is chosen")
    return Annotation(painted[FOREGROUND], unknown, chosen[CATEGORY], "", who, when)


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


def _read_brush(region: Mapping[str, Any], width: int, height: int) -> tuple[str, np.ndarray]:
    """The label of a painted region and its mask, uint8 (H, W)."""
    value = region["value"]
    labels = value.get("brushlabels")
    if labels not in ([FOREGROUND], [UNKNOWN]):
        raise BadAnnotation(f"a region labelled {str(labels)[:60]}, not {FOREGROUND} or {UNKNOWN}")
    if value.get("format") != "rle":
        raise BadAnnotation(f"a brush region in format {str(value.get('format'))[:20]!r}, not 'rle'")
    if region.get("image_rotation", 0) != 0:
        raise BadAnnotation("the photo was rotated in Label Studio")
    claimed = (region.get("original_width"), region.get("original_height"))
    if any(type(side) is not int for side in claimed) or claimed != (width, height):
        raise BadAnnotation(f"the region is of size {claimed}, the photo of {(width, height)}")
    try:
        return labels[0], decode_rle(value.get("rle"), width, height)
    except BadRle as error:
        raise BadAnnotation(str(error)) from None


def _read_choice(name: str, value: Mapping[str, Any]) -> str:
    choices, known = value.get("choices"), ALL_CATEGORIES if name == CATEGORY else REASONS
    if not isinstance(choices, list) or len(choices) != 1 or choices[0] not in known:
        raise BadAnnotation(f"{name} {str(choices)[:60]} is not one of {', '.join(known)}")
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
