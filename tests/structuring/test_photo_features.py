import importlib
import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from mm_core.core.code_digest import first_party_closure
from mm_core.imaging.images import UnreadableImage, load_rgb
from mm_core.structuring.decode import code_version
from mm_core.structuring.photo_features import colourfulness, noise_sigma, photo_features, quality


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def features(path):
    return photo_features(path, load_rgb(path))


def with_exif(path, *, orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Acme\0\0", "One\x07"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:10:01 08:30:00"
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "S", (33.0, 51.0, 36.0)
    gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "E", (151.0, 12.0, 0.0)
    return saved(path, np.full((40, 60, 3), 99, np.uint8), exif=exif)


def test_size_is_of_the_upright_photo(tmp_path):
    found = features(with_exif(tmp_path / "a.jpg", orientation=6))
    assert (found.numbers["width"], found.numbers["height"]) == (40, 60)
    assert found.numbers["megapixels"] == pytest.approx(0.0024)


def test_time_place_and_camera(tmp_path):
    found = features(with_exif(tmp_path / "a.jpg"))
    assert found.texts == {"format": "JPEG", "taken_at": "2026-10-01T08:30:00", "camera": "Acme One"}
    assert found.numbers["latitude"] == pytest.approx(-33.86)
    assert found.numbers["longitude"] == pytest.approx(151.2)
    assert "altitude" not in found.numbers


def placed(path, latitude, latitude_ref, longitude, longitude_ref):
    exif = Image.Exif()
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLongitude] = latitude, longitude
    for tag, reference in ((ExifTags.GPS.GPSLatitudeRef, latitude_ref), (ExifTags.GPS.GPSLongitudeRef, longitude_ref)):
        if reference is not None:
            gps[tag] = reference
    found = features(saved(path, np.full((40, 60, 3), 99, np.uint8), exif=exif)).numbers
    return found.get("latitude"), found.get("longitude")


@pytest.mark.parametrize(
    ("refs", "signs"),
    [
        (("N", "E"), (1, 1)), (("s", "w"), (-1, -1)), (("South", "West"), (-1, -1)), (("north ", "EAST"), (1, 1)),
        ((" S", "W\0"), (-1, -1)), (("n", "west"), (1, -1)),
    ],
)  # fmt: skip
def test_references_in_any_spelling(tmp_path, refs, signs):
    found = placed(tmp_path / "a.jpg", (30.0, 30.0, 0.0), refs[0], (60.0, 15.0, 0.0), refs[1])
    assert found == (pytest.approx(30.5 * signs[0]), pytest.approx(60.25 * signs[1]))


@pytest.mark.parametrize(
    ("latitude", "refs", "longitude"),
    [
        ((0.0, 0.0, 0.0), ("N", "E"), (0.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (None, None), (0.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.01), ("N", "E"), (0.0, 0.0, 0.02)),
        ((30.0, 0.0, 0.0), (None, "E"), (60.0, 0.0, 0.0)),
        ((30.0, 0.0, 0.0), ("N", "?"), (60.0, 0.0, 0.0)),
        ((30.0, 0.0, 0.0), ("E", "N"), (60.0, 0.0, 0.0)),
        ((91.0, 0.0, 0.0), ("N", "E"), (60.0, 0.0, 0.0)),
        ((30.0, 75.0, 0.0), ("N", "E"), (60.0, 0.0, 0.0)),
        ((30.0, 0.0, 0.0), ("N", "E"), (60.0, 0.0, 75.0)),
    ],
)
def test_what_is_no_place(tmp_path, latitude, refs, longitude):
    assert placed(tmp_path / "a.jpg", latitude, refs[0], longitude, refs[1]) == (None, None)


def test_a_place_on_the_equator_is_one(tmp_path):
    assert placed(tmp_path / "a.jpg", (0.0, 0.0, 0.0), "N", (9.0, 0.0, 0.0), "E") == (0, 9)


def test_nonsense_exif_is_left_out(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "0000:00:00 00:00:00"
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLongitude] = (999.0, 0.0, 0.0), (1.0, 2.0)
    found = features(saved(tmp_path / "a.jpg", np.zeros((9, 9, 3), np.uint8), exif=exif))
    assert found.texts == {"format": "JPEG"}
    assert "latitude" not in found.numbers


def test_a_clock_that_was_not_set_leaves_the_time_of_the_file(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "0000:00:00 00:00:00"
    exif[ExifTags.Base.DateTime] = "2026:10:01 08:30:00"
    found = features(saved(tmp_path / "a.jpg", np.zeros((9, 9, 3), np.uint8), exif=exif))
    assert found.texts["taken_at"] == "2026-10-01T08:30:00"


@pytest.mark.parametrize(
    "stamp", ["2226:10:01 08:30:00", "2026:02:30 08:30:00", "0001:01:01 00:00:00", "1980:01:01 00:00:00"]
)
def test_an_impossible_time_is_no_time(tmp_path, stamp):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = stamp
    assert features(saved(tmp_path / "a.jpg", np.zeros((9, 9, 3), np.uint8), exif=exif)).texts == {"format": "JPEG"}


@pytest.mark.parametrize("name", ["photo_features", "embedding", "difficulty", "category_guess", "tags", "classifier"])
def test_the_version_of_features_is_that_of_their_code(name):
    """No number that somebody must remember to raise; the decoding of photos belongs to it."""
    module = f"mm_core.structuring.{name}"
    assert code_version(module) == importlib.import_module(module).VERSION
    assert "mm_core.imaging.images" in first_party_closure(module)


def test_a_broken_exif_block_does_not_spoil_the_photo(tmp_path):
    path = with_exif(tmp_path / "a.jpg")
    data = bytearray(path.read_bytes())
    start = data.index(b"Exif\0\0") + 6
    data[start + 4 : start + 40] = b"\xff" * 36
    path.write_bytes(data)
    assert features(path).numbers["width"] == 60


def test_not_a_photo_is_refused_by_name(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"hello")
    with pytest.raises(UnreadableImage, match="a.jpg"):
        photo_features(path, np.zeros((4, 4, 3), np.uint8))


def test_noise_estimate_finds_the_sigma_that_was_added():
    rng = np.random.default_rng(0)
    for sigma in (2.0, 6.0, 12.0):
        grey = np.clip(np.rint(128 + rng.normal(0, sigma, (256, 256))), 0, 255).astype(np.uint8)
        assert noise_sigma(grey) == pytest.approx(sigma, rel=0.06)


def test_colourfulness_orders_grey_pale_and_vivid():
    rng = np.random.default_rng(0)
    vivid = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pale = (vivid // 8 + 100).astype(np.uint8)
    grey = np.repeat(vivid[..., :1], 3, axis=2)
    assert colourfulness(grey) == 0
    assert 0 < colourfulness(pale) < colourfulness(vivid)


def test_blur_lowers_sharpness_and_clipping_is_counted():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC).save(
        stream, "PNG"
    )
    blurred = np.array(Image.open(stream))
    assert quality(blurred)["sharpness"] < quality(pixels)["sharpness"]
    assert quality(pixels)["dark_share"] == quality(pixels)["bright_share"] == 0.5
    assert quality(pixels)["brightness"] == pytest.approx(0.5)
