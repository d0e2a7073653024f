"""The rules in plain numpy give what the gate's own code gives on the same scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gate_rules import COMPARISONS, PARAMS, Change, Pools, Rule, cells, draw, promotes, winsorise
from benchmarks.gate_simulation import HEAVY
from mm_core.core.params import GateParams
from mm_core.core.records import Cell
from mm_core.eval.bootstrap import winsorised
from mm_core.eval.cells import judge_category
from mm_core.eval.evidence import ANCHOR, CHAMPION, FLOAT, INT8
from mm_core.eval.questions import questions_for
from mm_core.eval.simulate import SIX, Photos, evidence_of, passes
from mm_core.eval.simulate import draw as simulated

OWN = PARAMS.model_copy(update={"pooled": False})


def judged(params: GateParams, scores: dict, category: str, photos: Photos) -> list[Cell]:
    """The gate's cells, without the comparison of int8 with float, which alone is resampled."""
    asked = [q for q in questions_for(params, champion=True, anchor=True) if q.reference != FLOAT]
    evidence = evidence_of(scores, category, photos.group)
    return judge_category(params, evidence, category, asked, np.random.default_rng(0))


@pytest.mark.parametrize("cards", [0.1, -0.05, 0.0])
def test_they_decide_as_the_gate_does(cards: float) -> None:
    """Numbers of each cell, and the verdict with and without pooling, of 40 retrainings by the gate's simulation."""
    rng, world = np.random.default_rng(7), replace(HEAVY, photos=60)
    rows, verdicts = [], []
    for _ in range(40):
        found: dict[str, list[Cell]] = {"pooled": [], "own": []}
        row = []
        for category in SIX:
            photos = Photos(world, category, rng)
            scores = simulated(photos, cards if category == "cards" else 0.15)
            for name, params in (("pooled", PARAMS), ("own", OWN)):
                found[name] += judged(params, scores, category, photos)
            ours, champion, anchor = (
                {metric: values.T for metric, values in scores[key].items()} for key in (INT8, CHAMPION, ANCHOR)
            )
            row.append(cells(ours, {"champion": champion, "anchor": anchor})[0])
        rows.append(np.stack(row))
        verdicts.append([passes(PARAMS, found["pooled"]), passes(OWN, found["own"])])
        for number, category in enumerate(SIX):
            for place, (metric, against) in enumerate(COMPARISONS):
                cell = next(
                    c
                    for c in found["pooled"]
                    if (c.category, c.metric, c.against, c.role) == (category, metric, against, "non_inferior")
                )
                unit = (cell.reference or 0.0) if metric in ("mse", "conn") else 1.0
                gain, bound, _, margin = row[number][place]
                expected = (cell.gain / unit, cell.bound / unit, cell.margin / unit)
                assert (gain, bound, margin) == pytest.approx(expected, abs=1e-6)
    six, expected = np.stack(rows), np.array(verdicts)
    assert (promotes(Rule(), six, 60) == expected[:, 0]).all()
    assert (promotes(Rule(pooled=False, softened=None, plain=0.0), six, 60) == expected[:, 1]).all()
    assert expected[:, 0].any() or cards < 0


def test_winsorising_of_rows_is_that_of_each() -> None:
    rows = np.random.default_rng(0).standard_t(2, (5, 60))
    assert winsorise(rows) == pytest.approx(np.stack([winsorised(row) for row in rows]), abs=1e-6)


def test_changes_are_what_they_say() -> None:
    world = replace(HEAVY, photos=4000)
    both = draw(world, Change(0.1, conn=-0.05), 20, np.random.default_rng(0)).mean(0)
    # Mean gains of mse and conn against the champion; conn loses 5 %.
    assert both[COMPARISONS.index(("mse", "champion")), 0] == pytest.approx(0.1, abs=0.02)
    assert both[COMPARISONS.index(("conn", "champion")), 0] == pytest.approx(-0.05, abs=0.02)
    ruined = draw(world, Change(0.1, ruined=0.05), 20, np.random.default_rng(0)).mean(0)
    # 0.9 of the error, of which 5 % counts four times: 1.035 of the champion's.
    assert ruined[-1, 0] == pytest.approx(-0.035, abs=0.02)


def test_a_stricter_rule_promotes_less() -> None:
    pools, worlds = Pools(400, pool=200), [replace(HEAVY, photos=60)] * 6
    gain = [Change(0.1)] * 6
    loose, default, own = (
        pools.share(rule, worlds, gain) for rule in (Rule(lag=None, plain=None), Rule(), Rule(pooled=False, plain=0.0))
    )
    assert loose > default > own


def test_shrinkage_moves_gains_to_their_mean_and_no_further() -> None:
    """Gains as different as their errors allow collapse to the mean; certain ones stay."""
    gains = np.array([[0.1, 0.1, 0.1, 0.1, 0.1, -0.1]])
    assert promotes(Rule(cells=False, mean=False, plain=None, shrunk=True), numbers(gains, 0.2), 60).all()
    assert not promotes(Rule(cells=False, mean=False, plain=None, shrunk=True), numbers(gains, 1e-3), 60).any()
    for least, expected in ((0.5, False), (0.01, True)):
        rule = Rule(cells=False, mean=False, plain=None, softened=None, joint=least)
        # One category with probability 0.31 limits the product.
        assert promotes(rule, numbers(gains, 0.2), 60).all() == expected


def numbers(gains: np.ndarray, error: float) -> np.ndarray:
    """Cells whose comparisons all have these gains, (retrainings, six, comparisons, 4)."""
    of = np.stack([gains, gains - error, np.full_like(gains, error), np.full_like(gains, -0.05)], 2)
    return np.repeat(of[:, :, None], len(COMPARISONS) + 1, 2)


@pytest.mark.parametrize("mode", ["macro", "primary", "strict"])
def test_a_question_gets_the_answer_that_it_gets_alone(mode: str) -> None:
    """Questions of a category are answered at once; also with an anchor that lacks the scores of some photos."""
    params = PARAMS.model_copy(update={"mode": mode, "resamples": 200})
    rng = np.random.default_rng(11)
    photos = Photos(replace(HEAVY, photos=60, burst=3), "pets", rng)
    scores = simulated(photos, 0.1)
    scores[ANCHOR]["biou"][:7] = np.nan
    evidence = evidence_of(scores, "pets", photos.group)
    asked = questions_for(params, champion=True, anchor=True)
    together = judge_category(params, evidence, "pets", asked, np.random.default_rng(0))
    alone = [judge_category(params, evidence, "pets", [question], np.random.default_rng(0))[0] for question in asked]
    assert len(together) == len(asked) and {cell.images for cell in together} == {60, 53}
    for one, other in zip(together, alone, strict=True):
        numbers, expected = (
            {name: value for name, value in cell.model_dump().items() if isinstance(value, float)}
            for cell in (one, other)
        )
        assert numbers == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert {**one.model_dump(), **numbers} == {**other.model_dump(), **numbers}
