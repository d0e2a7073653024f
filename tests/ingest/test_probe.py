"""What a probe measures of one row; it judges nothing."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_core.core.params import IngestParams
from mm_core.core.records import sha256_bytes
from mm_core.imaging.images import load_alpha
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe, Prober
from mm_core.storage.store import LocalStore

SMALL = IngestParams(max_pixels=10**6)


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox" / "pixel_labeled" / "b"
    folder.mkdir(parents=True)
    (folder / "manifest.csv").write_text("image\n")
    (folder.parent / "outside.jpg").write_bytes(b"secret")
    return folder


def measured(batch: Path, kind: str = "pixel_labeled", params: IngestParams = SMALL, **fields: Any) -> Probe:
    spool = batch.parents[2] / "spool"
    spool.mkdir(exist_ok=True)
    store = LocalStore(batch.parents[1])
    probe = Prober(store, f"pixel_labeled/{batch.name}/manifest.csv", kind, params, spool)
    return probe(ManifestRow(**{"row": 0, "image": "a.jpg"} | fields))


def test_a_good_row(batch: Path, make: Any) -> None:
    data = make.encoded(make.photo(1))
    (batch / "a.jpg").write_bytes(data)
    (batch / "a.png").write_bytes(make.encoded(make.matte(1), "PNG"))
    probe = measured(batch, alpha="a.png", category="pets", sha256=sha256_bytes(data))
    assert (probe.image_inside, probe.image_found, probe.image_recognised, probe.image_decodes) == (True,) * 4
    assert (probe.width, probe.height, probe.short_side, probe.pixels) == (64, 48, 48, 64 * 48)
    assert probe.sha256 == sha256_bytes(data) and probe.sha256_as_declared and probe.format == "JPEG"
    assert (probe.alpha_inside, probe.alpha_found, probe.alpha_decodes, probe.alpha_fits) == (True,) * 4
    assert probe.alpha_highest == 1 and probe.alpha_lowest == 0 and probe.alpha_binary is False
    assert probe.alpha_sha256 == sha256_bytes((batch.parents[2] / "spool" / "0.png").read_bytes())
    assert measured(batch, alpha="a.png", sha256="0" * 64).sha256_as_declared is False


OUTSIDE = [
    "../outside.jpg",
    "images/../../outside.jpg",
    "..\\outside.jpg",
    "/etc/hostname",
    "\\etc\\hostname",
    "C:\\photo.jpg",
    "file:///etc/hostname",
    "https://host/photo.jpg",
    "..",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_not_followed(batch: Path, name: str) -> None:
    probe = measured(batch, image=name)
    assert probe.image_inside is False and probe.sha256 is None and probe.note
    assert measured(batch, alpha=name).alpha_inside is False


@pytest.mark.parametrize("name", ["", ".", "images", "no/such.jpg", "x" * 300, "a.jpg/b"])
def test_names_of_nothing(batch: Path, name: str) -> None:
    (batch / "images").mkdir()
    (batch / "a.jpg").write_bytes(b"file")
    probe = measured(batch, image=name)
    assert probe.image_inside and probe.image_found is False


def test_links(batch: Path, make: Any) -> None:
    (batch / "real.jpg").write_bytes(make.encoded(make.photo(1)))
    (batch / "images").mkdir()
    (batch / "a.jpg").symlink_to("real.jpg")
    assert measured(batch).image_decodes, "a link within the batch is fine"
    (batch / "out.jpg").symlink_to("../outside.jpg")
    (batch / "folder").symlink_to(batch.parent)
    (batch / "images" / "text.jpg").write_bytes(b"../../outside.jpg")
    for name in ("out.jpg", "folder/outside.jpg", "images/text.jpg"):
        assert measured(batch, image=name).image_inside is False, name
    (batch / "images" / "inner.jpg").write_bytes(b"../real.jpg")
    inner = measured(batch, image="images/inner.jpg")
    assert inner.image_inside and inner.image_recognised is False


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_either_unicode_form(batch: Path, make: Any, form: Any) -> None:
    """macOS stores ü in two code points; the manifest may say it in one."""
    (batch / unicodedata.normalize(form, "grün ß.jpg")).write_bytes(make.encoded(make.photo(1)))
    for written in ("NFC", "NFD"):
        assert measured(batch, image=unicodedata.normalize(written, "grün ß.jpg")).image_decodes


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"", {"image_found": True, "image_bytes": 0, "image_recognised": None}),
        (b"<html>404 Not Found</html>", {"image_recognised": False, "image_decodes": None}),
        ("half", {"image_recognised": True, "image_decodes": False, "phash": None}),
    ],
)
def test_bad_files(batch: Path, make: Any, content: Any, fields: dict) -> None:
    whole = make.encoded(make.photo(1))
    (batch / "a.jpg").write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    probe = measured(batch)
    assert {name: getattr(probe, name) for name in fields} == fields


def test_too_many_pixels_are_not_decoded(batch: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch / "a.jpg").write_bytes(make.encoded(make.photo(1)))
    monkeypatch.setattr("mm_core.ingest.probe.load_rgb", lambda *_: pytest.fail("decoded"))
    probe = measured(batch, params=IngestParams(max_pixels=64 * 48 - 1))
    assert probe.pixels == 64 * 48 and probe.image_decodes is None


def test_the_matte_of_a_turned_photo_may_have_either_size(batch: Path, make: Any) -> None:
    """Orientation 6: stored 64×48, upright 48×64. The stored matte is always upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(make.photo(1)).save(stream, "JPEG", exif=exif)
    (batch / "a.jpg").write_bytes(stream.getvalue())
    raw = np.zeros((48, 64), np.uint8)
    raw[:10] = 255  # the top as stored is the right side upright
    upright = np.rot90(raw, -1)
    for pixels in (raw, upright):
        (batch / "a.png").write_bytes(make.encoded(np.ascontiguousarray(pixels), "PNG"))
        probe = measured(batch, alpha="a.png")
        assert probe.alpha_fits and (probe.width, probe.height) == (48, 64)
        stored = load_alpha(batch.parents[2] / "spool" / "0.png")
        assert np.array_equal(stored * 255, upright)
    (batch / "a.png").write_bytes(make.encoded(raw[:40], "PNG"))
    probe = measured(batch, alpha="a.png")
    assert probe.alpha_fits is False and probe.alpha_size == "64×40" and probe.alpha_sha256 is None


@pytest.mark.parametrize("kind", ["rgba", "sixteen", "palette"])
def test_the_same_matte_in_another_coding_is_the_same_label(batch: Path, make: Any, kind: str) -> None:
    """8-bit codings agree to the byte; 16 bits stay 16 bits."""
    (batch / "a.jpg").write_bytes(make.encoded(make.photo(1)))
    grey = make.matte(1)
    plain = Image.fromarray(grey)
    image = {
        "rgba": Image.merge("RGBA", [Image.new("L", plain.size, 50)] * 3 + [plain]),
        "sixteen": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette": plain.convert("P"),
    }[kind]
    (batch / "a.png").write_bytes(make.encoded(grey, "PNG", compress_level=1))
    first = measured(batch, alpha="a.png").alpha_sha256
    image.save(batch / "a.png")
    again = measured(batch, alpha="a.png")
    stored = Image.open(batch.parents[2] / "spool" / "0.png")
    if kind == "sixteen":
        assert stored.mode.startswith("I") and np.array_equal(np.asarray(stored), grey.astype(int) * 257)
    else:
        assert stored.mode == "L" and again.alpha_sha256 == first


def test_a_matte_of_another_size_is_not_decoded(batch: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch / "a.jpg").write_bytes(make.encoded(make.photo(1)))
    (batch / "a.png").write_bytes(make.encoded(make.matte(1, 640, 480), "PNG"))
    monkeypatch.setattr("mm_core.ingest.mattes.load_alpha", lambda *_: pytest.fail("decoded"))
    probe = measured(batch, alpha="a.png")
    assert probe.alpha_fits is False and probe.alpha_decodes is None and probe.alpha_size == "640×480"


def test_a_hard_mask_is_binary(batch: Path, make: Any) -> None:
    (batch / "a.jpg").write_bytes(make.encoded(make.photo(1)))
    (batch / "a.png").write_bytes(make.encoded((make.matte(1) > 128).astype(np.uint8) * 255, "PNG"))
    assert measured(batch, alpha="a.png").alpha_binary is True


def test_bad_mattes(batch: Path, make: Any) -> None:
    (batch / "a.jpg").write_bytes(make.encoded(make.photo(1)))
    whole = make.encoded(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8), "PNG")
    for content in (b"", b"<html>", whole[: len(whole) // 2]):
        (batch / "a.png").write_bytes(content)
        probe = measured(batch, alpha="a.png")
        assert probe.alpha_found and probe.alpha_decodes is False and probe.alpha_sha256 is None
    assert measured(batch, alpha="").alpha_found is False
    assert measured(batch, kind="unlabeled", alpha="a.png").alpha_found is None, "not looked at"
