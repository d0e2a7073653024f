"""Work at reduced size, results at the photo's own: what lets every function of this room take 12 megapixels."""

from __future__ import annotations

import numpy as np

from mm_core.model.preprocess import resize

WORK_SIDE = 1024
"""Long side at which colours, fills and falloffs are estimated; what is sharp is then taken from the photo itself."""


def check_pair(photo: np.ndarray, alpha: np.ndarray) -> None:
    """Raises ValueError unless `photo` is uint8 (H, W, 3) and `alpha` a float matte (H, W) of the same size."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise ValueError(f"a photo must be uint8 of (H, W, 3), not {photo.dtype} of {photo.shape}")
    if alpha.shape != photo.shape[:2] or alpha.dtype.kind != "f":
        raise ValueError(f"the matte must be float of {photo.shape[:2]}, not {alpha.dtype} of {alpha.shape}")


def shrunk(image: np.ndarray, side: int = WORK_SIDE) -> np.ndarray:
    """(H, W[, C]) by area averages at long side `side` at most."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def enlarged(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(h, w[, C]) bilinearly at the size of `like`."""
    return resize(image, *like.shape[:2])
