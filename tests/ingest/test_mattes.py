"""Mattes from producers: the right way up, and never the photo itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

import samplegen
from mm_core.imaging.images import INVERSE, load_alpha, orient, read_header
from mm_core.ingest.mattes import turned_upright
from mm_core.ingest.placement import newest_labels
from mm_core.storage.store import fetch_blob


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright pixels as a camera stores them under this orientation."""
    return np.ascontiguousarray(orient(pixels, INVERSE.get(orientation, orientation)))


def file_of(pixels: np.ndarray, format: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    register_heif_opener()
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "HEIF": {"quality": 100, "chroma": 444}}.get(format, {})
    # Given as bytes, the tag becomes a rotation that every decoder of HEIF applies.
    Image.fromarray(pixels).save(stream, format, exif=exif.tobytes() if format == "HEIF" else exif, **options)
    return stream.getvalue()


def untagged(heif: bytes) -> bytes:
    """The same HEIF file without the orientation in its EXIF block, as phones and converters write it."""
    tag = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00"  # Pillow writes big-endian EXIF
    before, found, after = heif.partition(tag)
    assert found and after[0] in range(1, 9)
    return before + found + b"\x01" + after[1:]


def sample(seed: int, square: bool) -> tuple[np.ndarray, np.ndarray]:
    """A photo uint8 (H, W, 3) and its matte uint8 (H, W), with nothing symmetric in them."""
    made = samplegen.generate("pets", seed, size=256, aspect=1.0 if square else 4 / 3)
    return made.image, np.rint(made.alpha * 255).astype(np.uint8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_way_whose_edges_agree_is_taken(tmp_path: Path, format: str, square: bool, orientation: int) -> None:
    """Upright, as stored, and with the photo's tag copied onto a matte that is upright already."""
    image, alpha = sample(3, square)
    photo, matte = tmp_path / "photo", tmp_path / "matte"
    photo.write_bytes(file_of(stored(image, orientation), format, orientation))
    files = {
        "upright": file_of(alpha, "PNG"),
        "as stored": file_of(stored(alpha, orientation), "PNG"),
        "as stored, tagged": file_of(stored(alpha, orientation), "PNG", orientation),
        "upright, tag copied": file_of(alpha, "PNG", orientation),
    }
    for name, data in files.items():
        matte.write_bytes(data)
        found, way_up = turned_upright(matte, read_header(matte), read_header(photo), image)
        assert np.array_equal(np.rint(found * 255), alpha), name
        assert way_up is None or way_up > 1, name


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turn_that_heif_states_outside_of_its_tag(tmp_path: Path, square: bool, orientation: int) -> None:
    """In the photo, in the matte, and in both: every way is tried, and the size is that of the upright picture."""
    image, alpha = sample(3, square)
    photo, matte = tmp_path / "photo", tmp_path / "matte"
    turned = untagged(file_of(stored(image, orientation), "HEIF", orientation))
    tagged = file_of(stored(image, orientation), "JPEG", orientation)
    mattes = {
        "upright": file_of(alpha, "PNG"),
        "as stored": file_of(stored(alpha, orientation), "PNG"),
        "as stored, turned": untagged(file_of(stored(alpha, orientation), "HEIF", orientation)),
        "upright, turned like the photo": untagged(file_of(alpha, "HEIF", orientation)),
    }
    for data in (turned, tagged):
        photo.write_bytes(data)
        here = read_header(photo)
        assert (here.orientation, here.height, here.width) == (orientation, *alpha.shape)
        for name, content in mattes.items():
            matte.write_bytes(content)
            found, way_up = turned_upright(matte, read_header(matte), here, image)
            assert found.shape == alpha.shape and float(np.abs(found * 255 - alpha).mean()) < 2, name
            assert way_up is None or way_up > 1, name


def counting_mattes(workshop: Any) -> dict[str, np.ndarray]:
    """Name of the photo → its matte in the store, uint8."""
    names = workshop.catalog.read("samples").set_index("id")["name"].to_dict()
    labels = newest_labels(workshop.catalog.read("labels")).to_dict("records")
    return {
        names[row["sample_id"]]: np.rint(load_alpha(fetch_blob(workshop.store, row["alpha_sha256"])) * 255)
        for row in labels
    }


def test_turned_photos_in_a_drop(workshop: Any) -> None:
    """Each orientation that the size does not tell, each with its matte as stored; none is upside down."""
    rows, expected = [], {}
    for orientation in range(2, 9):
        image, alpha = sample(10 + orientation, square=orientation > 4)
        name = f"{orientation}.jpg"
        rows.append(
            {
                "image": name,
                "image_bytes": file_of(stored(image, orientation), "JPEG", orientation),
                "alpha": f"{orientation}.png",
                "alpha_bytes": file_of(stored(alpha, orientation), "PNG"),
                "category": "pets",
            }
        )
        expected[name] = alpha
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    found = counting_mattes(workshop)
    assert len(found) >= 6, workshop.verdicts()
    for name, matte in found.items():
        assert np.array_equal(matte, expected[name]), name


def test_a_doubtful_way_up_says_so(workshop: Any, make: Any) -> None:
    """A photo without edges agrees with both ways alike: a person is asked, and told why."""
    dull = np.full((192, 256, 3), 128, np.uint8) + np.random.default_rng(0).integers(0, 6, (192, 256, 3), np.uint8)
    matte = np.zeros((192, 256), np.uint8)
    matte[20:90, 30:120] = 255
    row = {"image": "a.jpg", "image_bytes": file_of(dull, "JPEG", 3), "alpha": "a.png", "category": "pets"}
    workshop.drop("pixel_labeled", "a", [row | {"alpha_bytes": file_of(matte, "PNG")}, make.row(1), make.row(2)])
    report = workshop.ingest()
    assert workshop.verdicts() == {"a.jpg": ("quarantine", "suspect matte: which way up")}
    assert "turned by its EXIF tag" in report.tables["rejects"][0]["detail"]


@pytest.mark.parametrize("category", ["pets", "scenery", "delicacy", "cards"])
def test_a_photo_as_its_own_matte_is_refused(workshop: Any, category: str) -> None:
    """In colour, with an alpha channel that says nothing, in grey, and as palette."""

    def as_matte(way: str, photo: Image.Image) -> Image.Image:
        if way in ("opaque", "clear"):
            photo = photo.convert("RGBA")
            photo.putalpha(255 if way == "opaque" else 0)
            return photo
        made = {"rgb": photo, "palette": photo.quantize(64), "grey": photo.convert("L")}
        return made.get(way) or photo.convert("L").convert("RGB")

    reasons = {
        "rgb": "colour picture as alpha",
        "palette": "colour picture as alpha",
        "opaque": "full alpha (no background)",
        "clear": "empty alpha (no foreground)",
        "grey": "suspect matte: the photo itself",
        "grey rgb": "suspect matte: the photo itself",
    }
    rows = []
    for seed, way in enumerate(reasons):
        photo = samplegen.generate(category, seed, size=160).image
        stream = io.BytesIO()
        as_matte(way, Image.fromarray(photo)).save(stream, "PNG")
        names = {"image": f"{way}.png", "alpha": f"{way} alpha.png", "category": category}
        rows.append(names | {"image_bytes": file_of(photo, "PNG"), "alpha_bytes": stream.getvalue()})
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    assert workshop.catalog.read("labels").empty
    assert {name.removesuffix(".png"): reason for name, (_, reason) in workshop.verdicts().items()} == reasons
