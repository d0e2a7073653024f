"""Enlarge the network's matte to the photo's size along the photo's edges.

The method is the fast guided filter (He and Sun 2015, "Fast Guided Filter"; colour guide as in He, Sun and Tang 2013,
eq. 19). Within a small window the matte is modelled as a linear function of colour. The function is fitted at the
network's size and applied at the photo's size.
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.model.preprocess import finish, resize

RADIUS, EPSILON = 1, 1e-4
"""Windows of 3×3 pixels at the network's size (larger ones are worse on real photos, benchmarks/upsample.md), and the
regularisation: colour variance within a window, in squared units of [0, 1], below which colour is not trusted."""
STRIP = 512
"""Rows processed at a time, which limits the memory for float copies of a 12-megapixel photo."""
BAND = 3
"""Width in pixels of the network around the soft edge in which the filter is applied; the rest is resized plainly."""


def guided_upsample(alpha: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Enlarge a matte to the photo's size; return float32 (H, W) in [0, 1].

    A photo that is not larger than the matte gets the plain resize (`finish`).

    Args:
        alpha: Float (h, w) in [0, 1].
        photo: uint8 (H, W, 3).
    """
    height, width = photo.shape[:2]
    plain = finish(alpha, (height, width))
    if height * width <= alpha.size:
        return plain
    # Fit at the small size, then enlarge the coefficients.
    guide, small = resize(photo, *alpha.shape).astype(np.float32) / 255, alpha.astype(np.float32)
    slope, offset = _linear(guide, small)
    slope, offset, share = (resize(values, height, width) for values in (slope, offset, _band(small)))
    # Apply the function to the full-size photo, strip by strip.
    for top in range(0, height, STRIP):
        rows = slice(top, top + STRIP)
        colours = photo[rows].astype(np.float32) / 255
        along = np.clip(np.einsum("hwc,hwc->hw", slope[rows], colours) + offset[rows], 0, 1)
        # Blend: the filter within the band, the plain resize elsewhere.
        plain[rows] += share[rows] * (along - plain[rows])
    return plain


def _linear(guide: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope (h, w, 3) and offset (h, w) of the linear functions, averaged over each pixel's windows, float32."""
    mean_guide, mean_alpha = _mean(guide), _mean(alpha)
    # Covariance matrix of the colours in each window, regularised by EPSILON.
    products = guide[..., :, None] * guide[..., None, :]
    spread = _mean(products.reshape(*alpha.shape, 9)).reshape(products.shape)
    spread = spread - mean_guide[..., :, None] * mean_guide[..., None, :] + EPSILON * np.eye(3, dtype=np.float32)
    # Covariance of colour and alpha; the slope solves the 3×3 system of each window.
    shared = _mean(guide * alpha[..., None]) - mean_guide * mean_alpha[..., None]
    slope = np.linalg.solve(spread, shared[..., None])[..., 0]
    offset = mean_alpha - (slope * mean_guide).sum(-1)
    return _mean(slope), _mean(offset)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the window of each pixel."""
    side = 2 * RADIUS + 1
    return cv2.boxFilter(np.ascontiguousarray(values), -1, (side, side), borderType=cv2.BORDER_REFLECT)


def _band(alpha: np.ndarray) -> np.ndarray:
    """Return float32 (h, w): 1 around soft pixels and hard edges, decreasing to 0 over `BAND` pixels."""
    square = np.ones((3, 3), np.uint8)
    # A pixel is near the edge if alpha varies in its 3×3 neighbourhood.
    edge = (cv2.dilate(alpha, square) - cv2.erode(alpha, square) > 0.1).astype(np.float32)
    reach = 2 * BAND + 1
    return cv2.blur(cv2.dilate(edge, np.ones((reach, reach), np.uint8)), (reach, reach))
