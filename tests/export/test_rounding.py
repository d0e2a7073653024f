"""Rounded weights, ranges and the fitted last layer keep a convolution's outputs close, on inputs as in calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mm_core.export.last_layer import fit_last_layer
from mm_core.export.observed import convolutions, observe, tensor_values
from mm_core.export.ranges import best_range
from mm_core.export.rounding import round_weights, with_first_in_float

SIDE = 12


def network(*layers: dict[str, Any], seed: int = 0) -> onnx.ModelProto:
    """Convolutions w0, w1, … with ReLUs between them and a sigmoid at the end; each layer has a shape and options."""
    draw = np.random.default_rng(seed)
    nodes, weights, here = [], [], "image"
    for i, layer in enumerate(layers):
        options = dict(layer)
        shape, bias = options.pop("shape"), options.pop("bias", True)
        values = {f"w{i}": draw.normal(0, 0.5, shape), **({f"b{i}": draw.normal(0, 0.1, shape[0])} if bias else {})}
        weights += [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
        nodes.append(helper.make_node("Conv", [here, *values], [f"c{i}"], f"conv{i}", **options))
        here = f"r{i}"
        nodes.append(helper.make_node("Relu" if i < len(layers) - 1 else "Sigmoid", [f"c{i}"], [here], f"act{i}"))
    nodes[-1].output[0] = "alpha"
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("image", "alpha")]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def photos(count: int = 6, seed: int = 1) -> np.ndarray:
    """Inputs whose channels and neighbours are correlated and have a mean, as activations do."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(1, 1, (count, 1, SIDE, SIDE))
    return (shared + 0.3 * draw.normal(0, 1, (count, 3, SIDE, SIDE))).astype(np.float32)


PLAIN = {"shape": (8, 3, 3, 3), "pads": [1, 1, 1, 1]}
LAST = {"shape": (1, 8, 3, 3), "pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (4, 6, 3, 3), "pads": [1, 1, 1, 1]},
        {"shape": (4, 6, 3, 3), "pads": [0, 0, 1, 1], "strides": [2, 2]},
        {"shape": (6, 1, 5, 5), "pads": [2, 2, 2, 2], "group": 6},
        {"shape": (4, 3, 3, 3), "pads": [2, 2, 2, 2], "group": 2, "dilations": [2, 2]},
        {"shape": (4, 6, 1, 3), "pads": [0, 1, 0, 1], "strides": [1, 2]},
    ],
)
def test_the_columns_times_the_weights_are_the_convolution(options):
    """torch is the oracle."""
    layer = convolutions(network(options).graph)["w0"]
    x = np.random.default_rng(0).normal(size=(6, SIDE, SIDE)).astype(np.float32)
    columns, chosen = layer.columns(x, np.random.default_rng(0), 1000)
    top, left, bottom, right = options["pads"]
    padded = torch.nn.functional.pad(torch.from_numpy(x), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(
        padded[None], torch.tensor(layer.weight), None, options.get("strides", [1, 1]), 0,
        options.get("dilations", [1, 1]), options.get("group", 1),
    )  # fmt: skip
    outputs = np.concatenate(list(layer.matrix @ columns))
    assert len(chosen) == expected[0, 0].numel(), "every position once"
    np.testing.assert_allclose(outputs, expected[0].flatten(1).numpy()[:, chosen], atol=1e-5)


@pytest.mark.parametrize("group", [1, 8])
def test_rounding_keeps_outputs_closer_than_the_nearest_values_do(group):
    model = network(PLAIN, {"shape": (8, 8 // group, 3, 3), "pads": [1, 1, 1, 1], "group": group}, LAST)
    observed = observe(model, photos())
    rounded, scales = round_weights(model, observed)
    nearest = onnx.ModelProto()
    nearest.CopyFrom(model)
    before, after = convolutions(model.graph), convolutions(rounded.graph)
    assert set(scales) == {"w0", "w1"}, "the last stays in float"
    assert np.array_equal(before["w2"].weight, after["w2"].weight)
    for tensor in nearest.graph.initializer:
        if tensor.name in scales:
            scale = scales[tensor.name][:, None, None, None]
            whole = after[tensor.name].weight / scale
            np.testing.assert_allclose(whole, np.round(whole), atol=1e-3)
            assert np.abs(whole).max() <= 127.001
            assert np.abs(after[tensor.name].weight - before[tensor.name].weight).max() > 0
            tensor.CopyFrom(numpy_helper.from_array(np.round(before[tensor.name].weight / scale) * scale, tensor.name))
    unseen = photos(seed=9)
    truth, ours, theirs = (np.array(tensor_values(m, ["c1"], unseen)) for m in (model, rounded, nearest))
    assert np.mean((ours - truth) ** 2) < 0.5 * np.mean((theirs - truth) ** 2)


def test_the_bias_takes_over_the_error_of_the_mean():
    model = network(PLAIN, LAST)
    seen = photos(count=20)
    rounded, _ = round_weights(model, observe(model, seen))
    truth, ours = (np.array(tensor_values(m, ["c0"], seen)).mean((0, 1, 2, 4, 5)) for m in (model, rounded))
    np.testing.assert_allclose(ours, truth, atol=1e-3)


def test_a_convolution_without_bias_and_one_that_sees_zeros_alone_are_rounded():
    model = network({**PLAIN, "bias": False}, LAST)
    rounded, scales = round_weights(model, observe(model, np.zeros((2, 3, SIDE, SIDE), np.float32)))
    step = scales["w0"][:, None, None, None]
    difference = convolutions(rounded.graph)["w0"].weight - convolutions(model.graph)["w0"].weight
    assert np.all(np.abs(difference) <= 0.501 * step), "nothing is known of the inputs: the nearest value"


def test_the_first_convolutions_can_stay_in_float():
    model = network(PLAIN, {"shape": (8, 8, 1, 1)}, LAST)
    rounded, _ = round_weights(model, observe(model, photos()))
    mixed = {t.name: numpy_helper.to_array(t) for t in with_first_in_float(rounded, model, 1).graph.initializer}
    for source, names in ((model, ("w0", "b0")), (rounded, ("w1", "b1"))):
        values = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
        assert all(np.array_equal(mixed[name], values[name]) for name in names)


def int8_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    whole = np.round(values / step).clip(np.round(low / step), np.round(low / step) + 255)
    return float(np.mean((whole * step - values) ** 2))


@given(st.integers(0, 10**6), st.sampled_from(["normal", "relu", "heavy", "shifted"]))
def test_no_other_range_has_less_error(seed, kind):
    values = np.random.default_rng(seed).normal(size=5_000).astype(np.float32)
    if kind == "relu":
        values = np.maximum(values, 0)
    elif kind == "heavy":
        values *= np.abs(values)
    elif kind == "shifted":
        values += 9
    low, high = best_range(values)
    ends = min(0.0, float(values.min())), max(0.0, float(values.max()))
    assert ends[0] <= low <= 0 <= high <= ends[1]
    tried = [(ends[0] * a, ends[1] * b) for a in np.linspace(0.5, 1, 6) for b in np.linspace(0.5, 1, 6)]
    assert int8_error(values, low, high) <= 1.03 * min(int8_error(values, *ends) for ends in tried)


def test_a_range_of_values_at_both_ends_is_not_cut():
    assert best_range(np.array([0, 6] * 500, np.float32)) == (0, 6)
    assert best_range(np.zeros(5, np.float32)) == (0, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_undoes_what_int8_did_to_its_features(bias):
    model = network({**PLAIN, "pads": [0, 0, 0, 0]}, {**LAST, "pads": [0, 0, 0, 0], "bias": bias})
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in ("w0", "b0"):
            # ReLU keeps a positive factor: every feature is 0.9 of what it was.
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.9) * numpy_helper.to_array(tensor), tensor.name))
    seen, unseen = photos(count=12), photos(seed=9)
    fit_last_layer(changed, model, seen)
    truth, fitted = (np.array(tensor_values(m, ["alpha"], unseen)) for m in (model, changed))
    np.testing.assert_allclose(fitted, truth, atol=0.01)
    same = onnx.ModelProto()
    same.CopyFrom(model)
    fit_last_layer(same, model, seen)
    for a, b in zip(same.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), atol=1e-5)
