"""Compute quality measures of a matte and its photo; `expectations` applies the thresholds.

| measure     | meaning                                                                           | a good matte     |
|-------------|-----------------------------------------------------------------------------------|------------------|
| foreground  | mean alpha                                                                        | 0.01 to 0.99     |
| inversion   | foreground at the rim against the centre; for a sky, at the bottom against the top | below 0          |
| holes       | area of small holes that look like their surroundings, per foreground area         | near 0           |
| specks      | area of small islands that look like their surroundings, per foreground area       | near 0           |
| edge_width  | width of the sharpest tenth of the edge, per long side                            | under 0.02       |
| plateau     | share of the picture at the most frequent value between 0 and 1                   | near 0           |
| lowest, highest | smallest and largest alpha                                                    | 0, 1             |
| edge_match  | photo edge strength under the matte's edge, relative to the best shift            | 1                |
| edge_contrast | the same against shifted copies of the matte's edge, in standard deviations     | above 4          |

Both edge measures compare the matte's edge with shifted copies of itself on the same photo. Cluttered and plain photos
therefore share one threshold. All measures use a bounded size: a matte of 12 megapixels costs little more than one of
half a megapixel.
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
"""Least short side, in pixels, for the edge measures.

In a smaller photo one pixel is a wide edge, and random positions agree as well as the correct one.
"""
SMALL_PART = 0.003
"""Largest hole or island, per foreground area, that may be a fault; larger ones are shapes of the subject."""
SHARE_WORTH_A_LOOK = 0.001
"""Holes or islands of less area, per foreground area, are not compared with the photo."""
SUPPORTED = 3.0
"""Edge contrast from which the photo supports the holes or islands of a matte: lace, a basket, confetti."""
LEAST_SPREAD = 4.0
"""Least distance, in 8-bit Lab, of two different colours, even if the surroundings are uniform."""
NEAR, FAR, REACH = 0.012, 0.04, 0.12
"""Shifts as a share of the long side.

Shifts up to NEAR are labelling tolerance. Shifts from FAR to REACH estimate the agreement by chance.
"""


@dataclass(frozen=True)
class MatteQuality:
    """The measures of one matte, without unit; None if a measure does not apply."""

    foreground: float
    """In [0, 1]."""
    inversion: float
    """In [-1, 1]."""
    holes: float
    specks: float
    plateau: float
    """In [0, 1]."""
    lowest: float | None
    """In [0, 1]; None for a small photo, in which a thin subject covers no pixel completely."""
    highest: float | None
    """In [0, 1]; None as for `lowest`."""
    edge_width: float | None
    """This and both edge measures below are None if the photo is too small or the matte has no edge."""
    edge_match: float | None
    """At most 1."""
    edge_contrast: float | None


def measure(alpha: np.ndarray, rgb: np.ndarray, category: str | None = None) -> MatteQuality:
    """Compute all measures of a matte.

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].
        rgb: Photo of the same picture, uint8 (h, w, 3) sRGB; it may be smaller than the matte.
        category: Category of the photo. `scenery` mattes show the sky, which touches the top of the frame.
    """
    # Nearest-neighbour keeps exact values for the plateau. Area averaging keeps areas for the shape measures.
    sampled = _reduced(alpha, SHAPE_SIDE, cv2.INTER_NEAREST)
    shape = _reduced(alpha, SHAPE_SIDE)
    photo = _reduced(rgb, EDGE_SIDE)
    size = photo.shape[1::-1]
    # A sky is seen in patches between branches and wires.
    holes, specks = 0.0, 0.0
    if category != "scenery":
        area = max(1, int((shape > 0.5).sum()))
        holes, specks = (float(places.sum()) / area for places in _faulty_parts(shape, photo))
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
    """Compute the edge contrast of a matte as `measure` does.

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].
        rgb: Photo, uint8 (h, w, 3) sRGB.

    Returns:
        The contrast, 0 for a matte without an edge, or None if the photo is too small.
    """
    photo = _reduced(rgb, EDGE_SIDE)
    if min(photo.shape[:2]) < LEAST_EDGE_SIDE:
        return None
    return edge_agreement(photo, _resized(alpha, photo.shape[1::-1]))[1] or 0.0


def inversion(alpha: np.ndarray, category: str | None = None) -> float:
    """Return a score that is positive if a matte looks inverted.

    The score is min(2 rim - 1, rim - centre). `rim` is the mean alpha over the outermost 2 % of the long side, and
    `centre` is the mean over the central quarter. A sky normally touches the rim: `scenery` uses the mean of the bottom
    third minus the mean of the top third.

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].
        category: Category of the photo, or None.

    Returns:
        The score, in [-1, 1].
    """
    height, width = alpha.shape
    if category == "scenery":
        third = max(1, height // 3)
        return float(alpha[-third:].mean() - alpha[:third].mean())
    rim = max(1, round(0.02 * max(height, width)))
    inside = alpha[rim : height - rim, rim : width - rim]
    # The rim is the whole frame minus its inside, which avoids a mask.
    on_rim = (alpha.sum(dtype=np.float64) - inside.sum(dtype=np.float64)) / (alpha.size - inside.size)
    centre = alpha[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return float(min(2 * on_rim - 1, on_rim - centre.mean()))


def edge_width(alpha: np.ndarray) -> float | None:
    """Return the edge width of the steepest tenth of a matte's edge.

    Hair and smoke widen an edge in some places only. An edge that is wide everywhere is blurred.

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].

    Returns:
        The distance from alpha 0 to 1 as a share of the long side, or None for a matte without an edge.
    """
    gradient = np.hypot(*_gradients(alpha))
    slopes = np.sort(gradient[gradient > 1e-3])[::-1]
    if not len(slopes):
        return None
    # Weight by slope: the steepest tenth of the total change, not of the pixels.
    mass = np.cumsum(slopes)
    return float(1 / slopes[np.searchsorted(mass, 0.1 * mass[-1])] / max(alpha.shape))


def edge_agreement(rgb: np.ndarray, alpha: np.ndarray) -> tuple[float | None, float | None]:
    """Compute how well the edge of a matte agrees with the edges of its photo.

    C(s) is the photo's edge strength across the matte's edge after a shift s. It is the mean of n'Tn over the matte's
    gradient g with n = g/|g|. T is the photo's colour structure tensor, scaled so that strong edges count as 1. C(near)
    is the maximum within the labelling tolerance. C(far) is taken over large shifts, which align only by chance:

        edge_match = (C(near) - mean C(far)) / (max C - mean C(far)),
        edge_contrast = (C(near) - mean C(far)) / std C(far).

    Args:
        rgb: Photo, uint8 (H, W, 3) sRGB.
        alpha: Matte, float32 (H, W) in [0, 1].

    Returns:
        `edge_match` (at most 1) and `edge_contrast`; both None for a matte without an edge.
    """
    # Smooth first: a hard mask has gradients in few directions only.
    x, y = _gradients(cv2.GaussianBlur(alpha, (0, 0), 1))
    weight = np.hypot(x, y)
    # A constant matte has no edge.
    if weight.sum(dtype=np.float64) < 1:
        return None, None
    across = 1 / np.maximum(weight, 1e-6)
    long_side = max(alpha.shape)
    reach = round(REACH * long_side)

    def over_shifts(field: np.ndarray, template: np.ndarray) -> np.ndarray:
        # Zero padding lets the template move past the frame without wrapping.
        framed = cv2.copyMakeBorder(field, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
        return cv2.matchTemplate(framed, template, cv2.TM_CCORR)

    # n'Tn is linear in T, so three correlations give C for all shifts.
    along = (x * x * across, 2 * x * y * across, y * y * across)
    found = np.sum([over_shifts(field, part) for field, part in zip(_edge_tensor(rgb), along, strict=True)], axis=0)
    # Divide by the edge that stays inside the frame at each shift.
    strength = found / np.maximum(over_shifts(np.ones_like(weight), weight), 1e-3)
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(down, right) / long_side
    within = strength[distance <= REACH]
    chance = strength[(distance >= FAR) & (distance <= REACH)]
    gain = float(strength[distance <= NEAR].max() - chance.mean())
    best = float(within.max() - chance.mean())
    return gain / max(best, 1e-6), gain / max(float(chance.std()), 1e-6)


def _edge_tensor(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return xx, xy and yy of a photo's structure tensor; its trace is in [0, 1) and saturates at high contrast."""
    # Distances in Lab approximate perceived colour differences.
    lab = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 1)
    x, y = _gradients(lab)
    xx, xy, yy = (x * x).sum(2), (x * y).sum(2), (y * y).sum(2)
    strength = np.sqrt(xx + yy)
    scale = 1 / np.maximum(strength * (strength + strength.mean()), 1e-6)
    return xx * scale, xy * scale, yy * scale


def _faulty_parts(alpha: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the small holes and the small islands without support in the photo, each bool (H, W).

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].
        rgb: Photo, uint8 (h, w, 3) sRGB, at most EDGE_SIDE.
    """
    solid = (alpha > 0.5).astype(np.uint8)
    area = max(1, int(solid.sum()))
    height, width = alpha.shape

    def faults(of: np.ndarray, certain: np.ndarray, connectivity: int, *, enclosed: bool) -> np.ndarray:
        _, parts, stats, _ = cv2.connectedComponentsWithStats(of, connectivity=connectivity)
        left, top, wide, high, size = stats.T
        # Hair crosses alpha 0.5 often. A fault also has pixels with a clear value opposite to its surroundings.
        small = (size <= SMALL_PART * area) & (np.bincount(parts[certain], minlength=len(size)) > 0)
        # A hole at the frame's border may be real background.
        if enclosed:
            small &= (left > 0) & (top > 0) & (left + wide < width) & (top + high < height)
        small[0] = False  # label 0 is the rest of the frame
        if size[small].sum() < SHARE_WORTH_A_LOOK * area:
            return small[parts]
        parts[~small[parts]] = 0
        # First compare the colours of each part with its surroundings, then the edges of all remaining parts.
        photo = _resized(rgb, (width, height), cv2.INTER_LINEAR)
        faulty = (small & ~_unlike(parts, len(size), photo))[parts]
        _, contrast = edge_agreement(rgb, _resized(faulty.astype(np.float32), rgb.shape[1::-1]))
        # With strong edge agreement the parts are real structure in the photo, such as lace.
        return np.zeros_like(faulty) if contrast is not None and contrast >= SUPPORTED else faulty

    return faults(1 - solid, alpha < 0.1, 4, enclosed=True), faults(solid, alpha > 0.9, 8, enclosed=False)


def fault_places(alpha: np.ndarray, rgb: np.ndarray, reason: str) -> np.ndarray | None:
    """Return where the fault of a suspect matte is.

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].
        rgb: Photo of the same picture, uint8 (h, w, 3) sRGB.
        reason: Reason of the suspicion, as in `expectations`.

    Returns:
        bool (h', w'), at most SHAPE_SIDE: the holes, the specks, the pixels of a trimap's middle value, or the blurred
        edge. None for a fault of the whole matte.
    """
    shape = _reduced(alpha, SHAPE_SIDE)
    if reason.endswith("holes"):
        return _faulty_parts(shape, _reduced(rgb, EDGE_SIDE))[0]
    if reason.endswith("speckles"):
        return _faulty_parts(shape, _reduced(rgb, EDGE_SIDE))[1]
    if reason.endswith("a trimap"):
        levels = _levels(_reduced(alpha, SHAPE_SIDE, cv2.INTER_NEAREST))
        return levels == 13 + int(np.bincount(levels.ravel(), minlength=256)[13:243].argmax())
    if reason.endswith("blurred"):
        return (shape > 0.05) & (shape < 0.95)
    return None


def _unlike(parts: np.ndarray, count: int, rgb: np.ndarray) -> np.ndarray:
    """Return for each part whether its colour differs from its surroundings in the photo.

    A part differs if its mean colour is further from the mean of a ring around it than the ring's standard deviation.

    Args:
        parts: Labels, int32 (H, W); 0 outside the parts.
        count: Number of labels.
        rgb: Photo, uint8 (H, W, 3) sRGB.

    Returns:
        bool (count,), by label.
    """
    reach = max(2, round(0.01 * max(parts.shape)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    # Dilation of the labels minus the parts gives one ring per part.
    around = cv2.dilate(parts.astype(np.float32), disk).astype(np.int32)
    around[parts > 0] = 0
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    inside, _ = _colours(lab, parts, count)
    outside, spread = _colours(lab, around, count)
    return np.linalg.norm(inside - outside, axis=1) > np.maximum(spread, LEAST_SPREAD)


def _colours(lab: np.ndarray, parts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (count, 3) and the standard deviation (count,) of the colours of each part."""
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
    """Return the share of the picture at the most frequent value from 0.05 to 0.95; a trimap has one such value."""
    return float(np.bincount(_levels(alpha).ravel(), minlength=256)[13:243].max()) / alpha.size


def _levels(alpha: np.ndarray) -> np.ndarray:
    return np.rint(alpha * 255).astype(np.uint8)


def _gradients(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients along x and y, per pixel; they are 0 across the frame's border."""
    x, y = (cv2.Sobel(picture, cv2.CV_32F, dx, 1 - dx, scale=1 / 8, borderType=cv2.BORDER_REPLICATE) for dx in (1, 0))
    return x, y


def _reduced(picture: np.ndarray, side: int, way: int = cv2.INTER_AREA) -> np.ndarray:
    height, width = picture.shape[:2]
    shrink = min(1.0, side / max(height, width))
    return _resized(picture, (max(1, round(width * shrink)), max(1, round(height * shrink))), way)


def _resized(picture: np.ndarray, size: tuple[int, int], way: int = cv2.INTER_AREA) -> np.ndarray:
    return picture if picture.shape[1::-1] == size else cv2.resize(picture, size, interpolation=way)
