"""Estimate the colours of the subject and of the background behind a soft matte.

Multi-level estimation (`estimate_layers`) at reduced size gives smooth colours F', B' of both layers. Detail is added
from the photo C: the remainder C - (a F' + (1 - a) B') is divided between the layers, so that together they reproduce
the photo. (Forte 2021, "Approximate fast foreground colour estimation", equation 4, divides less and does not reproduce
it.) At alpha 1 the foreground is the photo itself.

For glass, smoke and steam the photo does not determine the division, and the estimate spreads a rim's colours over a
lens. In wide soft regions the background is therefore continued smoothly from its surroundings; the rest belongs to the
subject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.effects.fullsize import WORK_SIDE, check_pair, enlarged, harmonic, shrunk

if TYPE_CHECKING:
    import pymatting
else:
    pymatting = Deferred("pymatting")

STRIP = 512
"""Rows processed in one step at full size, so that 12 megapixels are never in memory as floats."""
DETAIL = 0.2
"""Variance of the background's estimate relative to the subject's: it sets the background's share of the detail."""
WIDE, TRUST = 0.01, 0.02
"""Least half-width of a see-through region as a share of the long side; and the variance, as above, of the background
behind it. Chosen on generated glasses, drinks and steam of seeds 1000 to 1017."""


def layers(photo: np.ndarray, alpha: np.ndarray, side: int = WORK_SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the colours of subject and background.

    `over(F, alpha, B)` reproduces the photo, except for rounding and colours out of range. Invisible parts of a layer
    are continued smoothly.

    Args:
        photo: uint8 (H, W, 3).
        alpha: Matte, float (H, W) in [0, 1].
        side: Long side of the estimation in pixels.

    Returns:
        F and B, uint8 (H, W, 3) each.
    """
    check_pair(photo, alpha)
    front, back = (
        enlarged(layer, photo) for layer in _smooth(shrunk(photo, side), shrunk(alpha.astype(np.float32), side))
    )
    for rows in strips(photo):
        a = np.clip(alpha[rows, :, None], 0, 1).astype(np.float32)
        f, b = front[rows].astype(np.float32), back[rows].astype(np.float32)
        # Least squares: the remainder is divided by the layers' shares and variances.
        rest = (photo[rows] - a * f - (1 - a) * b) / (a**2 + DETAIL * (1 - a) ** 2)
        front[rows] = np.rint((f + a * rest).clip(0, 255))
        back[rows] = np.rint((b + DETAIL * (1 - a) * rest).clip(0, 255))
    return front, back


def estimate_layers(photo: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the colours of foreground and background (Germer et al. 2020, multi-level, by PyMatting).

    The colours are smooth where their layer is invisible.

    Args:
        photo: uint8 (H, W, 3).
        alpha: float (H, W) in [0, 1].

    Returns:
        Foreground and background, uint8 (H, W, 3) each.
    """
    found = pymatting.estimate_foreground_ml(
        photo / 255.0, np.clip(alpha, 0, 1).astype(np.float64), return_background=True
    )
    front, back = (np.rint(np.asarray(layer).clip(0, 1) * 255).astype(np.uint8) for layer in found)
    return front, back


def _smooth(photo: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth colours of both layers at the size of the photo, uint8 (h, w, 3) each."""
    alpha = np.clip(alpha, 0, 1).astype(np.float32)
    front, back = estimate_layers(photo, alpha)
    reach = 2 * max(1, round(WIDE * max(alpha.shape))) + 1
    kernel = np.ones((reach, reach), np.uint8)
    # An opening keeps only regions that are soft over a wide area.
    wide = cv2.morphologyEx(((alpha > 0.02) & (alpha < 0.98)).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    if not wide.any() or (alpha > 0.02).all():
        return front, back
    # A gradual transition between both estimates.
    share = cv2.blur(wide.astype(np.float32), (reach, reach))[..., None]
    behind = harmonic(photo, (alpha > 0.02).astype(np.uint8)).astype(np.float32)
    a, f, b = alpha[..., None], front.astype(np.float32), back.astype(np.float32)
    seen = f + a * (photo - a * f - (1 - a) * behind) / (a**2 + TRUST * (1 - a) ** 2)
    front, back = (np.rint((x + share * (y - x)).clip(0, 255)).astype(np.uint8) for x, y in ((f, seen), (b, behind)))
    return front, back


def foreground(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the subject's colours; see `layers`."""
    return layers(photo, alpha)[0]


def over(front: np.ndarray, alpha: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Composite `front` over `back` with matte (H, W): a F + (1 - a) B, uint8 (H, W, 3)."""
    result = np.empty(back.shape, np.uint8)
    for rows in strips(back):
        a = np.clip(alpha[rows, :, None], 0, 1).astype(np.float32)
        result[rows] = np.rint(a * front[rows] + (1 - a) * back[rows])
    return result


def strips(image: np.ndarray) -> list[slice]:
    """Return slices of rows that together cover the picture (H, …)."""
    return [slice(top, min(top + STRIP, image.shape[0])) for top in range(0, image.shape[0], STRIP)]
