"""Copies of a photo are found, neighbours are not, and the index misses nothing that comparing all pairs would find."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm_core.data.duplicates import Entry, NearIndex, perceptual_hash, same_photo, thumbnail


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
    assert same_photo(thumbnail(photo), thumbnail(copy))


@pytest.mark.parametrize("seed", range(4))
def test_brighter_is_the_same(seed: int) -> None:
    photo = detailed(seed)
    brighter = np.clip(photo * 0.8 + 40, 0, 255).astype(np.uint8)
    assert distance(perceptual_hash(photo), perceptual_hash(brighter)) <= 3
    assert same_photo(thumbnail(photo), thumbnail(brighter))


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_not_the_same(seed: int) -> None:
    """The next frame of a camera that moves, and one where the subject moved."""
    photo = detailed(seed)
    moved = np.roll(photo, 10, axis=1)
    other_subject = photo.copy()
    cv2.circle(other_subject, (128, 96), 40, (255, 255, 255), -1)
    for other in (moved, other_subject, detailed(seed + 100)):
        assert not same_photo(thumbnail(photo), thumbnail(other))


def test_flat_pictures_compare_by_brightness() -> None:
    def flat(value: int) -> np.ndarray:
        return thumbnail(np.full((50, 50, 3), value, np.uint8))

    assert same_photo(flat(80), flat(80)) and not same_photo(flat(80), flat(120))
    assert not same_photo(flat(80), thumbnail(detailed(0)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_index_finds_what_comparing_all_pairs_finds(data: Any) -> None:
    bits = data.draw(st.integers(0, 12))
    base = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    flips = st.lists(st.integers(0, 63), max_size=15)
    hashes = [h ^ sum({1 << b for b in data.draw(flips)}) for h in base for _ in range(3)]
    index = NearIndex(bits)
    for number, phash in enumerate(hashes):
        index.add(Entry(phash, str(number), "", "", 1.0))
    known = np.array(hashes, np.uint64)
    for asked in base:
        expected = {str(n) for n, h in enumerate(hashes) if (h ^ asked).bit_count() <= bits}
        found = [entry.identity for entry in index.near(asked, 1.0)]
        assert set(found) == expected
        distances = [(hashes[int(n)] ^ asked).bit_count() for n in found]
        assert distances == sorted(distances)
        assert expected <= {str(n) for n in np.flatnonzero(index.sharing_a_band(known, [asked]))}
    assert index.near(base[0], 1.5) == [], "another aspect ratio is another photo"
    assert not index.sharing_a_band(known, []).any()
