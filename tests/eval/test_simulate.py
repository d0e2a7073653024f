"""The simulation of the gate's rule: known answers of the worlds and of the rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_workspace import simulate, tables
from test_gate import workspace
from typer.testing import CliRunner

from benchmarks.gate_simulation import HEAVY, settling, year
from mm_core.cli.app import app
from mm_core.core.params import GateParams, Params
from mm_core.core.progress import quiet
from mm_core.eval import bootstrap
from mm_core.eval import simulate as module
from mm_core.eval.evidence import CHAMPION, FLOAT, INT8
from mm_core.eval.simulate import SIX, Photos, World, cases, characteristics, draw, pairs_of, rates
from mm_core.eval.variances import photos_needed

QUICK = GateParams.model_validate({"resamples": 200})
FLAT = World(photos=60, difficulty=0.3, retraining=0.05, others=0.0)
MILD = World(photos=60)
RULES = ("gate", "point")


def every(gain: float) -> dict[str, float]:
    return dict.fromkeys(SIX, gain)


def test_drawn_errors_have_the_asked_gain_spread_and_groups() -> None:
    world = World(photos=40_000, burst=4, difficulty=0.5, retraining=0.2, within=0.5)
    values = draw(Photos(world, "pets", np.random.default_rng(0)), 0.2)
    candidate, champion = values[INT8]["mse"][:, 0], values[CHAMPION]["mse"][:, 0]
    assert candidate.mean() / champion.mean() == pytest.approx(0.8, abs=0.01)
    assert champion.mean() == pytest.approx(0.05, rel=0.02)
    ratio = np.log(candidate / champion)
    assert ratio.std() == pytest.approx(0.2 * np.sqrt(2), rel=0.02)
    within = ratio.reshape(-1, 4).mean(1).var() / ratio.var()
    assert within == pytest.approx(0.5 + 0.5 / 4, abs=0.02), "half of the variance is the group's"


@pytest.mark.parametrize(("world", "correlation"), [(World(photos=40_000), 0.88), (replace(HEAVY, photos=40_000), 0.8)])
def test_tails_are_as_documented(world: World, correlation: float) -> None:
    values = draw(Photos(world, "pets", np.random.default_rng(0)), 0.0)
    both = [values[key]["mse"][:, 0] for key in (INT8, CHAMPION)]
    assert np.corrcoef(*both)[0, 1] == pytest.approx(correlation, abs=0.05)


def test_rules_on_clear_cases() -> None:
    assert rates(QUICK, FLAT, every(0.5), 5, 0) == {"gate": 1.0, "primary": 1.0, "point": 1.0, "threshold": 1.0}
    assert set(rates(QUICK, FLAT, every(0.5) | {"pets": -0.3}, 5, 0).values()) == {0.0}


def test_point_rule_passes_a_no_op_in_one_of_64_and_the_gate_hardly_ever() -> None:
    """Six independent coin throws; a year of weekly cycles then promotes one with 56 %."""
    found = rates(QUICK, World(photos=9), {}, 1500, 1, rules=RULES)
    assert found["point"] == pytest.approx(1 / 64, abs=0.01) and found["gate"] <= 0.002


def test_the_bars_of_the_rule() -> None:
    """+10 % with 60 photos in at least a third; no-op at most 2 %; -5 % beside +20 % at most 5 % (and 2.5 errors)."""
    assert rates(QUICK, MILD, every(0.1), 120, 2, rules=("gate",))["gate"] >= 1 / 3 - 2.5 * np.sqrt(2 / 9 / 120)
    assert rates(QUICK, MILD, {}, 200, 3, rules=("gate",))["gate"] <= 0.02
    loss = rates(QUICK, MILD, every(0.2) | {"cards": -0.05}, 200, 4, rules=("gate",))["gate"]
    assert loss <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("photos", [60, 150])
def test_heavy_tails_promote_no_loss(photos: int) -> None:
    world = replace(HEAVY, photos=photos)
    assert rates(QUICK, world, {}, 100, 3, rules=("gate",))["gate"] <= 0.02
    loss = rates(QUICK, world, every(0.2) | {"cards": -0.05}, 150, 4, rules=("gate",))["gate"]
    assert loss <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 150)


def test_two_draws_of_real_pairs_differ_as_the_pairs_do() -> None:
    pairs = pairs_of(tables(simulate(5, photos=80, noise=0.3))[0], INT8, CHAMPION)
    photos = Photos(World(photos=20_000, pairs=pairs), "pets", np.random.default_rng(0))
    one, other = photos.model(1.0), photos.model(1.0)
    for metric in ("mse", "biou"):
        a, b = (pairs["pets"][f"{metric}_{side}"] for side in ("a", "b"))
        real, drawn = (np.log(a / b), np.log(one[metric] / other[metric])) if metric == "mse" else (a - b, 0)
        drawn = drawn if metric == "mse" else one[metric] - other[metric]
        assert np.sqrt((drawn**2).mean()) == pytest.approx(np.sqrt((real**2).mean()), rel=0.05)


def test_candidate_and_champion_have_the_two_real_scores_of_each_photo() -> None:
    """Also the shape of their differences is the real one, not only the variance; a group takes one side."""
    pairs = pairs_of(tables(simulate(5, photos=80, noise=0.3, burst=2))[0], INT8, CHAMPION)
    photos = Photos(World(photos=4_000, pairs=pairs), "pets", np.random.default_rng(0))
    drawn = draw(photos, 0.0)
    for metric in ("mse", "biou"):
        real = pairs["pets"][[f"{metric}_a", f"{metric}_b"]].to_numpy()[photos.rows]
        ours = np.hstack([drawn[FLOAT][metric], drawn[CHAMPION][metric]])
        assert np.sort(ours, axis=1) == pytest.approx(np.sort(real, axis=1))
        first = np.isclose(ours[:, 0], real[:, 0])
        assert first.mean() == pytest.approx(0.5, abs=0.05)
        assert (first[:-1] == first[1:])[photos.group[:-1] == photos.group[1:]].all()


def test_maxf_of_a_pair_is_the_categorys() -> None:
    scores = tables(simulate(5, photos=80))[0]
    rows = scores[(scores["model"] == CHAMPION[0]) & (scores["category"] == "pets")]
    pairs = pairs_of(scores, CHAMPION, CHAMPION)["pets"]
    assert pairs["maxf_a"].mean() == pytest.approx(np.stack(list(rows["fcurve"])).mean(axis=0).max())


def test_a_year_of_small_gains_is_promoted_several_times() -> None:
    promotions, level = year(QUICK, World(photos=150), 0.01, seed=5)
    assert promotions >= 5 and level < 0.7


def test_a_year_of_small_losses_is_never_promoted_twice() -> None:
    assert year(QUICK, World(photos=150), -0.01, seed=5)[0] <= 1


def test_table_has_a_row_per_case_and_size() -> None:
    rows = list(characteristics(QUICK, FLAT, 2, photos=(12, 20), gains=cases((0.5,)), progress=quiet))
    assert len(rows) == 4 * 2 and {row["photos"] for row in rows} == {12, 20}
    assert all(0 <= row[rule] <= 1 for row in rows for rule in ("gate", "primary", "point", "threshold"))


def test_the_first_row_is_there_before_the_second_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person waits at the prompt; all 14 rows take most of a minute."""
    simulated = []
    monkeypatch.setattr(
        module, "rates", lambda params, world, *_, **__: simulated.append(world.photos) or {"gate": 0.0}
    )
    rows = characteristics(QUICK, FLAT, 2, photos=(12, 20), gains=cases(), progress=quiet)
    assert next(rows)["photos"] == 12 and simulated == [12]


def test_resamples_are_drawn_once_for_all_retrainings_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = bootstrap._resampled
    monkeypatch.setattr(bootstrap, "_resampled", lambda *asked: drawn.append(asked[:2]) or real(*asked))
    rates(QUICK, FLAT, every(0.5), 3, 0)
    assert drawn == [(60, 200)]


def test_the_photos_that_an_open_verdict_asks_for_settle_it() -> None:
    """Four in five, were the gain seen the true one; it is luckier than that, so somewhat fewer here."""
    found = settling(QUICK, World(photos=24), 0.05, 100, 3)
    assert 0.2 < found["unclear"] < 0.95 and found["numbered"] > 0.6
    assert 0.5 < found["settled"] < 0.97 and 10 < found["median_more"] < 400


def test_real_pairs_bring_their_own_noise() -> None:
    """A table whose models differ little needs fewer photos than one whose models differ much."""
    quiet, loud = (pairs_of(tables(simulate(5, photos=80, noise=noise))[0], INT8, CHAMPION) for noise in (0.05, 0.4))
    few, many = (photos_needed(QUICK, pairs) for pairs in (quiet, loud))
    assert [row["category"] for row in few] == list(SIX)
    for a, b in zip(few, many, strict=True):
        assert a["at +5 %"] < b["at +5 %"] and b["at +20 %"] <= b["at +10 %"] <= b["at +5 %"]
    n = max(row["at +10 %"] for row in many)
    found = rates(QUICK, World(photos=n, pairs=loud), every(0.1), 40, 6, rules=("gate",))
    assert found["gate"] >= 0.5, "80 % by the formula"


def test_the_command_prints_the_photos_that_each_category_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, frame = tables(simulate(5, photos=20))
    layout = workspace(tmp_path, scores, frame)
    monkeypatch.setenv("MM_WORKSPACE", str(layout.root))
    shown = CliRunner().invoke(app, ["gate", "simulate", "--runs", "1", "--photos", "10"]).output
    assert "multimodal (int8) against champion (int8) in the last evaluation" in shown and "no-op retrain" in shown
    needed = shown.partition("eval photos with which all six pass in 80 % of cases")[2]
    assert all(f"at +{gain} %" in needed for gain in (5, 10, 20))
    rows = photos_needed(Params().gate, pairs_of(scores, INT8, CHAMPION))
    assert [row["category"] for row in rows] == list(SIX)
    lines = [line.split() for line in needed.splitlines()]
    # The numbers come from this workspace's scores.
    assert all(" ".join(map(str, row.values())).split() in lines for row in rows)
