"""Biases, ranges and the last layer make up for what int8 does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mm_core.export.bias_correction import correct_biases, rounded
from mm_core.export.last_layer import fit_last_layer
from mm_core.export.observed import convolutions, observe, tensor_values
from mm_core.export.quantise import RANGES, _Calibrated
from mm_core.export.ranges import best_range, write_ranges

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
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, SIDE, SIDE])
        for name, channels in (("image", layers[0]["shape"][1]), ("alpha", 1))
    ]
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
def test_corrected_biases_give_int8_weights_the_mean_of_the_float_output(group):
    model = network(PLAIN, {"shape": (8, 8 // group, 3, 3), "pads": [1, 1, 1, 1], "group": group}, LAST)
    corrected = correct_biases(model, observe(model, photos(count=40)))
    before, after = convolutions(model.graph), convolutions(corrected.graph)
    for name, layer in before.items():
        assert np.array_equal(layer.weight, after[name].weight), "the quantiser rounds the weights"

    def means(source: onnx.ModelProto, second_alone: bool) -> np.ndarray:
        """Mean of each channel of c1 on new photos, with int8 weights in w1 alone."""
        graph = onnx.ModelProto()
        graph.CopyFrom(source)
        for tensor in graph.graph.initializer:
            if tensor.name == "w1" and second_alone:
                tensor.CopyFrom(numpy_helper.from_array(rounded(before["w1"]).reshape(before["w1"].weight.shape), "w1"))
            if tensor.name == "b0":
                tensor.CopyFrom(next(t for t in model.graph.initializer if t.name == "b0"))
        return np.array(list(tensor_values(graph, "c1", photos(count=40, seed=9)))).mean((0, 1, 3, 4))

    truth, moved = means(model, second_alone=False), means(model, second_alone=True)
    assert np.abs(moved - truth).max() > 2e-3, "rounding moves the means"
    assert np.abs(means(corrected, second_alone=True) - truth).max() < 0.3 * np.abs(moved - truth).max()


def test_what_stays_in_float_keeps_its_bias():
    model = network(PLAIN, {"shape": (8, 8, 1, 1)}, {"shape": (8, 8, 1, 1), "bias": False}, LAST)
    corrected = correct_biases(model, observe(model, photos()), first=1)
    values = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, corrected)]
    assert {name for name in values[0] if not np.array_equal(values[0][name], values[1][name])} == {"b1"}


def test_rounded_weights_are_those_of_the_int8_file(tmp_path):
    model, seen = network(PLAIN, LAST), photos()
    observed = observe(model, seen)
    write_ranges(tmp_path / RANGES, observed)
    made = _Calibrated(model, seen, observed).int8(0, tmp_path)
    values = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    theirs = values["w0_quantized"] * values["w0_scale"].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(rounded(convolutions(model.graph)["w0"])[0], theirs.reshape(8, -1), atol=1e-6)


def int8_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    whole = np.round(values / step).clip(np.round(low / step), np.round(low / step) + 255)
    return float(np.mean((whole * step - values) ** 2))


@given(st.integers(0, 10**6), st.sampled_from(["normal", "relu", "heavy", "shifted"]))
def test_hardly_any_other_range_has_less_error(seed, kind):
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
    assert int8_error(values, low, high) <= 1.08 * min(int8_error(values, *ends) for ends in tried)


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
    fit_last_layer(changed, model, observe(model, seen), seen)
    truth, fitted = (np.array(list(tensor_values(m, "alpha", unseen))) for m in (model, changed))
    np.testing.assert_allclose(fitted, truth, atol=0.01)
    same = onnx.ModelProto()
    same.CopyFrom(model)
    fit_last_layer(same, model, observe(model, seen), seen)
    for a, b in zip(same.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), atol=1e-5)
