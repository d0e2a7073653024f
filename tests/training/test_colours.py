"""The mean of a matte over like colours: known answers, a direct sum as the oracle, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.records import CATEGORIES
from mm_core.training.colours import BINS, SPREAD, by_colour
from tests.training.photos import doubted


def test_each_of_two_colours_gets_its_mean() -> None:
    colours = torch.zeros(2, 3, 16, 16)
    colours[:, 0, :, :8], colours[:, 2, :, 8:] = 0.9, 0.8
    matte = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = by_colour(colours, matte)
    for side in (slice(0, 8), slice(8, 16)):
        means = matte[..., side].mean((2, 3), keepdim=True)
        assert torch.allclose(found[..., side], means.expand_as(found[..., side]), atol=1e-4)


def test_it_is_the_sum_over_all_pixels_with_gaussian_weights() -> None:
    """Colours on the grid's own places, where splatting and slicing round nothing."""
    rng = np.random.default_rng(0)
    places = torch.from_numpy(rng.integers(0, 6, (1, 3, 12, 12))).float()
    matte = torch.from_numpy(rng.random((1, 1, 12, 12))).float()
    found = by_colour(places / (BINS - 1), matte)
    rows = places[0].flatten(1).T.double()
    weights = torch.exp(-(torch.cdist(rows, rows) ** 2) / (2 * SPREAD**2))
    expected = (weights @ matte.flatten().double()) / weights.sum(1)
    assert torch.allclose(found.flatten().double(), expected, atol=1e-4)


@given(level=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_constant_matte_stays_and_a_mean_stays_within_its_matte(level: float, seed: int) -> None:
    colours = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    flat = by_colour(colours, torch.full((1, 1, 16, 16), level))
    assert torch.allclose(flat, torch.tensor(level), atol=1e-4)
    matte = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed + 1)) * 0.5 + 0.2
    found = by_colour(colours, matte)
    assert float(found.min()) >= float(matte.min()) - 1e-4 and float(found.max()) <= float(matte.max()) + 1e-4


def test_photos_of_a_batch_do_not_meet_and_black_and_white_are_colours_too() -> None:
    colours = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.zeros(3, 8, 8)])
    matte = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    assert torch.allclose(by_colour(colours, matte), matte, atol=1e-4)


@pytest.mark.parametrize("category", CATEGORIES)
def test_it_corrects_doubtful_mattes(category: str) -> None:
    """A faded matte with clouds of error: half of it by colour is nearer to the truth."""
    torch.manual_seed(0)
    errors = []
    for seed in range(6):
        photo, truth, doubtful = doubted(category, seed, 0.2, 0.6, clouds=8)
        better = torch.lerp(doubtful, by_colour(photo, doubtful), 0.5)
        errors.append([float((matte - truth).square().mean()) for matte in (doubtful, better)])
    before, after = np.mean(errors, 0)
    assert after < 0.9 * before
