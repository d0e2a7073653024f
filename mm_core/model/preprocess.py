"""Photo → network input and network output → matte, shared by every runtime. numpy and cv2 only."""

from __future__ import annotations

import cv2
import numpy as np


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes (H,W) or (H,W,C): axes that shrink by area averages, axes that grow bilinearly, each on its own."""
    h, w = image.shape[:2]
    smaller = (min(h, height), min(w, width))
    if smaller != (h, w):
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def prepare(rgb: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H,W,3) sRGB → float32 (3,size,size) in [0,1]; the aspect ratio is not kept.

    The network normalises by itself (`model.network.Normalization`).
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"a photo must be uint8 of (H,W,3), not {rgb.dtype} of {rgb.shape}")
    square = resize(rgb, size, size).astype(np.float32)
    return np.ascontiguousarray((square / 255.0).transpose(2, 0, 1))


def finish(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The network's alpha (h,w) in [0,1] → float32 of the photo's own `size` (height, width), in [0,1]."""
    return np.clip(resize(np.asarray(alpha, np.float32), *size), 0.0, 1.0)
