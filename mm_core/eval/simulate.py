"""What the gate's rule does in the long run, by simulation: how often it promotes what is no gain, and misses what is.

Per-photo errors are drawn as retraining gives them, and judged by the gate's own code. The same draws go through two
rules in common use: the point rule (every mean better) and a threshold rule on means (better by a share, as TFMA's
`GenericChangeThreshold` with `relative` asks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mm_core.eval.evidence import Evidence
from mm_core.eval.gate import ANCHOR, CHAMPION, FLOAT, INT8, judge_category, more_photos, questions_for
from mm_core.params import GateParams
from mm_core.records import CATEGORIES

RULES: tuple[str, ...] = ("gate", "point", "threshold")
THRESHOLD = 0.01
"""Relative gain that the threshold rule asks of each mean."""
RESAMPLES = 2000
"""Bootstrap resamples per cell, fewer than the gate's own for speed."""
CURVE = 1 - 0.3 * (np.linspace(0, 1, 64) - 0.4) ** 2
"""F over thresholds, around its peak, of a typical photo."""


@dataclass(frozen=True)
class World:
    """How photos and models err. Defaults lie near what retrainings on generated photos showed."""

    photos: int = 100
    """Per category."""
    burst: int = 1
    """Photos of one group."""
    difficulty: float = 0.8
    """Standard deviation of a photo's log error, shared by all models: a few photos make most of the error."""
    retraining: float = 0.25
    """Standard deviation of one model's log error around the photo's difficulty."""
    within: float = 0.5
    """Share of `retraining`'s variance that a whole group has in common, in [0, 1]."""
    level: float = -4.0
    """Mean log MSE."""


Scores = Mapping[tuple[str, str], Mapping[str, np.ndarray]]
"""(model, precision) → metric → (photos, columns)."""


def draw(world: World, gain: float, rng: np.random.Generator) -> Scores:
    """Scores of one category: the candidate's mean MSE is (1 - gain) of the champion's; the anchor is a tenth worse.

    The other metrics follow from the MSE of the photo, so that a gain or loss shows in all of them.
    """
    group = np.arange(world.photos) // world.burst
    shared = rng.normal(world.level, world.difficulty, world.photos)

    def model(factor: float) -> np.ndarray:
        own = rng.normal(size=world.photos) * np.sqrt(1 - world.within)
        common = rng.normal(size=group[-1] + 1)[group] * np.sqrt(world.within)
        return factor * np.exp(shared + world.retraining * (own + common))

    candidate = model(1 - gain)
    int8 = candidate * (1 + 0.005 * rng.normal(size=world.photos))
    errors = {FLOAT: candidate, INT8: int8, CHAMPION: model(1.0), ANCHOR: model(1.1)}
    return {
        key: {
            "mse": mse[:, None],
            "conn": 1.2 * mse[:, None],
            "biou": np.maximum(0, 1 - 2 * np.sqrt(mse))[:, None],
            "maxf": np.maximum(0.05, 1 - np.sqrt(mse))[:, None] * CURVE,
        }
        for key, mse in errors.items()
    }


def promoted(params: GateParams, world: World, gains: Mapping[str, float], rng: np.random.Generator) -> dict[str, bool]:
    """Whether each rule promotes one retraining of these true relative gains (0 where a category is not named)."""
    questions = questions_for(params, champion=True, anchor=True)
    answer: dict[str, bool] = dict.fromkeys(RULES, True)
    # The smallest gain first: a rule that has refused once needs no further category.
    for category in sorted(CATEGORIES, key=lambda c: gains.get(c, 0.0)):
        values = draw(world, gains.get(category, 0.0), rng)
        better = 1 - float(values[INT8]["mse"].mean() / values[CHAMPION]["mse"].mean())
        answer["point"] &= better > 0
        answer["threshold"] &= better >= THRESHOLD
        if answer["gate"]:
            evidence = _evidence(values, category, world.burst)
            # The gain first: what shows none need not be asked the rest.
            for asked in (questions[:1], questions[1:]):
                cells = judge_category(params, evidence, category, asked, rng) if answer["gate"] else []
                answer["gate"] = bool(cells) and all(cell.result == "pass" for cell in cells)
        if not any(answer.values()):
            break
    return answer


def settling(params: GateParams, world: World, gain: float, runs: int, seed: int, most: int = 100) -> dict[str, float]:
    """Whether the photos that an INCONCLUSIVE verdict asks for do settle it, about the primary metric of one category.

    Of `runs` retrainings with this true gain: `unclear`, the share not settled; of those `numbered`, the share told a
    number of photos; of those `median_more` (photos) and `settled`, the share that is settled when as many more of the
    same world have come. Numbers beyond `most` times the photos at hand count as not settled.
    """
    params, rng = params.model_copy(update={"resamples": min(params.resamples, RESAMPLES)}), np.random.default_rng(seed)
    question, category = questions_for(params, champion=True, anchor=False)[:1], str(CATEGORIES[0])

    def judged(scores: Scores) -> Any:
        return judge_category(params, _evidence(scores, category, world.burst), category, question, rng)[0]

    unclear, asked, settled = 0, [], 0
    for _ in range(runs):
        first = draw(world, gain, rng)
        cell = judged(first)
        if cell.result != "unclear":
            continue
        unclear += 1
        more = more_photos(params, cell)
        if more is None:
            continue
        asked.append(more)
        if more <= most * world.photos:
            then = draw(replace(world, photos=more), gain, rng)
            both = {k: {m: np.concatenate([v, then[k][m]]) for m, v in of.items()} for k, of in first.items()}
            settled += judged(both).result != "unclear"
    return {
        "unclear": unclear / runs,
        "numbered": len(asked) / unclear if unclear else np.nan,
        "median_more": float(np.median(asked)) if asked else np.nan,
        "settled": settled / len(asked) if asked else np.nan,
    }


def _evidence(scores: Scores, category: str, burst: int) -> Evidence:
    photos = len(scores[INT8]["mse"])
    return Evidence(np.full(photos, category), np.char.mod("%d", np.arange(photos) // burst), scores)


def rates(
    params: GateParams,
    world: World,
    gains: Mapping[str, float],
    runs: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Share of `runs` retrainings that each rule promotes."""
    params, rng = params.model_copy(update={"resamples": min(params.resamples, RESAMPLES)}), np.random.default_rng(seed)
    count: dict[str, int] = dict.fromkeys(RULES, 0)
    for run in range(runs):
        for rule, yes in promoted(params, world, gains, rng).items():
            count[rule] += yes
        progress(run + 1)
    return {rule: count[rule] / runs for rule in RULES}


def characteristics(
    params: GateParams,
    world: World,
    runs: int,
    seed: int = 0,
    *,
    photos: tuple[int, ...] = (25, 50, 100, 200),
    gains: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3),
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """Operating characteristics: one row per case and number of photos, with the share that each rule promotes.

    Cases: a no-op retrain; a no-op in one category beside a true gain of 20 % in the others (the hardest null of
    the intersection-union test); a regression of 5 % in one category beside gains of 20 %; equal true gains.
    """
    most: dict[str, float] = dict.fromkeys(map(str, CATEGORIES), 0.2)
    cases: list[tuple[str, dict[str, float]]] = [
        ("no-op retrain", {}),
        ("no-op in one category, +20 % in five", most | {"cards": 0.0}),
        ("-5 % in one category, +20 % in five", most | {"cards": -0.05}),
    ]
    cases += [(f"+{100 * gain:.0f} % in all six", dict.fromkeys(map(str, CATEGORIES), gain)) for gain in gains]
    rows = []
    for name, true in cases:
        for count in photos:
            found = rates(
                params,
                replace(world, photos=count),
                true,
                runs,
                seed,
                lambda done, what=f"{name}, {count} photos": progress(what, done, runs),
            )
            rows.append({"case": name, "photos": count, **found})
    return rows
