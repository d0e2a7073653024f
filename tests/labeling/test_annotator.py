"""The simulated annotator errs as people do, within bounds, and the same way each time."""

from __future__ import annotations

import numpy as np
import pytest
from annotator import SOFT, paint

from mm_core.core.records import CATEGORIES
from samplegen import generate


@pytest.mark.parametrize("category", CATEGORIES)
def test_strokes_are_hard_near_the_truth_and_not_exact(category: str) -> None:
    alpha = generate(category, 3, size=128).alpha
    painted, unknown = paint(alpha, np.random.default_rng(0))
    assert set(np.unique(painted)) == {0, 255} and set(np.unique(unknown)) <= {0, 255}
    wrong = ((painted > 0) != (alpha >= 0.5)).mean()
    assert 0 < wrong < 0.08
    soft = (alpha > SOFT[0]) & (alpha < SOFT[1])
    covered = (unknown[soft] > 0).mean()
    assert 0.5 < covered < 1  # most of what is soft is painted as Unknown, with gaps
    again = paint(alpha, np.random.default_rng(0))
    assert np.array_equal(again[0], painted) and np.array_equal(again[1], unknown)
    assert not np.array_equal(paint(alpha, np.random.default_rng(1))[0], painted)


def test_thin_parts_are_missed() -> None:
    alpha = np.zeros((256, 256), np.float32)
    alpha[60:200, 60:200] = 1
    alpha[20:60, 128] = 1  # a hair
    painted, _ = paint(alpha, np.random.default_rng(0))
    assert not painted[20:50].any() and painted[100:160, 100:160].all()
