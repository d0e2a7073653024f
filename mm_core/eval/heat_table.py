"""The table of the report that shows the verdict: a row per category, a coloured cell per metric."""

from __future__ import annotations

import math
from typing import cast

from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, HIGHER_IS_BETTER, Cell, Verdict
from mm_core.eval.blind import NAME as BLIND
from mm_core.eval.rows import HeatCell, Scores

COLUMNS = ("mse", "maxf", "biou", "conn")
"""Metrics of the paper's Table 1."""
TITLES = {"mse": "MSE", "maxf": "MaxF", "biou": "BIoU", "conn": "Conn"}


def number(value: float | None, digits: int = 4) -> str:
    """Format with fixed digits, very small values with an exponent; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.1e}"


def share(value: float, reference: float | None, metric: str) -> str:
    """Format a gain in percent of the reference, or in points for metrics that are shares."""
    if not math.isfinite(value):
        return "–"
    if metric in HIGHER_IS_BETTER or not reference:
        return f"{100 * value:+.1f} pt"
    return f"{100 * value / reference:+.1f} %"


def heat_rows(verdict: Verdict | None, scores: Scores) -> list[dict[str, object]]:
    """Return a row per category with the four metrics of the int8 candidate and their results in the gate."""
    # One cell per category and metric: guard and gain cells are in the table of other cells.
    cells = {
        (c.category, c.metric): c
        for c in (verdict.cells if verdict else [])
        if c.against in ("champion", "floor") and c.role not in ("guard", "gain")
    }
    rows = []
    for category in ALL_CATEGORIES:
        images = int(scores.get((TRAIN_STAGES[-1], "int8", category), {}).get("images", 0))
        shown: list[HeatCell] = []
        for metric in COLUMNS:
            cell = cells.get((category, metric))
            # Without a verdict, the plain score is compared with the champion.
            plain = scores.get((TRAIN_STAGES[-1], "int8", category), {}).get(metric)
            champion = scores.get(("champion", "int8", category), {}).get(metric)
            entry = _heat_cell(cell) if cell else _plain_cell(plain, champion, metric)
            # The score of a matte that ignores the photo shows what the candidate's score is worth.
            blind = scores.get((BLIND, "float", category), {}).get(metric)
            shown.append({**entry, "blind": "" if blind is None else number(blind)})
        if any(cell["value"] != "–" for cell in shown):
            row = {"category": category, "judged": category in CATEGORIES, "images": images, "cells": shown}
            rows.append(row)
    return rows


def _heat_cell(cell: Cell) -> HeatCell:
    reference = number(cell.reference)
    return {
        "value": number(cell.candidate),
        "blind": "",
        "reference": f"from {reference}" if cell.against == "champion" else f"required {reference}",
        "gain": share(cell.gain, cell.reference, cell.metric),
        "bound": f"≥ {share(cell.bound, cell.reference, cell.metric)}",
        "margin": share(cell.margin, cell.reference, cell.metric),
        "role": cell.role.replace("_", "-"),
        "result": cell.result,
        "pooled": cell.pooled,
        "heat": _heat_strength(cell),
    }


def _plain_cell(value: float | None, champion: float | None, metric: str) -> HeatCell:
    empty = {"blind": "", "reference": "", "gain": "", "bound": "", "margin": "", "role": "", "result": ""}
    cell = cast(HeatCell, {"value": number(value), **empty, "pooled": False, "heat": 0})
    if value is not None and champion is not None:
        # A positive gain is an improvement, also for errors.
        gain = (value - champion) * (1 if metric in HIGHER_IS_BETTER else -1)
        cell["reference"], cell["gain"] = f"from {number(champion)}", share(gain, champion, metric)
    return cell


def _heat_strength(cell: Cell) -> int:
    """Return the colour strength of a gain, 0 … 100; 100 is a gain of 30 % of the reference, or of 10 points."""
    scale = 0.1 if cell.metric in HIGHER_IS_BETTER else 0.3 * abs(cell.reference or 1.0)
    return round(100 * min(1.0, abs(cell.gain) / scale)) if scale else 0


def other_cells(verdict: Verdict | None) -> list[dict[str, object]]:
    """Return the cells of anchor, float model and blind matte, of guard and gain, and of the mean."""
    return [
        {
            "category": c.category,
            "metric": c.metric,
            "against": f"champion, {c.role}" if c.role in ("guard", "gain", "macro") else c.against,
            **_heat_cell(c),
        }
        for c in (verdict.cells if verdict else [])
        if c.against in ("anchor", "float", "blind") or c.role in ("guard", "gain", "macro")
    ]
