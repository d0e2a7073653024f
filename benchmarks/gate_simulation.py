"""A year of weekly retrainings, and how well the gate's requests for more photos settle an unclear verdict.

Both use the simulated retrainings of `mm_core.eval.simulate`; `benchmarks/gate_characteristics.py` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mm_core.core.params import GateParams
from mm_core.core.records import Cell
from mm_core.eval.cells import judge_category
from mm_core.eval.evidence import ANCHOR, CHAMPION, FLOAT, INT8
from mm_core.eval.questions import not_worse
from mm_core.eval.simulate import METRICS, RESAMPLES, SIX, Model, Photos, Scores, World, ask, draw, evidence_of, passes
from mm_core.eval.words import more_photos

HEAVY = World(difficulty=1.0, retraining=0.42)
"""Heavy tails: the worst tenth of the photos has more than a third of the error; errors correlate to 0.8."""


def year(
    params: GateParams, world: World, weekly: float, seed: int, weeks: int = 52, rule: str = "gate"
) -> tuple[int, float]:
    """Return the promotions of a year of weekly retrainings, and the last champion's true MSE (first: 1).

    The true error of each week is (1 - `weekly`) times that of the week before. All candidates are judged on the same
    photos, against the champion and the best model so far. A champion therefore keeps the luck of its promotion.

    `weekly`: true relative gain per week. `rule`: one of `RULES`.
    """
    params = params.model_copy(update={"resamples": min(params.resamples, RESAMPLES)})
    rng = np.random.default_rng(seed)
    photos = {category: Photos(world, category, rng) for category in SIX}
    champion = {category: photos[category].model(1.0) for category in SIX}
    # The first champion is the best model of every category and metric.
    best = {(category, metric): champion[category][metric] for category in SIX for metric in METRICS}
    promotions, level = 0, 1.0
    for week in range(1, weeks + 1):
        answer, cells, fresh = {rule: True}, [], {}
        for category in SIX:
            candidate = photos[category].model((1 - weekly) ** week)
            anchor = {metric: best[category, metric] for metric in METRICS}
            fresh[category] = candidate
            scores = {FLOAT: candidate, INT8: candidate, CHAMPION: champion[category], ANCHOR: anchor}
            cells += ask(params, category, photos[category], scores, rng, answer)
            if not answer[rule]:
                break
        if answer[rule] and (rule != "gate" or passes(params, cells)):
            promotions, level, champion = promotions + 1, (1 - weekly) ** week, fresh
            _ratchet(params, best, fresh, photos)
    return promotions, level


def _ratchet(
    params: GateParams,
    best: dict[tuple[str, str], np.ndarray],
    fresh: Mapping[str, Model],
    photos: Mapping[str, Photos],
) -> None:
    """Update the best models as `mm_core.eval.ratchet` does: a new model must be better with confidence."""
    for (category, metric), held in best.items():
        scores = {INT8: fresh[category], ANCHOR: {metric: held}}
        question = not_worse(params, metric, "anchor", ANCHOR)
        evidence = evidence_of(scores, category, photos[category].group)
        cells = judge_category(params, evidence, category, [question], np.random.default_rng(0))
        if cells and cells[0].bound > 0:
            best[category, metric] = fresh[category][metric]


def settling(params: GateParams, world: World, gain: float, runs: int, seed: int, most: int = 100) -> dict[str, float]:
    """Measure how well `more_photos` predicts the photos that an INCONCLUSIVE verdict needs.

    The test uses the primary metric of one category.

    Args:
        params: The gate's rule.
        world: Noise of photos and models.
        gain: True relative gain of the candidate.
        runs: Number of simulated retrainings.
        seed: Seed of the random numbers.
        most: Requests for more than `most` times the present photos count as not settled.

    Returns:
        `unclear`: share of the runs with an unclear result. `numbered`: share of those with a number of photos. For the
        numbered ones, `median_more` is the median number and `settled` the share with a clear result after adding it.
    """
    rng, category = np.random.default_rng(seed), SIX[0]
    question = [not_worse(params, params.primary, "champion", CHAMPION)]

    def cell_of(scores: Scores, group: np.ndarray) -> Cell:
        return judge_category(params, evidence_of(scores, category, group), category, question, rng)[0]

    unclear, asked, settled = 0, [], 0
    for _ in range(runs):
        photos = Photos(world, category, rng)
        first = draw(photos, gain)
        cell = cell_of(first, photos.group)
        if cell.result != "unclear":
            continue
        unclear += 1
        more = more_photos(params, cell)
        if more is None:
            continue
        asked.append(more)
        if more <= most * world.photos:
            others = Photos(replace(world, photos=more), category, rng)
            # Add the requested photos of the same candidate and judge again.
            then = draw(others, gain)
            both = {k: {m: np.concatenate([v, then[k][m]]) for m, v in of.items()} for k, of in first.items()}
            group = np.concatenate([photos.group, others.group + photos.group.max() + 1])
            settled += cell_of(both, group).result != "unclear"
    return {
        "unclear": unclear / runs,
        "numbered": len(asked) / unclear if unclear else np.nan,
        "median_more": float(np.median(asked)) if asked else np.nan,
        "settled": settled / len(asked) if asked else np.nan,
    }
