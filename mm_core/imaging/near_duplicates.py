"""Recognise duplicates: the same picture saved again, and the same photo edited.

A search by hash (`hash_index`) proposes pairs, and a comparison of pixels decides:

- *Saved again* (re-encoded, resized, brightened): 64-bit DCT hashes of the whole picture are close (Zauner 2010,
  "Implementation and benchmarking of perceptual image hash functions"), and small grey pictures correlate.
- *Edited* (cropped, framed, slightly rotated, with text): DCT hashes of a few landmarks are close. Positions of SIFT
  keypoints (Lowe 2004) give the map from one picture to the other, and the mapped pictures correlate.

Photos that only resemble each other are not duplicates.
"""

from __future__ import annotations

import cv2
import numpy as np

LOOK_SIDE = 256
"""Longer side, in pixels, of the decoded photo that all functions here start from."""
GLANCE_SIDE = 128
"""Longer side of the grey picture for landmarks and pixel comparisons."""
THUMB = 32
"""Side of the thumbnails in `same_picture`."""
SAME_PICTURE = 0.95
"""Least correlation of two thumbnails of one photo, over all frequencies and over fine detail alone.

Measured: copies saved again (JPEG quality 20 to 90, a quarter to full size) reach 0.988, neighbouring frames 0.78."""
LANDMARKS = 24
"""Largest number of hashed landmarks of a photo."""
SURROUNDINGS = 3.0
"""Half side of a landmark's hashed square, in diameters of its keypoint."""
INLIERS, OVERLAP, SAME_SCENE = 8, 0.5, 0.9
"""Least number of keypoints that agree on the map from one picture to the other; least visible share of the union of
both; least correlation there.

Measured on real photos: edits reach at least (10, 0.64, 0.967). Among 47,616 pairs of unrelated photos, those with 8
keypoints and half of the picture correlate up to 0.68."""

MOST_ENLARGED = 16
"""Largest change of area by a map; a larger one is a coincidence of keypoints."""


def perceptual_hash(rgb: np.ndarray) -> str:
    """Return the 64-bit DCT hash of a photo, uint8 (H, W, 3), as 16 hex digits.

    A bit is set if one of the 8 × 8 lowest frequencies is above their median.
    """
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    return f"{_dct_hash(grey.astype(np.float32)):016x}"


def glance(rgb: np.ndarray) -> np.ndarray:
    """Return the input of the pixel comparison: grey uint8, longer side at most GLANCE_SIDE; rgb uint8 (H, W, 3)."""
    return _fitted(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), min(GLANCE_SIDE, max(rgb.shape[:2])))


def landmarks(seen: np.ndarray) -> np.ndarray:
    """Return DCT hashes, uint64 (N ≤ LANDMARKS,), of the surroundings of the strongest keypoints of a glance.

    A flat picture has none. The hashes move with the content, so a crop or a frame keeps most of them.
    """
    grey = _fitted(seen, GLANCE_SIDE)
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
    height, width = grey.shape
    places = {(k.response * k.size, *k.pt, k.size * SURROUNDINGS) for k in _sift().detect(grey, None)}
    # Strongest keypoints first; a keypoint counts by its response and its size.
    hashes: list[int] = []
    for _, x, y, reach in sorted(places, reverse=True):
        if min(x, y, width - 1 - x, height - 1 - y) > reach - 2:
            # Skip squares that leave the picture: they would change with a crop.
            step = 2 * reach / 32
            square = np.array([[step, 0, x - reach], [0, step, y - reach]])
            how = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
            patch = cv2.warpAffine(smooth, square, (32, 32), flags=how, borderMode=cv2.BORDER_REPLICATE)
            hashes.append(_dct_hash(patch.astype(np.float32)))
            if len(hashes) == LANDMARKS:
                break
    return np.array(hashes, np.uint64)


def same_picture(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two glances are copies of one picture: saved again, resized, brightened."""
    # The detail is compared separately: smooth pictures correlate by their light alone.
    small = [cv2.resize(g, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32) for g in (a, b)]
    detail = [t - cv2.GaussianBlur(t, (0, 0), 2) for t in small]
    return min(_correlation(*small), _correlation(*detail)) >= SAME_PICTURE


def same_scene(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two glances show one scene from one viewpoint, one cropped, framed or slightly rotated."""
    inliers, overlap, correlation = registration(a, b)
    return inliers >= INLIERS and overlap >= OVERLAP and correlation >= SAME_SCENE


def registration(a: np.ndarray, b: np.ndarray) -> tuple[int, float, float]:
    """Map one glance to another.

    Returns:
        The number of agreeing keypoints, the share in [0, 1] of their union that both show, and the correlation in
        [-1, 1] there. All 0 if no map is found.
    """
    a, b = _fitted(a, GLANCE_SIDE), _fitted(b, GLANCE_SIDE)
    (from_points, from_marks), (to_points, to_marks) = _keypoints(a), _keypoints(b)
    if min(len(from_points), len(to_points)) < INLIERS:
        return 0, 0.0, 0.0
    pairs = [m for m in cv2.BFMatcher(cv2.NORM_L2).knnMatch(from_marks, to_marks, k=2) if len(m) == 2]
    # Lowe's ratio test: keep a match only if it is clearly better than the second best.
    clear = [best for best, second in pairs if best.distance < 0.8 * second.distance]
    if len(clear) < INLIERS:
        return 0, 0.0, 0.0
    start, end = from_points[[m.queryIdx for m in clear]], to_points[[m.trainIdx for m in clear]]
    # A similarity transform: rotation, scale and shift.
    turn, agree = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=2)
    enlarged = 0.0 if turn is None else abs(float(np.linalg.det(np.asarray(turn[:, :2], float))))
    if not 1 / MOST_ENLARGED < enlarged < MOST_ENLARGED:
        return 0, 0.0, 0.0
    size = b.shape[1], b.shape[0]
    both = cv2.warpAffine(np.ones_like(a), turn, size, flags=cv2.INTER_NEAREST) > 0
    shared = float(both.sum())
    # Area of the union in pixels of the second glance.
    union = b.size + a.size * enlarged - shared
    if shared < THUMB:
        return int(agree.sum()), 0.0, 0.0
    # The blur makes the correlation robust to the error of the map.
    mapped = [cv2.GaussianBlur(g, (0, 0), 1.5)[both].astype(np.float32) for g in (cv2.warpAffine(a, turn, size), b)]
    return int(agree.sum()), shared / union, _correlation(*mapped)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    if scale < a.size:  # both are nearly flat: within a grey level of their mean
        return 1.0 if float(np.abs(a - b).mean()) <= 2 else 0.0
    return float((x * y).sum()) / scale


def _dct_hash(square: np.ndarray) -> int:
    # The first coefficient, the mean, is left out of the median.
    low = np.asarray(cv2.dct(square)[:8, :8], np.float64).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes())


def _fitted(grey: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(grey.shape)
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    return (
        grey if scale == 1 else cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    )


def _sift() -> cv2.SIFT:
    return cv2.SIFT.create(contrastThreshold=0.02)


def _keypoints(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (N, 2) and descriptors (N, 128)."""
    places, marks = _sift().detectAndCompute(grey, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return np.array([place.pt for place in places], np.float32).reshape(-1, 2), marks
