"""Flash matting: lift the dominant subject, or the tapped one, off its background without a halo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from mm_core.effects.foreground import foreground, over
from mm_core.effects.fullsize import check_pair
from mm_core.effects.subjects import Subject, Subjects
from mm_core.model.preprocess import resize


@dataclass(frozen=True)
class Cutout:
    """A subject with estimated colours of its own."""

    rgba: np.ndarray
    """uint8 (h, w, 4), not premultiplied, cropped to the subject."""
    box: tuple[int, int, int, int]
    """Its position: left, top, right, bottom in pixels of the photo."""
    photo_size: tuple[int, int]
    """Width and height of the photo."""


def lift(photo: np.ndarray, alpha: np.ndarray, tap: tuple[float, float] | None = None) -> Cutout | None:
    """Lift one subject off its background.

    The soft alpha is kept. Colours are estimated (`foreground`), so the subject carries none of its old background.

    Args:
        photo: uint8 (H, W, 3), sRGB.
        alpha: Matte, float (H, W) in [0, 1].
        tap: (x, y) as shares of width and height; None selects the dominant subject.

    Returns:
        The cutout, or None if no subject is found.
    """
    check_pair(photo, alpha)
    subjects = Subjects(alpha)
    chosen: Subject | None = subjects.at(*tap) if tap else next(iter(subjects.all), None)
    return None if chosen is None else cut(photo, subjects.of(chosen))


def cut(photo: np.ndarray, alpha: np.ndarray) -> Cutout | None:
    """Return all content of a matte as a cutout, cropped to it; None for an empty matte."""
    check_pair(photo, alpha)
    seen = (alpha > 1 / 255).astype(np.uint8)
    if not seen.any():
        return None
    x, y, width, height = cv2.boundingRect(seen)
    # The colour estimate needs some background around the subject.
    margin = max(16, max(width, height) // 8)
    top, left = max(0, y - margin), max(0, x - margin)
    window = slice(top, y + height + margin), slice(left, x + width + margin)
    # Only the window is estimated, which saves time for small subjects.
    colours = foreground(photo[window], alpha[window])
    # The crop without the margin, relative to the window.
    inner = slice(y - top, y - top + height), slice(x - left, x - left + width)
    matte = np.rint(np.clip(alpha[window][inner], 0, 1) * 255).astype(np.uint8)
    rgba = np.dstack([colours[inner], matte])
    return Cutout(rgba, (x, y, x + width, y + height), (photo.shape[1], photo.shape[0]))


def placed(
    cutout: Cutout, background: np.ndarray, centre: tuple[float, float] = (0.5, 0.5), height: float | None = None
) -> np.ndarray:
    """Place a cutout on another photo; parts outside of the frame are cropped.

    Args:
        cutout: The subject.
        background: uint8 (H, W, 3).
        centre: Position of the cutout's centre as shares of width and height.
        height: Height of the subject as a share of the background's; None keeps its share in its own photo.

    Returns:
        uint8 (H, W, 3).
    """
    rows, columns = background.shape[:2]
    share = height or cutout.rgba.shape[0] / cutout.photo_size[1]
    scale = share * rows / cutout.rgba.shape[0]
    tall, wide = max(1, round(cutout.rgba.shape[0] * scale)), max(1, round(cutout.rgba.shape[1] * scale))
    # Premultiplied, so that colours of transparent pixels do not leak in during the resize.
    matte = resize(cutout.rgba[..., 3].astype(np.float32) / 255, tall, wide)
    weighted = resize(cutout.rgba[..., :3] * (cutout.rgba[..., 3:].astype(np.float32) / 255), tall, wide)
    front = np.clip(weighted / np.maximum(matte, 1e-3)[..., None], 0, 255)
    top, left = round(centre[1] * rows - tall / 2), round(centre[0] * columns - wide / 2)
    # The visible part of the cutout in the background's pixels.
    y0, x0, y1, x1 = max(0, top), max(0, left), min(rows, top + tall), min(columns, left + wide)
    result = background.copy()
    if y1 > y0 and x1 > x0:
        inner = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        result[y0:y1, x0:x1] = over(front[inner], matte[inner], background[y0:y1, x0:x1])
    return result


def encoded(cutout: Cutout, form: str = "PNG", **about: object) -> bytes:
    """Encode a cutout as PNG or lossless WebP with metadata of ours (`about` as JSON values, box and photo size).

    PNG has it in the text chunk `mm`, WebP in EXIF's ImageDescription. The photo's own metadata (place, camera) is left
    out.
    """
    if form not in ("PNG", "WEBP"):
        raise ValueError(f"form {form!r}: PNG or WEBP")
    metadata = json.dumps({"box": cutout.box, "photo_size": cutout.photo_size, **about}, sort_keys=True)
    image, stream = Image.fromarray(cutout.rgba), BytesIO()
    if form == "PNG":
        # The box says where the cut-out belongs in its photo.
        chunk = PngImagePlugin.PngInfo()
        chunk.add_itxt("mm", metadata)
        image.save(stream, "PNG", pnginfo=chunk, compress_level=4)
    else:
        exif = Image.Exif()
        exif[0x010E] = metadata  # ImageDescription
        image.save(stream, "WEBP", lossless=True, method=2, exif=exif)
    return stream.getvalue()
