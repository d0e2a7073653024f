"""Read a photo in any of the forms that callers have: a file, a Pillow image, an array, or base64 text."""

from __future__ import annotations

import base64
import binascii
import tempfile
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import ImageOps
from PIL.Image import Image

from mm_core.core.errors import InputError
from mm_core.imaging.images import load_rgb

Photo = str | PathLike[str] | np.ndarray | Image
"""A photo as `read_photo` accepts it."""


def read_photo(photo: Photo) -> np.ndarray:
    """Return a photo as uint8 (H, W, 3) in sRGB, upright.

    Args:
        photo: Path of a photo, a Pillow image, or uint8 (H, W, 3) in sRGB. Files and Pillow images are rotated by
            their EXIF orientation.

    Raises:
        InputError: The file is missing or not a photo, or the array has another shape or type.
    """
    if isinstance(photo, (str, PathLike)):
        if not is_file(photo):
            raise InputError(f"{_shortened(str(photo))}: no such file; name a photo")
        return load_rgb(Path(photo))
    if isinstance(photo, np.ndarray):
        # Float or grey arrays would give a plausible but wrong matte, so they are rejected.
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise InputError(f"a photo is uint8 (height, width, 3), not {photo.dtype} {photo.shape}")
        return photo
    if not isinstance(photo, Image):
        raise InputError(f"a photo is a path, a Pillow image or an array, not {type(photo).__name__}")
    # A Pillow image keeps its EXIF orientation as metadata; apply it to the pixels.
    return np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))


def read_base64(text: str) -> np.ndarray | None:
    """Return the photo in base64 text as uint8 (H, W, 3); None if the text is not base64.

    Args:
        text: The bytes of a JPEG, PNG or other photo file in base64, with or without a `data:` prefix.

    Raises:
        InputError: The decoded bytes are not a photo.
    """
    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        return None
    # The reader works on files: it limits sizes and converts colours as for every other photo.
    with tempfile.TemporaryDirectory(prefix="photo-") as folder:
        path = Path(folder) / "base64"
        path.write_bytes(content)
        return load_rgb(path)


def is_file(path: str | PathLike[str]) -> bool:
    """Return whether the path names an existing file; a text that cannot be a path does not."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # the text is too long for a path, or contains a null byte
        return False


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
