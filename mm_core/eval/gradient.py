"""Magnitude of a matte's Gaussian derivative, sigma 1.4, replicated edges, float64 (Rhemann et al. 2009).

One pass over the rows computes both derivatives. numba compiles it at first use and caches the result on disk.
OpenCV's separable filter takes four times as long in float64 (benchmarks/metric_suite.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from mm_core.core.deferred import Deferred

if TYPE_CHECKING:
    import numba
else:
    numba = Deferred("numba")

SIGMA = 1.4
TAPS = 9
"""Length of the filter; the Gaussian is cut off below 0.01."""


def magnitude(alpha: np.ndarray) -> np.ndarray:
    """Return the gradient magnitude of a matte.

    Args:
        alpha: float64 (H, W), not empty.

    Returns:
        float64 (H, W).
    """
    out = np.empty(alpha.shape)
    _compiled()(np.ascontiguousarray(alpha), *_kernels(), out)
    return out


@cache
def _kernels() -> tuple[np.ndarray, np.ndarray]:
    """Return the Gaussian and its derivative, each float64 (9,) with L2 norm 1."""
    half = int(np.ceil(SIGMA * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * SIGMA * 1e-2))))
    assert 2 * half + 1 == TAPS
    x = np.arange(-half, half + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * SIGMA**2)) / (SIGMA * np.sqrt(2 * np.pi))
    slope = -x * smooth / SIGMA**2
    return smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)


@cache
def _compiled() -> Callable[..., None]:
    try:
        return numba.njit(nogil=True, cache=True)(_filter)
    except RuntimeError:  # no writable cache folder: each process compiles
        return numba.njit(nogil=True)(_filter)


def _filter(a: np.ndarray, smooth: np.ndarray, slope: np.ndarray, out: np.ndarray) -> None:
    """Write the gradient magnitude of `a` to `out`.

    The nine taps are unrolled in symmetric pairs, because numba does not vectorise an inner loop over taps.
    """
    height, width = a.shape
    # Both kernels are symmetric (the derivative up to its sign), so half of the taps is enough.
    c0, c1, c2, c3, c4 = smooth[4], smooth[5], smooth[6], smooth[7], smooth[8]
    e1, e2, e3, e4 = slope[5], slope[6], slope[7], slope[8]
    even, odd = np.empty(width + 8), np.empty(width + 8)
    for y in range(height):
        # Vertical pass: rows outside of the image repeat the border row.
        r0, up1, up2, up3, up4 = a[y], a[max(y - 1, 0)], a[max(y - 2, 0)], a[max(y - 3, 0)], a[max(y - 4, 0)]
        last = height - 1
        dn1, dn2, dn3, dn4 = a[min(y + 1, last)], a[min(y + 2, last)], a[min(y + 3, last)], a[min(y + 4, last)]
        for x in range(width):
            pairs = c1 * (dn1[x] + up1[x]) + c2 * (dn2[x] + up2[x]) + c3 * (dn3[x] + up3[x]) + c4 * (dn4[x] + up4[x])
            even[x + 4] = c0 * r0[x] + pairs
            pairs = e1 * (dn1[x] - up1[x]) + e2 * (dn2[x] - up2[x]) + e3 * (dn3[x] - up3[x]) + e4 * (dn4[x] - up4[x])
            odd[x + 4] = pairs
        # Replicate the border columns, so that the horizontal pass needs no bounds checks.
        for x in range(4):
            even[x], odd[x] = even[4], odd[4]
            even[width + 4 + x], odd[width + 4 + x] = even[width + 3], odd[width + 3]
        row = out[y]
        for x in range(width):
            v, w = even, odd
            # Horizontal pass: derivative across of the smoothed rows, smoothing of the derivative down.
            across = e1 * (v[x + 5] - v[x + 3]) + e2 * (v[x + 6] - v[x + 2])
            across += e3 * (v[x + 7] - v[x + 1]) + e4 * (v[x + 8] - v[x])
            down = c0 * w[x + 4] + c1 * (w[x + 5] + w[x + 3]) + c2 * (w[x + 6] + w[x + 2])
            down += c3 * (w[x + 7] + w[x + 1]) + c4 * (w[x + 8] + w[x])
            row[x] = np.sqrt(across * across + down * down)
