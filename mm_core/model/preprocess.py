"""Convert a photo to network input and network output to a matte, for every runtime. Uses numpy and cv2 only."""

from __future__ import annotations

import cv2
import numpy as np


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) or (H, W, C): shrinking axes by area averages, growing axes bilinearly, each axis separately."""
    h, w = image.shape[:2]
    # First shrink, then grow: each cv2 call uses one interpolation for both axes.
    smaller = (min(h, height), min(w, width))
    if smaller != (h, w):
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def prepare(rgb: np.ndarray, size: int) -> np.ndarray:
    """Convert uint8 (H, W, 3) sRGB to float32 (3, size, size) in [0, 1]; the aspect ratio is not kept.

    The network itself normalises its input (`model.network.Normalization`).

    Raises:
        ValueError: The photo has another type or shape.
    """
    # A float image or one with an alpha channel would give wrong mattes without an error.
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"a photo must be uint8 of (H,W,3), not {rgb.dtype} of {rgb.shape}")
    square = resize(rgb, size, size).astype(np.float32)
    return np.ascontiguousarray((square / 255.0).transpose(2, 0, 1))


def finish(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the network's alpha (h, w) to the photo's `size` (height, width): float32 in [0, 1]."""
    return np.clip(resize(np.asarray(alpha, np.float32), *size), 0.0, 1.0)
