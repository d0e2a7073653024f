"""What the six categories say together: their mean gain, and bounds for categories with too few photos of their own.

The bound of one category on 60 photos with heavy-tailed errors hardly separates a loss of 5 % from a gain of 10 %. If
the six categories gain alike, their photos together do. `with_pooled` lets such a bound pass under conditions that
still exclude a loss in one category when the others gain (docs/decisions/0045).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from mm_core.core.params import GateParams
from mm_core.core.records import CATEGORIES, Cell
from mm_core.eval.bootstrap import fewest_groups
from mm_core.eval.questions import RELATIVE, SLACK

MACRO = "all"
"""Category name of the cell for the mean over the six categories."""
LAG = 0.25
"""Relative gain by which a category must certainly not lag: a loss of 5 % lags by this behind gains of 20 %."""
GUARDS = 48
"""Number of comparisons other than the primary gain that share the level (Bonferroni): eight in six categories."""
FEWEST = 3
"""Least number of categories with a comparison; fewer have no common mean to compare with."""


@dataclass(frozen=True)
class Across:
    """The same comparison in several categories. All values are in units of `scale`."""

    cells: list[Cell]
    gains: np.ndarray
    """(categories,) estimated gains."""
    errors: np.ndarray
    """(categories,) standard errors of the gains. Categories share no photos, so the errors are independent."""
    margins: np.ndarray
    """(categories,) margins."""

    @property
    def freedom(self) -> np.ndarray:
        """Return the degrees of freedom of each standard error, (categories,)."""
        return np.array([cell.groups - 1 for cell in self.cells], float)

    def mean(self, alpha: float) -> tuple[float, float]:
        """Return the mean gain and the half width of its one-sided interval (Welch, Satterthwaite)."""
        variance = self.errors**2
        total = float(variance.sum())
        # Degrees of freedom of a sum of estimated variances.
        freedom = total**2 / float((variance**2 / self.freedom).sum()) if total > 0 else 1.0
        # Standard error of a mean: that of the sum, divided by the number of categories.
        return float(self.gains.mean()), float(np.sqrt(total)) / len(self.cells) * float(stdtrit(freedom, 1 - alpha))

    def lag(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return each category's gain minus the mean gain of the others, and its one-sided half widths."""
        others = len(self.cells) - 1
        # The mean of the others excludes the category, so the two are independent and their variances add.
        difference = self.gains - (self.gains.sum() - self.gains) / others
        variance = self.errors**2
        spread = np.sqrt(variance + (variance.sum() - variance) / others**2)
        return difference, spread * stdtrit(self.freedom, 1 - alpha)


def enough(params: GateParams, images: int, groups: int, alpha: float) -> bool:
    """Return whether a category has the photos and the groups that a result needs."""
    return images >= params.min_images and groups >= fewest_groups(alpha)


def across(params: GateParams, cells: Sequence[Cell], metric: str, against: str, role: str) -> Across | None:
    """Collect one comparison over the categories; None if fewer than FEWEST have it with enough photos.

    The standard errors are derived from the bounds, which are those of Student's t.
    """
    same = [
        cell
        for cell in cells
        if (cell.metric, cell.against, cell.role) == (metric, against, role)
        and cell.category in CATEGORIES
        and enough(params, cell.images, cell.groups, params.alpha)
    ]
    return _across(params, same) if len(same) >= FEWEST else None


def _across(params: GateParams, cells: list[Cell]) -> Across:
    # Errors are averaged as shares of the reference, because categories have different error levels.
    relative = cells[0].metric in RELATIVE
    scale = np.array([max(cell.reference or 0.0, SLACK) if relative else 1.0 for cell in cells])
    # Each bound is gain - t · error, so the error is (gain - bound) / t.
    reach = np.array([stdtrit(cell.groups - 1, 1 - params.alpha) for cell in cells])
    gains, bounds, margins = (
        np.array([getattr(cell, name) for cell in cells]) / scale for name in ("gain", "bound", "margin")
    )
    return Across(cells, gains, (gains - bounds) / reach, margins)


def with_pooled(params: GateParams, cells: list[Cell]) -> list[Cell]:
    """Return the cells with those set to `pass` that the six categories together certify.

    An unclear comparison of a category passes if all of this holds:

    1. The mean gain over the categories is above the margin, with confidence.
    2. The category's own gain is above the margin.
    3. The category does not certainly lag behind the mean of the others; of the primary metric at level alpha, of the
       other comparisons at alpha / GUARDS.
    4. In the primary metric, the category certainly lags by less than LAG.

    Args:
        params: Mode and levels.
        cells: Cells of `judge_category` for all categories.
    """
    primary = across(params, cells, params.primary, "champion", "non_inferior")
    if params.mode != "macro" or not params.pooled or primary is None or len(primary.cells) < len(CATEGORIES):
        return cells
    difference, half = primary.lag(params.alpha)
    # Conditions 3 and 4 in the primary metric. A category that fails them gets no help in any metric.
    near = (difference + half > 0) & (difference - half > -LAG)
    keeps_up = {cell.category for cell, yes in zip(primary.cells, near, strict=True) if yes}
    passed: set[int] = set()
    for metric, against, role in {(cell.metric, cell.against, cell.role) for cell in cells}:
        if role not in ("non_inferior", "guard") or against not in ("champion", "anchor"):
            continue
        each = across(params, cells, metric, against, role)
        if each is None:
            continue
        mean, reach = each.mean(params.alpha)
        # Condition 1. Margins differ between categories, so the mean must exceed the largest.
        if mean - reach <= float(each.margins.max()):
            continue
        main = (metric, against, role) == (params.primary, "champion", "non_inferior")
        difference, half = each.lag(params.alpha if main else params.alpha / GUARDS)
        # Conditions 3 and 2 for this comparison.
        fits = (difference + half > 0) & (each.gains > each.margins)
        passed |= {
            id(cell)
            for cell, yes in zip(each.cells, fits, strict=True)
            if yes and cell.result == "unclear" and cell.category in keeps_up
        }
    update = {"result": "pass", "pooled": True}
    return [cell.model_copy(update=update) if id(cell) in passed else cell for cell in cells]


def macro_cell(params: GateParams, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cell for the mean relative gain over the six categories; empty if a category is missing.

    The gain of a category is the gain of its non-inferiority cell for the primary metric (softened).
    """
    found = [
        cell for cell in cells if (cell.metric, cell.against, cell.role) == (params.primary, "champion", "non_inferior")
    ]
    if {cell.category for cell in found} != set(CATEGORIES):
        return []
    gain, half = _across(params, found).mean(params.alpha)
    relative = params.primary in RELATIVE
    result: Literal["pass", "fail", "unclear"] = "unclear"
    if all(enough(params, cell.images, cell.groups, params.alpha) for cell in found):
        result = "pass" if gain - half > 0 else "fail" if gain + half < 0 else "unclear"
    return [
        Cell(
            category=MACRO,
            metric=params.primary,
            against="champion",
            role="macro",
            # A relative gain has the reference 1: a gain of 0.1 shows the candidate as 0.9.
            reference=1.0 if relative else float(np.mean([cell.reference or 0.0 for cell in found])),
            candidate=(1.0 - gain) if relative else float(np.mean([cell.candidate or 0.0 for cell in found])),
            gain=gain,
            bound=gain - half,
            upper=gain + half,
            margin=0.0,
            images=sum(cell.images for cell in found),
            groups=sum(cell.groups for cell in found),
            result=result,
        )
    ]
