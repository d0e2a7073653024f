"""Matte metrics in float64, each in one stated variant, fast enough to score every model on every photo.

| name     | variant                                                                                              |
|----------|------------------------------------------------------------------------------------------------------|
| mse      | mean squared error over the whole image                                                                |
| mse_band | the same over the unknown band of the truth (`unknown_band`); NaN where the truth has none           |
| sad      | sum of absolute differences / 1000                                                                     |
| grad     | squared difference of Gaussian-derivative magnitudes, sigma 1.4, sum / 1000 (Rhemann et al. 2009)       |
| conn     | connectivity, steps of 0.1, theta 0.15, p = 1, 4-connected, per pixel (Rhemann et al. 2009; the paper's)  |
| biou     | boundary IoU (Cheng et al. 2021), d = 2 % of the diagonal, both mattes cut at 0.5; empty/empty = 1       |
| maxf     | maximum over 256 thresholds of F, beta² = 0.3, truth cut at 0.5 (Achanta et al. 2009); no rescaling       |

MaxF of a set of photos is the maximum of the mean of their curves, so the curve is what is kept per photo.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from mm_core.records import ALL_CATEGORIES, CATEGORIES, METRICS

PER_IMAGE = ("mse", "mse_band", "sad", "grad", "conn", "biou", "maxf", "fcurve")
"""What `TruthMatte.score` returns for one prediction."""
MEAN_METRICS = ("mse", "mse_band", "sad", "grad", "conn", "biou")
"""Metrics of a set that are plain means over its photos (MaxF is not)."""
SIGMA, STEPS, THETA, BETA_SQUARED, BOUNDARY_SHARE, BAND_SHARE = 1.4, 10, 0.15, 0.3, 0.02, 0.01
SPEC = "mse; grad 1.4; conn 0.1 0.15 4-connected per pixel; biou 0.02; maxf 0.3 mean of curves; band 0.01; float64"
"""Names the variants, so that numbers of another variant are never compared with these."""


class TruthMatte:
    """One true matte and all that can be computed from it alone, shared by every model that is scored on it.

    `alpha`: (H, W), [0, 1]; raises ValueError on another rank, an empty or a non-finite matte.
    """

    def __init__(self, alpha: np.ndarray):
        if alpha.ndim != 2 or not alpha.size:
            raise ValueError(f"a matte has shape (H, W), not {alpha.shape}")
        if not np.isfinite(alpha).all():
            raise ValueError("the true matte holds NaN or infinity")
        self.alpha = np.clip(alpha.astype(np.float64), 0.0, 1.0)
        self.mask = _mask(self.alpha)
        self.boundary = _boundary(self.mask)
        self.gradient = _gradient_magnitude(self.alpha)
        self.band = unknown_band(self.alpha)

    def score(self, prediction: np.ndarray) -> dict[str, float | np.ndarray]:
        """All of `PER_IMAGE` for one predicted matte, (H, W), [0, 1]; a non-finite prediction scores NaN throughout.

        Raises ValueError where the sizes differ.
        """
        if prediction.shape != self.alpha.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the true matte {self.alpha.shape}")
        if not np.isfinite(prediction).all():
            return {name: np.full(256, np.nan) if name == "fcurve" else float("nan") for name in PER_IMAGE}
        predicted = np.clip(prediction.astype(np.float64), 0.0, 1.0)
        difference = predicted - self.alpha
        squared = difference * difference
        curve = f_curve(predicted, self.mask)
        return {
            "mse": float(squared.mean()),
            "mse_band": float(squared[self.band].mean()) if self.band.any() else float("nan"),
            "sad": float(np.abs(difference).sum()) / 1000.0,
            "grad": float(((_gradient_magnitude(predicted) - self.gradient) ** 2).sum()) / 1000.0,
            "conn": connectivity_error(predicted, self.alpha),
            "biou": _iou(_boundary(_mask(predicted)), self.boundary),
            "maxf": float(curve.max()),
            "fcurve": curve,
        }


def unknown_band(alpha: np.ndarray) -> np.ndarray:
    """(H, W) bool: within 1 % of the diagonal both some alpha > 0.05 and some alpha < 0.95.

    That is 0.05 < alpha < 0.95 dilated, and the edge of a hard mask, which has no such pixels, too.
    """
    reach = max(1, round(BAND_SHARE * _diagonal(alpha)))
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 2 * reach + 1))
    near_foreground = cv2.dilate((alpha > 0.05).astype(np.uint8), square)
    near_background = cv2.dilate((alpha < 0.95).astype(np.uint8), square)
    return np.minimum(near_foreground, near_background).astype(bool)


def connectivity_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean |phi(prediction) - phi(truth)| over all pixels (Rhemann et al. 2009, section 4); (H, W) float64 in [0, 1].

    The level of a pixel is the highest multiple of 0.1 up to which it stays in the source region: the
    largest 4-connected component of the pixels where both mattes reach that multiple. Thresholds are
    i / 10 in float64, so that 8-bit values such as 153 / 255 = 0.6 fall on the upper side.
    """
    common = np.minimum(prediction, truth)
    top, bottom, left, right = _box(common >= 1 / STEPS)
    inner = np.ascontiguousarray(common[top:bottom, left:right])
    level = np.zeros(common.shape)
    alive = np.ones(inner.shape, bool)
    region, count = alive, -1
    for step in range(1, STEPS + 1):
        both = (inner >= step / STEPS).astype(np.uint8)
        size = int(np.count_nonzero(both))
        if not size:
            break
        if size != count:  # the sets are nested, so an equal count is an equal set
            region, count = _largest_component(both), size
        alive &= region
        if not alive.any():
            break
        level[top:bottom, left:right][alive] = step / STEPS
    return float(np.abs(_phi(prediction, level) - _phi(truth, level)).mean())


def f_curve(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F at the thresholds t = 0 … 255 (prediction rounded to 8 bits >= t): (256,) float64.

    `prediction`: (H, W) in [0, 1]; `truth`: (H, W) bool or uint8 mask. F is 0 where nothing is hit, so an
    empty truth scores 0 whatever is predicted (as in PySODMetrics).
    """
    levels = np.rint(prediction * 255.0).astype(np.uint8)
    joint = np.bincount((levels.astype(np.uint16) + 256 * truth.astype(np.uint16)).ravel(), minlength=512)
    background, foreground = joint[:256], joint[256:]
    hits = np.cumsum(foreground[::-1])[::-1].astype(np.float64)
    taken = hits + np.cumsum(background[::-1])[::-1]
    precision = hits / np.maximum(taken, 1)
    recall = hits / max(1, int(foreground.sum()))
    below = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(below > 0, below, 1.0)


def category_scores(per_image: pd.DataFrame) -> pd.DataFrame:
    """Category × metric from the per-image rows of ONE model.

    Index: the categories present (the seven in their order, then others), then `macro` (mean of the six
    of the gate) and `weighted` (their image-weighted mean, the paper's "mean" row); both only where one
    of the six is present. Columns: METRICS, mse_band, images.
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
    """MaxF of a set of photos from their curves (N, 256): the maximum of the mean curve."""
    return float(curves.astype(np.float64).mean(axis=0).max())


def _mean(values: np.ndarray, weights: np.ndarray | None = None, *, skip_nan: bool) -> float:
    """Weighted mean; NaN where a value is NaN, or, with `skip_nan`, where all are."""
    weights = np.ones(len(values)) if weights is None else weights
    kept = ~np.isnan(values) if skip_nan else np.ones(len(values), bool)
    return float(np.average(values[kept], weights=weights[kept])) if kept.any() else float("nan")


def _diagonal(pixels: np.ndarray) -> float:
    height, width = pixels.shape
    return float(np.sqrt(height**2 + width**2))


def _mask(alpha: np.ndarray) -> np.ndarray:
    return (alpha > 0.5).astype(np.uint8)


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask within d of its contour; the image's border counts as contour.

    d erosions by 3 × 3 are one by (2d + 1) × (2d + 1).
    """
    reach = max(1, round(BOUNDARY_SHARE * _diagonal(mask)))
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 2 * reach + 1))
    return mask - cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,))


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def _gaussian_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Gaussian and its derivative, each of norm 1, cut where the Gaussian falls below 0.01."""
    half = int(np.ceil(SIGMA * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * SIGMA * 1e-2))))
    x = np.arange(-half, half + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * SIGMA**2)) / (SIGMA * np.sqrt(2 * np.pi))
    slope = -x * smooth / SIGMA**2
    return smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)


def _gradient_magnitude(alpha: np.ndarray) -> np.ndarray:
    smooth, slope = _gaussian_kernels()
    across = cv2.sepFilter2D(alpha, cv2.CV_64F, slope, smooth, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(alpha, cv2.CV_64F, smooth, slope, borderType=cv2.BORDER_REPLICATE)
    return cv2.magnitude(across, down)


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Largest 4-connected component of a mask that is not empty, as bool; the first in raster order on a tie."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _phi(alpha: np.ndarray, level: np.ndarray) -> np.ndarray:
    above = alpha - level
    return 1.0 - above * (above >= THETA)
