"""Find the subjects of a matte: separate ones, the dominant one, and the tapped one."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from mm_core.effects.fullsize import enlarged, shrunk

SIDE = 640
"""Long side of the picture in which subjects are separated."""
FIRM = 0.5
"""Least alpha of a subject's core; softer pixels belong to the nearest subject."""
LEAST_SHARE = 0.002
"""Least share of the frame; a smaller piece is a speck."""
CENTRE_SIGMA = 0.35
"""Distance from the centre, in half diagonals, at which a subject's weight is 0.61."""


@dataclass(frozen=True)
class Subject:
    """One connected piece of a matte."""

    number: int
    """Number of the subject, from 1; used by `of`."""
    area: float
    """Share of the frame, by alpha."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of width and height."""
    weight: float
    """Area times centrality; the dominant subject has the largest weight."""


class Subjects:
    """The subjects of one matte, float (H, W) in [0, 1]; the dominant one is first in `all`."""

    def __init__(self, alpha: np.ndarray) -> None:
        self._alpha = alpha
        small = shrunk(alpha.astype(np.float32), SIDE)
        height, width = small.shape
        # Fingers and hair are separated by single pixels: closing over a hundredth of the frame joins them.
        reach = 2 * round(0.004 * max(small.shape)) + 1
        firm = cv2.morphologyEx((small > FIRM).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
        count, labels = cv2.connectedComponents(firm, connectivity=8)
        subjects = []
        y, x = np.mgrid[:height, :width]
        for number in range(1, count):
            inside = labels == number
            mass = float(small[inside].sum())
            area = mass / small.size
            if area < LEAST_SHARE:
                # Too small: a speck.
                continue
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            centre = np.array([(x[inside] * small[inside]).sum() / mass, (y[inside] * small[inside]).sum() / mass])
            # Distance from the frame's centre in half diagonals.
            off = np.hypot(*(centre + 0.5 - np.array([width, height]) / 2)) / (np.hypot(width, height) / 2)
            box = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
            weight = area * float(np.exp(-(off**2) / (2 * CENTRE_SIGMA**2)))
            subjects.append(Subject(number, area, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), weight))
        self.all = sorted(subjects, key=lambda subject: -subject.weight)
        self._nearest = _nearest(labels, [subject.number for subject in subjects])

    def at(self, x: float, y: float) -> Subject | None:
        """Return the subject under a tap at (x, y), shares of width and height; None on the background."""
        height, width = self._nearest.shape
        row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
        value = shrunk(self._alpha.astype(np.float32), SIDE)[row, column]
        number = int(self._nearest[row, column])
        return next((s for s in self.all if s.number == number), None) if value > 0.1 else None

    def of(self, *chosen: Subject) -> np.ndarray:
        """Return the matte of some subjects, float32 (H, W); soft pixels belong to the nearest subject."""
        # With all subjects the matte is complete, specks included.
        if len(chosen) == len(self.all):
            return np.clip(self._alpha, 0, 1).astype(np.float32)
        keep = np.isin(self._nearest, [subject.number for subject in chosen]).astype(np.float32)
        return (np.clip(self._alpha, 0, 1) * enlarged(keep, self._alpha)).astype(np.float32)


def _nearest(labels: np.ndarray, numbers: list[int]) -> np.ndarray:
    """Return the number of the nearest subject for each pixel; 0 everywhere without subjects."""
    core = np.isin(labels, numbers)
    if not core.any():
        return np.zeros_like(labels)
    indices = distance_transform_edt(~core, return_distances=False, return_indices=True)
    return labels[tuple(np.asarray(indices))]
