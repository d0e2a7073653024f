"""How unlike two pictures look within a mask, by measures that need no trained weights (LPIPS's are not at hand).

`texture_and_structure` is DISTS (Ding, Ma, Wang & Simoncelli 2020, "Image quality assessment: unifying structure and
texture similarity", equations 5 to 7) on a fixed bank of filters in place of VGG's: CIELAB and Gabor filters of four
directions and two wavelengths at three scales. `gradients` is the gradient magnitude similarity of Xue et al. 2014
("Gradient magnitude similarity deviation", equation 4) with its constant, as a mean distance.
"""

from __future__ import annotations

import cv2
import numpy as np

WAVELENGTHS, DIRECTIONS, SCALES = (4, 8), 4, 3
STABLE = 0.25
"""Keeps the ratios of features that are nearly nothing near 1; lightness goes from 0 to 100."""
GRADIENT = 170.0


def _bank() -> list[np.ndarray]:
    kernels = []
    for length in WAVELENGTHS:
        for step in range(DIRECTIONS):
            side, angle = 2 * length + 1, np.pi * step / DIRECTIONS
            kernel = cv2.getGaborKernel((side, side), 0.4 * length, angle, length, 1.0, 0)
            kernel -= kernel.mean()
            kernels.append(kernel / np.abs(kernel).sum())
    return kernels


BANK = _bank()


def _features(photo: np.ndarray) -> list[np.ndarray]:
    lab = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    found = []
    for _ in range(SCALES):
        found += [lab[..., channel] for channel in range(3)]
        found += [np.abs(cv2.filter2D(lab[..., 0], -1, kernel)) for kernel in BANK]
        lab = cv2.resize(lab, (lab.shape[1] // 2, lab.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return found


def texture_and_structure(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Two distances, 0 for the same picture, of photos uint8 (H, W, 3) within a mask bool (H, W): of texture (means of
    features) alone, and of texture and structure (their correlation) in equal parts."""
    textures, structures = [], []
    for x, y in zip(_features(a), _features(b), strict=True):
        inside = cv2.resize(where.astype(np.float32), x.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
        p, q = x[inside].astype(np.float64), y[inside].astype(np.float64)
        textures.append((2 * p.mean() * q.mean() + STABLE) / (p.mean() ** 2 + q.mean() ** 2 + STABLE))
        shared = ((p - p.mean()) * (q - q.mean())).mean()
        structures.append((2 * shared + STABLE) / (p.var() + q.var() + STABLE))
    texture, structure = 1 - np.mean(textures), 1 - np.mean(structures)
    return float(texture), float((texture + structure) / 2)


def gradients(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """1 - mean gradient magnitude similarity of photos uint8 (H, W, 3), at half size, within a mask bool (H, W)."""
    strengths = []
    for photo in (a, b):
        grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
        half = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
        kernel = np.repeat(np.array([[1, 0, -1]], np.float32) / 3, 3, 0)
        strengths.append(np.hypot(cv2.filter2D(half, -1, kernel), cv2.filter2D(half, -1, kernel.T)))
    p, q = strengths
    alike = (2 * p * q + GRADIENT) / (p**2 + q**2 + GRADIENT)
    inside = cv2.resize(where.astype(np.float32), p.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
    return float(1 - alike[inside].mean())
