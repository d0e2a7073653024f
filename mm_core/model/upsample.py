"""From the network's matte to one at the photo's own size, along the photo's own edges.

Fast guided filter (He and Sun 2015, "Fast Guided Filter"; colour guide as in He, Sun and Tang 2013, eq. 19): within a
small window the matte is taken as a linear function of colour, found at the network's size and applied at the photo's.
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.model.preprocess import finish, resize

RADIUS, EPSILON = 1, 1e-4
"""Windows of 3 × 3 pixels of the network: larger ones lose on real photos (benchmarks/upsample.md); and how much a
window's colours must differ (squared, of 1) to be trusted."""
STRIP = 512
"""Rows worked on at once, so that 12 megapixels never stand in memory as floats more often than need be."""
BAND = 3
"""Pixels of the network around the soft edge in which the photo is asked; elsewhere the matte stays as it is."""


def guided_upsample(alpha: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """alpha float (h, w) in [0, 1], photo uint8 (H, W, 3) → float32 (H, W) in [0, 1].

    A photo that is not larger than the matte gives the plain resize (`finish`).
    """
    height, width = photo.shape[:2]
    plain = finish(alpha, (height, width))
    if height * width <= alpha.size:
        return plain
    guide, small = resize(photo, *alpha.shape).astype(np.float32) / 255, alpha.astype(np.float32)
    slope, offset = _linear(guide, small)
    slope, offset, share = (resize(part, height, width) for part in (slope, offset, _band(small)))
    for top in range(0, height, STRIP):
        rows = slice(top, top + STRIP)
        colours = photo[rows].astype(np.float32) / 255
        along = np.clip(np.einsum("hwc,hwc->hw", slope[rows], colours) + offset[rows], 0, 1)
        plain[rows] += share[rows] * (along - plain[rows])
    return plain


def _linear(guide: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The linear function of each pixel's windows: (h, w, 3) and (h, w), float32."""
    mean_guide, mean_alpha = _mean(guide), _mean(alpha)
    products = guide[..., :, None] * guide[..., None, :]
    spread = _mean(products.reshape(*alpha.shape, 9)).reshape(products.shape)
    spread = spread - mean_guide[..., :, None] * mean_guide[..., None, :] + EPSILON * np.eye(3, dtype=np.float32)
    shared = _mean(guide * alpha[..., None]) - mean_guide * mean_alpha[..., None]
    slope = np.linalg.solve(spread, shared[..., None])[..., 0]
    offset = mean_alpha - (slope * mean_guide).sum(-1)
    return _mean(slope), _mean(offset)


def _mean(values: np.ndarray) -> np.ndarray:
    side = 2 * RADIUS + 1
    return cv2.boxFilter(np.ascontiguousarray(values), -1, (side, side), borderType=cv2.BORDER_REFLECT)


def _band(alpha: np.ndarray) -> np.ndarray:
    """float32 (h, w): 1 around soft pixels and hard edges, falling to 0 over `BAND` pixels."""
    square = np.ones((3, 3), np.uint8)
    edge = (cv2.dilate(alpha, square) - cv2.erode(alpha, square) > 0.1).astype(np.float32)
    reach = 2 * BAND + 1
    return cv2.blur(cv2.dilate(edge, np.ones((reach, reach), np.uint8)), (reach, reach))
