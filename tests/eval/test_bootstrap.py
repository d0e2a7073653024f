"""Bounds: known answers, invariances, and the promised error level on simulated data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mm_core.eval.bootstrap import (
    CHUNK,
    Interval,
    Quantity,
    RepeatedResamples,
    calibrated,
    confidence,
    fewest_groups,
    softened,
    student,
    winsorised,
)


def bounds(values: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0, resamples: int = 500) -> Interval:
    groups = np.arange(len(values)) if groups is None else groups
    quantity = Quantity(((1.0, values[:, None]),))
    return confidence([quantity], groups, alpha=0.05, resamples=resamples, rng=np.random.default_rng(seed))[0]


def test_constant_difference_is_certain() -> None:
    found = bounds(np.full(10, 0.25))
    assert found.estimate == pytest.approx(0.25) and found.lower == found.upper == found.estimate


def test_zero_difference_stays_zero() -> None:
    assert bounds(np.zeros(10)) == Interval(0.0, 0.0, 0.0)


def test_normal_data_agree_with_student() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, 200)
    found, error = bounds(values, resamples=4000), values.std(ddof=1) / np.sqrt(200)
    assert found.lower == pytest.approx(values.mean() - 1.65 * error, abs=0.25 * error)
    assert found.upper == pytest.approx(values.mean() + 1.65 * error, abs=0.25 * error)


def test_a_group_counts_once() -> None:
    """Ten copies of each photo are no new evidence."""
    values = np.random.default_rng(2).normal(1, 1, 15)
    once = bounds(values)
    many = bounds(np.repeat(values, 10), np.repeat(np.arange(15), 10))
    assert many.lower == pytest.approx(once.lower) and many.upper == pytest.approx(once.upper)


def test_order_of_photos_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    values, groups = rng.normal(size=40), rng.integers(0, 12, 40).astype(str)
    order = rng.permutation(40)
    assert bounds(values[order], groups[order]).lower == pytest.approx(bounds(values, groups).lower, rel=1e-12)


@pytest.mark.parametrize("columns", [1, 7])
def test_the_maximum_of_the_mean_curve_is_taken_in_each_resample(columns: int) -> None:
    """Against a plain loop over the same draws; a curve of one column is a plain mean."""
    rng = np.random.default_rng(4)
    curves, groups = rng.random((12, columns)), np.repeat(np.arange(6), 2)
    quantity = Quantity(((1.0, curves), (-1.0, curves[::-1] * 0.9)), offset=0.5)
    found = confidence([quantity], groups, alpha=0.05, resamples=300, rng=np.random.default_rng(9))[0]
    assert found.estimate == pytest.approx(0.5 + curves.mean(0).max() - 0.9 * curves.mean(0).max())
    draws = [np.bincount(row, minlength=6) for row in np.random.default_rng(9).integers(6, size=(300, 6))]

    def at(weights: np.ndarray) -> tuple[float, float]:
        w = weights[groups]
        one, other = (w @ curves) / w.sum(), (w @ (curves[::-1] * 0.9)) / w.sum()
        value = one.max() - other.max()
        scores = curves[:, one.argmax()] - curves[::-1][:, other.argmax()] * 0.9 - value
        per_group = np.bincount(groups, scores)
        return value, np.sqrt(6 / 5 * (weights * per_group**2).sum()) / w.sum()

    value, error = at(np.ones(6))
    again = np.array([at(w) for w in draws])
    t = (again[:, 0] - value) / np.maximum(again[:, 1], 0.5 * error)
    level = calibrated(0.05, 6)
    widened = stats.norm.cdf(-np.sqrt(6 / 5) * stats.t.ppf(1 - level, 5))
    by_t = error * np.quantile(t, 1 - level, method="higher")
    by_percentile = value - np.quantile(again[:, 0], widened, method="lower")
    expected = 0.5 + value - max(by_t, by_percentile)
    assert found.lower == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["normal", "heavy tails", "bursts"])
def test_level_is_held(name: str) -> None:
    """With no true difference the lower bound exceeds 0 in about 5 % of trials (here: 1000 trials, 15 groups)."""
    rng, wrong = np.random.default_rng(5), 0
    for trial in range(1000):
        groups = None
        values = rng.normal(size=15)
        if name == "heavy tails":
            values *= np.exp(rng.normal(0, 0.6, 15))
        if name == "bursts":
            groups = np.repeat(np.arange(15), 3)
            values = np.repeat(values, 3) + 0.1 * rng.normal(size=45)
        wrong += bounds(values, groups, seed=trial, resamples=300).lower > 0
    assert wrong / 1000 < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 1000)


def test_the_same_resamples_for_other_photos_hold_the_level_too() -> None:
    """`mm gate simulate` draws resamples once: independent photos are resampled in other directions by them."""
    rng = np.random.default_rng(6)
    resamples, wrong = RepeatedResamples(np.random.default_rng(7)), 0
    for _ in range(1000):
        quantity = Quantity(((1.0, rng.normal(size=(15, 1))),))
        found = confidence([quantity], np.arange(15), alpha=0.05, resamples=300, rng=resamples)[0]
        wrong += found.lower > 0
    assert 0.02 < wrong / 1000 < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 1000)


def test_repeated_resamples_keep_a_bounded_number() -> None:
    resamples = RepeatedResamples(np.random.default_rng(0))
    first = resamples.draw(10, 1000)
    assert resamples.draw(10, 1000) is first and (first.sum(axis=1) == 10).all()
    for groups in range(1000, 1030):
        resamples.draw(groups, 1000)
    assert sum(weights.size for weights in resamples._kept.values()) <= 11 * CHUNK


def test_a_row_is_softened_and_winsorised_as_it_is_alone() -> None:
    """Also a row without spread, and one that converges long before the others."""
    rng = np.random.default_rng(8)
    errors = np.exp(rng.normal(-3, [[0.0], [0.1], [1.5]], (3, 40)))
    others = errors * np.exp(rng.normal(0, [[0.0], [0.01], [1.0]], (3, 40)))
    gains = softened(errors, others, 1e-4)
    assert (gains == np.stack([softened(*pair, 1e-4) for pair in zip(errors, others, strict=True)])).all()
    assert (winsorised(gains) == np.stack([winsorised(row) for row in gains])).all()
    assert (winsorised(gains)[0] == gains[0]).all()


@pytest.mark.parametrize("photos", [16, 30, 60])
@pytest.mark.parametrize("kind", ["a model's errors", "two models' errors"])
def test_level_of_the_bootstrap_with_heavy_tails(photos: int, kind: str) -> None:
    """A mean at the floor, or no gain: of log-normal errors (sigma 0.8; 1), 7 to 8.6 % before they were calibrated."""
    rng, wrong, runs = np.random.default_rng(photos), 0, 600
    for trial in range(runs):
        if kind == "a model's errors":
            values = np.exp(0.32) - np.exp(rng.normal(0, 0.8, photos))
        else:
            one, other = np.exp(rng.normal(0, 1, photos) + rng.normal(0, 0.42, (2, photos)))
            values = one - other
        wrong += bounds(values, seed=trial, resamples=300).lower > 0
    assert wrong / runs < 0.055 + 2 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("photos", [16, 60])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_level_of_softened_gains_with_heavy_tails(photos: int, loss: float) -> None:
    """The gate's own bound: of errors that correlate to 0.8, where a tenth of the photos makes four tenths of the error
    and log ratios have heavy tails too, a true loss at the margin is passed in 5 % of cases, as is a gain of zero."""
    rng, wrong, runs = np.random.default_rng(photos), 0, 1000
    for _ in range(runs):
        shared = rng.normal(size=photos)
        tails = 0.42 * np.sqrt(3 / 5) * rng.standard_t(5, size=(2, photos))
        one, other = 0.03 * np.exp(shared + tails) * [[1 + loss], [1]]
        gains = winsorised(softened(one, other, 1e-4)) + loss
        wrong += student([Quantity(((1.0, gains[:, None]),))], np.arange(photos), alpha=0.05)[0].lower > 0
    assert 0.03 < wrong / runs < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / runs)


def test_winsorised_values_are_the_values_without_outliers_and_limit_the_influence_of_one() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 40)
    assert winsorised(values) == pytest.approx(values), "nothing lies far out"
    assert winsorised(np.full(5, 0.3)) == pytest.approx(np.full(5, 0.3))
    far, farther = (winsorised(np.append(values, outlier)) for outlier in (20.0, 2000.0))
    assert far.mean() < 0.2 < np.append(values, 20.0).mean()
    assert winsorised(-np.append(values, 20.0)) == pytest.approx(-far)
    assert farther.mean() < np.append(values, 2000.0).mean() / 4
    a_quarter_lost = np.append(np.zeros(30), np.full(10, -0.5))
    assert winsorised(a_quarter_lost).mean() < 0.6 * a_quarter_lost.mean(), "no outliers, though their median is zero"


def test_one_large_gain_does_not_hide_that_all_gained() -> None:
    """Every photo gained, one of them a lot: Student's t would say no more than -0.026."""
    values = np.array([0.001, 0.002, 0.004, 0.003, 0.002, 0.005, 0.003, 0.002, 0.3])
    assert bounds(values, resamples=2000).lower > -0.01


def test_one_bad_photo_does_not_make_the_rest_worthless() -> None:
    """Eight photos near 0.98 and one of 0.8: the mean is 0.96, and surely above 0.89."""
    assert bounds(np.array([0.98, 0.985, 0.979, 0.981, 0.982, 0.98, 0.978, 0.983, 0.8])).lower > 0.89


def test_rare_large_losses_are_feared() -> None:
    """Mostly small gains and a few large losses, mean zero: a plain t test calls 18 % of these a gain."""
    rng, wrong = np.random.default_rng(6), 0
    for trial in range(300):
        values = np.exp(0.5) - np.exp(rng.normal(0, 1, 15))
        wrong += bounds(values, seed=trial, resamples=300).lower > 0
    assert wrong / 300 < 0.15


def test_fewest_groups() -> None:
    assert fewest_groups(0.05) == 5 and fewest_groups(0.01) == 7
    with pytest.raises(ValueError, match="two groups"):
        bounds(np.ones(3), np.zeros(3))
