"""What people painted as Unknown becomes soft alpha: closed-form matting between what they are sure of.

Levin, Lischinski, Weiss, "A Closed-Form Solution to Natural Image Matting", CVPR 2006; the Laplacian and the
preconditioned solver are PyMatting's (Germer et al., JOSS 2020).
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from mm_core.errors import InputError

MARGIN = 24
"""Pixels of known matte around an unknown area that its solution may lean on."""
MOST_PIXELS = 1 << 20
"""A larger cut is solved at a smaller size: the Laplacian takes 1.3 KB a pixel."""


def solve_unknown(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """The matte uint8 (H, W): as `alpha` outside `unknown` (bool (H, W)), solved inside.

    `rgb`: uint8 (H, W, 3), the upright photo. An area with nothing known around it keeps its `alpha`. Raises InputError
    where an area has no solution.
    """
    result = alpha.copy()
    for top, bottom, left, right in _areas(unknown):
        cut = slice(top, bottom), slice(left, right)
        inside = unknown[cut]
        if not inside.all():
            result[cut][inside] = _solve(rgb[cut], alpha[cut], inside)[inside]
    return result


def _areas(unknown: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of connected unknown areas with their margins: top, bottom, left, right; those that overlap are one."""
    height, width = unknown.shape
    kernel = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(unknown.astype(np.uint8), kernel))
    for left, top, across, down, _ in stats[1:count]:
        yield int(top), min(int(top + down), height), int(left), min(int(left + across), width)


def _solve(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Alpha uint8 of a cut; solved small and scaled up where the cut is large."""
    height, width = unknown.shape
    scale = min(1.0, (MOST_PIXELS / (height * width)) ** 0.5)
    if scale == 1.0:
        return _closed_form(rgb, alpha, unknown)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    photo, matte = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (rgb, alpha))
    touched = cv2.resize(unknown.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    return cv2.resize(_closed_form(photo, matte, touched), (width, height), interpolation=cv2.INTER_LINEAR)


def _closed_form(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Minimises a'La over the unknown pixels; known ones, soft ones too, stay exactly as they are."""
    from pymatting import cf_laplacian, cg, ichol

    free, sure = unknown.ravel(), alpha[~unknown]
    if (sure == sure[0]).all():
        return np.full_like(alpha, sure[0])  # nothing else is near, and a solver would never be done with it
    rows = cf_laplacian(rgb.astype(np.float64) / 255, is_known=~free)[free]
    system, known = rows[:, free].tocsc(), alpha.ravel() / 255.0
    try:
        solution = cg(system, -rows[:, ~free].dot(known[~free]), M=ichol(system), atol=1e-6)
    except ValueError as error:
        raise InputError(f"an Unknown area cannot be solved ({error}): paint narrower bands") from None
    result = alpha.copy()
    result[unknown] = np.rint(255 * np.clip(solution, 0, 1))
    return result
