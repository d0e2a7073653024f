"""One-sided confidence bounds by bootstrap over groups.

Photos of one group (burst, scene) err alike, so groups are what is drawn. Two bounds are made and the
more careful one counts: the bootstrap-t (Efron & Tibshirani 1993, ch. 12), which sees that a few large
losses may be missing from the sample, and the percentile widened for few groups (Hesterberg 2015,
"expanded percentile"), which holds where heavy tails make the bootstrap-t too bold. A resample's spread
counts at least half the sample's (`LEAST_SPREAD`): one that happens to miss the only bad photo has next to
none, and would drag a MaxF of 0.97 down to "at least 0.58"; the level hardly changes (0.1 to 0.8 points).
On few groups with heavy tails both are too bold (7 % of paired differences, 8 to 13 % of mean errors, where 5 % is
nominal, 16 to 30 groups), so the level that is asked of the resamples is calibrated (`calibrated`).
Student's t holds 4 to 5 % but calls gains that are large on few photos uncertain although every photo gained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

LEAST_SPREAD = 0.5
CALIBRATION = 20
"""Groups at which `confidence` asks its resamples for half the level: fewer do not show how heavy the tails are."""
CHUNK = 2_000_000
"""Numbers of a (resamples, groups) array held at once."""


SOFTENING = 0.2
"""Error, as a share of the category's mean, from which on a photo's error counts less than in proportion."""
CLIP = 2.5
"""Distance from the centre, in robust standard deviations, from which on a photo's gain counts as if it were there."""


@dataclass(frozen=True)
class Quantity:
    """A number about a set of photos: offset + sum over terms of factor · max over columns of the column means.

    A plain mean is one term of one column. MaxF is a term of 256 columns, the per-photo F curves: its
    maximum is taken anew in every resample.
    """

    terms: tuple[tuple[float, np.ndarray], ...]
    """(factor, values of shape (photos, columns)) each."""
    offset: float = 0.0


@dataclass(frozen=True)
class Interval:
    estimate: float
    lower: float
    """One-sided lower bound at level alpha; `upper` likewise: the two together have level 2 alpha."""
    upper: float


def fewest_groups(alpha: float) -> int:
    """Groups below which no test can have level alpha: under no effect all have one sign with chance 2^-groups."""
    return max(2, math.ceil(math.log2(1 / alpha)))


def calibrated(alpha: float, groups: int) -> float:
    """Return the level to ask of resamples of so many groups, for bounds that err in about `alpha` of cases.

    Measured at 5 % and 16 to 60 groups: paired differences of heavy-tailed errors 3.5 to 5 %, mean errors of log-normal
    sigma 0.8 5 to 5.5 %, of sigma 1.1 7.5 to 9 %.
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
    """One Interval per quantity over the same photos, all from the same resamples; `alpha` may be one per quantity.

    `groups`: (photos,), any values that compare; at least two distinct ones, else ValueError. The result
    does not depend on the order of the photos.
    """
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError("a bound needs at least two groups")
    sizes = np.bincount(codes).astype(np.float64)
    sums = [[(factor, _group_sums(values, codes)) for factor, values in q.terms] for q in quantities]
    estimates = [_estimate(terms, np.ones((1, len(names))), sizes) for terms in sums]
    draws: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in quantities]
    rows = max(1, CHUNK // len(names))
    for start in range(0, resamples, rows):
        weights = _resampled(len(names), min(rows, resamples - start), rng)
        for collected, terms, (value, _) in zip(draws, sums, estimates, strict=True):
            again, errors = _estimate(terms, weights, sizes)
            collected.append((again - value[0], errors))
    few = len(names) / (len(names) - 1)
    asked = alpha if isinstance(alpha, Sequence) else [alpha] * len(quantities)
    alphas = [calibrated(level, len(names)) for level in asked]
    found = []
    for quantity, level, collected, terms, (value, error) in zip(
        quantities, alphas, draws, sums, estimates, strict=True
    ):
        widened = float(ndtr(-np.sqrt(few) * stdtrit(len(names) - 1, 1 - level)))
        move, errors = (np.concatenate(parts) for parts in zip(*collected, strict=True))
        estimate, spread = float(value[0]), float(error[0])
        low = high = 0.0
        if spread > _negligible(terms):
            t = move / np.maximum(errors, LEAST_SPREAD * spread)
            above, below = np.quantile(t, 1 - level, method="higher"), np.quantile(t, level, method="lower")
            low = max(0.0, spread * above, -np.quantile(move, widened, method="lower"))
            high = max(0.0, -spread * below, np.quantile(move, 1 - widened, method="higher"))
        centre = estimate + quantity.offset
        found.append(Interval(centre, centre - float(low), centre + float(high)))
    return found


def student(quantities: Sequence[Quantity], groups: np.ndarray, *, alpha: float) -> list[Interval]:
    """Return one Interval per quantity by Student's t on the linearised influence of each group.

    For errors that `softened` has tamed, or metrics in [0, 1]: there it holds its level with 16 photos (4.4 to 5.7 %
    where 5 % is nominal; benchmarks/gate_characteristics.md), and needs no resampling. On plain errors with heavy tails
    it does not, where the truth lies at a margin (6 to 12 %): `confidence` is for those.

    Args:
        quantities: Numbers about the same photos.
        groups: (photos,), any values that compare; photos of one group err alike.
        alpha: One-sided error level of each bound.

    Raises:
        ValueError: Where there are fewer than two groups.
    """
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError("a bound needs at least two groups")
    sizes = np.bincount(codes).astype(np.float64)
    reach = float(stdtrit(len(names) - 1, 1 - alpha))
    found = []
    for quantity in quantities:
        terms = [(factor, _group_sums(values, codes)) for factor, values in quantity.terms]
        value, error = _estimate(terms, np.ones((1, len(names))), sizes)
        spread = float(error[0]) if float(error[0]) > _negligible(terms) else 0.0
        centre = float(value[0]) + quantity.offset
        found.append(Interval(centre, centre - reach * spread, centre + reach * spread))
    return found


def softened(candidate: np.ndarray, reference: np.ndarray, least: float) -> np.ndarray:
    """Return each photo's logarithmic gain of the candidate, large errors softened: (photos,).

    A photo's error e counts as log(1 + e / s) with s = SOFTENING times the models' mean error, scaled so that errors
    which all shrink by a small share g give g. A mean of x stands for errors of exp(-x) times the reference's. A few
    photos with very large errors then no longer make most of the variance, while hard photos still count more than easy
    ones.

    Args:
        candidate: (photos,) errors, at least 0.
        reference: (photos,) errors of the other model on the same photos.
        least: Smallest s, for models that are nearly perfect.
    """
    scale = max(SOFTENING * math.sqrt(float(candidate.mean()) * float(reference.mean())), least)
    share = (reference / (reference + scale)).mean() + (candidate / (candidate + scale)).mean()
    if share <= 0:
        return np.zeros(len(candidate))
    return 2 * (np.log1p(reference / scale) - np.log1p(candidate / scale)) / share


def winsorised(values: np.ndarray) -> np.ndarray:
    """Return values whose mean is Huber's robust mean, and whose spread is that of its error: (photos,).

    Each value is pulled to at most CLIP robust standard deviations from the centre, and stretched by the share that is
    not pulled, so that Student's t on the result is that of the estimate (Huber 1981, ch. 3 and 6). Where photos'
    gains have heavy tails, a few extreme ones then no longer make most of the standard error.
    """
    centre = float(np.median(values))
    # Beside many photos of nearly equal score the median deviation is next to zero, and all else would be an outlier.
    scale = max(1.4826 * float(np.median(np.abs(values - centre))), float(values.std()) / 2)
    if scale == 0:
        return values
    reach = CLIP * scale
    pulled, share = np.clip(values - centre, -reach, reach), 1.0
    for _ in range(50):
        pulled = np.clip(values - centre, -reach, reach)
        share = max(float((np.abs(values - centre) < reach).mean()), 0.5)
        step = float(pulled.mean()) / share
        if abs(step) < 1e-9 * scale:
            break
        centre += step
    return centre + pulled / share


def _resampled(groups: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """How often each group was drawn, (rows, groups): each row draws as many as there are, with replacement."""
    drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _group_sums(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(photos, columns) → (groups, columns)."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


def _estimate(
    terms: list[tuple[float, np.ndarray]], weights: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Value and standard error for each row of group weights (rows, groups): the ratio estimator, linearised.

    At its maximum a curve's slope over the thresholds is zero, so the influence of a group on the
    maximum is its influence at the threshold where the maximum lies.
    """
    photos = weights @ sizes
    groups = len(sizes)
    scale = groups / (groups - 1)
    if all(sums.shape[1] == 1 for _, sums in terms):
        # Plain means need no (rows, groups) array: the squares are multiplied out, about the sample's own mean
        # so that nothing cancels.
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
        best = means.argmax(axis=1)
        value += factor * means[np.arange(len(means)), best]
        influence += factor * sums.T[best]
    residual = influence - value[:, None] * sizes
    return value, np.sqrt(scale * (weights * residual**2).sum(axis=1)) / photos


def _negligible(terms: list[tuple[float, np.ndarray]]) -> float:
    """Spreads below this are rounding."""
    return 1e-12 * max(float(np.abs(sums).max()) for _, sums in terms)
