"""Matte metrics in float64, each in one documented variant, fast enough to score every model on every photo.

| name     | variant                                                                                              |
|----------|------------------------------------------------------------------------------------------------------|
| mse      | mean squared error over the whole image                                                                |
| mse_band | the same over the unknown band of the truth (`unknown_band`); NaN if that band is empty              |
| sad      | sum of absolute differences / 1000                                                                     |
| grad     | squared difference of Gaussian-derivative magnitudes, sigma 1.4, sum / 1000 (Rhemann et al. 2009)       |
| conn     | connectivity, steps of 0.1, theta 0.15, p = 1, 4-connected, per pixel (Rhemann et al. 2009; the paper's)  |
| biou     | boundary IoU (Cheng et al. 2021), d = 2 % of the diagonal, both mattes cut at 0.5; empty/empty = 1       |
| maxf     | maximum over 256 thresholds of F, beta² = 0.3, truth cut at 0.5 (Achanta et al. 2009); no rescaling       |

MaxF of a set of photos is the maximum of the mean of their F curves. The scores of a photo therefore include its curve.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd

from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, METRICS
from mm_core.eval.gradient import magnitude

MEANINGS = {
    "mse": "mean squared error of the matte",
    "mse_band": "mean squared error in the band around the edge of the true matte",
    "sad": "sum of absolute errors, in thousands",
    "grad": "squared error of the gradients, in thousands",
    "conn": "connectivity error per pixel",
    "biou": "intersection over union of the boundaries; higher is better",
    "maxf": "largest F-measure over all thresholds; higher is better",
    "fcurve": "F-measure at each of 256 thresholds",
}
"""Keys of the result of `TruthMatte.score`, and what they measure."""
PER_IMAGE = tuple(MEANINGS)
MEAN_METRICS = ("mse", "mse_band", "sad", "grad", "conn", "biou")
"""Metrics that are plain means over the photos of a set (MaxF is not)."""
STEPS, THETA, BETA_SQUARED, BOUNDARY_SHARE, BAND_SHARE = 10, 0.15, 0.3, 0.02, 0.01
LEVELS = np.arange(256) / STEPS
SPEC = "mse; grad 1.4; conn 0.1 0.15 4-connected per pixel; biou 0.02; maxf 0.3 mean of curves; band 0.01; float64"
"""Names of the variants. It is part of the identity of scores, so different variants are never compared."""


class TruthMatte:
    """One true matte with everything that depends only on it, shared by all models."""

    def __init__(self, alpha: np.ndarray) -> None:
        """Compute mask, boundary, gradient and unknown band of the true matte.

        Args:
            alpha: (H, W) in [0, 1].

        Raises:
            ValueError: The matte has another rank, is empty or contains NaN or infinity.
        """
        if alpha.ndim != 2 or not alpha.size:
            raise ValueError(f"a matte has shape (H, W), not {alpha.shape}")
        clipped = _clipped(alpha)
        if clipped is None:
            raise ValueError("the true matte holds NaN or infinity")
        # Each of these is used once per model, so computing them once avoids repeated work.
        self.alpha = clipped
        self.mask = _mask(self.alpha)
        self.boundary = _boundary(self.mask)
        self.gradient = magnitude(self.alpha)
        self.band = unknown_band(self.alpha)

    def score(self, prediction: np.ndarray) -> dict[str, float | np.ndarray]:
        """Return all metrics of `PER_IMAGE` for one predicted matte.

        Args:
            prediction: (H, W) in [0, 1]; values outside are clipped.

        Returns:
            Metric → float, and `fcurve` → (256,) float64. All values are NaN if the prediction is not finite.

        Raises:
            ValueError: The prediction and the true matte have different sizes.
        """
        if prediction.shape != self.alpha.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the true matte {self.alpha.shape}")
        predicted = _clipped(prediction)
        if predicted is None:
            return {name: np.full(256, np.nan) if name == "fcurve" else float("nan") for name in PER_IMAGE}
        # maxf of one photo is the maximum of its own curve; sets use the mean of `fcurve`.
        curve = f_curve(predicted, self.mask)
        return {
            "mse": _squared_distance(predicted, self.alpha) / predicted.size,
            "mse_band": self._band_error(predicted),
            "sad": _absolute_distance(predicted, self.alpha) / 1000.0,
            "grad": _squared_distance(magnitude(predicted), self.gradient) / 1000.0,
            "conn": connectivity_error(predicted, self.alpha),
            "biou": _iou(_boundary(_mask(predicted)), self.boundary),
            "maxf": float(curve.max()),
            "fcurve": curve,
        }

    def _band_error(self, predicted: np.ndarray) -> float:
        size = np.count_nonzero(self.band)
        return _squared_distance(predicted, self.alpha, self.band.view(np.uint8)) / size if size else float("nan")


def unknown_band(alpha: np.ndarray) -> np.ndarray:
    """Return the unknown band of a matte, bool (H, W).

    A pixel belongs to the band if an alpha > 0.05 and an alpha < 0.95 are within 1 % of the diagonal. The band is the
    dilated region 0.05 < alpha < 0.95. It also includes the edge of a hard mask, which has no such values.
    """
    reach = max(1, round(BAND_SHARE * _diagonal(alpha)))
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 2 * reach + 1))
    # A dilation by a square is the test whether such a pixel is near.
    near_foreground = cv2.dilate((alpha > 0.05).view(np.uint8), square)
    near_background = cv2.dilate((alpha < 0.95).view(np.uint8), square)
    return cv2.min(near_foreground, near_background).view(bool)


def connectivity_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of |phi(prediction) - phi(truth)| over all pixels (Rhemann et al. 2009, section 4).

    The source region of a threshold is the largest 4-connected component of the pixels with both mattes at or above it.
    The level of a pixel is the highest multiple of 0.1 up to which the pixel stays in the source region. Thresholds are
    i / 10 in float64, so 8-bit values such as 153 / 255 = 0.6 are on the upper side.

    Args:
        prediction: float64 (H, W) in [0, 1].
        truth: float64 (H, W) in [0, 1].
    """
    # Outside of the box no pixel reaches the first threshold, so only the box is labelled.
    common = np.minimum(prediction, truth)
    top, bottom, left, right = _box(common >= 1 / STEPS)
    inner = common[top:bottom, left:right]
    depth = np.zeros(common.shape, np.uint8)
    view, count = depth[top:bottom, left:right], -1
    region: np.ndarray = view
    labels = np.empty(inner.shape, np.int32)
    for step in range(1, STEPS + 1):
        both = (inner >= step / STEPS).view(np.uint8)
        size = int(np.count_nonzero(both))
        if not size:
            break
        if size != count:  # the sets are nested, so an equal count is an equal set
            before, count = region, size
            region = _largest_component(both, labels)
            # Components are nested as well: a component that is not inside the previous region is disjoint from it.
            if step > 1 and not before.ravel()[int(region.argmax())]:
                break
        # Each nested region adds one level to its pixels.
        view += region
    # The lookup table maps a pixel's depth to its level, depth / 10.
    total = 0.0
    for rows in _strips(common):
        level = cv2.LUT(depth[rows], LEVELS)
        total += _absolute_distance(_above(prediction[rows], level), _above(truth[rows], level))
    return total / common.size


def f_curve(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return F at the thresholds t = 0 … 255 of the prediction, rounded to 8 bits.

    F is 0 without true positives, so an empty truth always gives 0 (as in PySODMetrics).

    Args:
        prediction: (H, W) in [0, 1].
        truth: Mask, bool or uint8 (H, W).

    Returns:
        float64 (256,) in [0, 1].
    """
    levels = cv2.convertScaleAbs(prediction, alpha=255.0)
    foreground = _histogram(levels, truth.view(np.uint8))
    background = _histogram(levels) - foreground
    # A reversed cumulative sum of the histograms gives the counts at or above each threshold.
    hits = np.cumsum(foreground[::-1])[::-1].astype(np.float64)
    # True positives and all predicted positives per threshold.
    taken = hits + np.cumsum(background[::-1])[::-1]
    precision = hits / np.maximum(taken, 1)
    recall = hits / max(1, int(foreground.sum()))
    below = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(below > 0, below, 1.0)


def category_scores(per_image: pd.DataFrame) -> pd.DataFrame:
    """Return the mean metrics per category from the per-image rows of one model.

    Args:
        per_image: Rows with category, fcurve and MEAN_METRICS.

    Returns:
        Columns METRICS, mse_band and images. The index has the present categories: the seven in their order, then
        others. `macro` (mean of the gate's six) and `weighted` (their image-weighted mean, the paper's "mean") follow
        if any of the six is present.
    """
    categories = np.asarray(per_image["category"], dtype=object)
    values = {name: np.asarray(per_image[name], dtype=np.float64) for name in MEAN_METRICS}
    curves = np.stack(list(per_image["fcurve"]))
    found = set(categories)
    rows: dict[str, dict[str, float]] = {}
    for category in [c for c in ALL_CATEGORIES if c in found] + sorted(found - set(ALL_CATEGORIES)):
        here = categories == category
        row = {name: _mean(column[here], skip_nan=name == "mse_band") for name, column in values.items()}
        rows[category] = row | {"maxf": max_f(curves[here]), "images": float(here.sum())}
    # Only the six judged categories enter the means; scenery does not.
    judged = [rows[c] for c in CATEGORIES if c in rows]
    if judged:
        counts = np.array([row["images"] for row in judged])
        for name, weights in (("macro", np.ones(len(judged))), ("weighted", counts)):
            rows[name] = {
                metric: _mean(np.array([row[metric] for row in judged]), weights, skip_nan=metric == "mse_band")
                for metric in (*MEAN_METRICS, "maxf")
            } | {"images": float(counts.sum())}
    return pd.DataFrame.from_dict(rows, orient="index")[[*METRICS, "mse_band", "images"]]  # pyright: ignore


def max_f(curves: np.ndarray) -> float:
    """Return MaxF of a set of photos, the maximum of the mean of their curves (N, 256)."""
    return float(curves.astype(np.float64).mean(axis=0).max())


def _mean(values: np.ndarray, weights: np.ndarray | None = None, *, skip_nan: bool) -> float:
    """Return the weighted mean. It is NaN if any value is NaN; with `skip_nan` only if all values are."""
    weights = np.ones(len(values)) if weights is None else weights
    kept = ~np.isnan(values) if skip_nan else np.ones(len(values), bool)
    return float(np.average(values[kept], weights=weights[kept])) if kept.any() else float("nan")


def _diagonal(pixels: np.ndarray) -> float:
    height, width = pixels.shape
    return float(np.sqrt(height**2 + width**2))


def _clipped(alpha: np.ndarray) -> np.ndarray | None:
    """Return the matte clipped to [0, 1] as float64, without a copy if possible; None if a value is not finite."""
    low, high = float(alpha.min()), float(alpha.max())  # NaN propagates to both
    if not np.isfinite(low) or not np.isfinite(high):
        return None
    alpha = alpha.astype(np.float64, copy=False)
    return alpha if low >= 0 and high <= 1 else np.clip(alpha, 0.0, 1.0)


def _mask(alpha: np.ndarray) -> np.ndarray:
    return (alpha > 0.5).view(np.uint8)


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of the mask within d of its contour; the image's border counts as contour.

    d erosions by 3 × 3 equal one erosion by (2d + 1) × (2d + 1).
    """
    reach = max(1, round(BOUNDARY_SHARE * _diagonal(mask)))
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 2 * reach + 1))
    return mask - cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,))


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def _strips(pixels: np.ndarray) -> Iterator[slice]:
    """Return slices of rows of about 100 000 pixels, so that intermediate results fit in the processor's cache."""
    height, width = pixels.shape
    step = max(1, 100_000 // width)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def _histogram(levels: np.ndarray, mask: np.ndarray | None = None, bins: int = 256) -> np.ndarray:
    """Return how often each value 0 … bins - 1 occurs, int64 (bins,); only pixels with a non-zero mask count.

    OpenCV counts in float32, which is exact up to 2^24. The image is therefore counted in strips of rows.
    """
    rows, total = max(1, 2**24 // levels.shape[1]), np.zeros(bins, np.int64)
    for start in range(0, len(levels), rows):
        part = slice(start, start + rows)
        counted = cv2.calcHist([levels[part]], [0], None if mask is None else mask[part], [bins], [0, bins])
        total += counted.ravel().astype(np.int64)
    return total


def _largest_component(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the largest 4-connected component of a non-empty mask, as bool; on a tie the first in raster order.

    `labels` is an int32 buffer of the mask's shape. Allocating it each time would cost as much as the labelling.
    """
    # Counting labels afterwards takes a fifth of the time of OpenCV's own statistics.
    parts, _ = cv2.connectedComponents(mask, labels, connectivity=4, ltype=cv2.CV_32S)
    # Two labels are background and one component.
    if parts == 2:
        return mask.view(bool)
    # OpenCV's histogram of 16-bit labels is faster than bincount.
    if parts < 2**16:
        sizes = _histogram(labels.astype(np.uint16), bins=parts)
    else:
        sizes = np.bincount(labels.ravel(), minlength=parts)
    return labels == 1 + int(np.argmax(sizes[1:]))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _above(alpha: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return 1 - phi: alpha minus the level of its pixel if that is at least theta, otherwise 0."""
    above = cv2.subtract(alpha, level)
    return cv2.threshold(above, np.nextafter(THETA, 0), 0, cv2.THRESH_TOZERO, above)[1]


def _squared_distance(one: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> float:
    return float(cv2.norm(one, other, cv2.NORM_L2SQR, mask))


def _absolute_distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(cv2.norm(one, other, cv2.NORM_L1))
