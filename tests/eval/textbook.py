"""Matte metrics as the papers define them, written for reading: oracle and peer of `mm_core.eval.metrics`.

Everything in float64; prediction and truth (H, W) in [0, 1].
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage import measure, morphology


def textbook_connectivity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Rhemann et al. 2009 word by word, in float64."""
    prediction, truth = prediction.astype(np.float64), truth.astype(np.float64)
    level, fallen = np.ones_like(truth), np.zeros(truth.shape, bool)
    for i in range(1, 11):
        labels = measure.label((prediction >= i / 10) & (truth >= i / 10), connectivity=1)
        sizes = np.bincount(labels.ravel())[1:]
        omega = labels == sizes.argmax() + 1 if len(sizes) else np.zeros(truth.shape, bool)
        level[~omega & ~fallen] = (i - 1) / 10
        fallen |= ~omega
    phi = [1 - np.where(a - level >= 0.15, a - level, 0) for a in (prediction, truth)]
    return float(np.abs(phi[0] - phi[1]).sum() / truth.size)


def textbook_gradient(prediction: np.ndarray, truth: np.ndarray) -> float:
    sigma = 1.4
    half = int(np.ceil(sigma * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * sigma * 0.01))))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    kernel = -x * np.exp(-(x**2 + y**2) / (2 * sigma**2))
    kernel /= np.sqrt((kernel**2).sum())

    def magnitude(a: np.ndarray) -> np.ndarray:
        a = a.astype(np.float64)
        return np.hypot(ndimage.convolve(a, kernel, mode="nearest"), ndimage.convolve(a, kernel.T, mode="nearest"))

    return float(((magnitude(prediction) - magnitude(truth)) ** 2).sum() / 1000)


def textbook_boundary_iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    reach = max(1, round(0.02 * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))

    def boundary(alpha: np.ndarray) -> np.ndarray:
        mask = np.pad(alpha > 0.5, 1)
        eroded = mask
        for _ in range(reach):
            eroded = morphology.erosion(eroded, np.ones((3, 3), bool))
            eroded[[0, -1], :] = eroded[:, [0, -1]] = False
        return (mask & ~eroded)[1:-1, 1:-1]

    one, other = boundary(prediction), boundary(truth)
    return float((one & other).sum() / (one | other).sum()) if (one | other).any() else 1.0
