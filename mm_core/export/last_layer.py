"""Fit the last convolution, which stays in float, to the int8 features before it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from mm_core.export.observed import Observed, convolutions, last_weight, tensor_values

POSITIONS = 2048
"""Pixels that are drawn per photo."""
RIDGE = 1e-3
"""Weight of the distance from the float layer, as a share of the features' mean square."""
LEAST = 1e-4
"""Weight of a pixel whose alpha is surely 0 or 1; half way it is 1/16."""


def fit_last_layer(
    made: onnx.ModelProto, model: onnx.ModelProto, observed: Observed, images: np.ndarray, seed: int = 0
) -> None:
    """Change weight and bias of the last convolution so that the int8 file's mattes are close to the float ones.

    Weighted least squares on the logits: a pixel's weight is the squared slope of the sigmoid there, so that the error
    is that of alpha to first order.

    Args:
        made: The int8 graph; its last convolution is in float. Changed in place.
        model: The float graph with the same names.
        observed: What the float graph computes on the photos.
        images: Calibration photos, float32 (N, 3, S, S).
        seed: Seed of the drawn pixels.
    """
    name = last_weight(model.graph)
    layer = convolutions(model.graph)[name]
    features_name = next(node.input[0] for node in made.graph.node if name in node.input)
    draw = np.random.default_rng(seed)
    rows, logits, slopes = [], [], []
    inputs = tensor_values(made, features_name, images)
    for logit, alpha, features in zip(observed.logits, observed.alphas, inputs, strict=True):
        columns, chosen = layer.columns(features[0], draw, POSITIONS)
        rows.append(columns[0].T)
        logits.append(logit.reshape(-1)[chosen])
        slopes.append((alpha * (1 - alpha)).reshape(-1)[chosen])
    x = np.concatenate(rows).astype(np.float64)
    old = layer.weight.reshape(-1).astype(np.float64)
    if layer.bias:
        # A bias is the weight of a feature that is always one.
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        old = np.append(old, numpy_helper.to_array(_tensor(model, layer.bias)))
    weighted = x * (np.concatenate(slopes).astype(np.float64) ** 2 + LEAST)[:, None]
    gram = weighted.T @ x
    gram[np.diag_indices(len(gram))] += RIDGE * np.trace(gram) / len(gram)
    new = old + np.linalg.solve(gram, weighted.T @ (np.concatenate(logits) - x @ old))
    size = layer.weight.size
    _replace(_tensor(made, name), new[:size].reshape(layer.weight.shape))
    if layer.bias:
        _replace(_tensor(made, layer.bias), new[size:])


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)
