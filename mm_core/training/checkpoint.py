"""Which of a stage's averaged weights are kept: the last ones, unless earlier ones are better beyond noise."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np

MIN_VALIDATION_PHOTOS = 8
"""Photos of each category below which validation chooses nothing: among few, a single photo decides (decision 0032)."""
STANDARD_ERRORS = 2.0
"""An earlier checkpoint is kept where it is better than the last by this many standard errors of the difference."""

Errors = dict[str, list[float]]
"""Category → squared error of each of its validation photos, always in the same order."""


def mean_errors(errors: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the mean squared error of each category."""
    return {category: fmean(values) for category, values in errors.items()}


def macro_error(errors: Mapping[str, list[float]]) -> float:
    """Return the mean over categories of their mean squared errors."""
    return fmean(mean_errors(errors).values())


def can_choose(errors: Mapping[str, list[float]]) -> bool:
    """Tell whether every category has enough validation photos to choose between checkpoints."""
    return bool(errors) and min(map(len, errors.values())) >= MIN_VALIDATION_PHOTOS


def choose_checkpoint(
    best: Mapping[str, list[float]], last: Mapping[str, list[float]], stage_start: bool = False
) -> tuple[bool, str]:
    """Decide whether the best checkpoint so far replaces the last averaged weights.

    The learning rate ends near zero and the weights are averaged, so the last ones are the default. The best of many
    looks at few photos is partly the luckiest, so it must win by more than the noise of the paired difference.

    Args:
        best: Errors of the checkpoint with the lowest macro MSE; empty where validation cannot choose.
        last: Errors of the last averaged weights.
        stage_start: The best checkpoint is what the stage started with.

    Returns:
        Whether the best checkpoint is kept, and the reason in words.
    """
    if not last:
        return False, "no validation photos: the last averaged weights are kept"
    if not can_choose(last) or not best:
        fewest = min(last, key=lambda category: len(last[category]))
        return False, (
            f"too few validation photos to choose ({fewest}: {len(last[fewest])} of {MIN_VALIDATION_PHOTOS}): "
            "the last averaged weights are kept"
        )
    differences = {category: np.subtract(last[category], best[category]) for category in last}
    gain = fmean(float(values.mean()) for values in differences.values())
    variance = sum(float(values.var(ddof=1)) / len(values) for values in differences.values())
    noise = float(np.sqrt(variance)) / len(differences)
    if gain > STANDARD_ERRORS * noise:
        where = "the stage's start" if stage_start else "an earlier checkpoint"
        return True, f"{where} is better than the last averaged weights by {gain:.4f} ± {noise:.4f} macro MSE"
    return False, "no earlier checkpoint is better beyond noise: the last averaged weights are kept"
