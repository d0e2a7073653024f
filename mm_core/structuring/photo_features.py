"""Measure a photo without a model: size, light, sharpness, noise, colour, composition, time and place of capture.

This is the part of the paper's "photo content structuring" (section 2.1) that needs no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from mm_core.core.capture_time import parse_taken_at
from mm_core.imaging.images import DECODER_ERRORS, read_header
from mm_core.structuring.aesthetic import aesthetic
from mm_core.structuring.composition import composition
from mm_core.structuring.decode import code_version

EXTRACTOR = "photo"
VERSION = code_version(__name__)

NO_FIX = 1e-4
"""Degrees, about 10 m, within which 0/0 means a place that the camera does not know."""
SIDE = 512
"""Long side at which light, sharpness and noise are measured, so that cameras are comparable."""


@dataclass(frozen=True)
class PhotoFeatures:
    """One row of the table `features`."""

    numbers: Mapping[str, float]
    """width, height (pixels, upright), megapixels, bytes; brightness, contrast, dark_share, bright_share (all in
    [0, 1]); sharpness (variance of the Laplacian, grey levels squared), noise (sigma in grey levels), colourfulness
    (Hasler-Suesstrunk; 0 grey, above 60 vivid); thirds, balance, simplicity, aesthetic (all in [0, 1]); if available
    latitude, longitude (degrees), altitude (m)."""
    texts: Mapping[str, str]
    """format; if available taken_at (ISO 8601, in the camera's local time unless EXIF has an offset) and camera."""


def photo_features(path: Path, rgb: np.ndarray) -> PhotoFeatures:
    """Return the features of a photo file.

    Only the header is read from the file; the caller has decoded the pixels already.

    Args:
        path: The photo file.
        rgb: Its pixels (H, W, 3) uint8, possibly reduced.

    Raises:
        UnreadableImage: The header cannot be read.
    """
    header = read_header(path)
    exif = _exif(path)
    size = {"width": header.width, "height": header.height, "megapixels": header.pixels / 1e6}
    size["bytes"] = path.stat().st_size
    # The aesthetic score is computed from the other measures.
    measured = quality(rgb) | composition(rgb)
    measured["aesthetic"] = aesthetic(measured)
    return PhotoFeatures(
        numbers=size | measured | _place(exif),
        texts={"format": header.format} | _origin(exif),
    )


def quality(rgb: np.ndarray) -> dict[str, float]:
    """Measure light, sharpness, noise and colour of a photo (H, W, 3) uint8 sRGB at long side at most `SIDE`."""
    height, width = rgb.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    # Reduce large photos, never enlarge small ones.
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return {
        "brightness": float(grey.mean()) / 255,
        "contrast": float(grey.std()) / 255,
        "dark_share": float((grey <= 3).mean()),
        "bright_share": float((grey >= 252).mean()),
        "sharpness": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "noise": noise_sigma(grey),
        "colourfulness": colourfulness(rgb),
    }


def noise_sigma(grey: np.ndarray) -> float:
    """Return the standard deviation of Gaussian noise in grey levels.

    The method is that of Immerkaer 1996, "Fast noise variance estimation". Fine texture counts as noise, so the result
    is an upper estimate. It is 0 for pictures below 3×3.
    """
    height, width = grey.shape
    if min(height, width) < 3:
        return 0.0
    # The kernel cancels constant, linear and quadratic structure, so mostly noise remains.
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = cv2.filter2D(grey.astype(np.float32), -1, kernel)[1:-1, 1:-1]
    return math.sqrt(math.pi / 2) / 6 * float(np.abs(response).mean())


def colourfulness(rgb: np.ndarray) -> float:
    """Return the metric M3 of Hasler & Suesstrunk 2003, "Measuring colourfulness in natural images"."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    # Opponent colours: red-green and yellow-blue.
    opponents = np.stack((red - green, 0.5 * (red + green) - blue))
    spread, mean = opponents.std(axis=(1, 2)), opponents.mean(axis=(1, 2))
    return float(np.hypot(*spread) + 0.3 * np.hypot(*mean))


def _exif(path: Path) -> dict[str, Mapping[int, object]]:
    """Return the three EXIF blocks, empty if missing. A broken block is ignored, since the picture may be good."""
    with Image.open(path) as image:
        try:
            exif = image.getexif()
            return {
                "base": dict(exif),
                "shot": exif.get_ifd(ExifTags.IFD.Exif),
                "gps": exif.get_ifd(ExifTags.IFD.GPSInfo),
            }
        except DECODER_ERRORS:
            return {"base": {}, "shot": {}, "gps": {}}


def _origin(exif: Mapping[str, Mapping[int, object]]) -> dict[str, str]:
    """Return the time of capture and the camera, if known."""
    texts = {}
    taken = _text(exif["shot"].get(ExifTags.Base.DateTimeOriginal))
    offset = _text(exif["shot"].get(ExifTags.Base.OffsetTimeOriginal))
    changed = _text(exif["base"].get(ExifTags.Base.DateTime))
    # Try the time with its offset first, then without. A camera whose clock is not set writes zeros or blanks.
    times = (parse_taken_at(f"{stamp}{zone}") for stamp in (taken, changed) for zone in (offset, ""))
    # A date alone says too little about when the photo was taken.
    if stamp := next((stamp for stamp in times if stamp and "T" in stamp), None):
        texts["taken_at"] = stamp
    camera = " ".join(_text(exif["base"].get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model)).strip()
    return texts | ({"camera": camera} if camera else {})


def _place(exif: Mapping[str, Mapping[int, object]]) -> dict[str, float]:
    """Return latitude, longitude and altitude, if known."""
    gps = exif["gps"]
    latitude = _degrees(gps.get(ExifTags.GPS.GPSLatitude), _text(gps.get(ExifTags.GPS.GPSLatitudeRef)), "NS", 90)
    longitude = _degrees(gps.get(ExifTags.GPS.GPSLongitude), _text(gps.get(ExifTags.GPS.GPSLongitudeRef)), "EW", 180)
    # Cameras without a GPS fix write 0/0, a point in the Gulf of Guinea, or the status V (void) with an old place.
    is_void = _text(gps.get(ExifTags.GPS.GPSStatus)).upper().startswith("V")
    if is_void or latitude is None or longitude is None or max(abs(latitude), abs(longitude)) < NO_FIX:
        return {}
    altitude = _number(gps.get(ExifTags.GPS.GPSAltitude))
    below = gps.get(ExifTags.GPS.GPSAltitudeRef) in (1, b"\x01")
    height = {} if altitude is None else {"altitude": -altitude if below else altitude}
    return {"latitude": latitude, "longitude": longitude} | height


def _degrees(parts: object, reference: str, signs: str, limit: float) -> float | None:
    """Convert degrees, minutes and seconds to signed degrees; None if they are missing or impossible.

    `signs` has the letters of the positive and the negative half. `reference` must begin with one of them in either
    case (`N`, `s`, `West`); without it the half is unknown.
    """
    if not isinstance(parts, tuple) or len(parts) != 3:
        return None
    numbers = [_number(part) for part in parts]
    half = reference[:1].upper()
    # A sign belongs to the reference letter, never to the numbers.
    if any(n is not None and n < 0 for n in numbers) or not half or half not in signs:
        return None
    # Rounding may give 60, but nothing gives more.
    if any(n is not None and n > 60 for n in numbers[1:]):
        return None
    degrees = sum(n / 60**i if n is not None else math.nan for i, n in enumerate(numbers))
    if not 0 <= degrees <= limit:
        return None
    return -degrees if half == signs[1] else degrees


def _number(value: object) -> float | None:
    """Return a finite number, or None."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]  (a TypeError is an answer)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str:
    """Return the printable text of an EXIF field, at most 200 characters; empty if it is not text."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return "".join(c for c in value if c.isprintable()).strip()[:200] if isinstance(value, str) else ""
