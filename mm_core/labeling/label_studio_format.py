"""Label Studio's formats: tasks to send and annotations to read. Besides `rle`, the only module that handles them.

The server stores annotations without validation. Every field is therefore checked before it is used; see
`read_annotation`.
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
"""Names of the label config's controls, which tasks and annotations refer to."""
WHY = "why"
"""Key of a task's data with the reason why the photo was chosen."""
FOREGROUND, UNKNOWN = "Foreground", "Unknown"
"""Brush labels: the subject, and areas in which hair, fur, glass or blur make it partly transparent."""
REASONS = ("no clear subject", "bad photo", "private", "other")
"""Reasons for refusing a photo instead of painting it."""


def _choices(values: Sequence[str]) -> str:
    return "\n".join(f'        <Choice value="{value}"/>' for value in values)


LABEL_CONFIG = f"""<View>
  <Header size="4" value="${WHY}"/>
  <View style="display: flex; gap: 16px; align-items: flex-start">
    <View style="flex: 1 1 auto; min-width: 0">
      <Header size="5" value="Paint the subject; what is partly see-through (hair, fur, glass, blur) as {UNKNOWN}"/>
      <BrushLabels name="{MATTE}" toName="{IMAGE}">
        <Label value="{FOREGROUND}" background="#19a974"/>
        <Label value="{UNKNOWN}" background="#f5a623"/>
      </BrushLabels>
      <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true"/>
    </View>
    <View style="flex: 0 0 180px">
      <Header size="5" value="What is it?"/>
      <Choices name="{CATEGORY}" toName="{IMAGE}" choice="single" required="true" showInline="false"
          visibleWhen="choice-unselected" whenTagName="{REJECT}">
{_choices(ALL_CATEGORIES)}
      </Choices>
      <Header size="5" value="Or refuse the photo"/>
      <Choices name="{REJECT}" toName="{IMAGE}" choice="single" showInline="false">
{_choices(REASONS)}
      </Choices>
    </View>
  </View>
</View>
"""
"""The reason for the task stands above the photo, the category chooser beside it."""


# Control name and region type of each control.
_CONTROLS = ((MATTE, "brushlabels"), (CATEGORY, "choices"), (REJECT, "choices"))


class BadAnnotation(InputError):
    """An annotation cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Annotation:
    """A person's answer to one task, checked and decoded."""

    alpha: np.ndarray | None
    """uint8 (H, W) at the size of the upright photo; None if the photo was refused."""
    unknown: np.ndarray | None
    """bool (H, W): areas painted as Unknown, in which `alpha` must be solved; None without such areas."""
    category: str
    rejected: str
    """One of REASONS if the person refused the photo, else empty."""
    annotator: str
    updated_at: str
    """ISO 8601, UTC."""


def outbox(layout: Layout) -> Path:
    """Return the folder of tasks to send: `<batch>.json`, `<batch>/` with the photos, `label_config.xml`."""
    return layout.labels / "outbox"


def inbox(layout: Layout) -> Path:
    """Return the folder for Label Studio's JSON exports."""
    return layout.labels / "inbox"


def collected(layout: Layout) -> Path:
    """Return the folder of read exports; `*.refused.json` next to one lists refused annotations with reasons."""
    return layout.labels / "collected"


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


def make_task(
    sample_id: str, image: str, shown: Mapping[str, Any], alpha: np.ndarray | None, category: str | None, version: str
) -> dict[str, Any]:
    """Return one task in Label Studio's import format.

    Args:
        sample_id: Id of the photo.
        image: URL or path of the picture for the server.
        shown: Further columns of the server's table.
        alpha: Initial matte, uint8 (H, W) at the upright photo's size, or None.
        category: Preselected category, or None; it is preselected without an initial matte, too.
        version: Version of the model that predicted `alpha`.
    """
    # The label config refers to the reason, so that the server refuses tasks without one.
    task: dict[str, Any] = {"data": {WHY: "", **shown, "image": image, "key": sample_id}}
    # Initial matte and known category are one prediction, which the person edits.
    result = [] if alpha is None else [brush_region(alpha)]
    if category:
        result.append(choice_region(CATEGORY, category))
    if result:
        task["predictions"] = [{"model_version": version, "result": result}]
    return task


def brush_region(alpha: np.ndarray, label: str = FOREGROUND) -> dict[str, Any]:
    """Return a brush region that stores a soft matte uint8 (H, W) losslessly."""
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
    """Return a region with a choice of the control `name`: CATEGORY or REJECT."""
    shown = {"choices": [value]}
    return {"id": name, "type": "choices", "from_name": name, "to_name": IMAGE, "value": shown}


# ── annotations ──────────────────────────────────────────────────────────────────────────────────


def read_annotation(annotation: Any, width: int, height: int) -> Annotation:
    """Check and decode one annotation of a photo with the given upright size.

    Several regions of one label are united by the larger alpha. Unknown takes precedence over Foreground.

    Raises:
        BadAnnotation: A part of the annotation is missing or invalid.
    """
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise BadAnnotation("the annotation has no list `result`")
    painted: dict[str, np.ndarray] = {}
    chosen: dict[str, str] = {}
    for region in annotation["result"]:
        if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
            raise BadAnnotation("a region is not an object with a `value`")
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
    # A refusal needs neither a matte nor a category.
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
    """Return the time of an annotation's last change, ISO 8601 in UTC; raise BadAnnotation if it has none."""
    text = annotation.get("updated_at") or annotation.get("created_at")
    try:
        # A time without zone is taken as UTC.
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise BadAnnotation(f"updated_at {str(text)[:40]!r} is no ISO 8601 time")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _read_brush(region: Mapping[str, Any], width: int, height: int) -> tuple[str, np.ndarray]:
    """Return the label of a brush region and its mask, uint8 (H, W)."""
    value = region["value"]
    labels = value.get("brushlabels")
    if labels not in ([FOREGROUND], [UNKNOWN]):
        raise BadAnnotation(f"a region labelled {str(labels)[:60]}, not {FOREGROUND} or {UNKNOWN}")
    if value.get("format") != "rle":
        raise BadAnnotation(f"a brush region in format {str(value.get('format'))[:20]!r}, not 'rle'")
    if region.get("image_rotation", 0) != 0:
        raise BadAnnotation("the photo was rotated in Label Studio")
    # Masks at another size or rotation would not match the photo.
    claimed = (region.get("original_width"), region.get("original_height"))
    if any(type(side) is not int for side in claimed) or claimed != (width, height):
        raise BadAnnotation(f"the region is of size {claimed}, the photo of {(width, height)}")
    try:
        return labels[0], decode_rle(value.get("rle"), width, height)
    except BadRle as error:
        raise BadAnnotation(str(error)) from None


def _read_choice(name: str, value: Mapping[str, Any]) -> str:
    """Return the chosen value of a control; raise BadAnnotation unless it is exactly one allowed value."""
    choices, allowed = value.get("choices"), ALL_CATEGORIES if name == CATEGORY else REASONS
    if not isinstance(choices, list) or len(choices) != 1 or choices[0] not in allowed:
        raise BadAnnotation(f"{name} {str(choices)[:60]} is not one of {', '.join(allowed)}")
    return str(choices[0])


def _check_score(score: Any) -> None:
    """Raise BadAnnotation unless the score is missing or in [0, 1]."""
    number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if score is not None and not (number and math.isfinite(score) and 0 <= score <= 1):
        raise BadAnnotation(f"score {str(score)[:20]} is not in [0, 1]")


def _annotator(who: Any) -> str:
    """Return a short printable name of the person: e-mail address or number."""
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    # `True` is an int in Python, but no number of a person.
    if isinstance(who, bool) or not isinstance(who, (str, int)):
        return "unknown"
    return re.sub(r"[^\w@.+ -]", "", str(who))[:100] or "unknown"
