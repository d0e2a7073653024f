"""Sentences of a verdict, each made from the numbers of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtri

from mm_core.core.categories import GUARDED
from mm_core.core.params import GateParams
from mm_core.core.records import CATEGORIES, HIGHER_IS_BETTER, Cell
from mm_core.eval.across import MACRO
from mm_core.eval.bootstrap import fewest_groups
from mm_core.eval.cells import is_gain
from mm_core.eval.evidence import CHAMPION, INT8, Evidence
from mm_core.eval.questions import RELATIVE

SETTLED = 0.8
"""Probability with which the photos that an INCONCLUSIVE verdict requests are enough."""
WHOSE = {
    "champion": "the champion's",
    "anchor": "the best so far,",
    "floor": "the required",
    "blind": "the blind matte's",
    "float": "its own float model's",
}


def loss(cell: Cell) -> str:
    """Describe a proven loss and its size."""
    changes = f"({change(cell, cell.gain)}, at best {change(cell, _upper(cell))}, allowed {change(cell, cell.margin)})"
    # The values of the mean over the six are ratios to the reference, which is 1.
    if cell.category == MACRO and cell.reference == 1:
        whose = WHOSE[cell.against].rstrip(",")
        times = f"{cell.candidate:.3g} times as large"
        return f"on average over the six: {_named(cell)} is worse than {whose}, {times} {changes}"
    where = "on average over the six" if cell.category == MACRO else cell.category
    if cell.against == "floor":
        limit = "at least" if cell.metric in HIGHER_IS_BETTER else "at most"
        return (
            f"{where}: {cell.metric} {cell.candidate:.4g} is below the floor: {limit} {cell.reference:.4g} is required "
            f"(at best {_best(cell)})"
        )
    compared = f"{cell.candidate:.4g} is worse than {WHOSE[cell.against]} {cell.reference:.4g}"
    return f"{where}: {_named(cell)} {compared} {changes}"


def losses(cells: Sequence[Cell]) -> list[str]:
    """Describe proven losses, each value once.

    Several comparisons of one value may fail, with different margins. The one with the widest margin says most.
    """
    widest: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        key = cell.category, _named(cell), cell.against
        if key not in widest or cell.margin < widest[key].margin:
            widest[key] = cell
    return [loss(cell) for cell in widest.values()]


def worse_list(cells: Sequence[Cell]) -> str:
    """List all categories and metrics with a worse mean than the champion's, with bounds; empty if none is worse.

    A plain mean of errors may be worse where the softened one is better. It is listed too, with the softened gain.
    """
    rows: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        if cell.against == "champion" and cell.category != MACRO and cell.gain < 0:
            known = rows.get((cell.category, cell.metric))
            # Gain and guard cells repeat the metric, so the non-inferiority cell replaces them.
            if known is None or known.role in ("gain", "guard"):
                rows[cell.category, cell.metric] = cell
    texts = [
        f"{category} {_named(cell)} {change(cell, cell.gain)} (at worst {change(cell, cell.bound)})"
        for (category, _), cell in rows.items()
    ]
    for cell in cells:
        softened = cell.against == "champion" and cell.role == "non_inferior" and cell.metric in RELATIVE
        plain = (cell.reference or 0.0) - cell.candidate
        if softened and cell.category != MACRO and plain < 0 and (cell.category, cell.metric) not in rows:
            texts.append(
                f"{cell.category} plain mean of {cell.metric} {change(cell, plain)} (large errors of single photos "
                f"softened {change(cell, cell.gain)}, at worst {change(cell, cell.bound)})"
            )
    return f"worse than the champion: {', '.join(texts)}" if texts else ""


def not_compared(primary: str, evidence: Evidence, cells: Sequence[Cell]) -> list[str]:
    """Describe the guarded categories whose photos show too few scenes for a comparison with the champion."""
    compared, texts = {cell.category for cell in cells}, []
    for category in GUARDED:
        here = evidence.category == category
        if category in compared or not here.any():
            continue
        ours, theirs = (evidence.values[key][primary][here].mean(axis=0).max() for key in (INT8, CHAMPION))
        texts.append(
            f"{category}: its eval photos show one scene, too few to compare ({primary} {ours:.4g}, the champion's "
            f"{theirs:.4g}); drop photos of others"
        )
    return texts


def _named(cell: Cell) -> str:
    # Gain cells with a margin and guards compare plain means, the others of mse and conn softened errors.
    return f"plain mean of {cell.metric}" if cell.role in ("gain", "guard") and cell.margin else cell.metric


def change(cell: Cell, value: float) -> str:
    """Format a gain in percent of the reference, or in points for metrics that are shares."""
    if cell.metric in HIGHER_IS_BETTER or not cell.reference:
        return f"{_signed(100 * value)} points"
    return f"{_signed(100 * value / cell.reference)} %"


def _upper(cell: Cell) -> float:
    return cell.gain if cell.upper is None else cell.upper


def _best(cell: Cell) -> str:
    # For errors, the best possible value is below the reference.
    sign = 1 if cell.metric in HIGHER_IS_BETTER else -1
    return f"{(cell.reference or 0.0) + sign * _upper(cell):.4g}"


def too_few(params: GateParams, category: str, cells: Sequence[Cell]) -> str:
    """Describe a lack of photos or scenes for a verdict on a category; empty if it has enough."""
    found = next(((cell.images, cell.groups) for cell in cells if cell.category == category), None)
    if found is None:
        return f"{category}: fewer than two groups of eval photos; drop labelled {category} photos"
    images, groups = found
    # Report the lack of photos first; new photos usually add scenes too.
    if images < params.min_images:
        return f"{category}: {images} eval photos, {params.min_images} are needed; drop labelled {category} photos"
    # A guard has a level of its own, and a lower level needs more groups.
    guarded = params.mode != "macro" and any(cell.role == "guard" for cell in cells)
    needed = fewest_groups(min(params.alpha, params.guard_alpha) if guarded else params.alpha)
    if groups < needed:
        return f"{category}: its {images} eval photos show {groups} scenes, {needed} are needed; drop photos of others"
    return ""


def more_photos(params: GateParams, cell: Cell) -> int | None:
    """Return the number of additional photos that settle an unclear cell with probability SETTLED.

    It assumes that the measured gain is the true one. The standard error is derived from the bound. It decreases with
    the square root of the number of photos (Lehr 1992).

    Args:
        params: Levels of the gate.
        cell: A cell with the result `unclear`.

    Returns:
        At least 1; None if the gain is not above the margin, because more photos would then not help.
    """
    if cell.gain <= cell.margin or cell.role == "gain":
        return None
    alpha = params.guard_alpha if cell.role == "guard" and params.mode != "macro" else params.alpha
    # Distance from the margin that the gain needs at the present number of photos.
    needed = (cell.gain - cell.bound) * (1 + ndtri(SETTLED) / -ndtri(alpha))
    return max(1, math.ceil(cell.images * ((needed / (cell.gain - cell.margin)) ** 2 - 1)))


def not_settled(params: GateParams, cell: Cell) -> str:
    """Describe an unclear cell: its gain, the required gain and the number of photos to add."""
    if cell.role == "gain" and cell.margin:
        return (
            f"{cell.category}: the plain mean of {cell.metric} {cell.candidate:.4g} is not better than the champion's "
            f"{cell.reference:.4g} ({change(cell, cell.gain)}, allowed {change(cell, cell.margin)}), "
            f"nor is a loss shown (at best {change(cell, _upper(cell))})"
        )
    if cell.role == "gain":
        return (
            f"{cell.category}: {cell.metric}{_weighed(params)} is not better than the champion's {cell.reference:.4g} "
            f"({change(cell, cell.gain)}), nor is a loss shown (at best {change(cell, _upper(cell))})"
        )
    where = "the mean over the six" if cell.category == MACRO else cell.category
    text = (
        f"{where}: {_named(cell)} against {WHOSE[cell.against].rstrip(',')} {cell.reference:.4g} is not settled: "
        f"{change(cell, cell.gain)}, at worst {change(cell, cell.bound)}, needed above {change(cell, cell.margin)}"
    )
    # The remedy depends on the gain: a tiny one stays unsettled with any number of photos.
    more = more_photos(params, cell)
    if more is None:
        return f"{text}; at this gain more photos would not settle it"
    return f"{text}; about {more} more photo{'s' * (more > 1)} like these would settle it"


def promoted(params: GateParams, cells: Sequence[Cell]) -> str:
    """Describe why a candidate is promoted."""
    count = len(CATEGORIES)
    # Without a champion, floors and the blind matte decided.
    if not any(cell.against == "champion" for cell in cells):
        floors = ", ".join(f"{metric} {value:g}" for metric, value in params.floors.items())
        blind = " and beat the blind matte" if params.beat_blind else ""
        return f"first model: all {count} categories reach the floors ({floors}){blind}"
    gains = [
        f"{cell.category} {change(cell, cell.gain)}"
        for cell in cells
        if is_gain(cell) and cell.metric == params.primary and cell.reference
    ]
    if params.mode == "strict":
        rest = "so are all of mse, maxf, biou and conn, with confidence"
    elif params.mode == "primary":
        rest = "each with confidence, and no other metric is worse by more than its margin"
    else:
        # Mode macro: the bound of the mean over the six categories.
        mean = next((cell for cell in cells if cell.role == "macro"), None)
        certain = f" (at least {change(mean, mean.bound)})" if mean else ""
        rest = f"on average with confidence{certain}, and no metric is worse by more than its margin{_pooled(cells)}"
    return f"{params.primary}{_weighed(params)} is better in all {count} categories: {', '.join(gains)}; {rest}"


def _weighed(params: GateParams) -> str:
    """Say that the gain is that of softened errors; its sign may then differ from the plain mean's."""
    softened = params.mode == "macro" and params.pooled and params.primary in RELATIVE
    return " (large errors of single photos softened)" if softened else ""


def _pooled(cells: Sequence[Cell]) -> str:
    """Name the categories whose own photos were too few for a bound; empty if there are none."""
    names = [category for category in CATEGORIES if any(cell.pooled for cell in cells if cell.category == category)]
    return f" (in {', '.join(names)} by the photos of all six categories together)" if names else ""


def _signed(number: float) -> str:
    """Format with a sign and two digits (-0.58, -5.8, -58); larger numbers as integers (-317)."""
    return f"{number:+.0f}" if abs(number) >= 10 else f"{number:+.2g}"
