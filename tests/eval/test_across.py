"""Bounds that the six categories give together (docs/decisions/0045)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.gate_simulation import HEAVY
from mm_core.core.params import GateParams
from mm_core.core.records import CATEGORIES, Cell
from mm_core.eval.across import LAG, macro_cell, with_pooled
from mm_core.eval.gate import conclude
from mm_core.eval.simulate import SIX, rates

PARAMS = GateParams.model_validate({"resamples": 200})
ALONE = PARAMS.model_copy(update={"pooled": False})
PHOTOS = 60
ERROR = 0.078
"""Standard error of a category's relative gain with 60 photos and heavy tails."""
REACH = float(stats.t.ppf(0.95, PHOTOS - 1))


def cells_of(gains: Mapping[str, float], metric: str = "mse", error: float = ERROR, photos: int = PHOTOS) -> list[Cell]:
    """Return the comparison of each category with the champion, with a margin of 5 % of a reference of 0.1."""
    reach = float(stats.t.ppf(0.95, photos - 1))
    found = []
    for category, gain in gains.items():
        lower, upper = gain - reach * error, gain + reach * error
        result = "pass" if lower > -0.05 else "fail" if upper < -0.05 else "unclear"
        found.append(
            Cell(
                category=category, metric=metric, against="champion", role="non_inferior", reference=0.1,
                candidate=0.1 * (1 - gain), gain=0.1 * gain, bound=0.1 * lower, upper=0.1 * upper, margin=-0.005,
                images=photos, groups=photos, result=result,
            )
        )  # fmt: skip
    return found


def results(cells: list[Cell], params: GateParams = PARAMS) -> dict[tuple[str, str], str]:
    return {(c.category, c.metric): c.result for c in with_pooled(params, cells)}


ALIKE = dict.fromkeys(SIX, 0.1) | {"cards": 0.04}
"""The bound of cards, -9 %, is below its margin."""


def test_a_category_that_gains_like_the_others_passes_with_them() -> None:
    alone = {cell.category: cell.result for cell in cells_of(ALIKE)}
    assert alone["cards"] == "unclear" and set(results(cells_of(ALIKE)).values()) == {"pass"}
    cards = next(cell for cell in with_pooled(PARAMS, cells_of(ALIKE)) if cell.category == "cards")
    assert cards.pooled and cards.bound < cards.margin, "the numbers stay those of the category"
    assert results(cells_of(ALIKE), ALONE)["cards", "mse"] == "unclear"


def test_a_category_that_lags_behind_needs_its_own_photos() -> None:
    """Cards gain 1 %, others 17 %: the lag of 0.16 has a standard error of 0.078 · √1.2; 1.67 of them exclude 0."""
    assert 0.16 / (ERROR * np.sqrt(1.2)) > REACH
    assert results(cells_of(dict.fromkeys(SIX, 0.17) | {"cards": 0.01}))["cards", "mse"] == "unclear"


def test_noise_that_could_hide_a_loss_pools_nothing() -> None:
    """With an error of 0.15, a lag of 25 points cannot be excluded."""
    assert 0.06 + REACH * 0.15 * np.sqrt(1.2) > LAG
    assert results(cells_of(ALIKE, error=0.15))["cards", "mse"] == "unclear"


def test_no_loss_of_all_six_and_no_proven_loss_passes() -> None:
    assert set(results(cells_of(dict.fromkeys(SIX, -0.04), error=0.04)).values()) == {"unclear"}
    cells = cells_of(ALIKE)
    cells[0] = cells[0].model_copy(update={"result": "fail"})
    assert with_pooled(PARAMS, cells)[0].result == "fail"


def test_too_few_photos_are_not_made_up_for_by_others() -> None:
    cells = cells_of(ALIKE)
    few = {"images": 7, "groups": 7, "result": "unclear"}
    cells = [cell.model_copy(update=few) if cell.category == "cards" else cell for cell in cells]
    assert results(cells)["cards", "mse"] == "unclear"


def test_another_metric_passes_only_above_its_own_margin() -> None:
    """Connectivity of cards at -4 % is within its margin of 5 %, at -6 % it is not."""
    near, beyond = (cells_of(ALIKE | {"cards": loss}, metric="conn") for loss in (-0.04, -0.06))
    assert results(cells_of(ALIKE) + near)["cards", "conn"] == "pass"
    assert results(cells_of(ALIKE) + beyond)["cards", "conn"] == "unclear"


def test_the_mean_has_the_error_of_six_independent_categories() -> None:
    cell = macro_cell(PARAMS, cells_of(dict.fromkeys(SIX, 0.1)))[0]
    # Equal variances: Welch and Satterthwaite's degrees of freedom add up.
    half = ERROR / np.sqrt(6) * stats.t.ppf(0.95, 6 * (PHOTOS - 1))
    assert (cell.gain, cell.bound) == (pytest.approx(0.1), pytest.approx(0.1 - half))


def test_the_verdict_names_the_categories_that_rest_on_all_six() -> None:
    cells = with_pooled(PARAMS, cells_of(ALIKE))
    decision, reasons = conclude(PARAMS, [*cells, *macro_cell(PARAMS, cells)], [], same=False)
    assert decision == "PROMOTE" and "in cards by the photos of all six categories together" in reasons[0]
    assert not any(category in reasons[0].split("margin")[-1] for category in CATEGORIES if category != "cards")


def test_heavy_tails_promote_gains_and_hold_losses_back() -> None:
    """The bars with 60 photos; 2.5 standard errors are allowed."""
    world = replace(HEAVY, photos=60)
    gain = rates(PARAMS, world, dict.fromkeys(SIX, 0.1), 150, 60, rules=("gate",))["gate"]
    assert gain >= 1 / 3 - 2.5 * np.sqrt(2 / 9 / 150)
    assert rates(ALONE, world, dict.fromkeys(SIX, 0.1), 100, 60, rules=("gate",))["gate"] <= 0.1
    loss = rates(PARAMS, world, dict.fromkeys(SIX, 0.2) | {"cards": -0.05}, 150, 61, rules=("gate",))["gate"]
    assert loss <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 150)
