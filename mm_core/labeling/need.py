"""Compute which categories need labels most, from the last cycle's verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.pins import PinnedInputs
from mm_core.core.records import CATEGORIES, Cell, read_verdict

LEAST, MOST = 0.5, 2.0
"""Bounds of a category's error relative to the mean of all, so that one bad category does not get every label."""
UNSETTLED = 1.5
"""Factor for categories whose result is unclear or a loss: more labels would settle it."""


@dataclass(frozen=True)
class Need:
    """Need of labels of one category."""

    weight: float
    """Relative weight; 1 is average."""
    why: str
    """Reason in plain words; empty without information."""


def category_need(layout: Layout, inputs: PinnedInputs) -> dict[str, Need]:
    """Return the need of each of the six categories; empty before the first verdict.

    The weight is the MSE of the model in use divided by the mean over categories, within [LEAST, MOST]. It is
    multiplied by UNSETTLED if a cell of the verdict against champion, anchor or floor is unclear or failed. The model
    in use is the champion, or the last candidate without a champion.

    Args:
        layout: The workspace.
        inputs: As returned by `stages.read_inputs`.
    """
    if not has_file(layout.verdict):
        return {}
    verdict = read_verdict(layout.verdict)
    champion = (inputs.get("champion") or {}).get("digest")
    cells = [c for c in verdict.cells if c.category in CATEGORIES and c.against != "float"]
    errors: dict[str, float] = {}
    # Error of the model in use per category.
    for cell in cells:
        if cell.metric == "mse" and cell.against in ("champion", "floor"):
            errors[cell.category] = _error(cell, verdict.candidate == champion)
    mean = float(np.mean(list(errors.values()))) if errors else 0.0
    # One cell that did not pass is enough.
    unsettled = {c.category: c.result for c in cells if c.result != "pass"}
    needs = {}
    for category in sorted({*errors, *unsettled}):
        # A category without an error counts as average.
        ratio = errors.get(category, mean) / mean if mean else 1.0
        weight = float(np.clip(ratio, LEAST, MOST)) * (UNSETTLED if category in unsettled else 1.0)
        # "1.0 times the mean" would be no reason.
        words = [f"error {ratio:.1f} times the mean"] if ratio >= 1.05 else []
        if category in unsettled:
            words.append("the gate found a loss" if unsettled[category] == "fail" else "the gate's result was unclear")
        needs[category] = Need(weight, ", ".join(words))
    return needs


def _error(cell: Cell, promoted: bool) -> float:
    """Return the error of the model in use: the champion's, or the candidate's if it was promoted."""
    is_champion = cell.against == "champion" and cell.reference is not None and not promoted
    return float(cell.reference) if is_champion and cell.reference is not None else cell.candidate
