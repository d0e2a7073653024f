"""The blind matte: the mean matte of a photo's category, which ignores the photo itself.

A model must beat it to be worth anything. It is left-one-out: neither the photo's own matte nor one of its group is in
the mean. It is scored like a model named `blind` in each cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

NAME = "blind"
SIDE = 128
"""Mattes are averaged on a square of this side, so that photos of any format can be laid over each other."""


class BlindMattes:
    """Mean mattes of categories, each without the group of the photo that is asked for."""

    def __init__(self, rows: Sequence[Any], mattes: Iterable[np.ndarray]):
        """Sum up mattes.

        Args:
            rows: One per matte, with the attributes `category` and `group`.
            mattes: float32 (H, W) in [0, 1] each, of any size.
        """
        self._sums: dict[tuple[str, str], np.ndarray] = {}
        self._counts: dict[tuple[str, str], int] = {}
        for row, matte in zip(rows, mattes, strict=True):
            square = cv2.resize(matte, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
            for key in ((row.category, ""), (row.category, f"group {row.group}")):
                self._sums[key] = self._sums.get(key, 0.0) + square
                self._counts[key] = self._counts.get(key, 0) + 1

    def predict(self, row: Any, height: int, width: int) -> np.ndarray:
        """Return the blind matte of a photo: float32 (height, width) in [0, 1].

        Without another group of its category it is 0.5 everywhere: nothing is known.
        """
        whole, own = (row.category, ""), (row.category, f"group {row.group}")
        others = self._counts.get(whole, 0) - self._counts.get(own, 0)
        if others <= 0:
            return np.full((height, width), 0.5, np.float32)
        mean = (self._sums[whole] - self._sums.get(own, 0.0)) / others
        large = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(large, 0, 1).astype(np.float32)
