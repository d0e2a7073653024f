"""Photos and mattes of any format and mode come out as one kind of array, or with a clear error."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mm_core.imaging.images import (
    ColourPicture,
    CorruptImage,
    NotAnImage,
    TooManyPixels,
    UnreadableImage,
    encode_alpha,
    load_alpha,
    load_rgb,
    orient,
    read_header,
)

COLOURS = np.array([[[200, 30, 40], [20, 180, 60]], [[10, 40, 220], [240, 240, 20]]], np.uint8)
"""Four quarters: red, green, blue, yellow."""
QUARTERS = COLOURS.repeat(24, 0).repeat(32, 1)


def written(tmp_path: Path, image: Image.Image, format: str, **options) -> Path:
    path = tmp_path / "file.bin"  # no suffix: the content says what it is
    image.save(path, format, **options)
    return path


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
        ("HEIF", {"quality": 95, "chroma": 444}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("JPEG2000", {}),
        ("GIF", {}),
        ("MPO", {"quality": 95, "subsampling": 0}),
    ],
)
def test_formats(tmp_path: Path, format: str, options: dict) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    path = written(tmp_path, Image.fromarray(QUARTERS), format, **options)
    rgb = load_rgb(path)
    assert rgb.shape == (48, 64, 3) and rgb.dtype == np.uint8 and rgb.flags["C_CONTIGUOUS"]
    assert np.abs(rgb[6::24, 6::32].astype(int) - COLOURS).max() <= 12
    assert read_header(path).pixels == 48 * 64


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_modes(tmp_path: Path, mode: str) -> None:
    """A dark left half and a bright right half stay so."""
    grey = np.zeros((20, 30), np.uint8)
    grey[:, 15:] = 255
    image = Image.fromarray(grey)
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(
            grey.astype(np.int32) * 257
        )  # fmt: skip
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    elif mode != "L":
        image = image.convert(mode)
    rgb = load_rgb(written(tmp_path, image, "TIFF" if mode in ("CMYK", "YCbCr", "F", "I") else "PNG"))
    assert rgb.shape == (20, 30, 3)
    assert rgb[:, :12].max() <= 5 and rgb[:, 18:].min() >= 250


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    layer = np.zeros((4, 3, 4), np.uint8)
    layer[..., 3] = [0, 128, 255]
    rgb = load_rgb(written(tmp_path, Image.fromarray(layer), "PNG"))
    assert rgb[0, :, 0].tolist() == [255, 127, 0]


FORMATS_WITH_ORIENTATION: list[tuple[str, dict]] = [
    ("JPEG", {"quality": 95, "subsampling": 0}),
    ("MPO", {"quality": 95, "subsampling": 0}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ("HEIF", {"quality": 95, "chroma": 444}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg", "quality": 95}),
    ("JPEG2000", {}),
    ("BMP", {}),
    ("GIF", {}),
]


def transposed(path: Path) -> np.ndarray:
    """Pillow's own transposition, RGB: the oracle. From a stream: by name, Pillow 13 garbles plain grey TIFFs."""
    with path.open("rb") as stream, Image.open(stream) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "options"), FORMATS_WITH_ORIENTATION)
def test_orientation_of_every_format(tmp_path: Path, format: str, options: dict, orientation: int) -> None:
    """Photo, reduced photo, matte and header are as `exif_transpose` has them; BMP and GIF keep no orientation."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path, Image.fromarray(QUARTERS[:, :54]), format, exif=exif, **options)
    expected = transposed(path)
    rgb, header, small = load_rgb(path), read_header(path), load_rgb(path, 27)
    assert rgb.shape == expected.shape and mean_difference(rgb, expected) < 3
    assert (header.height, header.width) == rgb.shape[:2]
    if header.orientation > 4:
        assert (header.raw_height, header.raw_width) == (rgb.shape[1], rgb.shape[0])
    reduced = np.asarray(Image.fromarray(expected).resize(small.shape[1::-1], Image.Resampling.BOX))
    assert max(small.shape) == 27 and mean_difference(small, reduced) < 12
    grey = np.linspace(0, 255, 48 * 54).reshape(48, 54).astype(np.uint8)
    matte = written(tmp_path, Image.fromarray(grey), format, exif=exif, **options)
    alpha = load_alpha(matte)
    assert alpha.shape == transposed(matte).shape[:2]
    assert mean_difference(alpha * 255, transposed(matte)[..., 0]) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orient_is_exif_transpose(orientation: int) -> None:
    image = Image.fromarray(QUARTERS[:, :50])
    image.getexif()[0x0112] = orientation
    assert np.array_equal(orient(QUARTERS[:, :50], orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_matte_without_its_own_tag(tmp_path: Path, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path, Image.fromarray(GREY), format, exif=exif)
    assert np.array_equal(np.rint(load_alpha(path, by_own_tag=False) * 255), GREY)


def test_an_orientation_that_only_xmp_tells(tmp_path: Path) -> None:
    """Of a TIFF Pillow turns it while it loads, and its size before does not show that."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    path = written(tmp_path, Image.fromarray(QUARTERS[:, :54]), "TIFF", tiffinfo={700: xmp})
    expected = transposed(path)
    assert load_rgb(path).shape == expected.shape and mean_difference(load_rgb(path), expected) < 3
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2]
    assert load_rgb(path, 27).shape[0] == 27 * (expected.shape[0] > expected.shape[1]) + 24 * (
        expected.shape[0] <= expected.shape[1]
    )


def test_nonsense_orientation_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    assert read_header(written(tmp_path, Image.fromarray(QUARTERS), "JPEG", exif=exif)).orientation == 1


def swapped_profile() -> bytes:
    """An ICC profile whose red and green primaries are exchanged, written by hand (ICC.1:2010, section 7)."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    text = b"swapped\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78
    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)
    tags = {
        b"desc": name + b"\0" * (-len(name) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*green),
        b"gXYZ": xyz(*red),
        b"bXYZ": xyz(*blue),
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, body, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", place + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"\0" * 4, 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">iii", 63190, 65536, 54061) + b"\0" * 48
    return head + table + body


def test_colour_profiles_become_srgb(tmp_path: Path) -> None:
    path = written(tmp_path, Image.new("RGB", (9, 9), (255, 0, 0)), "PNG", icc_profile=swapped_profile())
    red, green, blue = load_rgb(path)[4, 4]
    assert green > 245 and red < 30 and blue < 30, "what this profile calls red is sRGB's green"


def test_a_broken_profile_is_left_aside(tmp_path: Path) -> None:
    path = written(tmp_path, Image.fromarray(QUARTERS), "PNG", icc_profile=b"no profile")
    assert np.array_equal(load_rgb(path), QUARTERS)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("max_side", [1, 20, 64, 500])
def test_max_side_only_shrinks(tmp_path: Path, format: str, max_side: int) -> None:
    big = QUARTERS.repeat(8, 0).repeat(8, 1)
    rgb = load_rgb(written(tmp_path, Image.fromarray(big), format), max_side)
    assert max(rgb.shape[:2]) == min(max_side, 512)
    if max_side >= 20:
        assert abs(rgb.shape[1] / rgb.shape[0] - 4 / 3) < 0.05
        h, w = rgb.shape[:2]
        corners = rgb[[h // 4, 3 * h // 4]][:, [w // 4, 3 * w // 4]].astype(int)
        assert np.abs(corners - COLOURS).max() <= 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "LAB"])
def test_every_mode_is_shrunk_alike(tmp_path: Path, mode: str) -> None:
    """A dark left half and a bright right one, ten times as large as asked for."""
    grey = np.zeros((200, 300), np.uint8)
    grey[:, 150:] = 255
    wide = {"I;16": grey.astype(np.uint16) * 257, "I": grey.astype(np.int32) * 257, "F": grey.astype(np.float32) / 255}
    rgb = Image.fromarray(grey).convert("RGB")
    image = Image.fromarray(wide[mode]) if mode in wide else rgb.convert(mode)
    small = load_rgb(written(tmp_path, image, "TIFF"), 30)
    assert small.shape == (20, 30, 3)
    assert small[:, :13].max() <= 8 and small[:, 17:].min() >= 247


def test_a_palette_picture_without_palette_is_corrupt(tmp_path: Path) -> None:
    whole = written(tmp_path, Image.fromarray(QUARTERS).convert("P"), "PNG").read_bytes()
    begin = whole.index(b"PLTE") - 4
    length = int.from_bytes(whole[begin : begin + 4])
    path = tmp_path / "bare.png"
    path.write_bytes(whole[:begin] + whole[begin + 12 + length :])
    with pytest.raises(CorruptImage, match="bare.png"):
        load_rgb(path)


ALPHA = (np.linspace(0, 1, 30, dtype=np.float32)[None] * np.ones((20, 1), np.float32)).astype(np.float32)
GREY = np.rint(ALPHA * 255).astype(np.uint8)


def rgba(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]))


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (Image.fromarray(GREY), "PNG"),
        (Image.fromarray(np.rint(ALPHA * 65535).astype(np.uint16)), "PNG"),
        (Image.fromarray(ALPHA), "TIFF"),
        (Image.fromarray(ALPHA * 255), "TIFF"),
        (Image.fromarray(GREY).convert("RGB"), "PNG"),
        (Image.fromarray(GREY).convert("P"), "PNG"),
        (rgba(np.full_like(GREY, 7), GREY), "PNG"),
        (Image.merge("LA", [Image.new("L", (30, 20), 9), Image.fromarray(GREY)]), "PNG"),
        (Image.fromarray(GREY), "JPEG"),
    ],
    ids=["8", "16", "float", "float255", "rgb", "palette", "rgba", "la", "jpeg"],
)
def test_alphas(tmp_path: Path, image: Image.Image, format: str) -> None:
    alpha = load_alpha(written(tmp_path, image, format))
    assert alpha.shape == (20, 30) and alpha.dtype == np.float32
    assert np.abs(alpha - ALPHA).max() <= (0.02 if format == "JPEG" else 0.003)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_a_constant_alpha_channel_is_that_matte(tmp_path: Path, mode: str, value: int) -> None:
    """Whatever the colours below are: a picture that was saved with an opaque channel is no matte of its brightness."""
    image = rgba(GREY, np.full_like(GREY, value))
    image = image.convert("LA") if mode == "LA" else image.quantize(16) if mode == "PA" else image
    alpha = load_alpha(written(tmp_path, image, "PNG"))
    assert np.allclose(alpha, value / 255, atol=0.003)


@pytest.mark.parametrize(
    ("mode", "format"),
    [(m, f) for m in ("RGB", "P", "YCbCr", "CMYK", "LAB") for f in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")],
)
def test_a_picture_in_colour_is_no_matte(tmp_path: Path, mode: str, format: str) -> None:
    image = Image.fromarray(QUARTERS).convert(mode)
    try:
        path = written(tmp_path, image, format)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{format} has no {mode}")
    with pytest.raises(ColourPicture, match="save it in grey"):
        load_alpha(path)


@pytest.mark.parametrize("quality", [10, 50, 95])
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_compression_does_not_make_a_grey_matte_coloured(tmp_path: Path, format: str, quality: int) -> None:
    disc = np.hypot(*np.mgrid[-60:60, -80:80]) < 40
    image = Image.fromarray((disc * 255).astype(np.uint8)).convert("RGB")
    assert mean_difference(load_alpha(written(tmp_path, image, format, quality=quality)), disc) < 0.05


def test_a_grey_png_with_one_transparent_value_is_read_by_its_grey(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    path = written(tmp_path, Image.fromarray(grey), "PNG", transparency=0)
    assert np.array_equal(np.rint(load_alpha(path) * 255), grey)


@pytest.mark.parametrize("scale", [1, 1.05, 255, 65535])
def test_floats_of_any_usual_range_are_read(tmp_path: Path, scale: float) -> None:
    unit = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)
    alpha = load_alpha(written(tmp_path, Image.fromarray(unit * np.float32(scale)), "TIFF"))
    assert np.abs(alpha - np.clip(unit * (scale if scale < 2 else 1), 0, 1)).max() < 1e-6


@pytest.mark.parametrize("values", [np.int32(2**30), np.int32(-5), np.float32(1e6)])
def test_values_of_an_unknown_range_are_refused(tmp_path: Path, values: np.generic) -> None:
    pixels = np.full((48, 64), values)
    pixels[0] = 0
    with pytest.raises(CorruptImage, match="write 8 or 16 bits, or floats up to 1"):
        load_alpha(written(tmp_path, Image.fromarray(pixels), "TIFF"))


def test_sixteen_bits_survive_the_way_into_the_store(tmp_path: Path) -> None:
    fine = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    for sixteen, step in ((True, 1 / 65535), (False, 1 / 255)):
        path = tmp_path / "alpha"
        path.write_bytes(encode_alpha(fine, sixteen_bit=sixteen))
        again = load_alpha(path)
        assert np.abs(again - fine).max() <= step / 2 + 1e-7
        assert encode_alpha(again, sixteen_bit=sixteen) == path.read_bytes(), "coding twice changes nothing"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", NotAnImage),
        (b"<html>404</html>", NotAnImage),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NotAnImage),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, UnreadableImage),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, UnreadableImage),
    ],
)
def test_what_is_no_picture(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (read_header, load_rgb, load_alpha):
        with pytest.raises(error, match="x.png"):
            read(path)


def test_lab_pictures(tmp_path: Path) -> None:
    """Pillow's colour management is the way there and back."""
    path = written(tmp_path, Image.fromarray(QUARTERS).convert("LAB"), "TIFF")
    assert np.abs(load_rgb(path).astype(int) - QUARTERS).mean() < 8
    grey = written(tmp_path, Image.fromarray(GREY).convert("RGB").convert("LAB"), "TIFF")
    assert np.abs(load_alpha(grey) - ALPHA).max() < 0.02


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    """Each empty scan costs a pass over the whole picture; what encoders write has about ten."""
    path = written(tmp_path, Image.fromarray(QUARTERS), "JPEG", progressive=True)
    whole = path.read_bytes()
    assert load_rgb(path).shape == (48, 64, 3)
    scan = whole.index(b"\xff\xda")
    path.write_bytes(whole[:scan] + whole[scan:-2] * 20 + whole[-2:])
    for read in (load_rgb, load_alpha):
        with pytest.raises(CorruptImage, match="scans"):
            read(path)
    plain = written(tmp_path, Image.fromarray(QUARTERS), "JPEG", exif=b"Exif\0\0" + b"\xff\xda\0\x02" * 500)
    assert load_rgb(plain).shape == (48, 64, 3), "what looks like scans within a segment is none"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no such file"):
        load_rgb(tmp_path / "x.png")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """30,000 × 30,000 pixels in a few bytes: the claim is told, nothing is decoded."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path = tmp_path / "bomb.png"
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)))
    for read in (read_header, load_rgb, load_alpha):
        with pytest.raises(TooManyPixels) as refusal:
            read(path)
        assert refusal.value.pixels == 900_000_000


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000"])
def test_damage_gives_our_error_or_a_picture_never_anything_else(tmp_path: Path, format: str) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(stream, format)
    whole = stream.getvalue()
    random = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for trial in range(60):
        data = bytearray(whole[: random.integers(1, len(whole))] if trial % 2 else whole)
        for place in random.integers(0, len(data), 0 if trial % 4 == 1 else 6):
            data[place] = random.integers(0, 256)
        path.write_bytes(bytes(data))
        for read in (load_rgb, load_alpha):
            try:
                assert read(path).ndim in (2, 3)
            except UnreadableImage as error:
                assert str(path) in str(error)


def test_half_a_file_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    for side in (None, 16):
        with pytest.raises(CorruptImage, match="truncated"):
            load_rgb(path, side)
