"""Variance of photos and models, measured on the workspace's last evaluation, and the eval photos that it requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtri

from mm_core.core.errors import InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import GateParams
from mm_core.core.records import CATEGORIES
from mm_core.eval.across import LAG
from mm_core.eval.bootstrap import Quantity, softened, student, winsorised
from mm_core.eval.evidence import CHAMPION, INT8, read_scores
from mm_core.eval.questions import PLAIN_MARGINS, RELATIVE, SLACK, not_worse
from mm_core.eval.simulate import METRICS, SIX, pairs_of
from mm_core.eval.words import SETTLED


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


def photos_needed(
    params: GateParams, pairs: Mapping[str, pd.DataFrame], gains: Sequence[float] = (0.05, 0.1, 0.2)
) -> list[dict[str, object]]:
    """Return the eval photos per category with which all six categories pass in 80 % of the cases.

    Each category must then pass in 0.8^(1/6) of the cases. Its spread is measured on its real pairs. The other metrics
    are assumed to improve with the MSE (1 - BIoU with its square root). The metric that needs most photos decides, or
    the sign of the gain. With `pooled`, the bounds of all six together replace a category's own where they need fewer.

    Args:
        params: The gate's rule.
        pairs: Category → pairs, from `pairs_of`.
        gains: True relative gains in MSE.
    """
    often = float(ndtri(SETTLED ** (1 / len(SIX))))
    # Sum of the quantiles for power and level in the usual sample size formula.
    power = often - float(ndtri(params.alpha))
    pooled = params.mode == "macro" and params.pooled
    rows = []
    for category in SIX:
        if category not in pairs or len(pairs[category]) < 2:
            continue
        table = pairs[category]
        spreads = {metric: _spread(table, metric) for metric in METRICS}
        plain = _spread(table, "mse", plain=True)[0]
        row: dict[str, object] = {"category": category, "photos": len(table)}
        for gain in gains:
            needed = {}
            for metric, (spread, level) in spreads.items():
                question = not_worse(params, metric, "champion", CHAMPION)
                if metric in RELATIVE:
                    room = gain - question.share
                else:
                    room = (1 - np.sqrt(1 - gain)) * (1 - level) - question.slack
                needed[metric] = (power * spread / room) ** 2
            most = max(needed, key=lambda metric: needed[metric])
            if pooled:
                share = not_worse(params, "mse", "champion", CHAMPION).share
                # The difference from the mean of five others has a variance of 6/5 of one category's.
                together = 1.2 * (power * spreads["mse"][0] / LAG) ** 2
                signs = (spreads["mse"][0] / gain) ** 2, (plain / (gain - PLAIN_MARGINS * share)) ** 2
            else:
                together, signs = np.inf, ((plain / gain) ** 2,)
            if together < needed[most]:
                needed, most = {"mse": together}, "mse"
            if often**2 * max(signs) > needed[most]:
                needed, most = {"mse": often**2 * max(signs)}, "mse"
            row[f"at +{100 * gain:g} %"] = max(params.min_images, int(np.ceil(needed[most])))
            row[f"by, +{100 * gain:g} %"] = most
        rows.append(row)
    return rows


def _spread(table: pd.DataFrame, metric: str, *, plain: bool = False) -> tuple[float, float]:
    """Return the standard deviation of a photo's difference (relative for errors, by groups) and the mean level.

    `plain`: do not soften and winsorise errors.
    """
    a, b = (table[f"{metric}_{side}"].to_numpy(float) for side in ("a", "b"))
    if metric in RELATIVE:
        difference = (b - a) / max(float(b.mean()), SLACK) if plain else winsorised(softened(a, b, SLACK))
    else:
        difference = a - b
    groups = table["group"].astype(str).to_numpy()
    # A single group has no spread between groups; its photos are used instead.
    if len(np.unique(groups)) < 2:
        groups = np.arange(len(a)).astype(str)
    # At alpha = 0.16 the half width of the interval is about one standard error.
    interval = student([Quantity(((1.0, difference[:, None]),))], groups, alpha=0.16)[0]
    return (interval.estimate - interval.lower) * float(np.sqrt(len(a))), float((a.mean() + b.mean()) / 2)
