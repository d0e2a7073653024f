"""Ranges of int8 activations with the least mean squared error.

A tensor's smallest and largest value are rare. A narrower range cuts them off and represents all others more finely.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData, save_tensors_data

from mm_core.export.observed import Observed

STEPS = 255
"""Steps between the 256 values of int8."""
SHARES = np.linspace(0.2, 1.0, 41)
"""Shares of the smallest and of the largest value that are tried as ends of the range."""
BINS = 4096


def write_ranges(file: Path, observed: Observed) -> None:
    """Write the ranges of all tensors in the form of onnxruntime's cache of calibrations."""
    data: dict[str, TensorData | tuple[np.ndarray, ...]] = {}
    for name, values in observed.values.items():
        low, high = best_range(values)
        data[name] = (np.array(low, np.float32), np.array(high, np.float32))
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), file)


def best_range(values: np.ndarray) -> tuple[float, float]:
    """Choose the range whose int8 values are closest to a tensor's, by the mean squared error.

    Args:
        values: Drawn values of the tensor with its smallest and largest, float32 (n,).

    Returns:
        The ends of the range; it contains zero, as int8 ranges must.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        return low, high
    counts, edges = np.histogram(values, BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    lows, highs = low * SHARES, high * SHARES
    below = _squares_beyond(counts, lows[:, None] - centres)
    above = _squares_beyond(counts, centres - highs[:, None])
    # Zeros are represented exactly; a uniform error within a step has a twelfth of its square.
    rounding = np.count_nonzero(values) * ((highs[None] - lows[:, None]) / STEPS) ** 2 / 12
    row, column = np.unravel_index(np.argmin(below[:, None] + above[None] + rounding), rounding.shape)
    return float(lows[row]), float(highs[column])


def _squares_beyond(counts: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the sum of squares of positive distances (trials, bins), each as often as its bin counts."""
    return (np.maximum(distances, 0.0) ** 2) @ counts
