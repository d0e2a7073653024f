"""Taking a matte: the right way up, measured, and written as the store keeps it.

Producers export mattes upright or as the camera stored the photo. Where the size leaves a choice (photos turned by 180
degrees, mirrored, or square), the way whose edges agree better with the photo's is taken, and how clear that was is
told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mm_core.core.records import sha256_bytes
from mm_core.imaging.images import Header, encode_alpha, load_alpha, orient
from mm_core.ingest.matte_quality import MatteQuality, edge_contrast_of, measure

ALIKE = 0.005
"""Mean difference up to which two ways of a matte are one: a round plate."""
SAME_AS_PHOTO = 0.03
"""Mean difference from the photo's brightness up to which a matte is taken for the photo itself."""
GREY_SHARE, ALIKE_SHAPE = 0.2, 0.95
"""Share of values between black and white, and correlation with the photo's brightness, from which a matte is taken for
the photo inverted, stretched or with another gamma."""
LEAST_SPREAD = 0.02
"""Share of values between black and white from which a photo's brightness is no mask by itself."""


@dataclass(frozen=True)
class Matte:
    """What was measured of a matte; values in [0, 1]."""

    lowest: float
    highest: float
    binary: bool
    quality: MatteQuality
    sha256: str
    """Of its normalised copy."""
    way_up: float | None
    """As `turned_upright` returns it."""
    is_photo: bool


def take_matte(path: Path, header: Header, photo: Header, look: np.ndarray, category: str | None, copy: Path) -> Matte:
    """Measures a matte of its photo's size and writes its normalised copy: grey PNG, upright. Raises UnreadableImage.

    `look`: the photo uint8 (h, w, 3), reduced.
    """
    alpha, way_up = turned_upright(path, header, photo, look)
    data = encode_alpha(alpha, sixteen_bit=header.mode == "F" or header.mode.startswith("I"))
    copy.write_bytes(data)
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
    """The matte float32 (H, W) upright, and by how much its edge contrast exceeds that of the next best way.

    None where there was one way only, or where the ways differ by nothing that matters. 0 where the photo is too small
    for its edges to say.
    """
    ways = list(_ways(path, header, photo))
    if all(_are_alike(way, ways[0]) for way in ways):
        return ways[0], None
    scores = [edge_contrast_of(way, look) for way in ways]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return ways[0], 0.0
    best = known.index(max(known))
    rivals = [score for score, way in zip(known, ways, strict=True) if not _are_alike(way, ways[best])]
    return ways[best], known[best] - max(rivals)


def _are_alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or float(np.abs(one - other).mean()) <= ALIKE


def _ways(path: Path, header: Header, photo: Header) -> Iterator[np.ndarray]:
    """How the matte may be meant, likeliest first: by its own tag; as the photo is stored; its own tag left aside."""
    size = photo.height, photo.width
    tags = (True, False) if header.orientation != 1 else (True,)
    for by_own_tag in tags:
        alpha = load_alpha(path, by_own_tag=by_own_tag)
        if alpha.shape == size:
            yield alpha
        if photo.orientation != 1 and (turned := orient(alpha, photo.orientation)).shape == size:
            yield turned


def is_photo_itself(alpha: np.ndarray, look: np.ndarray) -> bool:
    """Whether a matte (H, W) is the brightness of its photo uint8 (h, w, 3).

    It may be inverted or of another contrast. A photo in black and white is no proof.
    """
    grey = cv2.cvtColor(look, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    if float(((grey > 0.1) & (grey < 0.9)).mean()) < LEAST_SPREAD:
        return False
    reduced = cv2.resize(alpha, grey.shape[::-1], interpolation=cv2.INTER_AREA)
    if float(np.abs(reduced - grey).mean()) < SAME_AS_PHOTO:
        return True
    if float(((reduced > 0.1) & (reduced < 0.9)).mean()) < GREY_SHARE:
        return False
    pixels: Any = np.stack([reduced.ravel(), grey.ravel()])
    return abs(float(np.corrcoef(pixels)[0, 1])) > ALIKE_SHAPE
