"""Work at reduced size, results at the photo's own: what lets every function of this room take 12 megapixels.

A network's matte is a few hundred pixels wide. The guided filter (He, Sun & Tang 2013; its fast form, He & Sun 2015,
by kornia) carries it to the photo's pixels: within a window the matte is taken as linear in the photo's colours.
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.model.preprocess import resize

WORK_SIDE = 1024
"""Long side at which colours, fills and falloffs are estimated; what is sharp is then taken from the photo itself."""
EPSILON = 1e-4
"""The guided filter's: photo edges with a variance (of values in [0, 1]) well above it are followed."""


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


def sharpened(photo: np.ndarray, alpha: np.ndarray, network_side: int = 320) -> np.ndarray:
    """A matte that a network of `network_side` pixels gave, drawn to the photo's edges: float32 (H, W) in [0, 1].

    Photo uint8 (H, W, 3), alpha float (H, W) as enlarged from the network. Only the soft band and one network pixel
    around it change; where the photo is no larger than the network, nothing does.
    """
    check_pair(photo, alpha)
    scale = max(photo.shape[:2]) / network_side
    alpha = np.clip(alpha, 0, 1).astype(np.float32)
    if scale <= 1.25:
        return alpha
    reach = max(1, round(scale))
    soft = ((alpha > 0.02) & (alpha < 0.98)).astype(np.uint8)
    soft = cv2.dilate(soft, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    if not soft.any():
        return alpha
    x, y, width, height = cv2.boundingRect(soft)
    margin = 3 * reach
    rows = slice(max(0, y - margin), y + height + margin)
    columns = slice(max(0, x - margin), x + width + margin)
    found = _guided(photo[rows, columns], alpha[rows, columns], 2 * round(1.5 * scale) + 1, max(1, round(scale / 3)))
    result = alpha.copy()
    result[rows, columns] = np.where(soft[rows, columns] > 0, found, alpha[rows, columns])
    return result


def _guided(photo: np.ndarray, alpha: np.ndarray, window: int, subsample: int) -> np.ndarray:
    import torch
    from kornia.filters import guided_blur

    window = min(window, 2 * ((min(alpha.shape) - 1) // 2) - 1)
    if window < 3 or min(alpha.shape) // subsample < 4:
        return alpha
    guide = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))[None].float() / 255
    given = torch.from_numpy(np.ascontiguousarray(alpha))[None, None]
    with torch.inference_mode():
        found = guided_blur(guide, given, window, EPSILON, "replicate", subsample, separable=True).clamp(0, 1)
    return found[0, 0].numpy()
