"""One-sided confidence bounds by a bootstrap over groups, and by Student's t.

The errors of photos of one group (burst, scene) are correlated, so the bootstrap resamples groups, not photos. It
computes two bounds and returns the wider one:

- The bootstrap-t (Efron & Tibshirani 1993, ch. 12) accounts for large losses that the sample may miss.
- The expanded percentile (Hesterberg 2015) is widened for few groups. It is the safer bound for heavy-tailed errors.

The standard error of a resample is at least half the sample's (`LEAST_SPREAD`). A resample without the only bad photo
has almost no spread. Without this limit it would lower a MaxF of 0.97 to "at least 0.58". The limit changes the error
level by 0.1 to 0.8 points.

Both bounds are too narrow for 16 to 30 groups with heavy tails. At a nominal 5 % they fail for 7 % of paired
differences and for 8 to 13 % of mean errors. `calibrated` therefore lowers the level of the resampling.
Student's t keeps 4 to 5 %, but it calls a gain uncertain if it is large on few photos and every photo improved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

LEAST_SPREAD = 0.5
CALIBRATION = 20
"""Number of groups at which `confidence` halves the level. Fewer groups do not show how heavy the tails are."""
CHUNK = 2_000_000
"""Largest number of elements of a (resamples, groups) array in memory."""


SOFTENING = 0.2
"""Error, as a share of the category's mean, above which a photo's error counts less than proportionally."""
CLIP = 2.5
"""Distance from the centre, in robust standard deviations, at which a photo's gain is clipped."""


@dataclass(frozen=True)
class Quantity:
    """A statistic of a set of photos: offset + sum over terms of factor · max over columns of the column means.

    A plain mean is one term of one column. MaxF is a term of 256 columns, the F curves of the photos. Each resample
    computes its own maximum of the mean curve.
    """

    terms: tuple[tuple[float, np.ndarray], ...]
    """(factor, values of shape (photos, columns)) each."""
    offset: float = 0.0


@dataclass(frozen=True)
class Interval:
    """An estimate with a one-sided bound on each side."""

    estimate: float
    lower: float
    """One-sided lower bound at level alpha."""
    upper: float
    """One-sided upper bound at level alpha; both bounds together have level 2 alpha."""


def fewest_groups(alpha: float) -> int:
    """Return the smallest number of groups with which a test can have level alpha.

    Without an effect, all groups have the same sign with probability 2^-groups.
    """
    return max(2, math.ceil(math.log2(1 / alpha)))


def calibrated(alpha: float, groups: int) -> float:
    """Return the nominal level for the resampling, so that bounds fail in about `alpha` of the cases.

    Measured at 5 % with 16 to 60 groups: paired differences of heavy-tailed errors fail in 3.5 to 5 %. Mean errors fail
    in 5 to 5.5 % (log-normal, sigma 0.8) and 7.5 to 9 % (sigma 1.1).

    Args:
        alpha: Level that the bounds should have, in (0, 1).
        groups: Number of groups in the sample.
    """
    return alpha * groups / (groups + CALIBRATION)


def confidence(
    quantities: Sequence[Quantity],
    groups: np.ndarray,
    *,
    alpha: float | Sequence[float],
    resamples: int,
    rng: np.random.Generator,
) -> list[Interval]:
    """Return one Interval per quantity by a bootstrap over groups; all quantities share the resamples.

    The result does not depend on the order of the photos.

    Args:
        quantities: Statistics of the same photos.
        groups: (photos,) sortable values; photos of one group have correlated errors.
        alpha: One-sided error level of each bound, one for all quantities or one per quantity.
        resamples: Number of resamples.
        rng: Source of random numbers.

    Raises:
        ValueError: There are fewer than two groups.
    """
    codes, sizes = _grouped(groups)
    # All statistics are functions of group sums, so a resample is only a vector of group weights.
    sums = [[(factor, _group_sums(values, codes)) for factor, values in q.terms] for q in quantities]
    estimates = [_estimate(terms, np.ones((1, len(sizes))), sizes) for terms in sums]
    draws: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in quantities]
    # The resamples are drawn in chunks, which bounds the memory.
    rows = max(1, CHUNK // len(sizes))
    for start in range(0, resamples, rows):
        weights = _resampled(len(sizes), min(rows, resamples - start), rng)
        for collected, terms, (value, _) in zip(draws, sums, estimates, strict=True):
            again, errors = _estimate(terms, weights, sizes)
            collected.append((again - value[0], errors))
    # Expanded percentile: the level that gives a normal interval the width of a t interval.
    few = len(sizes) / (len(sizes) - 1)
    asked = alpha if isinstance(alpha, Sequence) else [alpha] * len(quantities)
    alphas = [calibrated(level, len(sizes)) for level in asked]
    found = []
    for quantity, level, collected, terms, (value, error) in zip(
        quantities, alphas, draws, sums, estimates, strict=True
    ):
        widened = float(ndtr(-np.sqrt(few) * stdtrit(len(sizes) - 1, 1 - level)))
        move, errors = (np.concatenate(parts) for parts in zip(*collected, strict=True))
        estimate, spread = float(value[0]), float(error[0])
        # A statistic without spread (e. g. two equal models) has an interval of width 0.
        low = high = 0.0
        if spread > _negligible(terms):
            # Each side is the wider one of bootstrap-t and expanded percentile, and at least 0.
            t = move / np.maximum(errors, LEAST_SPREAD * spread)
            above, below = np.quantile(t, 1 - level, method="higher"), np.quantile(t, level, method="lower")
            low = max(0.0, spread * above, -np.quantile(move, widened, method="lower"))
            high = max(0.0, -spread * below, np.quantile(move, 1 - widened, method="higher"))
        centre = estimate + quantity.offset
        found.append(Interval(centre, centre - float(low), centre + float(high)))
    return found


def _grouped(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each photo's group (photos,) and the photos of each group (groups,).

    Raises:
        ValueError: There are fewer than two groups.
    """
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError("a bound needs at least two groups")
    return codes, np.bincount(codes).astype(np.float64)


def student(quantities: Sequence[Quantity], groups: np.ndarray, *, alpha: float) -> list[Interval]:
    """Return one Interval per quantity by Student's t on the linearised influence of each group.

    Use it for `softened` errors and for metrics in [0, 1]. It keeps its level there with 16 photos (4.4 to 5.7 % at a
    nominal 5 %; benchmarks/gate_characteristics.md) and needs no resampling. Use `confidence` for plain heavy-tailed
    errors. If their true gain equals the margin, Student's t fails in 6 to 12 % of the cases.

    Args:
        quantities: Statistics of the same photos.
        groups: (photos,) sortable values; photos of one group have correlated errors.
        alpha: One-sided error level of each bound.

    Raises:
        ValueError: There are fewer than two groups.
    """
    codes, sizes = _grouped(groups)
    # Quantile of Student's t with groups - 1 degrees of freedom.
    reach = float(stdtrit(len(sizes) - 1, 1 - alpha))
    found = []
    for quantity in quantities:
        terms = [(factor, _group_sums(values, codes)) for factor, values in quantity.terms]
        value, error = _estimate(terms, np.ones((1, len(sizes))), sizes)
        spread = float(error[0]) if float(error[0]) > _negligible(terms) else 0.0
        centre = float(value[0]) + quantity.offset
        found.append(Interval(centre, centre - reach * spread, centre + reach * spread))
    return found


def softened(candidate: np.ndarray, reference: np.ndarray, least: float) -> np.ndarray:
    """Return each photo's logarithmic gain of the candidate, with large errors softened.

    An error e counts as log(1 + e / s), with s = SOFTENING times the models' mean error. The result is scaled: if all
    errors shrink by a small share g, the gain is g. A mean gain of x means errors of exp(-x) times the reference's.
    Few photos with very large errors then do not dominate the variance. Hard photos still count more than easy ones.

    Args:
        candidate: (photos,) errors, at least 0.
        reference: (photos,) errors of the other model on the same photos.
        least: Smallest s, for models that are nearly perfect.

    Returns:
        (photos,) gains; positive values mean that the candidate is better.
    """
    # The geometric mean treats both models in the same way, so swapping them only changes the sign.
    scale = max(SOFTENING * math.sqrt(float(candidate.mean()) * float(reference.mean())), least)
    share = (reference / (reference + scale)).mean() + (candidate / (candidate + scale)).mean()
    if share <= 0:
        return np.zeros(len(candidate))
    return 2 * (np.log1p(reference / scale) - np.log1p(candidate / scale)) / share


def winsorised(values: np.ndarray) -> np.ndarray:
    """Return winsorised values: their mean is Huber's robust mean, their spread that of its error.

    Each value is clipped at CLIP robust standard deviations from the centre. The distance is then divided by the share
    of values that are not clipped, so that Student's t of the result is valid for the estimate (Huber 1981, ch. 3 and
    6). Few extreme gains then do not dominate the standard error.

    Args:
        values: (photos,) gains.

    Returns:
        (photos,) winsorised gains; `values` itself if its spread is 0.
    """
    centre = float(np.median(values))
    # The median deviation is almost zero if most scores are nearly equal; half the standard deviation is the minimum.
    scale = max(1.4826 * float(np.median(np.abs(values - centre))), float(values.std()) / 2)
    if scale == 0:
        return values
    reach = CLIP * scale
    pulled, share = np.clip(values - centre, -reach, reach), 1.0
    # Fixed-point iteration for Huber's centre.
    for _ in range(50):
        pulled = np.clip(values - centre, -reach, reach)
        share = max(float((np.abs(values - centre) < reach).mean()), 0.5)
        step = float(pulled.mean()) / share
        if abs(step) < 1e-9 * scale:
            break
        centre += step
    return centre + pulled / share


def _resampled(groups: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each group is drawn, float64 (rows, groups); each row draws `groups` groups with replacement."""
    # The offset of `groups` per row lets one bincount count all rows.
    drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _group_sums(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the sums of the values over each group: (photos, columns) → (groups, columns)."""
    order = np.argsort(codes, kind="stable")
    # Sort the photos by group, then add up each contiguous run.
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


def _estimate(
    terms: list[tuple[float, np.ndarray]], weights: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return value and standard error per row of group weights (rows, groups), by the linearised ratio estimator.

    The slope of a curve over the thresholds is zero at its maximum. The influence of a group on the maximum is
    therefore its influence at the threshold of the maximum.
    """
    photos = weights @ sizes
    groups = len(sizes)
    scale = groups / (groups - 1)
    if all(sums.shape[1] == 1 for _, sums in terms):
        # Plain means need no (rows, groups) array, because the square can be expanded. Centring on the sample's mean
        # avoids cancellation.
        influence = sum((factor * sums[:, 0] for factor, sums in terms), np.zeros(groups))
        centre = float(influence.sum() / sizes.sum())
        off = influence - centre * sizes
        move = (weights @ off) / photos
        squares = weights @ off**2 - 2 * move * (weights @ (off * sizes)) + move**2 * (weights @ sizes**2)
        return centre + move, np.sqrt(scale * np.maximum(squares, 0.0)) / photos
    value = np.zeros(len(weights))
    influence = np.zeros(weights.shape)
    for factor, sums in terms:
        means = (weights @ sums) / photos[:, None]
        # MaxF: each resample selects its own best threshold.
        best = means.argmax(axis=1)
        value += factor * means[np.arange(len(means)), best]
        influence += factor * sums.T[best]
    residual = influence - value[:, None] * sizes
    return value, np.sqrt(scale * (weights * residual**2).sum(axis=1)) / photos


def _negligible(terms: list[tuple[float, np.ndarray]]) -> float:
    """Return the spread below which a difference is a rounding error."""
    return 1e-12 * max(float(np.abs(sums).max()) for _, sums in terms)
