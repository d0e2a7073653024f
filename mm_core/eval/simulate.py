"""Simulation of the gate's error rates: false promotions of no-op retrainings, and missed true gains.

Per-photo errors are drawn from a model of retraining noise, or from the pairs of a real per_image table. The gate's own
code judges them. The same draws are also judged by the mode `primary` and by two common rules. The point rule requires
that every mean is better. The threshold rule requires a relative gain of every mean, as TFMA's
`GenericChangeThreshold` with `relative`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mm_core.core.params import GateParams
from mm_core.core.progress import Progress
from mm_core.core.records import CATEGORIES, Cell
from mm_core.eval.across import macro_cell, with_pooled
from mm_core.eval.bootstrap import RepeatedResamples
from mm_core.eval.cells import judge_category
from mm_core.eval.evidence import ANCHOR, CHAMPION, FLOAT, INT8, Evidence, Key
from mm_core.eval.questions import RELATIVE, questions_for

RULES: tuple[str, ...] = ("gate", "primary", "point", "threshold")
"""`gate` is the mode of the params; `primary` requires superiority in each category."""
THRESHOLD = 0.01
"""Relative gain of each mean that the threshold rule requires."""
RESAMPLES = 1000
"""Bootstrap resamples per cell; fewer than in the gate, for speed."""
METRICS = ("mse", "conn", "biou", "maxf")
TINY = 1e-9
"""Lower limit of an error before its logarithm."""
SIX: tuple[str, ...] = tuple(map(str, CATEGORIES))


@dataclass(frozen=True)
class World:
    """Statistical model of the errors of photos and models. The default has mild tails; errors correlate to 0.88.

    For models of one lineage on real photos, the log ratio of a photo's errors has a standard deviation of 0.08 to 0.41
    by category (here `retraining` · √2 = 0.35). For separate trainings it is 0.2 to 0.9. The gains in MSE and
    Conn of a photo correlate to at least 0.97 (benchmarks/gate_characteristics.md).
    """

    photos: int = 100
    """Eval photos per category."""
    burst: int = 1
    """Photos per group."""
    difficulty: float = 0.76
    """Standard deviation of a photo's log error, common to all models."""
    retraining: float = 0.25
    """Standard deviation of one model's log error around the photo's difficulty."""
    within: float = 0.0
    """Share of `retraining`'s variance that is common to a whole group, in [0, 1]."""
    level: float = 0.05
    """Mean MSE."""
    others: float = 0.07
    """Standard deviation, on the log scale, that each of the other metrics adds to a photo's error."""
    pairs: Mapping[str, pd.DataFrame] | None = None
    """Category → real pairs of two models' scores (`pairs_of`). If given, groups are drawn from them."""


Model = Mapping[str, np.ndarray]
"""Metric → (photos, 1)."""
Scores = Mapping[Key, Model]


class Photos:
    """Simulated eval photos of one category; `model` draws the scores of a model of any quality."""

    def __init__(self, world: World, category: str, rng: np.random.Generator) -> None:
        self.world, self.rng = world, rng
        self.pairs = world.pairs[category] if world.pairs else None
        if self.pairs is None:
            self.group = np.arange(world.photos) // world.burst
            spread = world.difficulty**2 + world.retraining**2
            # The shift by half the variance makes `level` the mean of the log-normal errors.
            self.shared = rng.normal(np.log(world.level) - spread / 2, world.difficulty, world.photos)
        else:
            # Draw whole groups with replacement, so that the correlation within a group is kept.
            codes = pd.factorize(self.pairs["group"])[0]
            members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
            # Each group has at least one photo, so this many groups are enough; the surplus is cut off.
            drawn = [members[code] for code in rng.integers(len(members), size=world.photos)]
            drawn = drawn[: 1 + int(np.searchsorted(np.cumsum([len(rows) for rows in drawn]), world.photos))]
            self.rows = np.concatenate(drawn)[: world.photos]
            self.group = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])[: world.photos]

    def sides(self) -> np.ndarray:
        """Return +1 or -1 at random for each photo, (photos,); photos of one group have the same."""
        # Gains within a group are correlated, and stay so if the whole group takes one side.
        return np.where(self.rng.random(int(self.group[-1]) + 1) < 0.5, 1.0, -1.0)[self.group]

    def model(self, factor: float, side: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return scores (metric → (photos, 1)) of a new training with expected errors of `factor` times the level.

        Args:
            factor: Expected error, as a multiple of the level.
            side: (photos,) only with real pairs: place of each score between the two real ones, which have +0.5 and
                -0.5. None draws it at random for a model that is independent of all others.
        """
        if self.pairs is not None:
            return self._real(factor, self.sides() / np.sqrt(2) if side is None else side)
        world, count = self.world, len(self.group)
        # Split the retraining noise into a part per photo and a part per group.
        own = self.rng.normal(size=count) * np.sqrt(1 - world.within)
        common = self.rng.normal(size=int(self.group[-1]) + 1)[self.group] * np.sqrt(world.within)
        log_error = np.log(factor) + self.shared + world.retraining * (own + common)
        noise = world.others * self.rng.normal(size=(3, count))
        # The other metrics are noisy functions of the same error, as in real evaluations.
        mse, conn, edge, fit = (np.minimum(np.exp(log_error + extra), 1.0) for extra in (0.0, *noise))
        scores = {"mse": mse, "conn": 1.2 * conn, "biou": 1 - 2 * np.sqrt(edge), "maxf": 1 - np.sqrt(fit)}
        return {metric: np.clip(values, 0, 2)[:, None] for metric, values in scores.items()}

    def _real(self, factor: float, side: np.ndarray) -> dict[str, np.ndarray]:
        """Return scores at the places `side` between each photo's two real ones; all metrics use the same places.

        With places of ±1/√2 the difference of two draws has the variance of the real difference, with heavier tails,
        because half of the differences are zero.
        """
        assert self.pairs is not None
        scores = {}
        for metric in METRICS:
            one, other = (self.pairs[f"{metric}_{name}"].to_numpy(float)[self.rows] for name in ("a", "b"))
            if metric in RELATIVE:
                # Errors are handled on the log scale, metrics in [0, 1] on their own scale.
                one, other = np.log(np.maximum(one, TINY)), np.log(np.maximum(other, TINY))
                error = np.exp((one + other) / 2 + side * (one - other)) * factor
            else:
                error = (1 - (one + other) / 2 + side * (one - other)) * np.sqrt(factor)
            scores[metric] = (error if metric in RELATIVE else 1 - error)[:, None]
        return scores


def pairs_of(table: pd.DataFrame, one: Key, other: Key) -> dict[str, pd.DataFrame]:
    """Return category → columns group, <metric>_a and <metric>_b of two models in a per_image table.

    Both models are scaled to their common mean, so that the pairs contain only noise. MaxF of one photo is its F at the
    threshold of the category's MaxF. The mean of these values is the MaxF of the category.

    Args:
        table: Columns of `mm_core.eval.evaluate.SCHEMA`.
        one: (model, precision) of the first model.
        other: (model, precision) of the second model.
    """
    # One table per model, joined by photo.
    sides = []
    for key, side in ((one, "a"), (other, "b")):
        rows = table.loc[(table["model"] == key[0]) & (table["precision"] == key[1])].reset_index(drop=True)
        for _, of_category in rows.groupby("category"):
            # MaxF of a set is taken at the one threshold that is best for the mean curve.
            curves = np.stack([np.asarray(curve, np.float64) for curve in of_category["fcurve"]])
            rows.loc[of_category.index, "maxf"] = curves[:, curves.mean(axis=0).argmax()]
        named = rows.set_index("sample_id")[["category", "group", *METRICS]]
        sides.append(named.rename(columns={metric: f"{metric}_{side}" for metric in METRICS}))
    both = sides[0].join(sides[1].drop(columns=["category", "group"]), how="inner")
    found: dict[str, pd.DataFrame] = {}
    for category, rows in both.groupby("category"):
        rows = rows.copy()
        for metric in METRICS:
            a, b = (rows[f"{metric}_{side}"] for side in ("a", "b"))
            middle = (float(a.mean()) + float(b.mean())) / 2
            for side, values in (("a", a), ("b", b)):
                if metric in RELATIVE:
                    rows[f"{metric}_{side}"] = values * (middle / max(float(values.mean()), 1e-12))
                else:
                    rows[f"{metric}_{side}"] = values + (middle - float(values.mean()))
        found[str(category)] = rows.reset_index()
    return found


def draw(photos: Photos, gain: float) -> dict[Key, dict[str, np.ndarray]]:
    """Return scores of one category for candidate, champion and anchor.

    The candidate's expected MSE is (1 - gain) times the champion's. The anchor's is 10 % higher than the champion's.
    With real pairs, candidate and champion have the two scores of each photo in random order. Their differences are
    then the real ones, which two independent draws would not give.
    """
    side = None if photos.pairs is None else photos.sides() / 2
    candidate = photos.model(1 - gain, side)
    # Simulated quantisation noise: 0.5 % per photo.
    noise = 1 + 0.005 * photos.rng.normal(size=(len(photos.group), 1))
    int8 = {m: values * noise if m in RELATIVE else values for m, values in candidate.items()}
    return {
        FLOAT: candidate,
        INT8: int8,
        CHAMPION: photos.model(1.0, None if side is None else -side),
        ANCHOR: photos.model(1.1),
    }


def promoted(
    params: GateParams,
    world: World,
    gains: Mapping[str, float],
    rng: np.random.Generator,
    resamples: RepeatedResamples,
    rules: Sequence[str] = RULES,
) -> dict[str, bool]:
    """Return whether each rule promotes one simulated retraining.

    Args:
        params: The gate's rule.
        world: Noise of photos and models.
        gains: Category → true relative gain in MSE; missing categories have gain 0.
        rng: Source of the photos and of the models' errors.
        resamples: Source of the bootstrap's resamples.
        rules: Names of `RULES`.
    """
    answer = dict.fromkeys(rules, True)
    cells: list[Cell] = []
    # Start with the smallest gain, because a rule that has rejected needs no other category.
    for category in sorted(SIX, key=lambda name: gains.get(name, 0.0)):
        photos = Photos(world, category, rng)
        scores = draw(photos, gains.get(category, 0.0))
        cells += ask(params, category, photos, scores, resamples, answer)
        if not any(answer.values()):
            break
    if answer.get("gate"):
        answer["gate"] = passes(params, cells)
    return answer


def ask(
    params: GateParams,
    category: str,
    photos: Photos,
    scores: Scores,
    rng: np.random.Generator | RepeatedResamples,
    answer: dict[str, bool],
) -> list[Cell]:
    """Set the answers of the rules that reject this category to False; return the cells of the params' mode."""
    # The two simple rules need only the means.
    better = 1 - float(scores[INT8]["mse"].mean() / scores[CHAMPION]["mse"].mean())
    for rule, needed in (("point", 0.0), ("threshold", THRESHOLD)):
        if rule in answer:
            answer[rule] &= better > needed
    cells: list[Cell] = []
    evidence = evidence_of(scores, category, photos.group)
    anchor = ANCHOR in scores
    for rule, mode in (("gate", params), ("primary", params.model_copy(update={"mode": "primary"}))):
        if not answer.get(rule):
            continue
        questions = questions_for(mode, champion=True, anchor=anchor)
        # Where the gain is resampled, it is tested first, and the other questions are skipped without it.
        first = 1 if questions[0].method == "bootstrap" else len(questions)
        for asked in (questions[:first], questions[first:]):
            if answer[rule] and asked:
                found = judge_category(mode, evidence, category, asked, rng)
                answer[rule] = bool(found) and not any(_decides(mode, cell) for cell in found)
                cells += found if rule == "gate" else []
    return cells


def _decides(params: GateParams, cell: Cell) -> bool:
    """Return whether the cell alone prevents a promotion; other categories may still settle an unclear one."""
    return cell.result != "pass" and (cell.result == "fail" or cell.role == "gain" or params.mode != "macro")


def passes(params: GateParams, cells: list[Cell]) -> bool:
    """Return whether the cells of all six categories promote."""
    if params.mode == "macro":
        cells = [*with_pooled(params, cells), *macro_cell(params, cells)]
    return all(cell.result == "pass" for cell in cells)


def evidence_of(scores: Scores, category: str, group: np.ndarray) -> Evidence:
    """Return simulated scores of one category as the gate's evidence; `group` is (photos,) int."""
    return Evidence(np.full(len(group), category), group, np.arange(len(group)), scores)


def rates(
    params: GateParams,
    world: World,
    gains: Mapping[str, float],
    runs: int,
    seed: int,
    rules: Sequence[str] = RULES,
) -> dict[str, float]:
    """Return the share of `runs` retrainings that each rule promotes."""
    params, rng = params.model_copy(update={"resamples": min(params.resamples, RESAMPLES)}), np.random.default_rng(seed)
    # All rules judge the same draws, so their rates can be compared directly.
    count = dict.fromkeys(rules, 0)
    resamples = RepeatedResamples(rng)
    # The products are so small that a second thread of BLAS would only wait, at the cost of a core.
    with threadpool_limits(1, user_api="blas"):
        for _ in range(runs):
            for rule, yes in promoted(params, world, gains, rng, resamples, rules).items():
                count[rule] += yes
    return {rule: count[rule] / runs for rule in rules}


def cases(gains: Sequence[float] = (0.05, 0.1, 0.2, 0.3)) -> dict[str, dict[str, float]]:
    """Return the name of each simulated case → category → true relative gain.

    The cases are a no-op retraining, a no-op in one category with a true gain of 20 % in the others (the price of
    requiring point gains), a regression of 5 % in one category with gains of 20 %, and equal true gains.

    Args:
        gains: The equal true gains.
    """
    # A gain of 20 % everywhere; two cases then change one category.
    most: dict[str, float] = dict.fromkeys(SIX, 0.2)
    return {
        "no-op retrain": {},
        "no-op in one category, +20 % in five": most | {"cards": 0.0},
        "-5 % in one category, +20 % in five": most | {"cards": -0.05},
        **{f"+{100 * gain:.0f} % in all six": dict.fromkeys(SIX, gain) for gain in gains},
    }


def characteristics(
    params: GateParams,
    world: World,
    runs: int,
    *,
    photos: Sequence[int] = (25, 50, 100, 200),
    gains: Mapping[str, Mapping[str, float]],
    progress: Progress,
) -> Iterator[dict[str, object]]:
    """Yield operating characteristics: one row per case and number of photos, with each rule's share of promotions.

    Args:
        params: The gate's rule.
        world: Noise of photos and models.
        runs: Simulated retrainings per row.
        photos: Numbers of eval photos per category.
        gains: The cases, see `cases`.
        progress: Receives the number of finished rows.
    """
    for done, (name, count) in enumerate(product(gains, photos), 1):
        yield {"case": name, "photos": count, **rates(params, replace(world, photos=count), gains[name], runs, seed=0)}
        progress(f"{runs} retrainings", done, len(gains) * len(photos))


def most_off(runs: int) -> float:
    """Return how far a share of `runs` retrainings may be off the true probability (95 %, at a half)."""
    return 2 * math.sqrt(0.25 / runs)
