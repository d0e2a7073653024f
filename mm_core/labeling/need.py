"""Which categories need labels most: what the last cycle's verdict says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mm_core.core.layout import Layout
from mm_core.core.pins import PinnedInputs
from mm_core.core.records import CATEGORIES, Cell, Verdict

LEAST, MOST = 0.5, 2.0
"""Bounds of a category's error beside the mean of all: one bad category does not take every place."""
UNSETTLED = 1.5
"""Factor where the gate could not tell, or saw a loss: more labels settle it."""


@dataclass(frozen=True)
class Need:
    weight: float
    """1: as the others."""
    why: str
    """Plain words; empty where nothing is known."""


def category_need(layout: Layout, inputs: PinnedInputs) -> dict[str, Need]:
    """Need of each of the six categories; empty before the first verdict.

    Weight: MSE of the model in use (the champion where there is one, else the last candidate) over the mean of the
    categories, within [LEAST, MOST], times UNSETTLED where a cell of the verdict against champion, anchor or floor was
    unclear or failed. `inputs` as from `stages.read_inputs`.
    """
    if not layout.verdict.is_file():
        return {}
    verdict = Verdict.model_validate_json(layout.verdict.read_text())
    champion = (inputs.get("champion") or {}).get("digest")
    cells = [c for c in verdict.cells if c.category in CATEGORIES and c.against != "float"]
    errors: dict[str, float] = {}
    for cell in cells:
        if cell.metric == "mse" and cell.against in ("champion", "floor"):
            errors[cell.category] = _error(cell, verdict.candidate == champion)
    mean = float(np.mean(list(errors.values()))) if errors else 0.0
    unsettled = {c.category: c.result for c in cells if c.result != "pass"}
    found = {}
    for category in sorted({*errors, *unsettled}):
        ratio = errors.get(category, mean) / mean if mean else 1.0
        weight = float(np.clip(ratio, LEAST, MOST)) * (UNSETTLED if category in unsettled else 1.0)
        words = [f"error {ratio:.1f} times the mean"] if ratio > 1 else []
        if category in unsettled:
            words.append("the gate saw a loss" if unsettled[category] == "fail" else "the gate could not tell")
        found[category] = Need(weight, ", ".join(words))
    return found


def _error(cell: Cell, promoted: bool) -> float:
    """Of the model in use."""
    known = cell.against == "champion" and cell.reference is not None and not promoted
    return float(cell.reference) if known and cell.reference is not None else cell.candidate
