"""Combine several people's answers about one photo into a matte, a refusal, or a request for another answer."""

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
    """Matte uint8 (H, W); None if the photo was refused."""
    category: str
    rejected: str
    """Reason of a refusal, empty otherwise."""
    annotator: str
    updated_at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Disagreement:
    """Difference of two mattes."""

    mse: float
    """Mean squared difference, alpha in [0, 1]."""
    iou: float
    """Sum of the smaller alphas over the sum of the larger ones; 1 if the mattes are equal."""


@dataclass(frozen=True)
class Outcome:
    """Combined result. Without an `answer`, no person answered, or people disagree by `apart`."""

    answer: Answer | None
    people: int
    apart: Disagreement | None = None
    """Difference of the two closest mattes, if two or more people painted."""
    why: str = ""
    """Reason for a missing answer, in words."""


def disagreement(first: np.ndarray, second: np.ndarray) -> Disagreement:
    """Return the difference of two mattes uint8 (H, W)."""
    a, b = first.astype(np.float32) / 255, second.astype(np.float32) / 255
    larger = float(np.maximum(a, b).sum())
    iou = float(np.minimum(a, b).sum()) / larger if larger else 1.0
    return Disagreement(float(np.square(a - b).mean()), iou)


def settle(answers: Sequence[Answer], params: LabelParams) -> Outcome:
    """Combine answers: a single answer counts; of several, two must agree on the category and within `params`' limits.

    Only the newest answer of each person counts. Two people who agree give the mean of their mattes. Two refusals that
    are the majority refuse the photo, whatever the reasons. If people disagree, no answer is chosen.
    """
    # Sorted by time, so that the newest answer of a person replaces the others.
    newest = {a.annotator: a for a in sorted(answers, key=lambda a: a.updated_at)}
    people = sorted(newest.values(), key=lambda a: (a.updated_at, a.annotator))
    if len(people) < 2:
        return Outcome(people[0], 1) if people else Outcome(None, 0, why="there is no answer")
    refused = [a for a in people if a.alpha is None]
    # A majority of refusals.
    if len(refused) >= 2 and 2 * len(refused) > len(people):
        return Outcome(_together(refused, None), len(people))
    pairs = [
        (disagreement(one.alpha, other.alpha), one, other)
        for one, other in combinations(people, 2)
        if one.alpha is not None and other.alpha is not None
    ]
    if not pairs:
        return Outcome(None, len(people), why=f"one of {len(people)} people refuses the photo")
    # Among agreeing pairs the closest one counts.
    closest = min(pairs, key=lambda pair: pair[0].mse)
    agreed = [p for p in pairs if p[1].category == p[2].category and _close(p[0], params)]
    if agreed:
        apart, first, second = min(agreed, key=lambda pair: pair[0].mse)
        mean = np.rint((first.alpha.astype(np.float32) + second.alpha) / 2).astype(np.uint8)  # type: ignore[union-attr]
        return Outcome(_together((first, second), mean), len(people), apart)
    # No pair agrees: report whether the category or the mattes differ.
    apart, first, second = closest
    if _close(apart, params):
        return Outcome(None, len(people), apart, f"people disagree: {first.category} or {second.category}")
    why = f"people disagree: the closest two mattes differ by MSE {apart.mse:.4f}, IoU {apart.iou:.3f}"
    return Outcome(None, len(people), apart, why)


def _close(apart: Disagreement, params: LabelParams) -> bool:
    return apart.mse <= params.agree_mse and apart.iou >= params.agree_iou


def _together(people: Sequence[Answer], alpha: np.ndarray | None) -> Answer:
    """Return the common answer of people, dated by the newest of their answers."""
    last = max(people, key=lambda a: a.updated_at)
    names = " + ".join(sorted(a.annotator for a in people))
    return Answer(alpha, last.category, last.rejected, names, last.updated_at)
