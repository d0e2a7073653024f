"""Measure the composition of a photo: the positions of its salient parts in the frame.

Saliency is the spectral residual (Hou & Zhang 2007, "Saliency detection: a spectral residual approach"): the part of
the log spectrum that deviates from its smooth trend. The measures follow Liu et al. 2010, "Optimizing photo
composition".
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 64
"""Long side at which saliency is measured, as in the paper; finer detail is texture and not composition."""
THIRDS_SIGMA, BALANCE_SIGMA = 0.17, 0.2
"""Distances of Liu et al., in units of the frame's sides, at which a score falls to 0.61."""


def composition(rgb: np.ndarray) -> dict[str, float]:
    """Return measures of a photo (H, W, 3) uint8, all in [0, 1].

    Returns:
        `thirds`: nearness of the salient mass to the nearest crossing of the thirds; `balance`: nearness to the middle;
        `simplicity`: share of saliency in the most salient quarter of the frame, scaled from 0 (even) to 1 (all of
        it). A photo without contrast has balance 1 and simplicity 0.
    """
    map_ = saliency(rgb)
    height, width = map_.shape
    if not map_.any():
        # Without contrast every position is equally salient.
        map_ = np.ones_like(map_)
    # Use the salient peaks only: the even rest would move every centre to the middle of the frame.
    peaks = np.clip(map_ - np.quantile(map_, 0.75), 0, None)
    peaks = peaks if peaks.any() else map_
    # Centre of mass, relative to the frame.
    x = float(peaks.sum(0) @ (np.arange(width) + 0.5)) / float(peaks.sum()) / width
    y = float(peaks.sum(1) @ (np.arange(height) + 0.5)) / float(peaks.sum()) / height
    to_third = np.hypot(min(abs(x - 1 / 3), abs(x - 2 / 3)), min(abs(y - 1 / 3), abs(y - 2 / 3)))
    to_middle = np.hypot(x - 0.5, y - 0.5)
    quarter = max(1, map_.size // 4)
    salient = float(np.sort(map_, axis=None)[-quarter:].sum()) / float(map_.sum())
    # The share that an even map would have.
    even = quarter / map_.size
    return {
        "thirds": float(np.exp(-(to_third**2) / (2 * THIRDS_SIGMA**2))),
        "balance": float(np.exp(-(to_middle**2) / (2 * BALANCE_SIGMA**2))),
        "simplicity": float(np.clip((salient - even) / (1 - even), 0, 1)) if even < 1 else 0.0,
    }


def saliency(rgb: np.ndarray) -> np.ndarray:
    """Return saliency float32 (h, w) >= 0 at long side at most `SIDE`; all zero for a photo without contrast."""
    height, width = rgb.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    grey = cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    if np.ptp(grey) == 0:
        return np.zeros(grey.shape, np.float32)
    # Remove the mean and apply a window: otherwise the spectrum shows the jump between opposite borders.
    window = np.outer(np.hanning(size[1] + 2)[1:-1], np.hanning(size[0] + 2)[1:-1]) ** 0.25
    spectrum = np.fft.fft2((grey - grey.mean()) * window)
    log_amplitude = np.log(np.abs(spectrum) + 1e-6).astype(np.float32)
    # The residual is the log amplitude minus its local mean.
    residual = log_amplitude - cv2.blur(log_amplitude, (3, 3), borderType=cv2.BORDER_REPLICATE)
    # Back-transform the residual with the original phase.
    response = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return cv2.GaussianBlur(response.astype(np.float32), (0, 0), 2.5)
