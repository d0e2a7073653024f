"""What people painted as Unknown becomes soft alpha: closed-form matting between what they are sure of.

Levin, Lischinski, Weiss, "A Closed-Form Solution to Natural Image Matting", CVPR 2006; the Laplacian is PyMatting's
(Germer et al., JOSS 2020). It is solved directly: a band is thin, so that its factors stay sparse where the pixels are
ordered by nested dissection (George 1973), and half the time of PyMatting's preconditioned iteration is enough. All of
it runs outside of Python's lock: several photos are solved at once by threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from mm_core.core.errors import InputError

MARGIN = 24
"""Unknown areas nearer to each other than twice these pixels are solved together."""
REACH = 2
"""Pixels from an unknown one that its equation names."""
MOST_UNKNOWN = 1 << 18
"""More unknown pixels in one area are solved at a smaller size: their factors take 3.5 KB a pixel."""
STRIP = 1 << 18
"""Pixels of which the Laplacian is made at once: 400 bytes each."""
LEAF = 32


def solve_unknown(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """The matte uint8 (H, W): as `alpha` outside `unknown` (bool (H, W)), solved inside.

    `rgb`: uint8 (H, W, 3), the upright photo. An area with nothing known around it keeps its `alpha`. Raises InputError
    where an area has no solution.
    """
    result = alpha.copy()
    for cut, inside in _areas(unknown):
        if not inside.all():
            result[cut][inside] = _solve(rgb[cut], alpha[cut], inside)[inside]
    return result


def _areas(unknown: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Unknown areas one by one: the cut of the picture, and within it, bool, the pixels of this area."""
    kernel = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(unknown.astype(np.uint8), kernel))
    for number, (left, top, across, down, _) in enumerate(stats[1:count], 1):
        cut = slice(top, top + down), slice(left, left + across)
        yield cut, unknown[cut] & (labels[cut] == number)


def _solve(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Alpha uint8 of a cut; solved small and scaled up where too much is unknown."""
    height, width = unknown.shape
    scale = min(1.0, (MOST_UNKNOWN / np.count_nonzero(unknown)) ** 0.5)
    if scale == 1.0:
        return _closed_form(rgb, alpha, unknown)
    size = (max(8, int(width * scale)), max(8, int(height * scale)))
    photo, matte = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (rgb, alpha))
    touched = cv2.resize(unknown.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    if touched.all():
        return alpha
    return cv2.resize(_closed_form(photo, matte, touched), (width, height), interpolation=cv2.INTER_LINEAR)


def _closed_form(rgb: np.ndarray, alpha: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Minimises a'La over the unknown pixels; known ones, soft ones too, stay exactly as they are."""
    from scipy.sparse.linalg import splu

    sure = alpha[~unknown]
    if (sure == sure[0]).all():
        return np.full_like(alpha, sure[0])
    rows, free = _laplacian(rgb, unknown), unknown.ravel()
    order = _dissected(np.argwhere(unknown))
    system = rows[:, np.flatnonzero(free)[order]][order].tocsc()
    right = -rows[:, ~free].dot(sure / 255.0)[order]
    try:
        # The order is made; positive definite, so that no pivot need be looked for.
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


def _laplacian(rgb: np.ndarray, unknown: np.ndarray) -> Any:
    """Rows of the matting Laplacian that belong to unknown pixels: sparse (unknown pixels, H x W)."""
    from pymatting import cf_laplacian
    from scipy.sparse import csr_matrix, vstack

    height, width = unknown.shape
    lines, parts = max(1, STRIP // width), []
    for top in range(0, height, lines):
        bottom = min(top + lines, height)
        if not unknown[top:bottom].any():
            continue
        above, below = max(0, top - REACH), min(height, bottom + REACH)
        strip, wanted = unknown[above:below], unknown[above:below].copy()
        wanted[: top - above] = wanted[bottom - above :] = False
        part = cf_laplacian(rgb[above:below].astype(np.float64) / 255, is_known=~strip.ravel())[wanted.ravel()]
        shape = (part.shape[0], height * width)
        parts.append(csr_matrix((part.data, part.indices + above * width, part.indptr), shape))
    rows: Any = vstack(parts, format="csr")
    rows.eliminate_zeros()
    return rows


def _dissected(places: np.ndarray) -> np.ndarray:
    """Order of pixels (N, 2) for elimination: both halves before the lines between them, so that neither half's
    elimination touches the other."""
    found: list[np.ndarray] = []

    def cut(rows: np.ndarray) -> None:
        at = places[rows]
        low, high = at.min(0), at.max(0)
        axis = int(np.argmax(high - low))
        middle = int(np.median(at[:, axis]))
        before, behind = at[:, axis] < middle, at[:, axis] >= middle + REACH
        if len(rows) <= LEAF or not before.any() or not behind.any():
            found.append(rows)
            return
        cut(rows[before])
        cut(rows[behind])
        found.append(rows[~(before | behind)])

    cut(np.arange(len(places)))
    return np.concatenate(found)
