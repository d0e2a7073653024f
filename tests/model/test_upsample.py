"""Guided upsampling against the true matte of generated samples, which is known at every size."""

from __future__ import annotations

import numpy as np
import pytest

from mm_core.model.preprocess import finish, resize
from mm_core.model.upsample import guided_upsample
from samplegen import render
from samplegen.render import develop


@pytest.mark.parametrize("category", ["portrait", "pets", "cards"])
def test_it_is_nearer_to_the_truth_than_the_plain_resize(category: str) -> None:
    sample = render(category, 42, size=320)
    small = resize(np.asarray(sample.alpha, np.float32), 64, 64)
    errors = [
        float(((matte - sample.alpha) ** 2).mean())
        for matte in (guided_upsample(small, develop(sample, 42, 0)), finish(small, sample.alpha.shape))
    ]
    assert errors[0] < 0.8 * errors[1]


def test_far_from_edges_nothing_changes_and_a_plain_photo_adds_nothing() -> None:
    small = np.zeros((32, 32), np.float32)
    small[:, 16:] = 1
    photo = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    plain = finish(small, (160, 160))
    found = guided_upsample(small, photo)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    assert np.array_equal(found[:, :40], plain[:, :40]) and np.array_equal(found[:, 120:], plain[:, 120:])
    even = guided_upsample(small, np.full((160, 160, 3), 90, np.uint8))
    assert np.abs(even - plain).mean() < 0.05


@pytest.mark.parametrize("shape", [(32, 32), (20, 30), (1, 7)])
def test_photos_that_are_not_larger_get_the_plain_resize(shape: tuple[int, int]) -> None:
    small = np.random.default_rng(1).random((32, 32), np.float32)
    photo = np.zeros((*shape, 3), np.uint8)
    assert np.array_equal(guided_upsample(small, photo), finish(small, shape))
