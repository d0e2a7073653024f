"""Correct biases by what the rounding of weights does to the mean of a convolution's output.

Rounded weights differ from the float ones, and activations have a mean that is not zero, so each output channel moves
by a constant. The bias takes it back (Nagel et al. 2019, arXiv:1906.04721, section 4.2).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from mm_core.export.observed import Convolution, Observed, convolutions, last_weight

LEVELS = 127
"""Largest int8 weight; -128 is not used, so that the range is symmetric."""


def correct_biases(model: onnx.ModelProto, observed: Observed, first: int = 0) -> onnx.ModelProto:
    """Return a copy of the float graph with the biases that suit int8 weights.

    Args:
        model: The float graph.
        observed: Its statistics on the calibration photos.
        first: How many of the first convolutions stay in float; they and the last keep their biases.
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in corrected.graph.initializer}
    for name, layer in list(convolutions(model.graph).items())[first:]:
        if layer.bias and name != last_weight(model.graph):
            bias = tensors[layer.bias]
            shift = np.einsum("gok,gk->go", layer.matrix - rounded(layer), observed.means[name])
            moved = numpy_helper.to_array(bias) + shift.reshape(-1)
            bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))
    return corrected


def rounded(layer: Convolution) -> np.ndarray:
    """Return the weights as int8 represents them, with a scale per output channel: float32 (groups, O / groups, K)."""
    scale = np.abs(layer.matrix).max(axis=-1, keepdims=True) / LEVELS
    return np.round(layer.matrix / np.where(scale > 0, scale, 1)) * scale
