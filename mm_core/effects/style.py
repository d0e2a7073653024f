"""Stylise and colourise the background; the subject stays unchanged.

Colours are transferred by the closed form of optimal transport between Gaussians (Pitié & Kokaram 2007, "The linear
Monge-Kantorovitch linear colour mapping"): whitening and colouring with the least movement of colours. Local contrast
follows by the gain of each band of a difference-of-Gaussians pyramid (two-scale transfer of Bae et al. 2006).
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.core.errors import InputError
from mm_core.effects.foreground import layers, over, strips
from mm_core.effects.fullsize import WORK_SIDE, enlarged, shrunk

STYLES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], float]] = {
    "film": ((52, 4, 14), (24, 7, 10), 0.9),
    "dusk": ((34, 10, -14), (20, 10, 16), 0.8),
    "mint": ((66, -14, 4), (18, 7, 8), 0.8),
    "golden": ((60, 10, 34), (22, 8, 12), 0.9),
    "noir": ((38, 0, 0), (30, 0.5, 0.5), 1.2),
}
"""Name → mean and standard deviation in CIELAB, and the gain of local contrast."""
GAINS = (0.3, 1.8)
"""Least and largest scaling of colours along any direction; larger ones amplify noise and banding."""
LEVELS = 4
"""Number of blurred layers that are interpolated by depth."""
BLUR = 0.025
"""Largest radius of the disc, as a share of the long side."""


def colour_splash(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Keep the subject in colour and turn the rest grey. Photo uint8 (H, W, 3), matte float (H, W) in [0, 1]."""
    front, back = layers(photo, alpha)
    grey = cv2.cvtColor(back, cv2.COLOR_RGB2GRAY)
    return over(front, alpha, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


def background_blur(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blur the background like a lens with a large aperture, more for greater depth.

    Depth is estimated from the frame: the ground rises from the subject's foot, and pixels above it are farther back.
    The blur is a disc in linear light; the subject does not bleed into it.

    Args:
        photo: uint8 (H, W, 3).
        alpha: Matte, float (H, W) in [0, 1]; without a subject everything is background.

    Returns:
        uint8 (H, W, 3).
    """
    front, _ = layers(photo, alpha)
    small, matte = shrunk(photo), np.clip(shrunk(alpha.astype(np.float32)), 0, 1)
    light = (small.astype(np.float32) / 255) ** 2.2
    # Background pixels only; the dilation excludes the soft edge.
    free = 1 - cv2.dilate(matte, np.ones((3, 3), np.uint8))
    largest = max(1.0, BLUR * max(small.shape[:2]))
    blurred = [_disc_blur(light, free, largest * (level + 1) / LEVELS) for level in range(LEVELS)]
    depth = _depth(matte) * LEVELS
    result = np.empty_like(photo)
    full = [enlarged(layer, photo) for layer in blurred]
    depth = enlarged(depth, photo)
    for strip in strips(photo):
        a = np.clip(alpha[strip, :, None], 0, 1).astype(np.float32)
        d = depth[strip, :, None]
        # Piecewise linear interpolation between the sharp layer and the levels 1 to LEVELS.
        back = photo[strip] * np.clip(1 - d, 0, 1)
        for level, layer in enumerate(full, start=1):
            back = back + layer[strip] * np.clip(1 - np.abs(d - level), 0, 1)
        result[strip] = np.rint(np.clip(a * front[strip] + (1 - a) * back, 0, 255))
    return result


def stylised(photo: np.ndarray, alpha: np.ndarray, style: np.ndarray | str) -> np.ndarray:
    """Give the background the colours and local contrast of a style.

    Args:
        photo: uint8 (H, W, 3).
        alpha: Matte, float (H, W) in [0, 1].
        style: Another photo, uint8 (h, w, 3), or a name of `STYLES`.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: The name is unknown.
    """
    if isinstance(style, str) and style not in STYLES:
        raise InputError(f"style {style!r}: one of {', '.join(STYLES)}, or a photo")
    front, back = layers(photo, alpha)
    # Statistics of the background only.
    weight = 1 - np.clip(shrunk(alpha.astype(np.float32)), 0, 1)
    background = _lab(shrunk(back))
    mean, spread = _statistics(background, weight)
    if isinstance(style, str):
        goal_mean, deviations, gain = STYLES[style]
        goal_mean, goal_spread = np.array(goal_mean, np.float64), np.diag(np.array(deviations, np.float64) ** 2)
    else:
        example = _lab(shrunk(style))
        everywhere = np.ones(example.shape[:2], np.float32)
        goal_mean, goal_spread = _statistics(example, everywhere)
        # Gain of the detail relative to the change of the colours' spread.
        wanted = _detail(example, everywhere) / max(float(np.sqrt(goal_spread[0, 0])), 1.0)
        had = _detail(background, weight) / max(float(np.sqrt(spread[0, 0])), 1.0)
        gain = float(np.clip(wanted / max(had, 1e-3), 0.6, 1.6))
    linear = _within(transport(spread, goal_spread), *GAINS).astype(np.float32)
    sigma = 0.01 * max(photo.shape[:2])
    smooth = enlarged(
        cv2.GaussianBlur(background[..., 0], (0, 0), sigma * WORK_SIDE / max(WORK_SIDE, *photo.shape[:2])), photo
    )
    moved = np.empty_like(photo)
    for strip in strips(photo):
        lab = _lab(back[strip])
        new = (lab - mean.astype(np.float32)) @ linear.T + goal_mean.astype(np.float32)
        # Lightness detail is scaled in addition to the linear map.
        new[..., 0] += (gain - 1) * linear[0, 0] * (lab[..., 0] - smooth[strip])
        new[..., 0] = np.clip(new[..., 0], 0, 100)
        moved[strip] = np.rint(np.clip(cv2.cvtColor(new, cv2.COLOR_LAB2RGB) * 255, 0, 255))
    return over(front, alpha, moved)


def transport(source: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the symmetric map T (3, 3) with T source T = goal that moves Gaussian colours least."""
    # The small constant keeps the covariance of a one-coloured picture invertible.
    half = _root(source + 1e-3 * np.eye(len(source)))
    inverse = np.linalg.inv(half)
    return inverse @ _root(half @ goal @ half) @ inverse


def _within(matrix: np.ndarray, least: float, most: float) -> np.ndarray:
    """Return a symmetric matrix with its eigenvalues clipped to two bounds."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.clip(values, least, most)) @ vectors.T


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _statistics(lab: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean (3,) and covariance (3, 3)."""
    flat, w = lab.reshape(-1, 3).astype(np.float64), weight.reshape(-1).astype(np.float64)
    total = max(float(w.sum()), 1e-6)
    mean = (flat * w[:, None]).sum(0) / total
    centred = flat - mean
    return mean, (centred * w[:, None]).T @ centred / total


def _detail(lab: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted standard deviation of lightness about its blurred version."""
    fine = lab[..., 0] - cv2.GaussianBlur(lab[..., 0], (0, 0), 0.01 * max(lab.shape[:2]))
    return float(np.sqrt((fine**2 * weight).sum() / max(float(weight.sum()), 1e-6)))


def _lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _disc_blur(light: np.ndarray, free: np.ndarray, radius: float) -> np.ndarray:
    """Blur linear light by a disc over the free pixels only; return sRGB uint8 (h, w, 3)."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    disc /= disc.sum()
    # Normalised convolution: divide by the share of free pixels under the disc.
    share = cv2.filter2D(free, -1, disc, borderType=cv2.BORDER_REPLICATE)
    mixed = cv2.filter2D(light * free[..., None], -1, disc, borderType=cv2.BORDER_REPLICATE)
    # Deep inside the subject no background is within reach; the result there is hidden and only has to be smooth.
    blurred = (mixed + 1e-4 * light) / (share + 1e-4)[..., None]
    return np.rint(np.clip(blurred, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)


def _depth(matte: np.ndarray) -> np.ndarray:
    """Return the estimated distance of each pixel behind the subject: float32 (h, w) in [0, 1]."""
    height = matte.shape[0]
    rows = np.flatnonzero((matte > 0.5).any(1))
    if not len(rows):
        return np.ones_like(matte)
    foot = (rows[-1] + 1) / height
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    behind = np.clip((foot - y) / 0.25, 0, 1)
    before = np.clip((y - foot) / 0.35, 0, 1) * 0.5
    # A subject cropped by the lower edge is nearer than all visible ground.
    depth = np.ones_like(y) if foot > 0.97 else np.where(y < foot, behind, before)
    return np.repeat(depth[:, None], matte.shape[1], 1).astype(np.float32)
