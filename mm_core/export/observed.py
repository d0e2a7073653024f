"""What a float graph computes on the calibration photos: the basis of corrected biases, ranges and the last layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

POSITIONS = 128
"""Output positions of a convolution that are drawn per photo for its mean input."""
VALUES = 2048
"""Values of a tensor that are drawn per photo for its range."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of the graph, as a product of a matrix per group with columns of input values."""

    node: onnx.NodeProto
    weight: np.ndarray
    """float32 (O, inputs of a group, k, k)"""
    groups: int

    @property
    def bias(self) -> str:
        """The name of the bias; empty if there is none."""
        return self.node.input[2] if len(self.node.input) > 2 else ""

    @property
    def matrix(self) -> np.ndarray:
        """The weights, float32 (groups, O / groups, K), with K = inputs of a group · k · k."""
        return self.weight.reshape(self.groups, len(self.weight) // self.groups, -1)

    def columns(self, x: np.ndarray, draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the input values at drawn output positions.

        Args:
            x: The input, float32 (inputs, H, W).
            draw: Draws the positions.
            count: Largest number of positions.

        Returns:
            The values, float32 (groups, K, P), and the positions as indices into the flat output, int (P,).
        """
        spread = _integers(self.node, "dilations", [1, 1])
        step = _integers(self.node, "strides", [1, 1])
        # ONNX lists the pads of all beginnings first, then those of all ends.
        top, left, bottom, right = _integers(self.node, "pads", [0, 0, 0, 0])
        kernel = self.weight.shape[2:]
        ends = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
        height = (x.shape[1] + top + bottom - ends[0]) // step[0] + 1
        width = (x.shape[2] + left + right - ends[1]) // step[1] + 1
        chosen = draw.choice(height * width, min(count, height * width), replace=False)
        # Input position of the kernel's first value at each drawn output position; it may be in the padding.
        rows, cols = chosen // width * step[0] - top, chosen % width * step[1] - left
        parts = []
        for i, j in np.ndindex(*kernel):
            row, col = rows + i * spread[0], cols + j * spread[1]
            inside = (row >= 0) & (row < x.shape[1]) & (col >= 0) & (col < x.shape[2])
            # Positions outside of the input are the zeros of the padding.
            parts.append(x[:, row.clip(0, x.shape[1] - 1), col.clip(0, x.shape[2] - 1)] * inside)
        # (inputs, k · k, P) → (groups, K, P): the order of values in a row of `matrix`.
        return np.stack(parts, axis=1).reshape(self.groups, -1, len(chosen)), chosen


@dataclass(frozen=True)
class Observed:
    """What a graph computes on the calibration photos."""

    means: dict[str, np.ndarray]
    """Name of a convolution's weight → mean column, float32 (groups, K)."""
    values: dict[str, np.ndarray]
    """Name of a tensor → drawn values, and the smallest and largest of each photo: float32 (n,)."""
    logits: np.ndarray
    """Output of the last convolution, float32 (N, S, S)."""
    alphas: np.ndarray
    """The mattes, float32 (N, S, S)."""


def convolutions(graph: onnx.GraphProto) -> dict[str, Convolution]:
    """Return the graph's convolutions by the name of their weight, in the order of execution."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    return {
        node.input[1]: Convolution(
            node, numpy_helper.to_array(tensors[node.input[1]]), _integers(node, "group", [1])[0]
        )
        for node in graph.node
        if node.op_type == "Conv"
    }


def observe(model: onnx.ModelProto, images: np.ndarray, seed: int = 0) -> Observed:
    """Run a float graph on the calibration photos.

    Args:
        model: The graph, with the input `image`.
        images: Prepared photos, float32 (N, 3, S, S).
        seed: Seed of the drawn positions and values.

    Returns:
        The statistics.
    """
    layers = convolutions(model.graph)
    # The last convolution stays in float: `last_layer` needs its output, but not its mean input.
    last = layers.pop(last_weight(model.graph)).node.output[0]
    names = [name for node in model.graph.node for name in node.output]
    session = _session(model, names)
    draw = np.random.default_rng(seed)
    means: dict[str, list[np.ndarray]] = defaultdict(list)
    values: dict[str, list[np.ndarray]] = defaultdict(list)
    outputs: dict[str, list[np.ndarray]] = {last: [], "alpha": []}
    # The graph takes one photo at a time.
    for image in images:
        tensors = {"image": image[None], **dict(zip(names, session.run(names, {"image": image[None]}), strict=True))}
        for name, tensor in tensors.items():
            values[name].append(_drawn(np.asarray(tensor, np.float32), draw))
        for name, parts in outputs.items():
            parts.append(np.asarray(tensors[name])[0, 0])
        for name, layer in layers.items():
            columns, _ = layer.columns(tensors[layer.node.input[0]][0], draw, POSITIONS)
            means[name].append(columns.mean(axis=-1))
    return Observed(
        {name: np.mean(parts, axis=0) for name, parts in means.items()},
        {name: np.concatenate(parts) for name, parts in values.items()},
        np.stack(outputs[last]),
        np.stack(outputs["alpha"]),
    )


def last_weight(graph: onnx.GraphProto) -> str:
    """Return the name of the weight of the last convolution."""
    return [node.input[1] for node in graph.node if node.op_type == "Conv"][-1]


def tensor_values(model: onnx.ModelProto, name: str, images: np.ndarray) -> Iterator[np.ndarray]:
    """Run a graph on photos and yield the tensor with this name for each photo, of shape (1, …)."""
    session = _session(model, [name])
    for image in images:
        yield np.asarray(session.run([name], {"image": image[None]})[0])


def _drawn(tensor: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    flat = tensor.reshape(-1)
    chosen = flat[draw.integers(0, flat.size, min(VALUES, flat.size))]
    # A draw may miss the extremes, which a range needs.
    return np.concatenate([chosen, [flat.min(), flat.max()]])


def _session(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    """Open a session whose outputs are the tensors with these names."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    del extended.graph.output[:]
    extended.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    # Level 3: errors only.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _integers(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    # ONNX keeps a list in `ints` and a single number in `i`.
    return default if found is None else list(found.ints) or [found.i]
