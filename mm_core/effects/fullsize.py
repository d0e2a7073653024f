"""Estimate at reduced size, apply at full size: helpers that let every effect process 12 megapixels."""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.model.preprocess import resize

WORK_SIDE = 1024
"""Long side for estimates of colours, fills and falloffs; sharp detail is then taken from the photo itself."""
SMOOTH_SIDE = 160
"""Long side for a smooth fill, which has no detail."""
ROUNDS = 200
"""Iterations of averaging in a smooth fill."""


def check_pair(photo: np.ndarray, alpha: np.ndarray) -> None:
    """Raise ValueError unless `photo` is uint8 (H, W, 3) and `alpha` a float matte (H, W) of the same size."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise ValueError(f"a photo must be uint8 of (H, W, 3), not {photo.dtype} of {photo.shape}")
    if alpha.shape != photo.shape[:2] or alpha.dtype.kind != "f":
        raise ValueError(f"the matte must be float of {photo.shape[:2]}, not {alpha.dtype} of {alpha.shape}")


def shrunk(image: np.ndarray, side: int = WORK_SIDE) -> np.ndarray:
    """Reduce (H, W[, C]) by area means to a long side of `side` at most; a smaller picture is unchanged."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def enlarged(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Resize (h, w[, C]) bilinearly to the size of `like`."""
    return resize(image, *like.shape[:2])


def touched(mask: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Resize a mask, uint8 (H, W), to the size of `small`: 1 if any source pixel of the target pixel is set."""
    return (resize(mask.astype(np.float32), *small.shape[:2]) > 0).astype(np.uint8)


def harmonic(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill a hole of a photo smoothly; no filled pixel is brighter, darker or of another colour than the rim.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4) gives the start. Repeated means of neighbours bring it
    close to the solution of Laplace's equation, at small size. The biharmonic solution overshoots in large holes.

    Args:
        photo: uint8 (H, W, 3).
        hole: uint8 (H, W) of 0 and 1.

    Returns:
        uint8 (H, W, 3); the photo itself if all of it is hole.
    """
    small = shrunk(photo, SMOOTH_SIDE).astype(np.float32)
    # Area means mix the hole's colours into neighbours, so all touched pixels are unknown.
    unknown = touched(hole, small) > 0
    if unknown.all():
        return photo.copy()
    smooth = _pulled(small, (~unknown).astype(np.float32))
    for _ in range(ROUNDS):
        # Known pixels are reset in each iteration: they are the boundary condition.
        smooth = np.where(unknown[..., None], cv2.blur(smooth, (3, 3), borderType=cv2.BORDER_REPLICATE), small)
    filled = enlarged(np.rint(smooth).astype(np.uint8), photo)
    return np.where(hole[..., None] > 0, filled, photo)


def _pulled(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fill pixels of `weight` 0 with the mean of known pixels at the finest halved size that has any there."""
    height, width = weight.shape
    if weight.all() or min(height, width) == 1:
        return picture
    half = max(1, width // 2), max(1, height // 2)
    mass = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(picture * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = _pulled(sums / np.maximum(mass, 1e-6)[..., None], (mass > 0).astype(np.float32))
    below = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(weight[..., None] > 0, picture, below)
