"""How hard a labelled photo is to matte, from its label and its colours alone (no model needed).

Matting Moments trains the easy samples first and the hard ones after (section 2.2); this is the number that
tells them apart. Six signals, each a property of the matte or of the colours beside its boundary:

| signal    | what                                                                    | disk, plain colours |
|-----------|-------------------------------------------------------------------------|---------------------|
| unknown   | soft area (0.05 < alpha < 0.95) per foreground area                     | near 0              |
| boundary  | boundary length over that of a disk of the same area                    | 1                   |
| parts     | components beyond the first, plus holes                                 | 0                   |
| thin      | share of the matte that a morphological opening removes                 | near 0              |
| overlap   | how alike the colours on the two sides of the boundary are              | near 0              |
| smallness | 1 - foreground share of the photo                                       | its background      |

Score: `sum(w * x / (x + half))` over the signals with the weights below (they sum to 1). `x / (x + half)` rises
strictly with x, from 0 to 1, and is 1/2 at `half`: so the score lies in [0, 1), rises with every signal, and no
signal can drown the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import cv2
import numpy as np

EXTRACTOR = "difficulty"
VERSION = "2"
"""Rises whenever a number below may come out differently; older rows are then computed again."""

SIDE = 384
"""Signals are measured at this long side: lengths and radii then mean the same in every photo. Smaller photos stay."""

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
"""Value of each signal that counts half: between the median and the 90th percentile of 212 real labelled photos, where
it separates best."""

SOFT = (0.05, 0.95)
"""Alpha strictly between these is unknown (notes/matting.md, "Metrics")."""


@dataclass(frozen=True)
class Difficulty:
    """The signals of one labelled photo, all >= 0 and without unit, and what they add up to."""

    unknown: float
    boundary: float
    parts: float
    thin: float
    overlap: float
    smallness: float

    @property
    def score(self) -> float:
        """In [0, 1), strictly rising in every signal."""
        values = asdict(self)
        return sum(weight * values[name] / (values[name] + HALF[name]) for name, weight in WEIGHTS.items())

    def numbers(self) -> dict[str, float]:
        """The `numbers` of a row of the table `features`."""
        return {**asdict(self), "score": self.score}


def version_for(alpha_sha256: str) -> str:
    """Version of a sample's row: a new label gives a new version, so that it is scored again."""
    return f"{VERSION}/{alpha_sha256[:16]}"


VERSION_SQL = f"concat('{VERSION}/', substr(l.alpha_sha256, 1, 16))"
"""`version_for` of a row `l` of `labels`, as the catalog's queries have it."""


def measure(rgb: np.ndarray, alpha: np.ndarray) -> Difficulty:
    """Difficulty of a photo (H, W, 3) uint8 sRGB with its matte (H', W') float in [0, 1] of the same picture.

    The two may differ in resolution: both are brought to `SIDE` by area averaging. An empty matte scores as
    smallness alone.
    """
    height, width = alpha.shape
    shrink = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    alpha = _resized(alpha.astype(np.float32, copy=False), size)
    rgb = _resized(rgb, size)
    mass = float(alpha.sum())
    share = mass / alpha.size
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
    """Length of the matte's boundary in pixels: its total variation, that is, by the coarea formula, the mean
    length of all its level sets. Hair counts by its length and its opacity; where the subject meets the frame
    there is no boundary. A hard-edged disk comes out about 10 % long, an antialiased one within 2 %.
    """
    down, right = np.diff(alpha, axis=0), np.diff(alpha, axis=1)
    # Gradients at the corner that four pixels share: a slanted edge is then not counted as a staircase.
    return 0.5 * float(np.hypot(down[:, 1:] + down[:, :-1], right[1:] + right[:-1]).sum(dtype=np.float64))


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[1::-1] == size:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _parts(alpha: np.ndarray) -> int:
    """Components of the foreground beyond the first, plus holes; specks under 1/5000 of the picture do not count."""
    solid = (alpha > 0.5).astype(np.uint8)
    least = max(2.0, alpha.size / 5000)
    count, _, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    foreground = sum(stats[label, cv2.CC_STAT_AREA] >= least for label in range(1, count))
    count, _, stats, _ = cv2.connectedComponentsWithStats(1 - solid, connectivity=4)
    height, width = alpha.shape
    holes = 0
    for left, top, wide, high, area in stats[1:count]:
        inside = left > 0 and top > 0 and left + wide < width and top + high < height
        holes += bool(inside and area >= least)
    return max(0, foreground - 1) + holes


def _thin_share(alpha: np.ndarray) -> float:
    """Share of the matte's mass that a grey opening takes away: hair, straps, stems, steam."""
    radius = max(1, round(0.012 * max(alpha.shape)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(alpha, cv2.MORPH_OPEN, disk, borderType=cv2.BORDER_REPLICATE)
    return float(np.clip(alpha - opened, 0, 1).sum() / alpha.sum())


def _colour_overlap(rgb: np.ndarray, alpha: np.ndarray) -> float:
    """Shared mass, in [0, 1], of the Lab colour histograms of sure foreground and sure background near the boundary.

    Near: within 1/20 of the long side of the other side. 0 where one of the sides is missing.
    """
    reach = max(3, round(0.05 * max(alpha.shape)))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    sure_inside, sure_outside = alpha >= SOFT[1], alpha <= SOFT[0]
    inside = sure_inside & (cv2.dilate((alpha < SOFT[1]).astype(np.uint8), kernel) > 0)
    outside = sure_outside & (cv2.dilate((alpha > SOFT[0]).astype(np.uint8), kernel) > 0)
    if not inside.any() or not outside.any():
        return 0.0
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    return float(np.minimum(_histogram(lab[inside]), _histogram(lab[outside])).sum())


def _histogram(colours: np.ndarray, bins: int = 16) -> np.ndarray:
    """Smoothed to its neighbours, so that a colour at the edge of a bin still meets its like."""
    cells = (colours.astype(np.int64) * bins) // 256
    flat = (cells[:, 0] * bins + cells[:, 1]) * bins + cells[:, 2]
    counts = np.bincount(flat, minlength=bins**3).reshape(bins, bins, bins) / len(colours)
    for axis in range(3):
        counts = 0.5 * counts + 0.25 * (_shifted(counts, axis, 1) + _shifted(counts, axis, -1))
    return counts


def _shifted(counts: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Moved by one bin; what would leave the range stays in the last bin."""
    index = np.clip(np.arange(counts.shape[axis]) - step, 0, counts.shape[axis] - 1)
    return np.take(counts, index, axis=axis)
