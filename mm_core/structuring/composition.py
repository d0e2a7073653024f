"""How a photo is laid out: where what draws the eye lies in the frame.

Saliency by the spectral residual (Hou & Zhang 2007, "Saliency detection: a spectral residual approach"): what a photo's
spectrum has beyond its own smooth trend. The measures follow Liu et al. 2010, "Optimizing photo composition".
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 64
"""Long side at which saliency is measured, as in the paper: finer detail is texture, not composition."""
THIRDS_SIGMA, BALANCE_SIGMA = 0.17, 0.2
"""Liu et al.'s: distances, in units of the frame's sides, at which a score falls to 0.61."""


def composition(rgb: np.ndarray) -> dict[str, float]:
    """Measures of a photo (H, W, 3) uint8, all in [0, 1].

    `thirds`: how near the salient mass lies to the nearest crossing of the thirds; `balance`: how near to the middle;
    `simplicity`: the share of saliency that the most salient quarter of the frame holds, from 0 (even) to 1 (all).
    A photo without contrast has balance 1, simplicity 0.
    """
    map_ = saliency(rgb)
    height, width = map_.shape
    if not map_.any():
        map_ = np.ones_like(map_)
    # Only what stands out has a place: the even rest would pull every centre to the middle of the frame.
    peaks = np.clip(map_ - np.quantile(map_, 0.75), 0, None)
    peaks = peaks if peaks.any() else map_
    x = float(peaks.sum(0) @ (np.arange(width) + 0.5)) / float(peaks.sum()) / width
    y = float(peaks.sum(1) @ (np.arange(height) + 0.5)) / float(peaks.sum()) / height
    to_third = np.hypot(min(abs(x - 1 / 3), abs(x - 2 / 3)), min(abs(y - 1 / 3), abs(y - 2 / 3)))
    to_middle = np.hypot(x - 0.5, y - 0.5)
    quarter = max(1, map_.size // 4)
    held = float(np.sort(map_, axis=None)[-quarter:].sum()) / float(map_.sum())
    even = quarter / map_.size
    return {
        "thirds": float(np.exp(-(to_third**2) / (2 * THIRDS_SIGMA**2))),
        "balance": float(np.exp(-(to_middle**2) / (2 * BALANCE_SIGMA**2))),
        "simplicity": float(np.clip((held - even) / (1 - even), 0, 1)) if even < 1 else 0.0,
    }


def saliency(rgb: np.ndarray) -> np.ndarray:
    """float32 (h, w) >= 0 at long side `SIDE` at most; all zero for a photo without contrast."""
    height, width = rgb.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    grey = cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    if np.ptp(grey) == 0:
        return np.zeros(grey.shape, np.float32)
    # Without its mean, and windowed: the spectrum would else show the jump from one border to the opposite one.
    window = np.outer(np.hanning(size[1] + 2)[1:-1], np.hanning(size[0] + 2)[1:-1]) ** 0.25
    spectrum = np.fft.fft2((grey - grey.mean()) * window)
    log_amplitude = np.log(np.abs(spectrum) + 1e-6).astype(np.float32)
    residual = log_amplitude - cv2.blur(log_amplitude, (3, 3), borderType=cv2.BORDER_REPLICATE)
    found = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return cv2.GaussianBlur(found.astype(np.float32), (0, 0), 2.5)
