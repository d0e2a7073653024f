"""Lifting subjects: exact composites of generated scenes are the oracle."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mm_core.effects.cutout import cut, encoded, lift, placed
from mm_core.effects.foreground import estimate_layers, layers, over
from mm_core.effects.subjects import Subjects
from samplegen import render


def scene(category: str, seed: int, size: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """A noiseless photo uint8 and its exact matte."""
    r = render(category, seed, size=size)
    return np.clip(r.light, 0, 255).round().astype(np.uint8), r.alpha


def discs(*places: tuple[float, float, float]) -> np.ndarray:
    """A matte (96, 128) with soft discs at (x, y, radius), shares of width, height, height."""
    y, x = np.mgrid[:96, :128]
    alpha = np.zeros((96, 128), np.float32)
    for cx, cy, r in places:
        alpha = np.maximum(alpha, np.clip((r * 96 - np.hypot(x - cx * 128, y - cy * 96)) / 3 + 0.5, 0, 1))
    return alpha.astype(np.float32)


@pytest.mark.parametrize(("category", "seed"), [("portrait", 3), ("pets", 5), ("accessories", 2)])
def test_on_a_new_background_no_halo_of_the_old_one_shows(category: str, seed: int) -> None:
    """The same scene rendered before a dark wall says what the composite must be."""
    photo, alpha = scene(category, seed)
    truth = render(category, seed, size=192, backdrop=40.0).light
    wall = np.full_like(photo, 40)
    front, _ = layers(photo, alpha)
    band = (alpha > 0.02) & (alpha < 0.98)
    ours = np.abs(over(front, alpha, wall) - truth)[band].mean()
    naive = np.abs(over(photo, alpha, wall) - truth)[band].mean()
    assert ours < 0.6 * naive
    assert ours < 4


def test_layers_put_together_are_the_photo() -> None:
    photo, alpha = scene("portrait", 8, 128)
    front, back = layers(photo, alpha)
    off = np.abs(over(front, alpha, back).astype(int) - photo)
    assert off.mean() < 0.1 and off.max() <= 12
    assert (front[alpha == 1] == photo[alpha == 1]).all()
    assert (back[alpha == 0] == photo[alpha == 0]).all()


def test_through_glass_the_old_background_does_not_shine() -> None:
    """A tinted pane with a dark rim before a light wall, laid on a dark one: the rim's colour fills no pane."""
    y, x = np.mgrid[:160, :200]
    pane = (abs(x - 100) < 60) & (abs(y - 80) < 45)
    rim = pane & ~((abs(x - 100) < 54) & (abs(y - 80) < 39))
    alpha = np.where(rim, 1.0, np.where(pane, 0.3, 0.0)).astype(np.float32)
    tint, wall = np.where(rim[..., None], [20.0, 90, 90], [240.0, 220, 200]), 150 + 0.3 * x[..., None] + np.zeros(3)
    photo = np.rint(alpha[..., None] * tint + (1 - alpha[..., None]) * wall).astype(np.uint8)
    truth = alpha[..., None] * tint + (1 - alpha[..., None]) * 30
    inner, dark = pane & ~rim, np.full_like(photo, 30)
    off = np.abs(over(layers(photo, alpha)[0], alpha, dark) - truth)[inner].mean()
    naive = np.abs(over(photo, alpha, dark) - truth)[inner].mean()
    assert off < 4 < 0.5 * naive


def test_the_dominant_subject_is_large_and_central_and_a_tap_finds_another() -> None:
    alpha = discs((0.5, 0.5, 0.22), (0.12, 0.2, 0.14), (0.9, 0.9, 0.02))
    subjects = Subjects(alpha)
    assert len(subjects.all) == 2, "a speck is no subject"
    assert subjects.at(0.5, 0.5) == subjects.all[0]
    assert subjects.at(0.12, 0.2) == subjects.all[1]
    assert subjects.at(0.75, 0.15) is None
    apart = subjects.of(subjects.all[0]) + subjects.of(subjects.all[1])
    assert np.abs(apart - alpha).max() < 0.05 + (discs((0.9, 0.9, 0.02)).max()), "soft pixels go to the nearest"


def test_a_larger_subject_at_the_rim_does_not_beat_the_one_in_the_middle() -> None:
    subjects = Subjects(discs((0.5, 0.5, 0.2), (0.02, 0.02, 0.25)))
    assert subjects.all[0].box[0] > 0.2


def test_a_tap_lifts_what_lies_under_it() -> None:
    alpha = discs((0.3, 0.5, 0.25), (0.8, 0.5, 0.15))
    photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    cutout = lift(photo, alpha, tap=(0.8, 0.5))
    assert cutout is not None
    left, top, right, bottom = cutout.box
    assert left > 128 * 0.6 and right < 128 and cutout.rgba.shape == (bottom - top, right - left, 4)
    assert np.array_equal(cutout.rgba[..., 3], np.rint(alpha[top:bottom, left:right] * 255).astype(np.uint8))
    assert lift(photo, alpha, tap=(0.55, 0.95)) is None
    assert lift(photo, np.zeros_like(alpha)) is None


def test_placed_where_it_was_it_gives_the_photo_back() -> None:
    photo, alpha = scene("pets", 5, 128)
    cutout = cut(photo, alpha)
    assert cutout is not None
    left, top, right, bottom = cutout.box
    size = photo.shape[0]
    _, back = layers(photo, alpha)
    again = placed(cutout, back, ((left + right) / 2 / size, (top + bottom) / 2 / size))
    assert np.abs(again.astype(int) - photo).mean() < 1.0


def test_placed_beyond_the_frame_it_is_cut_off() -> None:
    photo, alpha = scene("pets", 5, 64)
    cutout = cut(photo, alpha)
    assert cutout is not None
    empty = np.zeros((50, 70, 3), np.uint8)
    assert np.array_equal(placed(cutout, empty, (9.0, 9.0)), empty)
    assert placed(cutout, empty, (1.0, 1.0), 2.0).any()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_files_keep_soft_alpha_and_say_what_is_known(form: str) -> None:
    photo, alpha = scene("portrait", 3, 64)
    cutout = cut(photo, alpha)
    assert cutout is not None
    image = Image.open(BytesIO(encoded(cutout, form, model="7")))
    pixels = np.asarray(image)
    assert np.array_equal(pixels[..., 3], cutout.rgba[..., 3])
    seen = cutout.rgba[..., 3] > 0
    assert np.array_equal(pixels[seen], cutout.rgba[seen])
    said = json.loads(image.info["mm"] if form == "PNG" else image.getexif()[0x010E])
    assert said["model"] == "7" and said["box"] == list(cutout.box) and said["photo_size"] == [64, 64]


def test_a_matte_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="matte"):
        lift(np.zeros((8, 8, 3), np.uint8), np.zeros((4, 8), np.float32))


def soft_disc(side: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A red disc with a soft edge before blue; photo and matte, uint8."""
    y, x = np.mgrid[:side, :side]
    alpha = np.clip((25 - np.hypot(y - 40, x - 40)) / 8 + 0.5, 0, 1)
    photo = alpha[..., None] * (220, 30, 30) + (1 - alpha[..., None]) * (20, 40, 230)
    return np.rint(photo).astype(np.uint8), np.rint(alpha * 255).astype(np.uint8)


def test_estimated_foreground_leaves_no_halo_of_the_old_background() -> None:
    photo, matte = soft_disc()
    black = np.zeros_like(photo)
    edge = (matte > 60) & (matte < 195)
    halo = over(photo, matte / 255, black)[edge]
    clean = over(estimate_layers(photo, matte / 255)[0], matte / 255, black)[edge]
    truth = (matte[edge][:, None] / 255) * np.array([220, 30, 30])
    assert np.abs(clean - truth).mean() < 6
    assert np.abs(halo - truth).mean() > 15
