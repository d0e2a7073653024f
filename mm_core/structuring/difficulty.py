"""Measure how hard a labelled photo is to matte, from its label and its colours only (no model needed).

Matting Moments trains on easy samples first and on hard ones later (section 2.2); this score separates them. Six
signals describe the matte or the colours near its boundary:

| signal    | meaning                                                                 | disk, plain colours |
|-----------|-------------------------------------------------------------------------|---------------------|
| unknown   | soft area (0.05 < alpha < 0.95) per foreground area                     | near 0              |
| boundary  | boundary length over that of a disk of the same area                    | 1                   |
| parts     | components beyond the first, plus holes                                 | 0                   |
| thin      | share of the matte that a morphological opening removes                 | near 0              |
| overlap   | similarity of the colours on the two sides of the boundary              | near 0              |
| smallness | 1 - foreground share of the photo                                       | its background      |

The score is `sum(w * x / (x + half))` over the signals with the weights below, which sum to 1. `x / (x + half)` rises
strictly from 0 to 1 and is 1/2 at `half`. The score is therefore in [0, 1) and rises with every signal, and no signal
dominates the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from mm_core.structuring.decode import code_version

EXTRACTOR = "difficulty"
VERSION = code_version(__name__)

SIDE = 384
"""Long side at which signals are measured, so that lengths are comparable; smaller photos are not enlarged."""

WEIGHTS: Mapping[str, float] = {
    "unknown": 0.25,
    "boundary": 0.2,
    "parts": 0.1,
    "thin": 0.2,
    "overlap": 0.15,
    "smallness": 0.1,
}
HALF: Mapping[str, float] = {
    "unknown": 0.1,
    "boundary": 2.0,
    "parts": 3.0,
    "thin": 0.05,
    "overlap": 0.4,
    "smallness": 0.7,
}
"""Value of each signal with a score of one half: between the median and the 90th percentile of 212 real labelled
photos, the range in which it separates best."""

SOFT = (0.05, 0.95)
"""Alpha strictly between these values is unknown (notes/matting.md, "Metrics")."""


@dataclass(frozen=True)
class Difficulty:
    """Signals of one labelled photo, all >= 0 and without unit, and their score."""

    unknown: float
    boundary: float
    parts: float
    thin: float
    overlap: float
    smallness: float

    @property
    def score(self) -> float:
        """Weighted score in [0, 1), strictly rising in every signal."""
        values = asdict(self)
        return sum(weight * values[name] / (values[name] + HALF[name]) for name, weight in WEIGHTS.items())

    def numbers(self) -> dict[str, float]:
        """Return the `numbers` of a row of the table `features`."""
        return {**asdict(self), "score": self.score}


def version_for(alpha_sha256: str) -> str:
    """Return the version of a sample's row; a new label gives a new version, so it is scored again."""
    return f"{VERSION}/{alpha_sha256[:16]}"


VERSION_SQL = f"concat('{VERSION}/', substr(l.alpha_sha256, 1, 16))"
"""`version_for` in SQL, for a row `l` of `labels`."""


def measure(rgb: np.ndarray, alpha: np.ndarray) -> Difficulty:
    """Measure the difficulty of a photo with its matte.

    Both are reduced to `SIDE` by area averaging and may differ in resolution. An empty matte scores by smallness only.

    Args:
        rgb: (H, W, 3) uint8 sRGB.
        alpha: (H', W') float in [0, 1], of the same picture.
    """
    height, width = alpha.shape
    # Bring both to the same size.
    shrink = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    alpha = _resized(alpha.astype(np.float32, copy=False), size)
    rgb = _resized(rgb, size)
    mass = float(alpha.sum())
    share = mass / alpha.size
    # Ratios to the foreground's mass are meaningless for an empty matte.
    if mass < 1:
        return Difficulty(0, 0, 0, 0, 0, 1 - share)
    return Difficulty(
        unknown=float(np.count_nonzero((alpha > SOFT[0]) & (alpha < SOFT[1]))) / mass,
        boundary=boundary_length(alpha) / (2 * float(np.sqrt(np.pi * mass))),
        parts=float(_parts(alpha)),
        thin=_thin_share(alpha),
        overlap=_colour_overlap(rgb, alpha),
        smallness=max(0.0, 1 - share),
    )


def boundary_length(alpha: np.ndarray) -> float:
    """Return the length of the matte's boundary in pixels.

    It is the total variation, which equals the mean length of all level sets (coarea formula). Hair counts by its
    length and opacity; the frame does not count. A hard-edged disk is measured about 10 % too long, an antialiased one
    within 2 %.
    """
    down, right = np.diff(alpha, axis=0), np.diff(alpha, axis=1)
    # Take gradients at the corner that four pixels share, so that a slanted edge does not count as a staircase.
    return 0.5 * float(np.hypot(down[:, 1:] + down[:, :-1], right[1:] + right[:-1]).sum(dtype=np.float64))


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by area averaging to (width, height)."""
    if picture.shape[1::-1] == size:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _parts(alpha: np.ndarray) -> int:
    """Count foreground components beyond the first plus holes; specks below 1/5000 of the picture do not count."""
    solid = (alpha > 0.5).astype(np.uint8)
    # Minimum area of a component in pixels.
    least = max(2.0, alpha.size / 5000)
    count, _, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    foreground = sum(stats[label, cv2.CC_STAT_AREA] >= least for label in range(1, count))
    # A hole is a component of the background that does not touch the frame.
    count, _, stats, _ = cv2.connectedComponentsWithStats(1 - solid, connectivity=4)
    height, width = alpha.shape
    holes = 0
    for left, top, wide, high, area in stats[1:count]:
        inside = left > 0 and top > 0 and left + wide < width and top + high < height
        holes += bool(inside and area >= least)
    return max(0, foreground - 1) + holes


def _thin_share(alpha: np.ndarray) -> float:
    """Return the share of the matte's mass that a grey opening removes: hair, straps, stems, steam."""
    # The opening removes parts thinner than 2.4 % of the long side.
    radius = max(1, round(0.012 * max(alpha.shape)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(alpha, cv2.MORPH_OPEN, disk, borderType=cv2.BORDER_REPLICATE)
    return float(np.clip(alpha - opened, 0, 1).sum() / alpha.sum())


def _colour_overlap(rgb: np.ndarray, alpha: np.ndarray) -> float:
    """Return the overlap in [0, 1] of the Lab colour histograms of sure foreground and background near the boundary.

    Near means within 1/20 of the long side of the other side. The result is 0 if one of the sides is missing.
    """
    reach = max(3, round(0.05 * max(alpha.shape)))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    # Sure pixels within reach of the other side.
    sure_inside, sure_outside = alpha >= SOFT[1], alpha <= SOFT[0]
    inside = sure_inside & (cv2.dilate((alpha < SOFT[1]).astype(np.uint8), kernel) > 0)
    outside = sure_outside & (cv2.dilate((alpha > SOFT[0]).astype(np.uint8), kernel) > 0)
    if not inside.any() or not outside.any():
        return 0.0
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    return float(np.minimum(_histogram(lab[inside]), _histogram(lab[outside])).sum())


def _histogram(colours: np.ndarray, bins: int = 16) -> np.ndarray:
    """Return a 3D colour histogram, smoothed so that colours in neighbouring bins still overlap."""
    # One flat index per colour.
    cells = (colours.astype(np.int64) * bins) // 256
    flat = (cells[:, 0] * bins + cells[:, 1]) * bins + cells[:, 2]
    counts = np.bincount(flat, minlength=bins**3).reshape(bins, bins, bins) / len(colours)
    for axis in range(3):
        counts = 0.5 * counts + 0.25 * (_shifted(counts, axis, 1) + _shifted(counts, axis, -1))
    return counts


def _shifted(counts: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Shift a histogram by one bin; counts that would leave the range stay in the last bin."""
    index = np.clip(np.arange(counts.shape[axis]) - step, 0, counts.shape[axis] - 1)
    return np.take(counts, index, axis=axis)
