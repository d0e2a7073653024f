"""The blind matte: the mean of the others' mattes, whatever the photo shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from mm_core.eval.blind import SIDE, BlindMattes


@dataclass(frozen=True)
class Row:
    category: str
    group: str


def test_neither_a_photo_nor_its_group_is_in_its_own_mean() -> None:
    rows = [Row("pets", "a"), Row("pets", "a"), Row("pets", "b"), Row("pets", "c"), Row("cards", "d")]
    levels = [1.0, 0.8, 0.2, 0.4, 0.9]
    blind = BlindMattes(rows, [np.full((20, 30), level, np.float32) for level in levels])
    assert blind.predict(rows[0], 40, 50) == pytest.approx(np.full((40, 50), 0.3))
    assert blind.predict(rows[2], 40, 50) == pytest.approx(np.full((40, 50), (1.0 + 0.8 + 0.4) / 3))
    assert blind.predict(rows[4], 4, 5) == pytest.approx(np.full((4, 5), 0.5)), "nothing is known of other cards"


def test_it_has_the_photos_size_and_the_usual_place() -> None:
    """Subjects in the left half, in photos of any format."""
    rows = [Row("pets", str(n)) for n in range(4)]
    mattes = [
        np.repeat((np.arange(w) < w // 2)[None], h, 0).astype(np.float32)
        for h, w in ((30, 40), (64, 32), (9, 90), (SIDE, SIDE))
    ]
    matte = BlindMattes(rows, mattes).predict(rows[0], 60, 100)
    assert matte.shape == (60, 100) and matte.dtype == np.float32
    assert matte[:, :45].min() > 0.9 and matte[:, 55:].max() < 0.1
