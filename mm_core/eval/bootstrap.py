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


@dataclass(frozen=True)
class Groups:
    """Photos sorted by their group, so that sums over groups are sums over contiguous runs."""

    order: np.ndarray
    """(photos,) numbers of the photos, group by group."""
    starts: np.ndarray
    """(groups,) place in `order` at which each group starts."""
    sizes: np.ndarray
    """(groups,) number of photos of each group, float64."""

    @classmethod
    def of(cls, groups: np.ndarray) -> Groups:
        """Return the groups of photos, from one sortable value per photo."""
        order = np.argsort(groups, kind="stable")
        ordered = groups[order]
        changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        ends = np.concatenate([[0], changes, [len(ordered)]])
        return cls(order, ends[:-1], (ends[1:] - ends[:-1]).astype(np.float64))

    def __len__(self) -> int:
        return len(self.sizes)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of the values over each group: (photos, columns) → (groups, columns)."""
        return np.add.reduceat(values[self.order].astype(np.float64), self.starts, axis=0)


class RepeatedResamples:
    """Source of resamples that draws once per number of groups and then returns the same ones.

    Simulations use it, because drawing would take most of their time. Resamples only weight groups by number, and each
    simulated retraining draws other photos for its groups. The gate itself draws new resamples for each category.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, groups: int, rows: int) -> np.ndarray:
        """Return how often each group is drawn, float64 (rows, groups)."""
        if (groups, rows) not in self._kept:
            # Photos drawn from real pairs have many different numbers of groups; this bounds the memory.
            if sum(weights.size for weights in self._kept.values()) > 10 * CHUNK:
                self._kept.clear()
            self._kept[groups, rows] = _resampled(groups, rows, self._rng)
        return self._kept[groups, rows]


def confidence(
    quantities: Sequence[Quantity],
    groups: np.ndarray | Groups,
    *,
    alpha: float | Sequence[float],
    resamples: int,
    rng: np.random.Generator | RepeatedResamples,
) -> list[Interval]:
    """Return one Interval per quantity by a bootstrap over groups; all quantities share the resamples.

    The result does not depend on the order of the photos.

    Args:
        quantities: Statistics of the same photos.
        groups: (photos,) sortable values, or their `Groups`; photos of one group have correlated errors.
        alpha: One-sided error level of each bound, one for all quantities or one per quantity.
        resamples: Number of resamples.
        rng: Source of random numbers, or of resamples.

    Raises:
        ValueError: There are fewer than two groups.
    """
    sums = _Sums.of(quantities, groups)
    count = len(sums.groups)
    (values,), (errors,) = sums.estimate(np.ones((1, count)))
    # The resamples are drawn in chunks, which bounds the memory.
    rows = max(1, CHUNK // count)
    chunks = []
    for start in range(0, resamples, rows):
        asked = count, min(rows, resamples - start)
        weights = rng.draw(*asked) if isinstance(rng, RepeatedResamples) else _resampled(*asked, rng)
        chunks.append(sums.estimate(weights))
    again, spreads = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    # Each side is the wider one of bootstrap-t and expanded percentile, and at least 0.
    moves = again - values
    ratios = moves / np.maximum(np.maximum(spreads, LEAST_SPREAD * errors), np.finfo(float).tiny)
    moves.sort(axis=0)
    ratios.sort(axis=0)
    # Expanded percentile: the level that gives a normal interval the width of a t interval.
    few = count / (count - 1)
    alphas = alpha if isinstance(alpha, Sequence) else [alpha] * len(quantities)
    found = []
    for number, level in enumerate(calibrated(level, count) for level in alphas):
        widened = float(ndtr(-np.sqrt(few) * stdtrit(count - 1, 1 - level)))
        centre, spread = float(values[number]) + quantities[number].offset, float(errors[number])
        # A statistic without spread (e. g. two equal models) has an interval of width 0.
        low = high = 0.0
        if spread > sums.negligible[number]:
            t, move = ratios[:, number], moves[:, number]
            low = max(0.0, spread * _higher(t, 1 - level), -_lower(move, widened))
            high = max(0.0, -spread * _lower(t, level), _higher(move, 1 - widened))
        found.append(Interval(centre, centre - low, centre + high))
    return found


def _higher(ordered: np.ndarray, share: float) -> float:
    """Return the quantile of ascending values, the higher one of two neighbours; as np.quantile, without its checks."""
    return float(ordered[math.ceil(share * (len(ordered) - 1))])


def _lower(ordered: np.ndarray, share: float) -> float:
    """Return the quantile of ascending values, the lower one of two neighbours."""
    return float(ordered[math.floor(share * (len(ordered) - 1))])


def student(quantities: Sequence[Quantity], groups: np.ndarray | Groups, *, alpha: float) -> list[Interval]:
    """Return one Interval per quantity by Student's t on the linearised influence of each group.

    Use it for `softened` errors and for metrics in [0, 1]. It keeps its level there with 16 photos (4.4 to 5.7 % at a
    nominal 5 %; benchmarks/gate_characteristics.md) and needs no resampling. Use `confidence` for plain heavy-tailed
    errors. If their true gain equals the margin, Student's t fails in 6 to 12 % of the cases.

    Args:
        quantities: Statistics of the same photos.
        groups: (photos,) sortable values, or their `Groups`; photos of one group have correlated errors.
        alpha: One-sided error level of each bound.

    Raises:
        ValueError: There are fewer than two groups.
    """
    sums = _Sums.of(quantities, groups)
    # Quantile of Student's t with groups - 1 degrees of freedom.
    reach = float(stdtrit(len(sums.groups) - 1, 1 - alpha))
    (values,), (errors,) = sums.estimate(np.ones((1, len(sums.groups))))
    spreads = np.where(errors > sums.negligible, errors, 0.0)
    centres = values + [quantity.offset for quantity in quantities]
    return [
        Interval(float(centre), float(centre - reach * spread), float(centre + reach * spread))
        for centre, spread in zip(centres, spreads, strict=True)
    ]


def softened(candidate: np.ndarray, reference: np.ndarray, least: float) -> np.ndarray:
    """Return each photo's logarithmic gain of the candidate, with large errors softened.

    An error e counts as log(1 + e / s), with s = SOFTENING times the models' mean error. The result is scaled: if all
    errors shrink by a small share g, the gain is g. A mean gain of x means errors of exp(-x) times the reference's.
    Few photos with very large errors then do not dominate the variance. Hard photos still count more than easy ones.

    Args:
        candidate: (..., photos) errors, at least 0. Each row is a comparison of its own.
        reference: (..., photos) errors of the other model on the same photos.
        least: Smallest s, for models that are nearly perfect.

    Returns:
        (..., photos) gains; positive values mean that the candidate is better.
    """
    # The geometric mean treats both models in the same way, so swapping them only changes the sign.
    mean = np.sqrt(candidate.mean(-1, keepdims=True) * reference.mean(-1, keepdims=True))
    scale = np.maximum(SOFTENING * mean, least)
    share = (reference / (reference + scale) + candidate / (candidate + scale)).mean(-1, keepdims=True)
    gains = 2 * (np.log1p(reference / scale) - np.log1p(candidate / scale))
    return np.divide(gains, share, out=np.zeros_like(gains), where=share > 0)


def winsorised(values: np.ndarray) -> np.ndarray:
    """Return winsorised values: their mean is Huber's robust mean, their spread that of its error.

    Each value is clipped at CLIP robust standard deviations from the centre. The distance is then divided by the share
    of values that are not clipped, so that Student's t of the result is valid for the estimate (Huber 1981, ch. 3 and
    6). Few extreme gains then do not dominate the standard error.

    Args:
        values: (..., photos) gains. Each row is winsorised on its own.

    Returns:
        (..., photos) winsorised gains; rows without spread are returned as they are.
    """
    centre = np.median(values, -1, keepdims=True)
    # The median deviation is almost zero if most scores are nearly equal; half the standard deviation is the minimum.
    deviation = np.median(np.abs(values - centre), -1, keepdims=True)
    scale = np.maximum(1.4826 * deviation, values.std(-1, keepdims=True) / 2)
    reach = CLIP * scale
    pulled, share = values - centre, np.ones_like(centre)
    # Fixed-point iteration for Huber's centre.
    for _ in range(50):
        off = values - centre
        pulled = np.minimum(np.maximum(off, -reach), reach)
        share = np.maximum((np.abs(off) < reach).mean(-1, keepdims=True), 0.5)
        step = pulled.mean(-1, keepdims=True) / share
        going = np.abs(step) > 1e-9 * scale
        if not going.any():
            break
        # Rows that have converged stay as they are, so that a row does not depend on the others.
        centre = centre + np.where(going, step, 0.0)
    return np.where(scale > 0, centre + pulled / share, values)


def _resampled(groups: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each group is drawn, float64 (rows, groups); each row draws `groups` groups with replacement."""
    # The offset of `groups` per row lets one bincount count all rows.
    drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


@dataclass(frozen=True)
class _Sums:
    """Group sums of several quantities; all statistics are functions of them and of the weights of the groups."""

    groups: Groups
    means: np.ndarray
    """(groups, plain means) influence of each group on each plain mean."""
    numbers: list[int]
    """Place of each plain mean among the quantities."""
    curves: dict[int, list[tuple[float, np.ndarray]]]
    """Number of a quantity that is a maximum of curves → (factor, (groups, columns)) of its terms."""
    negligible: np.ndarray
    """(quantities,) spread below which a difference is a rounding error."""

    @classmethod
    def of(cls, quantities: Sequence[Quantity], groups: np.ndarray | Groups) -> _Sums:
        groups = groups if isinstance(groups, Groups) else Groups.of(groups)
        if len(groups) < 2:
            raise ValueError("a bound needs at least two groups")
        negligible = np.zeros(len(quantities))
        means, numbers, curves = [], [], {}
        for number, quantity in enumerate(quantities):
            if any(values.shape[1] > 1 for _, values in quantity.terms):
                curves[number] = [(factor, groups.sums(values)) for factor, values in quantity.terms]
                negligible[number] = 1e-12 * max(float(np.abs(sums).max()) for _, sums in curves[number])
            else:
                means.append(sum(factor * values[:, 0] for factor, values in quantity.terms))
                numbers.append(number)
        sums = groups.sums(np.stack(means, axis=1)) if means else np.zeros((len(groups), 0))
        negligible[numbers] = 1e-12 * np.abs(sums).max(axis=0)
        return cls(groups, sums, numbers, curves, negligible)

    def estimate(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and standard errors, (rows, quantities) each, by the linearised ratio estimator.

        Args:
            weights: (rows, groups) weights of the groups.
        """
        values, errors = np.empty((2, len(weights), len(self.negligible)))
        if self.numbers:
            values[:, self.numbers], errors[:, self.numbers] = self._estimate_means(weights)
        for number, terms in self.curves.items():
            values[:, number], errors[:, number] = self._estimate_maximum(terms, weights)
        return values, errors

    @property
    def _scale(self) -> float:
        return len(self.groups) / (len(self.groups) - 1)

    def _estimate_means(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and errors of the plain means, without a (rows, groups) array: the square is expanded."""
        sizes = self.groups.sizes[:, None]
        # Centring on the sample's mean avoids cancellation.
        centre = self.means.sum(axis=0) / sizes.sum()
        off = self.means - centre * sizes
        # One product for all sums, because reading the weights takes longer than multiplying them.
        sums = weights @ np.concatenate([off, off**2, off * sizes, sizes, sizes**2], axis=1)
        count = off.shape[1]
        first, second, crossed = (sums[:, start : start + count] for start in (0, count, 2 * count))
        photos, squared_sizes = sums[:, -2:-1], sums[:, -1:]
        move = first / photos
        squares = second - 2 * move * crossed + move**2 * squared_sizes
        return centre + move, np.sqrt(self._scale * np.maximum(squares, 0.0)) / photos

    def _estimate_maximum(
        self, terms: list[tuple[float, np.ndarray]], weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return values and errors of the maximum of mean curves.

        The slope of a curve over the thresholds is zero at its maximum. The influence of a group on the maximum is
        therefore its influence at the threshold of the maximum.
        """
        sizes = self.groups.sizes
        photos = weights @ sizes
        value = np.zeros(len(weights))
        influence = np.zeros(weights.shape)
        for factor, sums in terms:
            means = (weights @ sums) / photos[:, None]
            # MaxF: each resample selects its own best threshold.
            best = means.argmax(axis=1)
            value += factor * means[np.arange(len(means)), best]
            influence += factor * sums.T[best]
        residual = influence - value[:, None] * sizes
        return value, np.sqrt(self._scale * (weights * residual**2).sum(axis=1)) / photos
