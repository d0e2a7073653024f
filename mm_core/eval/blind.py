"""The blind matte: the mean matte of a photo's category, a baseline that ignores the photo.

A useful model must score better than this baseline. The mean is leave-one-group-out: it contains neither the photo's
own matte nor a matte of its group. Each cycle scores it as a model named `blind`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from mm_core.eval.rows import EvalRow

NAME = "blind"
SIDE = 128
"""Side in pixels of the square on which mattes are averaged. A common size makes photos of any format comparable."""


class BlindMattes:
    """Mean mattes per category, computed without the group of the photo that is predicted."""

    def __init__(self, rows: Sequence[EvalRow], mattes: Iterable[np.ndarray]) -> None:
        """Add up the mattes of each category and of each group.

        Args:
            rows: One per matte, with the attributes `category` and `group`.
            mattes: float32 (H, W) in [0, 1] each, of any size.
        """
        # Keys: (category, "") for the whole category, (category, "group …") for one group of it.
        self._sums: dict[tuple[str, str], np.ndarray] = {}
        self._counts: dict[tuple[str, str], int] = {}
        for row, matte in zip(rows, mattes, strict=True):
            square = cv2.resize(matte, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
            for key in ((row.category, ""), (row.category, f"group {row.group}")):
                self._sums[key] = self._sums.get(key, 0.0) + square
                self._counts[key] = self._counts.get(key, 0) + 1

    def predict(self, row: EvalRow, height: int, width: int) -> np.ndarray:
        """Return the blind matte of a photo.

        Args:
            row: A row with the attributes `category` and `group`.
            height: Height of the matte in pixels.
            width: Width of the matte in pixels.

        Returns:
            float32 (height, width) in [0, 1]. It is 0.5 everywhere if the category has only the photo's own group.
        """
        whole, own = (row.category, ""), (row.category, f"group {row.group}")
        others = self._counts.get(whole, 0) - self._counts.get(own, 0)
        # A constant 0.5 is the best guess without another matte.
        if others <= 0:
            return np.full((height, width), 0.5, np.float32)
        # Subtracting the group's own sum gives the mean of all other groups, without a second pass.
        mean = (self._sums[whole] - self._sums.get(own, 0.0)) / others
        large = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(large, 0, 1).astype(np.float32)
