"""Shares of simulated retrainings that the gate's rule and other rules promote, in plain numpy.

    python -m benchmarks.gate_rules

The gate's own code judges a few retrainings a second (`benchmarks/gate_characteristics.py`). Here the numbers of a cell
are computed for thousands of retrainings at once, and rules are compared on the same draws. `tests/eval` compares the
decision with the gate's code on the same scores. Writes benchmarks/gate_rules.md.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtrit

from benchmarks.gate_simulation import HEAVY
from mm_core.core.params import GateParams
from mm_core.eval.across import GUARDS, LAG
from mm_core.eval.bootstrap import CLIP, SOFTENING
from mm_core.eval.questions import PLAIN_MARGINS, RELATIVE, SLACK
from mm_core.eval.simulate import METRICS, SIX, World

HERE = Path(__file__).parent
PAGE, SPREADS = HERE / "gate_rules.md", HERE / "gate_characteristics.csv"
PARAMS = GateParams()
MARGINS: dict[str, float] = {**PARAMS.margins}
POOL = 4000
"""Simulated retrainings of one category; six of them, drawn at random, make a retraining."""
AGAINST = ("champion", "anchor")
COMPARISONS = tuple((metric, against) for against in AGAINST for metric in METRICS)
"""Order of the comparisons in a cell array; the plain mean of the primary metric follows as the last one."""
PLAIN = len(COMPARISONS)
Model = Mapping[str, np.ndarray]
"""Metric → (retrainings, photos)."""


@dataclass(frozen=True)
class Change:
    """Changes that a retraining makes in one category."""

    gain: float = 0.0
    """True relative gain in every metric (1 - BIoU and 1 - MaxF with its square root)."""
    conn: float | None = None
    """True relative gain in Conn, if it differs."""
    ruined: float = 0.0
    """Share of photos whose errors become four times as large."""


@dataclass(frozen=True)
class Rule:
    """A rule; the default is that of the gate (docs/decisions/0045)."""

    pooled: bool = True
    """False: each category needs bounds of its own."""
    cells: bool = True
    """False: no comparison but the gains of the primary metric and their mean."""
    mean: bool = True
    """Whether the mean gain over the six must be above zero with confidence."""
    softened: float | None = 0.0
    """Least softened gain of each category in standard errors; None asks for none."""
    plain: float | None = -PLAIN_MARGINS * PARAMS.margins["mse"]
    """Least gain of each category's plain mean, as a share; None asks for none."""
    average: bool = False
    """`plain` holds for the average over the six instead of each category."""
    lag: float | None = LAG
    """Lag that must be excluded with confidence; None excludes none."""
    joint: float | None = None
    """Least probability that all six softened gains are above zero; None asks for none."""
    shrunk: bool = False
    """`softened` holds for gains that are shrunk to their common mean (empirical Bayes)."""


def draw(world: World, change: Change, retrainings: int, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of the cells of one category for simulated retrainings: (retrainings, comparisons, 4).

    The errors are those of `mm_core.eval.simulate` by formula, one photo per group.
    """
    shape = (retrainings, world.photos)
    spread = world.difficulty**2 + world.retraining**2
    shared = rng.normal(np.log(world.level) - spread / 2, world.difficulty, shape)
    ruined = np.log(4) * (rng.random(shape) < change.ruined)

    def scores(factor: float, conn_factor: float, ruined: np.ndarray | float = 0.0) -> dict[str, np.ndarray]:
        error = shared + world.retraining * rng.normal(size=shape) + np.log(factor) + ruined
        noise = world.others * rng.normal(size=(3, *shape))
        mse, conn, edge, fit = (np.minimum(np.exp(error + extra), 1.0) for extra in (0.0, *noise))
        conn = conn * conn_factor / factor
        return {"mse": mse, "conn": 1.2 * conn, "biou": 1 - 2 * np.sqrt(edge), "maxf": 1 - np.sqrt(fit)}

    factor = 1 - change.gain
    candidate = scores(factor, factor if change.conn is None else 1 - change.conn, ruined)
    quantised = 1 + 0.005 * rng.normal(size=shape)
    candidate |= {metric: candidate[metric] * quantised for metric in METRICS if metric in RELATIVE}
    others = {"champion": scores(1.0, 1.0), "anchor": scores(1.1, 1.1)}
    return cells(candidate, others)


def cells(candidate: Model, others: Mapping[str, Model]) -> np.ndarray:
    """Return gain, lower bound, standard error and margin of each comparison: (retrainings, comparisons, 4).

    The numbers of error metrics are shares of the reference's mean, as in `mm_core.eval.across`.
    """
    photos = candidate["mse"].shape[1]
    reach = float(stdtrit(photos - 1, 1 - PARAMS.alpha))
    found = []
    for metric, against in COMPARISONS:
        ours, reference = candidate[metric], others[against][metric]
        margin = np.full(len(ours), -MARGINS[metric])
        if metric in RELATIVE:
            mean, error = _mean_and_error(winsorise(soften(ours, reference)))
            gain, bound = -np.expm1(-mean), -np.expm1(-(mean - reach * error))
            margin -= SLACK / np.maximum(reference.mean(1), SLACK)
        else:
            gain, error = _mean_and_error(ours - reference)
            bound = gain - reach * error
        found.append(np.stack([gain, bound, (gain - bound) / reach, margin], 1))
    ours, reference = candidate["mse"], others["champion"]["mse"]
    scale = np.maximum(reference.mean(1), SLACK)
    # The margin is a share of the reference, so the reference's own spread enters.
    error = _mean_and_error((1 + PARAMS.tail_guard) * reference - ours)[1] / scale
    gain = (reference - ours).mean(1) / scale
    found.append(np.stack([gain, gain - reach * error, error, -PARAMS.tail_guard - SLACK / scale], 1))
    return np.stack(found, 1)


def soften(candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return `mm_core.eval.bootstrap.softened` of each row, (retrainings, photos)."""
    scale = np.maximum(SOFTENING * np.sqrt(candidate.mean(1) * reference.mean(1)), SLACK)[:, None]
    share = (reference / (reference + scale)).mean(1) + (candidate / (candidate + scale)).mean(1)
    return 2 * (np.log1p(reference / scale) - np.log1p(candidate / scale)) / share[:, None]


def winsorise(values: np.ndarray) -> np.ndarray:
    """Return `mm_core.eval.bootstrap.winsorised` of each row, (retrainings, photos)."""
    centre = np.median(values, 1)
    deviation = np.median(np.abs(values - centre[:, None]), 1)
    reach = CLIP * np.maximum(1.4826 * deviation, values.std(1) / 2)
    pulled, share = values, np.ones(len(values))
    for _ in range(50):
        off = values - centre[:, None]
        pulled = np.clip(off, -reach[:, None], reach[:, None])
        share = np.maximum((np.abs(off) < reach[:, None]).mean(1), 0.5)
        step = pulled.mean(1) / share
        if float(np.abs(step).max()) < 1e-9:
            break
        centre = centre + step
    return centre[:, None] + pulled / share[:, None]


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])


def promotes(rule: Rule, six: np.ndarray, photos: int) -> np.ndarray:
    """Return whether the rule promotes each retraining, (retrainings,) bool.

    Args:
        rule: The rule.
        six: (retrainings, six categories, comparisons, 4), from `cells`.
        photos: Photos of each category; they are groups of one photo.
    """
    gains, bounds, errors, margins = np.moveaxis(six, 3, 0)
    freedom = photos - 1
    variance = errors**2
    total = variance.sum(1)
    # Welch and Satterthwaite's degrees of freedom of the mean over the six.
    of_mean = np.maximum(total**2 / np.maximum((variance**2 / freedom).sum(1), 1e-300), 1.0)
    lowest = gains.mean(1) - np.sqrt(total) / 6 * stdtrit(of_mean, 1 - PARAMS.alpha)
    yes = np.ones(len(six), bool)
    if rule.mean:
        yes &= lowest[:, 0] > 0
    if rule.softened is not None:
        gain = _shrink(gains[:, :, 0], errors[:, :, 0]) if rule.shrunk else gains[:, :, 0]
        yes &= (gain > rule.softened * errors[:, :, 0]).all(1)
    if rule.joint is not None:
        yes &= ndtr(gains[:, :, 0] / errors[:, :, 0]).prod(1) > rule.joint
    if rule.plain is not None:
        least = rule.plain + margins[:, :, PLAIN] + PARAMS.tail_guard if rule.plain else 0.0
        plain = gains[:, :, PLAIN]
        yes &= (plain.mean(1) > 0) if rule.average else (plain > least).all(1)
    if not rule.cells:
        return yes
    certain = bounds > margins
    if rule.pooled:
        certain |= _vouched(rule, gains, errors, freedom) & (gains > margins) & (lowest > margins.max(1))[:, None]
    return yes & certain.all((1, 2))


def _shrink(gains: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the gains shrunk to their common mean, (retrainings, categories), by the method of moments."""
    centre = gains.mean(1, keepdims=True)
    between = np.maximum(gains.var(1, ddof=1, keepdims=True) - (errors**2).mean(1, keepdims=True), 0.0)
    return centre + between / (between + errors**2) * (gains - centre)


def _vouched(rule: Rule, gains: np.ndarray, errors: np.ndarray, freedom: int) -> np.ndarray:
    """Return whether a comparison may rest on all six categories, (retrainings, categories, comparisons) bool."""
    variance = errors**2
    behind = gains - (gains.sum(1, keepdims=True) - gains) / 5
    spread = np.sqrt(variance + (variance.sum(1, keepdims=True) - variance) / 25)
    # Comparison 0 is the primary gain; the others share the level.
    level = np.full(gains.shape[2], PARAMS.alpha / GUARDS)
    level[0] = PARAMS.alpha
    alike = behind + spread * stdtrit(freedom, 1 - level) > 0
    half = spread[:, :, :1] * stdtrit(freedom, 1 - PARAMS.alpha)
    near = behind[:, :, :1] + half > 0
    if rule.lag is not None:
        near &= behind[:, :, :1] - half > -rule.lag
    return alike & near


class Pools:
    """Draws of single categories, kept by world and change, and retrainings made of them."""

    def __init__(self, retrainings: int, pool: int = POOL) -> None:
        self.retrainings, self.pool = retrainings, pool
        self._kept: dict[tuple[World, Change], np.ndarray] = {}

    def six(self, worlds: Sequence[World], changes: Sequence[Change], seed: int) -> np.ndarray:
        """Return retrainings of six categories, (retrainings, six, comparisons, 4)."""
        rng = np.random.default_rng(seed)
        drawn = []
        for world, change in zip(worlds, changes, strict=True):
            key = (world, change)
            if key not in self._kept:
                self._kept[key] = draw(world, change, self.pool, np.random.default_rng(len(self._kept)))
            drawn.append(self._kept[key][rng.integers(self.pool, size=self.retrainings)])
        return np.stack(drawn, 1)

    def share(self, rule: Rule, worlds: Sequence[World], changes: Sequence[Change]) -> float:
        """Return the share of retrainings that the rule promotes."""
        six = self.six(worlds, changes, seed=5)
        return float(promotes(rule, six, worlds[0].photos).mean())


CEILING = "all six softened means better and their mean significant, nothing else"
FIVE_PLAIN = -PARAMS.margins["mse"]
RULES: dict[str, Rule] = {
    "the decision": Rule(),
    "own bounds (0025)": Rule(pooled=False, softened=None, plain=0.0),
    "all six plain means better, nothing else": Rule(cells=False, mean=False, softened=None, plain=0.0),
    CEILING: Rule(cells=False, plain=None),
    "joint probability of six gains above 0.5, mean significant": Rule(
        cells=False, softened=None, plain=None, joint=0.5
    ),
    "joint probability of six gains above 0.7, mean significant": Rule(
        cells=False, softened=None, plain=None, joint=0.7
    ),
    "gains shrunk to their mean above zero (empirical Bayes), mean significant": Rule(
        cells=False, plain=None, shrunk=True
    ),
    "the decision, but plain means better": Rule(plain=0.0),
    "the decision, but plain means not 5 % worse": Rule(plain=FIVE_PLAIN),
    "the decision, but no lag is excluded": Rule(lag=None),
    "the decision, but plain means better on the average of the six only": Rule(plain=0.0, average=True),
    "the same, and gains above 0.3 standard errors": Rule(plain=0.0, average=True, softened=0.3),
}
CHANGES: dict[str, tuple[Change, Change]] = {
    "no-op": (Change(), Change()),
    "-5 % in one, +10 %": (Change(-0.05), Change(0.1)),
    "-5 % in one, +20 %": (Change(-0.05), Change(0.2)),
    "+5 %": (Change(0.05), Change(0.05)),
    "+10 %": (Change(0.1), Change(0.1)),
    "+20 %": (Change(0.2), Change(0.2)),
}
"""Case → the change of one category and that of the five others."""
HEAVY_CASES = ("no-op", "-5 % in one, +10 %", "-5 % in one, +20 %", "+10 %")
WEEKS, WEEKS_CASES = "spreads of real, two weeks apart", ("-5 % in one, +20 %", "+10 %")
PRICES: dict[str, tuple[Change, Change]] = {
    "-5 % in one, +10 % in five": CHANGES["-5 % in one, +10 %"],
    "+10 % in all six, but 5 % of one category's photos err four times as much": (
        Change(0.1, ruined=0.05),
        Change(0.1),
    ),
    "+10 % in all six, but Conn -5 % in one": (Change(0.1, conn=-0.05), Change(0.1)),
}


def worlds_by_name() -> dict[str, list[World]]:
    """Return noise → the worlds of the six categories; those of real models have the spreads that are kept."""
    worlds = {"mild": [World()] * 6, "heavy": [HEAVY] * 6}
    table: Any = pd.read_csv(SPREADS)
    for name, rows in table[table["part"] == "spread"].groupby("world"):
        spreads = rows.set_index("case").loc[list(SIX)]
        # The log ratio of two trainings has √2 times one training's spread.
        noise = spreads["gate"].to_numpy(float) / np.sqrt(2)
        correlation = spreads["primary"].to_numpy(float)
        difficulty = noise * np.sqrt(correlation / (1 - correlation))
        pairs = zip(difficulty.tolist(), noise.tolist(), strict=True)
        worlds[f"spreads of {name}"] = [World(difficulty=one, retraining=other) for one, other in pairs]
    return worlds


def worst(pools: Pools, rule: Rule, worlds: Sequence[World], case: tuple[Change, Change]) -> float:
    """Return the share promoted, with the one category that differs chosen so that it is largest."""
    one, others = case
    # Categories of the same noise need no comparison.
    places = range(6) if one != others and len(set(worlds)) > 1 else range(1)
    return max(pools.share(rule, worlds, [one if n == place else others for n in range(6)]) for place in places)


def tables(retrainings: int) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Return the rows of the three tables: the rules, the decision with other noise, and its prices."""
    pools, noises = Pools(retrainings), worlds_by_name()

    def shares(rule: Rule, noise: str, photos: int, cases: Sequence[tuple[Change, Change]]) -> list[str]:
        worlds = [replace(world, photos=photos) for world in noises[noise]]
        found = [worst(pools, rule, worlds, case) for case in cases]
        print(noise, photos, rule, found, file=sys.stderr, flush=True)
        return [f"{100 * share:.1f} %" for share in found]

    heavy, weeks = ([CHANGES[name] for name in names] for names in (HEAVY_CASES, WEEKS_CASES))
    rules = [[name, *shares(rule, "heavy", 60, heavy), *shares(rule, WEEKS, 60, weeks)] for name, rule in RULES.items()]
    noise = [
        [name, str(photos), *shares(Rule(), name, photos, list(CHANGES.values()))]
        for name in noises
        for photos in (16, 60, 150)
    ]
    prices = []
    for name, case in PRICES.items():
        found = [shares(RULES[rule], n, 60, [case]) for rule in list(RULES)[:2] for n in ("heavy", "mild")]
        prices.append([name, *(share for (share,) in found)])
    return rules, noise, prices


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write(retrainings: int) -> None:
    """Measure all tables and write the page."""
    rules, noise, prices = tables(retrainings)
    of = {row[0]: row[1:] for row in rules}
    decision, own = of["the decision"], of["own bounds (0025)"]
    claim = (
        f"With heavy noise and 60 photos a category, the gate's rule promotes {decision[3]} of the retrainings that "
        f"gain 10 % in all six categories, {decision[2]} of those that lose 5 % in one and gain 20 % in five, and "
        f"{decision[0]} of those without any gain. Bounds of each category alone promote {own[3]} of the gains. "
        f"Every rule of the table that promotes more gains promotes more losses too."
    )
    most, free = of[CEILING], of["the decision, but no lag is excluded"]
    limit = (
        f"With the noise of two weeks, {most[5]} is the ceiling of all rules that want six better categories and a "
        f"significant mean: the noisiest category has a standard error of 18 %, so the sign of its gain is often "
        f"wrong. The ceiling promotes {most[4]} of the losses. The decision without its exclusion of a lag promotes "
        f"{free[5]} of the gains and {free[4]} of the losses. So more photos help there, and no other rule of this "
        f"kind."
    )
    of_rules = [*HEAVY_CASES, *(f"{name}, two weeks apart" for name in WEEKS_CASES)]
    of_prices = [f"{rule}, {noise}" for rule in ("decision", "own bounds") for noise in ("heavy", "mild")]
    PAGE.write_text(f"""# Rules that the gate could have

{chr(10).join(textwrap.wrap(claim, 120))}

Run: `python -m benchmarks.gate_rules`; {retrainings:,} retrainings a share, in plain numpy. On the same scores it
decides as the gate's own code does (`tests/eval/test_gate_rules.py`). Noise by formula, as in
[gate_characteristics.md](gate_characteristics.md); *two weeks apart* has the log ratios and correlations of two real
models that are listed there. Where categories differ in noise, the one category is the one with the largest share.

{as_markdown(["heavy noise, 60 photos", *of_rules], rules)}

{chr(10).join(textwrap.wrap(limit, 120))}

The decision:

{as_markdown(["noise", "photos", *CHANGES], noise)}

Its prices, with 60 photos:

{as_markdown(["case", *of_prices], prices)}

What this does not show: photos that come in groups, gains that differ from photo to photo, and the int8 files' own
loss. The noise is log-normal; `mm gate simulate` draws from the real differences of the last evaluation.
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrainings", type=int, default=20_000)
    write(parser.parse_args().retrainings)


if __name__ == "__main__":
    main()
