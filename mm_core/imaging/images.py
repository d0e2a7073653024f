"""Read photos and mattes: files of many formats and modes become one kind of array.

The content decides the format; the file name does not. Decoders that could run programs or fetch other files (EPS, PDF,
WMF, …) are disabled.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError

if TYPE_CHECKING:
    import pillow_heif
else:
    pillow_heif = Deferred("pillow_heif")

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF", "JPEG2000")
MAX_SCANS = 64
"""Largest number of scans of a JPEG: encoders write about ten, and each costs a pass over the whole picture."""
COLOUR_SIDE = 512
"""Long side, in pixels, of the reduced picture in which a matte is searched for colours."""
MEAN_TINT, MOST_TINT = 2.0, 24.0
"""Largest difference between the channels of a grey picture, in levels of 255: mean and 99 % quantile."""
INVERSE = {6: 8, 8: 6}
"""Orientations that another orientation inverts; all others are their own inverse."""
_ORIENTATION = 0x0112
_JPEG_SEGMENT = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])(..)", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE = b"\xda", b"\xd9"
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
    AssertionError,  # Pillow's, for a palette picture without a palette
)
"""Exceptions that Pillow and its plugins raise on damaged files."""


class UnreadableImage(InputError):
    """A file contains no readable picture; the text names the file and the remedy."""


class NotAnImage(UnreadableImage):
    """The content has no known picture format."""


class CorruptImage(UnreadableImage):
    """The file begins like a picture but cannot be decoded completely."""


class ColourPicture(UnreadableImage):
    """The file is a colour picture instead of a matte."""


class TooManyPixels(UnreadableImage):
    """The header claims more pixels than the limit for decoding."""

    def __init__(self, text: str, pixels: int) -> None:
        super().__init__(text)
        self.pixels = pixels
        """Number of pixels in the header."""

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        # Without this, pickle would drop the second argument on the way out of a worker process.
        return type(self), (str(self), self.pixels)


@dataclass(frozen=True)
class Header:
    """Properties of a picture from its header."""

    format: str
    mode: str
    raw_width: int
    """Stored pixels, before orientation."""
    raw_height: int
    orientation: int
    """EXIF orientation, 1 to 8, that turns the stored pixels upright; applied here or by the format's decoder."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.raw_width * self.raw_height

    @property
    def width(self) -> int:
        """Pixels after orientation."""
        return self.raw_width if self.orientation < 5 else self.raw_height

    @property
    def height(self) -> int:
        """Height in pixels, after EXIF orientation."""
        return self.raw_height if self.orientation < 5 else self.raw_width


def read_header(path: Path) -> Header:
    """Read format and size without decoding; raise NotAnImage, CorruptImage or TooManyPixels."""
    with _opened(path) as image:
        orientation = _declared_orientation(image)
        width, height = image.size
        if _shows_upright_size(image) and orientation > 4:
            # Some decoders report the rotated size; the header describes the stored one.
            width, height = height, width
        return Header(image.format or "", image.mode, width, height, orientation)


def load_rgb(path: Path, max_side: int | None = None) -> np.ndarray:
    """Read a photo as uint8 (H, W, 3) in sRGB, upright.

    Colour profiles are converted, transparency is composited over white, and 16-bit and float values are scaled to 8
    bits. An animation gives its first frame.

    Args:
        path: The picture.
        max_side: Limit of the longer side in pixels; smaller pictures are not enlarged. A JPEG is then decoded at
            reduced size, which is several times faster.

    Returns:
        The pixels.

    Raises:
        UnreadableImage: The file is not a picture, is damaged, or has too many pixels.
    """
    with _opened(path) as image:
        _refuse_scan_bomb(path, image)
        full = image.size
        scale = min(1.0, (max_side or max(full)) / max(full))
        if scale < 1:
            # `draft` makes libjpeg decode at 1/2, 1/4 or 1/8 of the size.
            image.draft(None, _scaled(full, scale))  # pyright: ignore[reportArgumentType]
        drafted = image.size
        image.load()
        # Pillow rotates a TIFF while it loads and removes the tag, so the remaining orientation is read afterwards.
        orientation = _orientation(image)
        size = _scaled(full if image.size == drafted else (full[1], full[0]), scale)
        if scale < 1:
            image = _shrunk(image, size)
        rgb = _to_srgb(image)
        pixels = np.array(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.LANCZOS))
    return orient(pixels, orientation)


def load_alpha(path: Path, *, by_own_tag: bool = True) -> np.ndarray:
    """Read a matte as float32 (H, W) in [0, 1].

    Grey pictures of 1, 8 or 16 bits or float are read directly, also where they name one value as transparent. RGBA and
    LA give their alpha channel, even a constant one. Palettes and RGB must be grey.

    Args:
        path: The picture.
        by_own_tag: Apply the file's own orientation; otherwise return the stored pixels.

    Returns:
        The matte.

    Raises:
        UnreadableImage: The file is not a picture or is damaged.
        ColourPicture: The file has colours and no alpha channel.
    """
    with _opened(path) as image:
        _refuse_scan_bomb(path, image)
        declared = _declared_orientation(image)
        image.load()
        orientation = _orientation(image)
        if _is_wide(image):
            # 16-bit and float values would lose precision in a conversion to 8 bits.
            alpha = _unit(np.asarray(image))
        else:
            # A grey PNG may name one value as transparent. That is no alpha channel, and its grey is the matte.
            if image.has_transparency_data and image.mode not in ("1", "L"):
                grey = image.convert("RGBA").getchannel("A")
            else:
                colours = image if image.mode in ("1", "L") else _as_rgb(image)
                _refuse_colours(path, colours)
                grey = colours.convert("L")
            alpha = np.array(grey, np.float32)
            alpha /= 255  # in place, here and below, to avoid copies of a huge matte
    if not by_own_tag:
        # A decoder that has rotated the pixels is reversed.
        return alpha if orientation == declared else orient(alpha, INVERSE.get(declared, declared))
    return orient(alpha, orientation)


def _refuse_colours(path: Path, image: Image.Image) -> None:
    """Raise ColourPicture for a colour picture; compression may tint a grey one by a few levels."""
    if image.mode != "RGB":
        return
    # Nearest-neighbour sampling keeps the colours of single pixels.
    reduced = image.resize(_scaled(image.size, min(1.0, COLOUR_SIDE / max(image.size))), Image.Resampling.NEAREST)
    pixels = np.asarray(reduced).astype(np.int16)
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    if spread.mean() > MEAN_TINT or np.quantile(spread, 0.99) > MOST_TINT:
        raise ColourPicture(f"{path}: a matte cannot have colours: save it in grey or as an alpha channel")


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror (H, W, …) by EXIF orientation 1 to 8, to an upright picture."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }.get(orientation)
    return pixels if turned is None else np.ascontiguousarray(turned(pixels))


def encode_alpha(alpha: np.ndarray, *, sixteen_bit: bool = False) -> bytes:
    """Return a matte (H, W) in [0, 1] as grey PNG of 8 or 16 bits, the form of labels in the store."""
    scale, kind = (65535, np.uint16) if sixteen_bit else (255, np.uint8)
    stream = BytesIO()
    scaled = np.clip(alpha, 0, 1)
    scaled *= scale
    Image.fromarray(np.rint(scaled, out=scaled).astype(kind)).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


@cache
def _open_plugins() -> None:
    # Registering the plugins takes time, so it is done once and on first use.
    Image.init()
    pillow_heif.register_heif_opener()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield the picture and convert its decoder's errors to ours; loaded pixels stay usable afterwards."""
    _open_plugins()
    try:
        # A stream, because Pillow maps a plain TIFF opened by name, and then takes the rotated size for the rows.
        with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            yield image
    except Image.DecompressionBombError as error:
        # Pillow's message is the only source of the claimed number of pixels.
        claimed = re.search(r"\d+", str(error))
        pixels = int(claimed.group()) if claimed else 1 << 62
        raise TooManyPixels(f"{path}: claims {pixels} pixels: send a smaller picture", pixels) from None
    except FileNotFoundError:
        raise UnreadableImage(f"{path}: no such file") from None
    except Image.UnidentifiedImageError:
        raise NotAnImage(f"{path}: not a picture (read are {', '.join(FORMATS)})") from None
    except DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"{path}: {reason}: send the picture again") from None


def _refuse_scan_bomb(path: Path, image: Image.Image) -> None:
    """Raise CorruptImage for a JPEG with too many scans: a megabyte of empty scans takes minutes to decode."""
    if image.format not in ("JPEG", "MPO"):
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Walk over the segments; each has a marker and, except for the end of image, a length.
        place, scans = 2, 0
        while scans <= MAX_SCANS and (segment := _JPEG_SEGMENT.search(data, place)):
            kind, length = segment.groups()
            if kind == _END_OF_IMAGE:
                break
            if kind == _START_OF_SCAN:
                scans += 1
                whole = data[segment.end() : segment.end() + 1] >= bytes([len(image.getbands())])
                if whole and not image.info.get("progressive"):
                    break  # decoders stop after a scan of all components
            place = segment.start() + 2 + int.from_bytes(length)
    if scans > MAX_SCANS:
        raise CorruptImage(f"{path}: more than {MAX_SCANS} scans: send the picture again")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if the tag is absent or invalid. A broken EXIF block does not fail the picture."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def _declared_orientation(image: Image.Image) -> int:
    """Return the orientation in the file before loading; HEIF's decoder rotates, and keeps the tag elsewhere."""
    if image.format == "HEIF" and (turn := _heif_turn(image)) != 1:
        return turn
    kept_aside: int = image.info.get("original_orientation") or 1
    return kept_aside if kept_aside in range(2, 9) else _orientation(image)


def _heif_turn(image: Image.Image) -> int:
    """Return the EXIF orientation of what the decoder of a HEIF file does; many files have it without an EXIF tag."""
    try:
        steps = image._heif_file[0]._c_image.transformations  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, LookupError):
        return 1
    # No two of the eight orientations give the same array.
    before = after = np.arange(6).reshape(2, 3)
    for kind, *values in steps:
        if kind == "irot":
            after = np.rot90(after, values[0] // 90)
        elif kind == "imir":
            after = after[:, ::-1] if values[0] else after[::-1]
    return next(n for n in range(1, 9) if np.array_equal(orient(before, n), after))


def _shows_upright_size(image: Image.Image) -> bool:
    """Return whether `image.size`, before loading, is already the size of the upright picture."""
    if image.format == "TIFF":
        return getattr(image, "tag_v2", {}).get(_ORIENTATION) in range(5, 9)
    return image.format == "HEIF"


def _shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Reduce to at least twice `size` by means over whole blocks, to hold few copies of a huge picture in memory."""
    # The final resize needs at least twice the target size for a good result.
    factors = max(1, image.width // size[0] // 2), max(1, image.height // size[1] // 2)
    if factors == (1, 1):
        return image
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode.startswith("I;16"):
        image = image.convert("I")
    return image.reduce(factors)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB in sRGB, with transparency over white."""
    if _is_wide(image):
        return Image.fromarray(np.rint(_unit(np.asarray(image)) * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        # The profile applies to colours only, never to the alpha channel.
        colours = _by_profile(layer.convert("RGB"), image.info.get("icc_profile"))
        white = Image.new("RGB", image.size, "white")
        white.paste(colours, mask=layer.getchannel("A"))
        return white
    return _by_profile(image, image.info.get("icc_profile"))


def _by_profile(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert by the embedded colour profile; ignore a broken or unsuitable profile, as viewers do."""
    if icc and image.mode in ("RGB", "CMYK", "L", "LAB"):
        try:
            profile = ImageCms.ImageCmsProfile(BytesIO(icc))
            if not (image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(profile).lower()):
                done = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert done is not None
                return done
        except (ImageCms.PyCMSError, OSError):
            pass
    # Without a usable profile the values are taken as sRGB.
    return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB; Pillow converts Lab only with colour management."""
    if image.mode != "LAB":
        return image.convert("RGB")
    done = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert done is not None
    return done


def _is_wide(image: Image.Image) -> bool:
    return image.mode in ("F", "I") or image.mode.startswith("I;16")


def _unit(values: np.ndarray) -> np.ndarray:
    """Scale wide values to float32 in [0, 1]: integers by 65535, floats by 1, 255 or 65535, as their largest one asks.

    A float may exceed the range by a fifth, as after resampling. Raises ValueError for larger and negative integers.
    """
    wide = values.astype(np.float32)
    highest = float(np.nanmax(wide, initial=0, where=np.isfinite(wide)))
    scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    slack = 1.2 if values.dtype.kind == "f" else 1.0
    scale = next((scale for scale in scales if highest <= slack * scale), 0.0)
    if not scale or (values.dtype.kind == "i" and int(values.min()) < 0):
        raise ValueError(f"values from {wide.min():g} to {highest:g}; write 8 or 16 bits, or floats up to 1")
    wide /= np.float32(scale)
    return np.clip(np.nan_to_num(wide, copy=False), 0, 1, out=wide)
