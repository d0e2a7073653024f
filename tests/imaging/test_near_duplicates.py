"""Copies of a photo are the same picture, edits the same scene, and neighbours neither."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import pytest
from PIL import Image

import samplegen
from mm_core.core.records import CATEGORIES
from mm_core.imaging.near_duplicates import glance, landmarks, perceptual_hash, registration, same_picture, same_scene


def detailed(seed: int) -> np.ndarray:
    """Shapes over a slope, uint8 (192, 256, 3)."""
    random = np.random.default_rng(seed)
    picture = np.zeros((192, 256, 3), np.uint8)
    picture[:] = np.linspace(0, 255, 256)[None, :, None] * random.random(3)
    for _ in range(30):
        centre = tuple(int(v) for v in random.integers(0, 256, 2))
        colour = tuple(int(v) for v in random.integers(0, 256, 3))
        cv2.circle(picture, centre, int(random.integers(4, 40)), colour, -1)
    return picture


def saved_again(picture: np.ndarray, scale: float, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    Image.fromarray(picture).resize(size).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("scale", "quality"), [(1, 90), (1, 30), (0.5, 75), (0.3, 60), (1.7, 80)])
def test_a_photo_saved_again_is_the_same(seed: int, scale: float, quality: int) -> None:
    photo = detailed(seed)
    copy = saved_again(photo, scale, quality)
    assert distance(perceptual_hash(photo), perceptual_hash(copy)) <= 3
    assert same_picture(glance(photo), glance(copy))


@pytest.mark.parametrize("seed", range(4))
def test_brighter_is_the_same(seed: int) -> None:
    photo = detailed(seed)
    brighter = np.clip(photo * 0.8 + 40, 0, 255).astype(np.uint8)
    assert distance(perceptual_hash(photo), perceptual_hash(brighter)) <= 3
    assert same_picture(glance(photo), glance(brighter))


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_not_the_same(seed: int) -> None:
    """The next frame of a camera that moves, and one where the subject moved."""
    photo = detailed(seed)
    moved = np.roll(photo, 10, axis=1)
    other_subject = photo.copy()
    cv2.circle(other_subject, (128, 96), 40, (255, 255, 255), -1)
    for other in (moved, other_subject, detailed(seed + 100)):
        assert not same_picture(glance(photo), glance(other))


def test_flat_pictures_compare_by_brightness() -> None:
    def flat(value: int) -> np.ndarray:
        return glance(np.full((50, 50, 3), value, np.uint8))

    assert same_picture(flat(80), flat(80)) and not same_picture(flat(80), flat(120))
    assert not same_picture(flat(80), glance(detailed(0)))


@cache
def photo_like(seed: int) -> np.ndarray:
    """Generated sample uint8 (240, 320, 3)."""
    return samplegen.generate(CATEGORIES[seed % 6], seed, size=320, aspect=4 / 3).image


def cropped(picture: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    height, width = picture.shape[:2]
    return picture[round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)]


def tilted(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.warpAffine(picture, cv2.getRotationMatrix2D((width / 2, height / 2), 2, 1.06), (width, height))


def framed(picture: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(picture, 20, 20, 24, 24, cv2.BORDER_CONSTANT, value=(20, 20, 20))


EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cropped a little": lambda p: cropped(p, 0.01, 0.01, 0.01, 0.01),
    "cropped all around": lambda p: cropped(p, 0.05, 0.05, 0.05, 0.05),
    "cropped on one side": lambda p: cropped(p, 0, 0, 0.1, 0),
    "cropped at a corner": lambda p: cropped(p, 0.1, 0.1, 0, 0),
    "tilted": tilted,
    "framed": framed,
    "darker": lambda p: (p * 0.7).astype(np.uint8),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_photo_shares_landmarks_and_is_the_same_scene(edit: str, seed: int) -> None:
    photo = photo_like(seed)
    a, b = glance(photo), glance(saved_again(EDITS[edit](photo), 1.0, 80))
    shared = np.bitwise_count(landmarks(a)[:, None] ^ landmarks(b)[None]) <= 3
    assert shared.any(axis=1).sum() >= 2
    assert same_scene(a, b) and same_scene(b, a)


def test_other_photos_are_other_scenes_with_landmarks_of_their_own() -> None:
    seen = [glance(photo_like(seed)) for seed in range(8)]
    for n, a in enumerate(seen):
        for b in seen[:n]:
            assert not same_scene(a, b)
            assert (np.bitwise_count(landmarks(a)[:, None] ^ landmarks(b)[None]) <= 3).any(axis=1).sum() < 2


def test_one_watermark_does_not_make_one_scene() -> None:
    """It is found in both, but what is around it differs."""
    mark = cv2.resize(photo_like(99), (100, 80), interpolation=cv2.INTER_AREA)
    marked = [photo_like(seed).copy() for seed in (1, 2)]
    for picture in marked:
        picture[120:200, 180:280] = mark
    a, b = map(glance, marked)
    inliers, _, correlation = registration(a, b)
    assert inliers >= 8 and correlation < 0.9 and not same_scene(a, b)


def test_flat_pictures_have_no_landmarks_and_are_no_scene() -> None:
    flat = glance(np.full((50, 70, 3), 90, np.uint8))
    assert flat.shape == (50, 70) and len(landmarks(flat)) == 0 and not same_scene(flat, flat)


def test_tiny_and_long_pictures_are_looked_at() -> None:
    for shape in ((1, 1), (3, 300), (300, 2)):
        seen = glance(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
        assert max(seen.shape) <= 128 and landmarks(seen).dtype == np.uint64
        assert registration(seen, seen)[1] <= 1
