"""Work at reduced size, results at the photo's own: what lets every function of this room take 12 megapixels."""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.model.preprocess import resize

WORK_SIDE = 1024
"""Long side at which colours, fills and falloffs are estimated; what is sharp is then taken from the photo itself."""
SMOOTH_SIDE = 160
"""Long side at which a smooth fill is computed: it has no detail."""
ROUNDS = 200
"""Means of neighbours that a smooth fill goes through."""


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


def touched(mask: np.ndarray, small: np.ndarray) -> np.ndarray:
    """A mask uint8 (H, W) at the size of `small`: 1 where any of its pixels lies."""
    return (resize(mask.astype(np.float32), *small.shape[:2]) > 0).astype(np.uint8)


def harmonic(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A photo uint8 (H, W, 3) whose hole uint8 (H, W) is filled smoothly: never brighter, darker or of another colour
    than its rim. A photo that is all hole is returned as it is.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4) begins, means of neighbours bring it near the solution
    of Laplace's equation, at small size. The biharmonic one overshoots in holes as large as a subject.
    """
    small = shrunk(photo, SMOOTH_SIDE).astype(np.float32)
    # Area means mix the hole's colours in; what it touches is unknown too.
    unknown = touched(hole, small) > 0
    if unknown.all():
        return photo.copy()
    found = _pulled(small, (~unknown).astype(np.float32))
    for _ in range(ROUNDS):
        found = np.where(unknown[..., None], cv2.blur(found, (3, 3), borderType=cv2.BORDER_REPLICATE), small)
    filled = enlarged(np.rint(found).astype(np.uint8), photo)
    return np.where(hole[..., None] > 0, filled, photo)


def _pulled(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Where `weight` is 0, the mean of what is known at the finest halved size that knows something there."""
    height, width = weight.shape
    if weight.all() or min(height, width) == 1:
        return picture
    half = max(1, width // 2), max(1, height // 2)
    mass = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(picture * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = _pulled(sums / np.maximum(mass, 1e-6)[..., None], (mass > 0).astype(np.float32))
    below = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(weight[..., None] > 0, picture, below)
