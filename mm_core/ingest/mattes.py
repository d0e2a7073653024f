"""Load a matte in the orientation of its photo, measure it, and write its normalised copy.

Producers export mattes upright or in the stored orientation of the photo. The size does not decide between the two if
the photo is turned by 180 degrees, mirrored, or square. In that case the orientation with the better edge agreement is
used, and the difference of the agreements is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.records import sha256_bytes
from mm_core.imaging.images import Header, encode_alpha, load_alpha, orient
from mm_core.ingest.matte_quality import MatteQuality, edge_contrast_of, measure

ALIKE = 0.005
"""Largest mean difference of two orientations that count as equal, such as those of a round plate."""
SAME_AS_PHOTO = 0.03
"""Largest mean difference from the photo's brightness at which a matte counts as the photo itself."""
GREY_SHARE, ALIKE_SHAPE = 0.2, 0.95
"""Least share of grey values, and least correlation with the photo's brightness, of a matte that is the photo itself.

The correlation also finds photos that were inverted, stretched or saved with another gamma.
"""
LEAST_SPREAD = 0.02
"""Least share of grey values in a photo for this test; a photo in pure black and white looks like a mask."""


@dataclass(frozen=True)
class Matte:
    """The measures of a matte; `lowest` and `highest` are in [0, 1]."""

    lowest: float
    highest: float
    binary: bool
    quality: MatteQuality
    sha256: str
    """Digest of its normalised copy."""
    way_up: float | None
    """Second result of `turned_upright`."""
    is_photo: bool


def take_matte(path: Path, header: Header, photo: Header, look: np.ndarray, category: str | None, copy: Path) -> Matte:
    """Measure a matte of its photo's size and write its normalised copy: grey PNG, upright.

    Args:
        path: File of the matte.
        header: Header of the matte.
        photo: Header of the photo.
        look: Reduced photo, uint8 (h, w, 3) sRGB, upright.
        category: Category of the photo, or None.
        copy: Path for the normalised copy.

    Raises:
        UnreadableImage: The matte cannot be decoded.
    """
    alpha, way_up = turned_upright(path, header, photo, look)
    # Keep 16 bits if the source has more than 8: soft edges need the precision.
    data = encode_alpha(alpha, sixteen_bit=header.mode == "F" or header.mode.startswith("I"))
    copy.write_bytes(data)
    # Values within one 8-bit step of 0 or 1 count as 0 or 1.
    between = alpha > 1 / 255
    between &= alpha < 254 / 255
    return Matte(
        lowest=float(alpha.min()),
        highest=float(alpha.max()),
        binary=not bool(between.any()),
        quality=measure(alpha, look, category),
        sha256=sha256_bytes(data),
        way_up=way_up,
        is_photo=is_photo_itself(alpha, look),
    )


def turned_upright(path: Path, header: Header, photo: Header, look: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Load a matte in the orientation of its photo.

    Args:
        path: File of the matte.
        header: Header of the matte.
        photo: Header of the photo.
        look: Reduced photo, uint8 (h, w, 3) sRGB, upright.

    Returns:
        The matte, float32 (H, W) in [0, 1], upright, and the lead of its edge contrast over the next best orientation.
        The lead is None with only one distinct orientation, and 0 if the photo is too small to decide.
    """
    ways = list(_ways(path, header, photo))
    if all(_are_alike(way, ways[0]) for way in ways):
        return ways[0], None
    scores = [edge_contrast_of(way, look) for way in ways]
    known = [score for score in scores if score is not None]
    # The photo is too small to compare edges. Keep the most likely orientation.
    if len(known) < len(scores):
        return ways[0], 0.0
    best = known.index(max(known))
    # Orientations that look the same as the best one are not rivals.
    rivals = [score for score, way in zip(known, ways, strict=True) if not _are_alike(way, ways[best])]
    return ways[best], known[best] - max(rivals)


def _are_alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or float(np.abs(one - other).mean()) <= ALIKE


def _ways(path: Path, header: Header, photo: Header) -> Iterator[np.ndarray]:
    """Yield the possible orientations of a matte, most likely first.

    The order is: by the matte's own EXIF tag, by the photo's tag, and the same two without the matte's own tag.
    """
    size = photo.height, photo.width
    tags = (True, False) if header.orientation != 1 else (True,)
    # A matte's own tag may be wrong, for example copied from the photo.
    for by_own_tag in tags:
        alpha = load_alpha(path, by_own_tag=by_own_tag)
        if alpha.shape == size:
            yield alpha
        if photo.orientation != 1 and (turned := orient(alpha, photo.orientation)).shape == size:
            yield turned


def is_photo_itself(alpha: np.ndarray, look: np.ndarray) -> bool:
    """Return whether a matte is the brightness of its photo, possibly inverted or with another contrast.

    Args:
        alpha: Matte, float32 (H, W) in [0, 1].
        look: Photo, uint8 (h, w, 3) sRGB, upright.

    Returns:
        The result; False for a photo in pure black and white, because it looks like a mask.
    """
    grey = cv2.cvtColor(look, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    if float(((grey > 0.1) & (grey < 0.9)).mean()) < LEAST_SPREAD:
        return False
    # Compare at the size of the reduced photo.
    reduced = cv2.resize(alpha, grey.shape[::-1], interpolation=cv2.INTER_AREA)
    if float(np.abs(reduced - grey).mean()) < SAME_AS_PHOTO:
        return True
    # A real matte has few grey values, so a correlation with the photo would mean little.
    if float(((reduced > 0.1) & (reduced < 0.9)).mean()) < GREY_SHARE:
        return False
    pixels = np.stack([reduced.ravel(), grey.ravel()]).astype(np.float64)
    return abs(float(np.corrcoef(pixels)[0, 1])) > ALIKE_SHAPE
