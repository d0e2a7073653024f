"""The subject's own colours and the background's: what a matte alone leaves mixed.

Multi-level estimation (`estimate_layers`) at reduced size gives smooth colours F', B' of both; one step
of Forte 2021 ("Approximate fast foreground colour estimation", equation 4) then takes the detail from the photo C:
F = F' + a (C - a F' - (1 - a) B'), and the same for B with 1 - a. Where alpha is 1 that is the photo itself.
"""

from __future__ import annotations

import numpy as np

from mm_core.aigc.fullsize import WORK_SIDE, check_pair, enlarged, shrunk
from mm_core.data.augment import estimate_layers

STRIP = 512
"""Rows worked on at once at full size, so that 12 megapixels never stand in memory as floats."""


def layers(photo: np.ndarray, alpha: np.ndarray, side: int = WORK_SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Colours of subject and background, uint8 (H, W, 3) each, of a photo uint8 (H, W, 3) with matte (H, W) in [0, 1].

    `over(F, alpha, B)` is the photo again where alpha is 0 or 1, and nearly so between. Where a layer has no share in
    a pixel, its colours go on smoothly.
    """
    check_pair(photo, alpha)
    found = estimate_layers(shrunk(photo, side), shrunk(alpha.astype(np.float32), side))
    front, back = (enlarged(layer, photo) for layer in found)
    for rows in strips(photo):
        a = np.clip(alpha[rows, :, None], 0, 1).astype(np.float32)
        f, b = front[rows].astype(np.float32), back[rows].astype(np.float32)
        rest = photo[rows] - a * f - (1 - a) * b
        front[rows] = np.rint((f + a * rest).clip(0, 255))
        back[rows] = np.rint((b + (1 - a) * rest).clip(0, 255))
    return front, back


def foreground(photo: np.ndarray, alpha: np.ndarray, side: int = WORK_SIDE) -> np.ndarray:
    """The subject's colours alone, as `layers`."""
    return layers(photo, alpha, side)[0]


def over(front: np.ndarray, alpha: np.ndarray, back: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): `front` laid over `back` with matte (H, W): a F + (1 - a) B."""
    result = np.empty(back.shape, np.uint8)
    for rows in strips(back):
        a = np.clip(alpha[rows, :, None], 0, 1).astype(np.float32)
        result[rows] = np.rint(a * front[rows] + (1 - a) * back[rows])
    return result


def strips(image: np.ndarray) -> list[slice]:
    """Slices of rows that together are the picture (H, …)."""
    return [slice(top, min(top + STRIP, image.shape[0])) for top in range(0, image.shape[0], STRIP)]
