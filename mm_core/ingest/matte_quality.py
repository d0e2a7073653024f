"""Is a matte believable? Numbers of one matte and its photo; `expectations` judges them.

| measure     | what                                                                              | a good matte     |
|-------------|-----------------------------------------------------------------------------------|------------------|
| foreground  | mean alpha                                                                        | 0.01 to 0.99     |
| inversion   | is the rim of the frame foreground and its centre not; of a sky, the bottom and not the top | below 0 |
| holes       | area of small holes that look like what is around them, per foreground area        | near 0           |
| specks      | area of small islands that look like what is around them, per foreground area      | near 0           |
| edge_width  | width of the sharpest tenth of the edge, per long side                            | under 0.02       |
| plateau     | share of the picture at the commonest value between 0 and 1                       | near 0           |
| lowest, highest | smallest and largest alpha                                                    | 0, 1             |
| edge_match  | the photo's edges under the matte's edge, per the most that a shift of it finds   | 1                |
| edge_contrast | the same against shifted copies of the matte's edge, in their standard deviations | above 4        |

The two measures of the edge are relative to shifts of the very edge over the very photo, so that neither cluttered nor
plain photos need thresholds of their own. Everything is measured at a bounded size: a matte of 12 megapixels costs
little more than one of half a megapixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SHAPE_SIDE = 768
"""Long side, in pixels, at which holes, specks and the edge's width are measured."""
EDGE_SIDE = 256
"""Long side at which the matte's edge is compared with the photo's."""
LEAST_EDGE_SIDE = 96
"""Where the photo's short side is smaller, a pixel is a wide edge and chance agrees as well as truth: nothing is said
of the edge."""
SMALL_PART = 0.003
"""Largest hole or island, per foreground area, that may be a fault; larger ones are shapes of the subject."""
SHARE_WORTH_A_LOOK = 0.001
"""Holes or islands of less area, per foreground area, are not compared with the photo."""
SUPPORTED = 3.0
"""Edge contrast from which the photo knows the holes or islands of a matte: lace, a basket, confetti."""
LEAST_SPREAD = 4.0
"""Colours, in 8-bit Lab, closer than this are the same, however even the surroundings."""
NEAR, FAR, REACH = 0.012, 0.04, 0.12
"""Shifts, per long side: up to NEAR is labelling tolerance; from FAR to REACH are what chance would give."""


@dataclass(frozen=True)
class MatteQuality:
    """The measures of one matte, without unit; None where a measure says nothing."""

    foreground: float
    """In [0, 1]."""
    inversion: float
    """In [-1, 1]."""
    holes: float
    specks: float
    plateau: float
    """In [0, 1]."""
    lowest: float | None
    """In [0, 1], as the next; None where the photo is too small: a thin subject of few pixels is nowhere whole."""
    highest: float | None
    edge_width: float | None
    """None, as the next two, where the photo is too small or the matte has no edge."""
    edge_match: float | None
    """At most 1."""
    edge_contrast: float | None


def measure(alpha: np.ndarray, rgb: np.ndarray, category: str | None = None) -> MatteQuality:
    """The measures of a matte float32 (H, W) in [0, 1] with its photo uint8 (h, w, 3) sRGB of the same picture.

    The photo may be reduced. `category`: `scenery` mattes are of the sky, which is at home at the frame's top.
    """
    sampled = _reduced(alpha, SHAPE_SIDE, cv2.INTER_NEAREST)
    shape = _reduced(alpha, SHAPE_SIDE)
    photo = _reduced(rgb, EDGE_SIDE)
    size = photo.shape[1::-1]
    # A sky is seen in patches between branches and wires.
    holes, specks = (0.0, 0.0) if category == "scenery" else _faulty_parts(shape, photo)
    width = match = contrast = lowest = highest = None
    if min(size) >= LEAST_EDGE_SIDE:
        lowest, highest = float(alpha.min()), float(alpha.max())
        width = edge_width(shape)
        match, contrast = edge_agreement(photo, _resized(alpha, size))
    return MatteQuality(
        foreground=float(shape.mean(dtype=np.float64)),
        inversion=inversion(shape, category),
        holes=holes,
        specks=specks,
        plateau=_plateau(sampled),
        lowest=lowest,
        highest=highest,
        edge_width=width,
        edge_match=match,
        edge_contrast=contrast,
    )


def edge_contrast_of(alpha: np.ndarray, rgb: np.ndarray) -> float | None:
    """The edge contrast, as `measure` takes it, of a matte float32 (H, W) on its photo uint8 (h, w, 3).

    None where the photo is too small; 0 for a matte without an edge.
    """
    photo = _reduced(rgb, EDGE_SIDE)
    if min(photo.shape[:2]) < LEAST_EDGE_SIDE:
        return None
    return edge_agreement(photo, _resized(alpha, photo.shape[1::-1]))[1] or 0.0


def inversion(alpha: np.ndarray, category: str | None = None) -> float:
    """Above 0 where the frame's rim is mostly foreground and more so than the centre; in [-1, 1], alpha (H, W).

    The smaller of 2 rim - 1 and rim - centre, means of alpha over the outermost 2 % of the long side and over the
    central quarter. Of `scenery`, whose sky is at home at the rim, the bottom third less the top third.
    """
    height, width = alpha.shape
    if category == "scenery":
        third = max(1, height // 3)
        return float(alpha[-third:].mean() - alpha[:third].mean())
    rim = max(1, round(0.02 * max(height, width)))
    inside = alpha[rim : height - rim, rim : width - rim]
    on_rim = (alpha.sum(dtype=np.float64) - inside.sum(dtype=np.float64)) / (alpha.size - inside.size)
    centre = alpha[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return float(min(2 * on_rim - 1, on_rim - centre.mean()))


def edge_width(alpha: np.ndarray) -> float | None:
    """Width from 0 to 1, per long side, that the steepest tenth of the edge of alpha (H, W) has or falls below.

    Hair and smoke widen a matte's edge in places; what is soft everywhere is a blur. None for a matte without edge.
    """
    gradient = np.hypot(*_gradients(alpha))
    slopes = np.sort(gradient[gradient > 1e-3])[::-1]
    if not len(slopes):
        return None
    mass = np.cumsum(slopes)
    return float(1 / slopes[np.searchsorted(mass, 0.1 * mass[-1])] / max(alpha.shape))


def edge_agreement(rgb: np.ndarray, alpha: np.ndarray) -> tuple[float | None, float | None]:
    """(edge_match, edge_contrast) of a matte float32 (H, W) on its photo uint8 (H, W, 3); None without an edge.

    C(s) is the photo's edge strength across the matte's edge, moved by s: the mean over the matte's gradient g of
    n'Tn, n = g/|g|, where T is the photo's colour structure tensor, scaled so that strong edges count as 1. With
    C(near) the best within labelling tolerance and C(far) over the shifts that only chance aligns,

        edge_match = (C(near) - mean C(far)) / (max C - mean C(far)),
        edge_contrast = (C(near) - mean C(far)) / std C(far).
    """
    x, y = _gradients(cv2.GaussianBlur(alpha, (0, 0), 1))
    weight = np.hypot(x, y)
    if weight.sum(dtype=np.float64) < 1:
        return None, None
    across = 1 / np.maximum(weight, 1e-6)
    long_side = max(alpha.shape)
    reach = round(REACH * long_side)

    def over_shifts(field: np.ndarray, template: np.ndarray) -> np.ndarray:
        framed = cv2.copyMakeBorder(field, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
        return cv2.matchTemplate(framed, template, cv2.TM_CCORR)

    along = (x * x * across, 2 * x * y * across, y * y * across)
    found = np.sum([over_shifts(field, part) for field, part in zip(_edge_tensor(rgb), along, strict=True)], axis=0)
    strength = found / np.maximum(over_shifts(np.ones_like(weight), weight), 1e-3)
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(down, right) / long_side
    within = strength[distance <= REACH]
    chance = strength[(distance >= FAR) & (distance <= REACH)]
    gain = float(strength[distance <= NEAR].max() - chance.mean())
    best = float(within.max() - chance.mean())
    return gain / max(best, 1e-6), gain / max(float(chance.std()), 1e-6)


def _edge_tensor(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """xx, xy, yy of the structure tensor of a photo, its trace in [0, 1): high contrast saturates."""
    lab = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 1)
    x, y = _gradients(lab)
    xx, xy, yy = (x * x).sum(2), (x * y).sum(2), (y * y).sum(2)
    strength = np.sqrt(xx + yy)
    scale = 1 / np.maximum(strength * (strength + strength.mean()), 1e-6)
    return xx * scale, xy * scale, yy * scale


def _faulty_parts(alpha: np.ndarray, rgb: np.ndarray) -> tuple[float, float]:
    """Areas, per foreground area, of the small holes and of the small islands that the photo knows nothing of."""
    solid = (alpha > 0.5).astype(np.uint8)
    area = max(1, int(solid.sum()))
    height, width = alpha.shape

    def share(of: np.ndarray, certain: np.ndarray, connectivity: int, *, enclosed: bool) -> float:
        _, parts, stats, _ = cv2.connectedComponentsWithStats(of, connectivity=connectivity)
        left, top, wide, high, size = stats.T
        # Hair comes and goes across one half; a fault has pixels that are surely what the rest is not.
        small = (size <= SMALL_PART * area) & (np.bincount(parts[certain], minlength=len(size)) > 0)
        if enclosed:
            small &= (left > 0) & (top > 0) & (left + wide < width) & (top + high < height)
        small[0] = False  # the label of all else
        if size[small].sum() < SHARE_WORTH_A_LOOK * area:
            return float(size[small].sum()) / area
        parts[~small[parts]] = 0
        photo = _resized(rgb, (width, height), cv2.INTER_LINEAR)
        faulty = small & ~_unlike(parts, len(size), photo)
        mask = _resized(faulty[parts].astype(np.float32), rgb.shape[1::-1])
        _, contrast = edge_agreement(rgb, mask)
        return 0.0 if contrast is not None and contrast >= SUPPORTED else float(size[faulty].sum()) / area

    return share(1 - solid, alpha < 0.1, 4, enclosed=True), share(solid, alpha > 0.9, 8, enclosed=False)


def _unlike(parts: np.ndarray, count: int, rgb: np.ndarray) -> np.ndarray:
    """Which of the parts (labels int32 (H, W), 0 elsewhere) differ from their surroundings in the photo (H, W, 3).

    bool (count,) by label: the mean colours inside and in a ring around lie further apart than the ring's own spread.
    """
    reach = max(2, round(0.01 * max(parts.shape)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    around = cv2.dilate(parts.astype(np.float32), disk).astype(np.int32)
    around[parts > 0] = 0
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    inside, _ = _colours(lab, parts, count)
    outside, spread = _colours(lab, around, count)
    return np.linalg.norm(inside - outside, axis=1) > np.maximum(spread, LEAST_SPREAD)


def _colours(lab: np.ndarray, parts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (N, 3) and standard deviation (N,) of the colours of each part."""
    where = parts > 0
    labels, colours = parts[where], lab[where]
    pixels = np.maximum(np.bincount(labels, minlength=count), 1)[:, None]
    total, squares = (
        np.stack([np.bincount(labels, values[:, c], minlength=count) for c in range(3)], 1)
        for values in (colours, colours**2)
    )
    mean = total / pixels
    return mean, np.sqrt(np.maximum(squares / pixels - mean**2, 0).sum(1))


def _plateau(alpha: np.ndarray) -> float:
    """Share of the picture at the commonest value from 0.05 to 0.95; a trimap's unknown is one value."""
    counts = np.bincount(np.rint(alpha * 255).astype(np.uint8).ravel(), minlength=256)
    return float(counts[13:243].max()) / alpha.size


def _gradients(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along x and y, per pixel; none across the frame."""
    x, y = (cv2.Sobel(picture, cv2.CV_32F, dx, 1 - dx, scale=1 / 8, borderType=cv2.BORDER_REPLICATE) for dx in (1, 0))
    return x, y


def _reduced(picture: np.ndarray, side: int, way: int = cv2.INTER_AREA) -> np.ndarray:
    height, width = picture.shape[:2]
    shrink = min(1.0, side / max(height, width))
    return _resized(picture, (max(1, round(width * shrink)), max(1, round(height * shrink))), way)


def _resized(picture: np.ndarray, size: tuple[int, int], way: int = cv2.INTER_AREA) -> np.ndarray:
    return picture if picture.shape[1::-1] == size else cv2.resize(picture, size, interpolation=way)
