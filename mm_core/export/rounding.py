"""Round weights to int8 so that the outputs of each convolution stay close, not the weights themselves.

The method is GPTQ (Frantar et al. 2022, arXiv:2210.17323) for convolutions: the weights of an output channel are
rounded one after another, and those not yet rounded take over the error as far as the inputs are correlated. The bias
takes over what is left of the mean. Rounding to the nearest value takes no account of the inputs; on a trained network
its error is several times larger (ADR 0051).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from mm_core.export.observed import Observed, convolutions, last_weight

LEVELS = 127
"""Largest int8 weight; -128 is not used, so that the range is symmetric."""
DAMPING = 0.01
"""Share of the mean diagonal that is added to the moments' diagonal, which makes them invertible."""


def round_weights(model: onnx.ModelProto, observed: Observed) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Round the weights of all convolutions but the last, which stays in float.

    Args:
        model: The float graph.
        observed: Its statistics on the calibration photos.

    Returns:
        A copy with rounded weights in float32 and corrected biases; and name of a weight → its scale per output
        channel, float32 (outputs,): the weights are whole multiples of it, from -127 to 127.
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in rounded.graph.initializer}
    scales: dict[str, np.ndarray] = {}
    for name, layer in convolutions(model.graph).items():
        if name == last_weight(model.graph):
            continue
        matrix = layer.matrix
        scale = np.maximum(np.abs(matrix).max(axis=-1) / LEVELS, np.finfo(np.float32).tiny).astype(np.float32)
        values = _rounded(matrix, observed.moments[name], scale) * scale[..., None]
        _replace(tensors[name], values.reshape(layer.weight.shape))
        if layer.bias:
            shift = np.einsum("gok,gk->go", matrix - values, observed.means[name])
            _replace(tensors[layer.bias], numpy_helper.to_array(tensors[layer.bias]) + shift.reshape(-1))
        scales[name] = scale.reshape(-1)
    return rounded, scales


def with_first_in_float(rounded: onnx.ModelProto, model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """Return a copy of the rounded graph in which the first `count` convolutions have the float graph's values."""
    mixed = onnx.ModelProto()
    mixed.CopyFrom(rounded)
    names = {name for layer in list(convolutions(model.graph).values())[:count] for name in layer.node.input[1:]}
    before = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in mixed.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(before[tensor.name])
    return mixed


def _rounded(weights: np.ndarray, moments: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return whole numbers, float64 (G, O, K), for weights (G, O, K), moments (G, K, K) and steps (G, O)."""
    left = weights.astype(np.float64)
    size = left.shape[-1]
    diagonal = np.arange(size)
    damped = moments.astype(np.float64)
    mean = damped[:, diagonal, diagonal].mean(axis=1, keepdims=True)
    # An input that is always zero has no moments; the damping alone decides for it.
    damped[:, diagonal, diagonal] += DAMPING * np.where(mean > 0, mean, 1)
    # Rows of the inverse's factor tell how the weights not yet rounded make up for an error.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    whole = np.zeros_like(left)
    for k in range(size):
        whole[..., k] = np.clip(np.round(left[..., k] / steps), -LEVELS, LEVELS)
        error = (left[..., k] - whole[..., k] * steps) / factor[:, k, k][:, None]
        left[..., k + 1 :] -= error[..., None] * factor[:, None, k, k + 1 :]
    return whole


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
