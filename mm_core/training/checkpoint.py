"""Choose which averaged weights of a stage are kept: the last ones, unless earlier ones are better beyond noise."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

from mm_core.ingest.holdout import MIN_VALIDATION_PHOTOS

STANDARD_ERRORS = 2.0
"""An earlier checkpoint is kept if it is better than the last by this many standard errors of the difference."""

Errors = dict[str, list[float]]
"""Category → squared error of each of its validation photos, always in the same order."""


def mean_errors(errors: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the mean squared error of each category."""
    return {category: fmean(values) for category, values in errors.items()}


def macro_error(errors: Mapping[str, list[float]]) -> float:
    """Return the mean of the categories' mean squared errors, over the categories with enough photos."""
    return fmean(mean_errors(comparable(errors)).values())


def comparable(errors: Mapping[str, list[float]]) -> Errors:
    """Return the categories with enough validation photos; with fewer, a single photo decides (decision 0032)."""
    return {category: values for category, values in errors.items() if len(values) >= MIN_VALIDATION_PHOTOS}


def can_choose(errors: Mapping[str, list[float]]) -> bool:
    """Return whether any category has enough validation photos to choose between checkpoints."""
    return bool(comparable(errors))


def choose_checkpoint(
    best: Mapping[str, list[float]], last: Mapping[str, list[float]], stage_start: bool = False
) -> tuple[bool, str]:
    """Decide whether the best checkpoint so far replaces the last averaged weights.

    The last weights are the default, because the learning rate ends near zero and the weights are averaged. The best of
    many evaluations on few photos is biased by chance, so it must win by more than the noise of the paired difference.
    Categories with too few validation photos are left out; the reason names the others.

    Args:
        best: Errors of the checkpoint with the lowest macro MSE; empty if validation has too few photos to choose.
        last: Errors of the last averaged weights.
        stage_start: The best checkpoint is the start weights of the stage.

    Returns:
        Whether the best checkpoint is kept, and the reason in words.
    """
    if not last:
        return False, "no validation photos: the last averaged weights are kept"
    last, best, all_of_them = comparable(last), comparable(best), last
    if not last or not best:
        most = max(all_of_them, key=lambda category: len(all_of_them[category]))
        count = f"at most {len(all_of_them[most])} of {MIN_VALIDATION_PHOTOS}, {most}"
        return False, f"too few validation photos to choose ({count}): the last averaged weights are kept"
    # Paired differences: positive values mean that the earlier checkpoint has the lower error.
    differences = {category: np.subtract(last[category], best[category]) for category in last}
    gain = fmean(float(values.mean()) for values in differences.values())
    # Variance of the mean of independent category means.
    variance = sum(float(values.var(ddof=1)) / len(values) for values in differences.values())
    noise = float(np.sqrt(variance)) / len(differences)
    by = f", by the validation photos of {', '.join(last)}"
    # The earlier checkpoint must win clearly; a tie keeps the last weights.
    if gain > STANDARD_ERRORS * noise:
        where = "the stage's start" if stage_start else "an earlier checkpoint"
        return True, f"{where} is better than the last averaged weights by {gain:.4f} ± {noise:.4f} macro MSE{by}"
    return False, f"no earlier checkpoint is better beyond noise: the last averaged weights are kept{by}"
