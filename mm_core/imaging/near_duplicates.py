"""Duplicates: the same picture saved again, and the same photo edited.

A search by hash proposes (`neighbours`), a look at the pixels decides:

- *Saved again* (re-encoded, resized, brightened): 64-bit DCT hashes of the whole picture are near each other (Zauner
  2010, "Implementation and benchmarking of perceptual image hash functions"), and small grey pictures correlate.
- *Edited* (cropped, framed, turned a little, written on): DCT hashes of a few landmarks are near each other, SIFT
  keypoints (Lowe 2004) and where they lie give how one picture maps to the other, and the mapped pictures correlate.

Photos that merely resemble each other stay apart.
"""

from __future__ import annotations

import cv2
import numpy as np

LOOK_SIDE = 256
"""Longer side, in pixels, of the decoded photo that everything here is taken from."""
GLANCE_SIDE = 128
"""Longer side of the grey picture that landmarks and second looks are taken from."""
THUMB = 32
"""Side of the picture that shows whether two are the same."""
SAME_PICTURE = 0.95
"""Least correlation of two thumbnails, over everything and over fine detail alone, of copies of one photo.

Measured: copies saved again (JPEG quality 20 to 90, a quarter to full size) reach 0.988, neighbouring frames 0.78."""
LANDMARKS = 24
"""Hashed landmarks of a photo, at most."""
SURROUNDINGS = 3.0
"""Half side of a landmark's hashed square, in diameters of its keypoint."""
INLIERS, OVERLAP, SAME_SCENE = 8, 0.5, 0.9
"""Keypoints that agree on how one picture maps to the other, the least share of their union that both show, and the
least correlation there.

Measured on the real photos: edits reach (10, 0.64, 0.967) at least; of 47,616 pairs of unrelated photos those with 8
keypoints on half of the picture correlate up to 0.68."""

MOST_ENLARGED = 16
"""By this much of its area a map may enlarge a glance; more is a coincidence of keypoints."""


def perceptual_hash(rgb: np.ndarray) -> str:
    """64-bit DCT hash of a photo uint8 (H, W, 3) as 16 hex digits: are its low 8×8 frequencies above their median?"""
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    return f"{_dct_hash(grey.astype(np.float32)):016x}"


def glance(rgb: np.ndarray) -> np.ndarray:
    """What the second look needs of a photo uint8 (H, W, 3): grey uint8, longer side at most GLANCE_SIDE."""
    return _fitted(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), min(GLANCE_SIDE, max(rgb.shape[:2])))


def landmarks(seen: np.ndarray) -> np.ndarray:
    """DCT hashes uint64 (N ≤ LANDMARKS,) of what surrounds the strongest keypoints of a glance; none where it is flat.

    They move with the content, so that a crop or a frame leaves most of them as they were.
    """
    grey = _fitted(seen, GLANCE_SIDE)
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.7)
    height, width = grey.shape
    places = {(k.response * k.size, *k.pt, k.size * SURROUNDINGS) for k in _sift().detect(grey, None)}
    hashes: list[int] = []
    for _, x, y, reach in sorted(places, reverse=True):
        if min(x, y, width - 1 - x, height - 1 - y) > reach - 2:
            step = 2 * reach / 32
            square = np.array([[step, 0, x - reach], [0, step, y - reach]])
            how = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
            patch = cv2.warpAffine(smooth, square, (32, 32), flags=how, borderMode=cv2.BORDER_REPLICATE)
            hashes.append(_dct_hash(patch.astype(np.float32)))
            if len(hashes) == LANDMARKS:
                break
    return np.array(hashes, np.uint64)


def same_picture(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two glances are copies of one picture: saved again, resized, brightened."""
    small = [cv2.resize(g, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32) for g in (a, b)]
    detail = [t - cv2.GaussianBlur(t, (0, 0), 2) for t in small]
    return min(_correlation(*small), _correlation(*detail)) >= SAME_PICTURE


def same_scene(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two glances show the same scene from the same place, one of them cropped, framed or turned a little."""
    inliers, overlap, correlation = registration(a, b)
    return inliers >= INLIERS and overlap >= OVERLAP and correlation >= SAME_SCENE


def registration(a: np.ndarray, b: np.ndarray) -> tuple[int, float, float]:
    """How well one glance maps to another: agreeing keypoints, share in [0, 1] of their union that both show, and
    correlation in [-1, 1] of what both show. All 0 where no map is found."""
    a, b = _fitted(a, GLANCE_SIDE), _fitted(b, GLANCE_SIDE)
    (from_points, from_marks), (to_points, to_marks) = _keypoints(a), _keypoints(b)
    if min(len(from_points), len(to_points)) < INLIERS:
        return 0, 0.0, 0.0
    pairs = [m for m in cv2.BFMatcher(cv2.NORM_L2).knnMatch(from_marks, to_marks, k=2) if len(m) == 2]
    clear = [best for best, second in pairs if best.distance < 0.8 * second.distance]
    if len(clear) < INLIERS:
        return 0, 0.0, 0.0
    start, end = from_points[[m.queryIdx for m in clear]], to_points[[m.trainIdx for m in clear]]
    turn, agree = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=2)
    enlarged = 0.0 if turn is None else abs(float(np.linalg.det(np.asarray(turn[:, :2], float))))
    if not 1 / MOST_ENLARGED < enlarged < MOST_ENLARGED:
        return 0, 0.0, 0.0
    size = b.shape[1], b.shape[0]
    both = cv2.warpAffine(np.ones_like(a), turn, size, flags=cv2.INTER_NEAREST) > 0
    shared = float(both.sum())
    union = b.size + a.size * enlarged - shared
    if shared < THUMB:
        return int(agree.sum()), 0.0, 0.0
    mapped = [cv2.GaussianBlur(g, (0, 0), 1.5)[both].astype(np.float32) for g in (cv2.warpAffine(a, turn, size), b)]
    return int(agree.sum()), shared / union, _correlation(*mapped)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    if scale < a.size:  # both without structure to speak of: within a grey level of their mean
        return 1.0 if float(np.abs(a - b).mean()) <= 2 else 0.0
    return float((x * y).sum()) / scale


def _dct_hash(square: np.ndarray) -> int:
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
    """Places (N, 2) and descriptors (N, 128)."""
    places, marks = _sift().detectAndCompute(grey, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return np.array([place.pt for place in places], np.float32).reshape(-1, 2), marks
