"""Decode a photo once for all extractors, and name the code that computes their rows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mm_core.core.code_digest import code_digest
from mm_core.imaging.images import load_rgb, read_header

DECODE_SIDE = 960
"""Long side of the single decode: text stays readable, and a 12-megapixel JPEG is still decoded at a quarter."""


def code_version(*modules: str) -> str:
    """Return the version of the rows that an extractor computes: 16 hex digits.

    It changes with the code of the extractor and with everything that this imports, so older rows are computed again.
    The decoding of photos belongs to it.

    Args:
        modules: Full names of the modules that compute the row.
    """
    return code_digest(*modules, __name__)[:16]


def decode(path: Path) -> np.ndarray:
    """Decode a photo as uint8 (H, W, 3) sRGB, upright, long side at most `DECODE_SIDE`; raise UnreadableImage.

    A photo that is only a little too large is decoded whole and area-averaged, because Pillow's resize filter takes
    longer than the decode.
    """
    header = read_header(path)
    # JPEG's reduced decoding starts at a factor of two.
    far = max(header.width, header.height) >= 2 * DECODE_SIDE
    return shrunk(load_rgb(path, DECODE_SIDE if far else None), DECODE_SIDE)


def shrunk(rgb: np.ndarray, side: int) -> np.ndarray:
    """Reduce a photo (H, W, 3) by area averaging to a long side of at most `side`."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
