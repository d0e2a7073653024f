"""Measure the haze in a photo by the dark channel prior (He, Sun & Tang 2009, "Single image haze removal").

In nearly every haze-free patch of land, some channel of some pixel is dark. Haze brightens it: I = J t + A (1 - t).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mm_core.effects.fullsize import shrunk

SIDE, PATCH, KEPT = 400, 15, 0.95
"""Picture size, patch size and omega of the paper."""
HAZY, FOGGY = 0.35, 0.6
"""Least haze for the words hazy and foggy; set on generated photos with known haze (tests/effects/test_sky.py)."""


@dataclass(frozen=True)
class Haze:
    """The haze over the land, which is everything except sky."""

    share: float
    """Mean 1 - t over the land, in [0, 1]."""
    light: tuple[float, float, float]
    """The airlight A, sRGB in 0..255."""

    @property
    def word(self) -> str:
        """`foggy`, `hazy` or `clear`."""
        return "foggy" if self.share >= FOGGY else "hazy" if self.share >= HAZY else "clear"


def haze(photo: np.ndarray, sky: np.ndarray) -> Haze:
    """Measure the haze over the land.

    Snow and white walls count as haze, as the paper states.

    Args:
        photo: uint8 (H, W, 3).
        sky: Sky matte, float (H, W) in [0, 1].

    Returns:
        The haze; share 0 for a photo without land.
    """
    small = shrunk(photo, SIDE).astype(np.float32) / 255
    land = shrunk(sky.astype(np.float32), SIDE) < 0.05
    kernel = np.ones((PATCH, PATCH), np.uint8)
    dark = cv2.erode(small.min(2), kernel)
    # Airlight: the brightest of the 0.1 % haziest pixels.
    haziest = np.argsort(dark, axis=None)[-max(1, dark.size // 1000) :]
    candidates = small.reshape(-1, 3)[haziest]
    light = candidates[np.argmax(candidates.sum(1))]
    # Patches that reach into the sky do not describe the land.
    land = cv2.erode(land.astype(np.uint8), kernel) > 0
    if land.sum() < 0.01 * land.size:
        return Haze(0.0, _bytes(light))
    # Equation for the transmission of the paper, with the airlight per channel.
    transmission = 1 - KEPT * cv2.erode((small / np.maximum(light, 0.05)).min(2), kernel)
    return Haze(float(np.clip(1 - transmission[land].mean(), 0, 1)), _bytes(light))


def _bytes(light: np.ndarray) -> tuple[float, float, float]:
    return float(light[0] * 255), float(light[1] * 255), float(light[2] * 255)
