"""Embed a photo as a vector of colours, layout and edges by classical methods, without a model.

This vector is always available, so drift and guesses do not depend on model weights. If `clip` names pretrained
weights, CLIP's more informative vector (`tags.py`) is used instead.

| part     | numbers | method                                                                                        |
|----------|---------|-----------------------------------------------------------------------------------------------|
| colours  | 36      | histogram of CIELAB a and b, 6 × 6 (as in Swain & Ballard 1991), square roots (Hellinger)     |
| layout   | 54      | lowest DCT coefficients (MPEG-7's colour layout): 6 × 6 of L, 3 × 3 of a and of b             |
| gradients| 72      | histogram of oriented gradients (Dalal & Triggs 2005), 8 bins × 3 × 3 cells, square roots     |
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.structuring.decode import code_version

EXTRACTOR = "embedding"
VERSION = code_version(__name__)

SIDE = 96
"""The photo is resized to a square of this side, so that positions are comparable between photos."""
DIM = 162
BINS, CELLS = 8, 3
"""Directions, and cells per side, of the gradient histogram."""


def embedding(rgb: np.ndarray) -> np.ndarray:
    """Return the vector float32 (DIM,) of a photo (H, W, 3) uint8 sRGB; each part has a norm of at most about 1."""
    square = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(square.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    # Scale L to [0, 1] and a, b to about [-1, 1].
    lab = lab / np.array([100, 128, 128], np.float32)
    return np.concatenate([_colours(lab), _layout(lab), _gradients(lab[..., 0])]).astype(np.float32)


def _colours(lab: np.ndarray, bins: int = 6) -> np.ndarray:
    """Return the square roots of the colour histogram (bins²,)."""
    # Most colours are within a quarter of the range around grey; the square root spreads them over the bins.
    spread = np.sign(lab[..., 1:]) * np.sqrt(np.abs(lab[..., 1:]))
    cells = np.clip(((spread + 1) / 2 * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount((cells[..., 0] * bins + cells[..., 1]).ravel(), minlength=bins**2)
    return np.sqrt(counts / counts.sum())


def _layout(lab: np.ndarray) -> np.ndarray:
    """Return the lowest DCT coefficients of the three channels."""
    parts = []
    for channel, count in ((0, 6), (1, 3), (2, 3)):
        # cv2.dct is orthonormal; dividing by the side makes coefficients independent of the square's size.
        parts.append(cv2.dct(np.ascontiguousarray(lab[..., channel]))[:count, :count].ravel() / SIDE)
    return np.concatenate(parts)


def _gradients(lightness: np.ndarray) -> np.ndarray:
    """Return the square roots of the gradient histogram (CELLS² · BINS,)."""
    dx = cv2.Sobel(lightness, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(lightness, cv2.CV_32F, 0, 1, ksize=3)
    strength = np.hypot(dx, dy)
    # Centre the bins on the axes: upright edges are the most frequent, and noise must not move them between bins.
    # Opposite directions share a bin.
    turn = np.floor(np.arctan2(dy, dx) / np.pi * BINS + 0.5).astype(np.int64) % BINS
    # Each pixel adds its gradient's magnitude to the bin of its cell and direction.
    side = SIDE // CELLS
    place = np.arange(SIDE) // side
    index = (place[:, None] * CELLS + place[None, :]) * BINS + turn
    mass = np.bincount(index.ravel(), weights=strength.ravel(), minlength=CELLS * CELLS * BINS)
    return np.sqrt(mass / max(float(mass.sum()), 1e-6))
