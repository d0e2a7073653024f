"""A photo as a vector without any model: colours, layout and edges, from the classical toolbox.

There is always one, so that drift and guesses never wait for weights. Where `clip` names pretrained weights, CLIP's
vector (`tags.py`) says more and is used instead.

| part     | numbers | what                                                                                        |
|----------|---------|---------------------------------------------------------------------------------------------|
| colours  | 36      | histogram of CIELAB a and b, 6 x 6 (as in Swain & Ballard 1991), square roots (Hellinger)      |
| layout   | 54      | lowest DCT coefficients (MPEG-7's colour layout): 6 x 6 of L, 3 x 3 of a and of b            |
| gradients| 72      | histogram of oriented gradients (Dalal & Triggs 2005), 8 bins x 3 x 3 cells, square roots     |
"""

from __future__ import annotations

import cv2
import numpy as np

EXTRACTOR = "embedding"
VERSION = "1"
"""Rises whenever a number below may come out differently; older rows are then computed again."""

SIDE = 96
"""The photo is squeezed into a square of this side, so that place means the same in every photo."""
DIM = 162


def embedding(rgb: np.ndarray) -> np.ndarray:
    """float32 (DIM,) of a photo (H, W, 3) uint8 sRGB. Each part has a Euclidean norm of at most about 1."""
    square = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(square.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = lab / np.array([100, 128, 128], np.float32)
    return np.concatenate([_colours(lab), _layout(lab), _gradients(lab[..., 0])]).astype(np.float32)


def _colours(lab: np.ndarray, bins: int = 6) -> np.ndarray:
    # Most colours lie within a quarter of the range around grey: the square root spreads them over the bins.
    spread = np.sign(lab[..., 1:]) * np.sqrt(np.abs(lab[..., 1:]))
    cells = np.clip(((spread + 1) / 2 * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount((cells[..., 0] * bins + cells[..., 1]).ravel(), minlength=bins**2)
    return np.sqrt(counts / counts.sum())


def _layout(lab: np.ndarray) -> np.ndarray:
    parts = []
    for channel, count in ((0, 6), (1, 3), (2, 3)):
        # cv2.dct is orthonormal: divided by the side, a coefficient does not grow with the square's size.
        parts.append(cv2.dct(np.ascontiguousarray(lab[..., channel]))[:count, :count].ravel() / SIDE)
    return np.concatenate(parts)


def _gradients(lightness: np.ndarray, bins: int = 8, cells: int = 3) -> np.ndarray:
    dx = cv2.Sobel(lightness, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(lightness, cv2.CV_32F, 0, 1, ksize=3)
    strength = np.hypot(dx, dy)
    # Bins lie around the axes, not beside them: upright edges are the commonest, and noise would move them to and fro.
    turn = np.floor(np.arctan2(dy, dx) / np.pi * bins + 0.5).astype(np.int64) % bins
    side = SIDE // cells
    place = np.arange(SIDE) // side
    index = (place[:, None] * cells + place[None, :]) * bins + turn
    mass = np.bincount(index.ravel(), weights=strength.ravel(), minlength=cells * cells * bins)
    return np.sqrt(mass / max(float(mass.sum()), 1e-6))
