import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_core.structuring.aesthetic import WEIGHTS, aesthetic
from mm_core.structuring.composition import composition, saliency
from mm_core.structuring.embedding import DIM, embedding
from mm_core.structuring.photo_features import quality


def spot(x: float, y: float, width: int = 240, height: int = 180) -> np.ndarray:
    """A bright disk on an even grey, its middle at a share of the frame's sides."""
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot(columns - x * width, rows - y * height) < 14
    return np.where(inside[..., None], (250, 220, 40), (90, 90, 90)).astype(np.uint8)


def measured(rgb: np.ndarray) -> dict[str, float]:
    return quality(rgb) | composition(rgb)


def test_what_stands_out_is_found_where_it_is():
    found = saliency(spot(0.25, 0.7))
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert x / found.shape[1] == pytest.approx(0.25, abs=0.1)
    assert y / found.shape[0] == pytest.approx(0.7, abs=0.1)


def test_thirds_and_balance_are_highest_at_their_places():
    middle, third, corner = (composition(spot(*at)) for at in ((0.5, 0.5), (1 / 3, 2 / 3), (0.06, 0.08)))
    assert middle["balance"] > 0.95 and third["thirds"] > 0.95
    assert third["thirds"] > middle["thirds"] and third["thirds"] > corner["thirds"]
    assert middle["balance"] > third["balance"] > corner["balance"]


def test_one_spot_is_simpler_than_noise_everywhere():
    noise = np.random.default_rng(0).integers(0, 256, (180, 240, 3), dtype=np.uint8)
    assert composition(spot(0.5, 0.5))["simplicity"] > composition(noise)["simplicity"] + 0.2


def test_an_even_photo_has_no_subject():
    found = composition(np.full((30, 40, 3), 77, np.uint8))
    assert found["simplicity"] == 0 and found["balance"] == pytest.approx(1)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_any_size_gives_measures_in_range(height, width, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert all(0 <= value <= 1 for value in composition(rgb).values())
    assert 0 <= aesthetic(measured(rgb)) <= 1
    vector = embedding(rgb)
    assert vector.shape == (DIM,) and vector.dtype == np.float32 and np.isfinite(vector).all()


def test_worse_in_one_respect_is_a_lower_score():
    good = measured(spot(1 / 3, 1 / 3))
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    worse = {"brightness": 0.95, "bright_share": 0.5, "contrast": 0.01, "sharpness": 5.0, "noise": 40.0,
             "colourfulness": 0.0, "simplicity": 0.0}  # fmt: skip
    for name, value in worse.items():
        assert aesthetic(good | {name: value}) < aesthetic(good), name


def test_the_vector_keeps_what_looks_alike_together():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    other = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    noisy = np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)
    smaller = base[::2, ::2]
    here = embedding(base)
    near = [float(np.linalg.norm(here - embedding(copy))) for copy in (noisy, smaller)]
    assert max(near) < 0.3 * np.linalg.norm(here - embedding(other))
    assert np.array_equal(here, embedding(base))


def test_the_vector_tells_colour_place_and_direction_apart():
    grey = np.full((96, 96, 3), 128, np.uint8)
    red = np.full((96, 96, 3), (200, 30, 30), np.uint8)
    stripes = np.where(np.arange(96)[:, None, None] // 6 % 2, 60, 200) * np.ones((96, 96, 3))
    across = stripes.astype(np.uint8)
    along = across.swapaxes(0, 1)
    left = np.where(np.arange(96)[None, :, None] < 48, 30, 220) * np.ones((96, 96, 3))
    sides = [left.astype(np.uint8), left[:, ::-1].astype(np.uint8)]
    for one, two, part in ((grey, red, slice(0, 36)), (*sides, slice(36, 90)), (across, along, slice(90, DIM))):
        assert np.linalg.norm((embedding(one) - embedding(two))[part]) > 0.3
