"""How many layers stay in float, and whose error decides: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from mm_core.export.float_layers import ladder, worst


def test_ever_more_first_layers_up_to_a_twentieth_of_the_weights():
    # 1, 2, 4 and 6 layers have 1, 2, 4 and 6 % of the weights.
    assert ladder([1] * 6 + [94]) == [0, 1, 2, 4]
    assert ladder([6, 94]) == [0]
    assert ladder([]) == [0]


def test_the_worst_category_counts():
    off = np.zeros((3, 2, 2))
    off[2] = 0.5
    assert worst(off, ["pets", "pets", "cards"]) == pytest.approx(0.25)
    assert worst(off, ["pets", "cards", "cards"]) == pytest.approx(0.125)
