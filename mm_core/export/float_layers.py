"""The convolutions that stay in float when int8 alone is not close enough: the first ones.

The first convolutions see the finest detail and have the fewest weights. Measured on a trained model, the error of
int8 falls steadily as more of the first convolutions stay in float, at almost no bytes. Single convolutions picked by
their own sensitivity do not add up: one float convolution between int8 ones can make the error larger (ADR 0042).

Convolutions are numbered in the order of execution. This order is the same in every format's graph; the names of
nodes differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST = 0.05
"""Largest share of all weights in float; above it the file is hardly smaller than its budget."""


def ladder(weights: Sequence[int]) -> list[int]:
    """Return how many of the first convolutions stay in float, in the order of trial: 0, 1, 2, 4, 6, 8, 12, ….

    Args:
        weights: The number of weights of each convolution, in the order of execution.

    Returns:
        The counts whose convolutions have at most MOST of all weights; at least `[0]`.
    """
    share = np.cumsum([0, *weights]) / max(1, sum(weights))
    # Steps between the powers of two, so that a file has no more float convolutions than it needs.
    counts = [0, 1, 2, *(count for power in range(2, 11) for count in (2**power, 3 * 2 ** (power - 1)))]
    return [count for count in counts if count < len(share) and share[count] <= MOST]


def worst(difference: np.ndarray, categories: Sequence[str]) -> float:
    """Return the largest mean square over categories of `difference` (N, S, S), with one category per photo."""
    # The worst category decides, so that no category pays for the mean.
    squares = np.mean(np.asarray(difference, np.float64) ** 2, axis=(1, 2))
    names = np.asarray(categories)
    return max(float(squares[names == name].mean()) for name in set(categories))
