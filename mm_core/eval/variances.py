"""Variance of photos and models, measured on the workspace's last evaluation."""

from __future__ import annotations

import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import CATEGORIES
from mm_core.eval.evidence import CHAMPION, INT8, read_scores
from mm_core.eval.simulate import pairs_of


def last_pairs(layout: Layout) -> tuple[dict[str, pd.DataFrame] | None, str]:
    """Return the paired scores of the last evaluation by category, and a description of their source.

    The pair is candidate and champion as int8. Before the first champion it is the last two training stages, which
    differ less than the models of two weeks.

    Args:
        layout: The workspace with the last evaluation.

    Returns:
        Category → pairs (`pairs_of`) and the description. The pairs are None without an evaluation, or if one of the
        six categories has fewer than two photos.
    """
    formula = "the formula of mm_core/eval/simulate.py (mild tails)"
    try:
        scores, _ = read_scores(layout)
    except InputError:
        return None, f"{formula}: no evaluation yet, run `mm evaluate`"
    names = {
        (str(model), str(precision)) for model, precision in zip(scores["model"], scores["precision"], strict=True)
    }
    stages = (TRAIN_STAGES[-1], "float"), (TRAIN_STAGES[-2], "float")
    # Both models must be in the table, otherwise use the training stages.
    one, other = (INT8, CHAMPION) if CHAMPION in names else stages
    pairs = pairs_of(scores, one, other)
    # The simulation needs a spread for each of the six categories.
    missing = [category for category in CATEGORIES if len(pairs.get(category, [])) < 2]
    if missing:
        return None, f"{formula}: the last evaluation has fewer than two photos of {', '.join(missing)}"
    return pairs, f"{one[0]} ({one[1]}) against {other[0]} ({other[1]}) in the last evaluation"
