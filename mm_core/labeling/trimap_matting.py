"""Compute soft alpha in the areas that people painted as Unknown, by closed-form matting.

Levin, Lischinski, Weiss, "A Closed-Form Solution to Natural Image Matting", CVPR 2006. The Laplacian is PyMatting's
(Germer et al., JOSS 2020). The system is solved directly: an Unknown band is thin, so its factors stay sparse if the
pixels are ordered by nested dissection (George 1973). This takes half the time of PyMatting's preconditioned iteration.
The solver releases Python's lock, so threads can solve several photos at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.linalg import splu

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError

if TYPE_CHECKING:
    import pymatting
else:
    pymatting = Deferred("pymatting")

MARGIN = 24
"""Unknown areas closer to each other than twice this many pixels are solved together."""
REACH = 2
"""Largest distance in pixels of two pixels that share an equation."""
MOST_UNKNOWN = 1 << 18
"""Maximum number of unknown pixels in one area at full size, at 3.5 KB each; larger areas are solved scaled down."""
STRIP = 1 << 18
"""Number of pixels per call that computes the Laplacian, at 400 bytes each."""
LEAF = 32
"""Number of pixels below which nested dissection stops."""


def solve_unknown(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return the matte uint8 (H, W): equal to `alpha` outside `unknown`, solved inside.

    An area without known pixels around it keeps its `alpha`.

    Args:
        rgb: The upright photo, uint8 (H, W, 3).
        alpha: The painted matte, uint8 (H, W).
        unknown: bool (H, W).

    Raises:
        InputError: An area has no solution.
    """
    result = alpha.copy()
    for cut, inside in _areas(unknown):
        if not inside.all():
            result[cut][inside] = _solve(rgb[cut], alpha[cut], inside)[inside]
    return result


def _areas(unknown: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yield for each unknown area its window in the picture and, within it, a bool mask of its pixels."""
    # Dilation joins areas that are close together, and gives each window a margin of known pixels.
    kernel = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(unknown.astype(np.uint8), kernel))
    for number, (left, top, across, down, _) in enumerate(stats[1:count], 1):
        cut = slice(top, top + down), slice(left, left + across)
        yield cut, unknown[cut] & (labels[cut] == number)


def _solve(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return alpha uint8 of a window; a window with too many unknown pixels is solved at a smaller size."""
    height, width = unknown.shape
    # The scale brings the number of unknown pixels to the limit.
    scale = min(1.0, (MOST_UNKNOWN / np.count_nonzero(unknown)) ** 0.5)
    if scale == 1.0:
        return _closed_form(rgb, alpha, unknown)
    size = (max(8, int(width * scale)), max(8, int(height * scale)))
    photo, matte = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (rgb, alpha))
    # A small pixel is unknown if any part of it is.
    touched = cv2.resize(unknown.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    if touched.all():
        return alpha
    return cv2.resize(_closed_form(photo, matte, touched), (width, height), interpolation=cv2.INTER_LINEAR)


def _closed_form(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Minimise a'La over the unknown pixels; known pixels, soft ones included, keep their values."""
    known_alpha = alpha[~unknown]
    # A constant boundary has a constant solution.
    if (known_alpha == known_alpha[0]).all():
        return np.full_like(alpha, known_alpha[0])
    rows, free = _laplacian(rgb, unknown), unknown.ravel()
    order = _dissected(np.argwhere(unknown))
    # Known pixels move to the right-hand side of the equations.
    system = rows[:, np.flatnonzero(free)[order]][order].tocsc()
    right = -rows[:, ~free].dot(known_alpha / 255.0)[order]
    try:
        # The order is fixed above, and a positive definite matrix needs no pivot search.
        factors = splu(system, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        solution = factors.solve(right)
    except RuntimeError:
        solution = np.array(np.nan)
    if not np.isfinite(solution).all():
        raise InputError("an Unknown area cannot be solved: paint narrower bands")
    solved = np.empty(len(order))
    solved[order] = np.clip(solution, 0, 1)
    result = alpha.copy()
    result[unknown] = np.rint(255 * solved)
    return result


def _laplacian(rgb: np.ndarray, unknown: np.ndarray) -> csr_matrix:
    """Return the rows of the matting Laplacian of unknown pixels: sparse (unknown pixels, H × W)."""
    height, width = unknown.shape
    lines, blocks = max(1, STRIP // width), []
    for top in range(0, height, lines):
        bottom = min(top + lines, height)
        if not unknown[top:bottom].any():
            continue
        # Each strip needs the rows above and below that its equations refer to.
        above, below = max(0, top - REACH), min(height, bottom + REACH)
        strip, wanted = unknown[above:below], unknown[above:below].copy()
        wanted[: top - above] = wanted[bottom - above :] = False
        block = pymatting.cf_laplacian(rgb[above:below].astype(np.float64) / 255, is_known=~strip.ravel())[
            wanted.ravel()
        ]
        shape = (block.shape[0], height * width)
        blocks.append(csr_matrix((block.data, block.indices + above * width, block.indptr), shape))
    rows = csr_matrix(vstack(blocks, format="csr"))
    # Stored zeros would enlarge the factors.
    rows.eliminate_zeros()
    return rows


def _dissected(places: np.ndarray) -> np.ndarray:
    """Return an elimination order of pixels (N, 2) by nested dissection.

    Each area is split in two halves with a separator between them. Both halves precede the separator, so that
    eliminating one half does not fill in the other.
    """
    order: list[np.ndarray] = []

    def cut(rows: np.ndarray) -> None:
        # Split along the longer side at the median; the separator is REACH pixels wide.
        at = places[rows]
        low, high = at.min(0), at.max(0)
        axis = int(np.argmax(high - low))
        middle = int(np.median(at[:, axis]))
        before, behind = at[:, axis] < middle, at[:, axis] >= middle + REACH
        if len(rows) <= LEAF or not before.any() or not behind.any():
            order.append(rows)
            return
        cut(rows[before])
        cut(rows[behind])
        order.append(rows[~(before | behind)])

    cut(np.arange(len(places)))
    return np.concatenate(order)
