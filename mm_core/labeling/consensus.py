"""What several people's answers about one photo come to: one matte, a refusal, or another pair of eyes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mm_core.core.params import LabelParams


@dataclass(frozen=True)
class Answer:
    """One person's finished answer."""

    alpha: np.ndarray | None
    """uint8 (H, W); None: the photo was refused."""
    category: str
    rejected: str
    """The reason of a refusal."""
    annotator: str
    updated_at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Disagreement:
    """How far two mattes are apart."""

    mse: float
    """Mean squared difference, alpha in [0, 1]."""
    iou: float
    """Sum of the smaller alphas over sum of the larger ones; 1 where the mattes are equal."""


@dataclass(frozen=True)
class Outcome:
    """`answer` is what counts. Where it is None, either nobody answered or people disagree (`apart` says how far)."""

    answer: Answer | None
    people: int
    apart: Disagreement | None = None
    """Of the two people closest to each other, where two or more painted."""
    why: str = ""
    """Why there is no answer, in words."""


def disagreement(first: np.ndarray, second: np.ndarray) -> Disagreement:
    """Of two mattes uint8 (H, W)."""
    one, other = first.astype(np.float32) / 255, second.astype(np.float32) / 255
    larger = float(np.maximum(one, other).sum())
    iou = float(np.minimum(one, other).sum()) / larger if larger else 1.0
    return Disagreement(float(np.square(one - other).mean()), iou)


def settle(answers: Sequence[Answer], params: LabelParams) -> Outcome:
    """One person's word counts; of several, two must agree: on the category, and closer than `params` says.

    Of each person the answer changed last counts. Two who agree give the mean of their mattes; two who refuse the
    photo refuse it whatever their reasons. Never is one of two who disagree taken in silence.
    """
    newest = {a.annotator: a for a in sorted(answers, key=lambda a: a.updated_at)}
    people = sorted(newest.values(), key=lambda a: (a.updated_at, a.annotator))
    if len(people) < 2:
        return Outcome(people[0], 1) if people else Outcome(None, 0, why="nobody has answered")
    refused = [a for a in people if a.alpha is None]
    if len(refused) >= 2 and 2 * len(refused) > len(people):
        return Outcome(_together(refused, None), len(people))
    pairs = [
        (disagreement(one.alpha, other.alpha), one, other)
        for one, other in combinations(people, 2)
        if one.alpha is not None and other.alpha is not None
    ]
    if not pairs:
        return Outcome(None, len(people), why=f"one of {len(people)} people refuses the photo")
    closest = min(pairs, key=lambda pair: pair[0].mse)
    agreed = [p for p in pairs if p[1].category == p[2].category and _close(p[0], params)]
    if agreed:
        apart, one, other = min(agreed, key=lambda pair: pair[0].mse)
        mean = np.rint((one.alpha.astype(np.float32) + other.alpha) / 2).astype(np.uint8)  # type: ignore[union-attr]
        return Outcome(_together((one, other), mean), len(people), apart)
    apart, one, other = closest
    if _close(apart, params):
        return Outcome(None, len(people), apart, f"people disagree: {one.category} or {other.category}")
    why = f"people disagree: the closest two mattes differ by MSE {apart.mse:.4f}, IoU {apart.iou:.3f}"
    return Outcome(None, len(people), apart, why)


def _close(apart: Disagreement, params: LabelParams) -> bool:
    return apart.mse <= params.agree_mse and apart.iou >= params.agree_iou


def _together(people: Sequence[Answer], alpha: np.ndarray | None) -> Answer:
    """Their common answer, as old as the newest of theirs."""
    last = max(people, key=lambda a: a.updated_at)
    names = " + ".join(sorted(a.annotator for a in people))
    return Answer(alpha, last.category, last.rejected, names, last.updated_at)
