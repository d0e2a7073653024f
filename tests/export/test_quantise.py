"""int8 stays close to float, its bytes depend on nothing but model and photos, and half a result is made again."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import helper, numpy_helper

from mm_core.core.errors import MattingError, NothingToTrainOn
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import ExportParams, Params
from mm_core.core.records import DECODERS, Report, sha256_file
from mm_core.export import calibration as c
from mm_core.export import quantise as q
from mm_core.export.runtime import OnnxPredictor, open_session
from mm_core.imaging.images import load_rgb
from mm_core.ingest.placement import POOLS, SCHEMA
from mm_core.ingest.snapshot import read_pool
from mm_core.model.predict import TorchPredictor
from mm_core.model.preprocess import prepare
from mm_core.storage.run import StorageRun, store_of
from mm_core.storage.store import fetch_blob


def again(layout: Layout, out: Path, **options: float) -> Report:
    params = ExportParams(calibration_images=6, **options)  # type: ignore[arg-type]
    model = layout.model(TRAIN_STAGES[-1])
    return q.quantise(StorageRun(Params(export=params), layout), model, out, Report("test"))


def test_int8_is_close_to_torch_on_photos_never_calibrated_with(base):
    frame, store = read_pool(base.snapshot, "eval"), store_of(base)
    photos = [load_rgb(fetch_blob(store, i)) for i in frame["sample_id"]]
    decoders = list(frame["decoder"])
    truth = TorchPredictor(base.model(TRAIN_STAGES[-1]), "cpu").predict(photos, decoders)
    served = OnnxPredictor.of_folder(base.quantised).predict(photos, decoders)
    assert set(decoders) == set(DECODERS)
    for a, b in zip(truth, served, strict=True):
        assert a.shape == b.shape and b.dtype == np.float32
        assert np.mean((a - b) ** 2) < 5e-4
    assert np.std(np.concatenate([a.ravel() for a in truth])) > 0.02, "flat mattes would prove nothing"


def test_int8_chooses_the_decoder_that_torch_chooses(base):
    frame, store = read_pool(base.snapshot, "train_labeled"), store_of(base)
    photos = [load_rgb(fetch_blob(store, i)) for i in frame["sample_id"]]
    net = TorchPredictor(base.model(TRAIN_STAGES[-1]), "cpu").net
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([prepare(photo, net.config.size) for photo in photos]))
        logits = net.choice(net.encode(images)).numpy()
    served = OnnxPredictor.of_folder(base.quantised).choose(photos)
    truth = [DECODERS[place] for place in logits.argmax(1)]
    # Where the two best are close, rounding decides.
    best = np.sort(logits, 1)
    clear = best[:, -1] - best[:, -2] > 0.2 * np.ptp(logits)
    assert clear.mean() > 0.3 and len({name for name, sure in zip(truth, clear, strict=True) if sure}) > 1
    assert [a for a, sure in zip(truth, clear, strict=True) if sure] == [
        b for b, sure in zip(served, clear, strict=True) if sure
    ]


def test_weights_are_int8_but_for_the_head(base):
    for decoder in DECODERS:
        graph = onnx.load(base.quantised / f"{decoder}.int8.onnx").graph
        feeds = {name: node for node in graph.node for name in node.output}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        kinds = [feeds[n.input[1]].op_type if n.input[1] in feeds else "float" for n in convolutions]
        assert kinds == ["DequantizeLinear"] * (len(kinds) - 1) + ["float"]
        assert [output.name for output in graph.output] == ["alpha", "decoder"]
        assert feeds["alpha"].op_type == "Sigmoid"
        assert not {"DequantizeLinear", "QuantizeLinear"} & {
            feeds[n].op_type for n in feeds["decoder"].input if n in feeds
        }
        assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 64]


def test_activations_are_signed(base):
    """Unsigned activations with signed weights saturate on x86 without VNNI: the file would be another one there."""
    for decoder in DECODERS:
        graph = onnx.load(base.quantised / f"{decoder}.int8.onnx").graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
        assert zeros and {zero.data_type for zero in zeros} == {onnx.TensorProto.INT8}


def test_this_cpus_integer_kernels_give_what_the_file_says(base):
    """The same file with every node computed in float, as written, is the value that holds on each CPU."""
    size = base_size(base)
    image = np.random.default_rng(0).random((1, 3, size, size)).astype(np.float32)
    for decoder in DECODERS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        file = base.quantised / f"{decoder}.int8.onnx"
        plain = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        (expected,) = plain.run(["alpha"], {"image": image})
        (fused,) = open_session(file).run(["alpha"], {"image": image})
        # One step of rounding in a few activations, not a saturated sum.
        assert np.mean((np.asarray(fused) - np.asarray(expected)) ** 2) < 1e-5


def base_size(base) -> int:
    graph = onnx.load(base.quantised / f"{DECODERS[0]}.int8.onnx").graph
    return graph.input[0].type.tensor_type.shape.dim[-1].dim_value


def test_same_bytes_in_another_process_and_no_trace_of_this_machine(base, tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from export_cycle import layout_at; from test_quantise import again\n"
        "from mm_core.export import float_graph; float_graph._read = lambda path: None  # exports again\n"
        "float_graph.write_bytes = lambda path, data: None\n"
        "again(layout_at(Path(sys.argv[2])), Path(sys.argv[3]))"
    )
    arguments = [str(Path(__file__).parent), str(base.root), str(tmp_path)]
    env = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=env, capture_output=True)
    for name in [f"{decoder}.int8.onnx" for decoder in DECODERS]:
        assert sha256_file(tmp_path / name) == sha256_file(base.quantised / name)
        data = (tmp_path / name).read_bytes()
        assert b"site-packages" not in data and b"mm_core" not in data and str(base.root).encode() not in data
    assert (tmp_path / "quantised.json").read_bytes() == (base.quantised / "quantised.json").read_bytes()


def test_finished_results_are_kept_and_damaged_ones_made_again(base, cycle, monkeypatch):
    calls = []
    monkeypatch.setattr(q, "_make_all", lambda *a: calls.append(a) or pytest.fail("made again"))
    report = again(cycle, cycle.quantised)
    assert not calls
    assert {r["decoder"] for r in report.tables["quantisation"]} == set(DECODERS)
    assert report.metrics["quantise/portrait/diff_mse"] < 5e-4
    for damage in (
        lambda: (cycle.quantised / "quantised.json").unlink(),
        lambda: (cycle.quantised / "quantised.json").write_text('{"key": "cut'),
        lambda: (cycle.quantised / "portrait.int8.onnx").write_bytes(b"half"),
    ):
        monkeypatch.setattr(q, "_make_all", lambda *a: calls.append(a) or {"again": dict.fromkeys(q_columns, 0)})
        damage()
        calls.clear()
        again(cycle, cycle.quantised)
        assert len(calls) == 1
        for file in base.quantised.iterdir():
            (cycle.quantised / file.name).write_bytes(file.read_bytes())


q_columns = ("sha256", "bytes", "diff_mse", "diff_max", "float_convolutions", "steps", "calibration_images")


def chain(widths: list[int]) -> onnx.ModelProto:
    """Convolutions conv0, conv1, … with ReLUs between and a sigmoid at the end; input 16 px."""
    rng = np.random.default_rng(3)
    nodes, weights, here = [], [], "image"
    for i, (a, b) in enumerate(pairwise([3, *widths, 1])):
        weights.append(numpy_helper.from_array(rng.normal(0, 1.5 / a, (b, a, 3, 3)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [here, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu" if i < len(widths) else "Sigmoid", [f"c{i}"], [f"r{i}"], f"act{i}"))
        here = f"r{i}"
    nodes[-1].output[0] = "alpha"
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 16, 16])
        for name, channels in (("image", 3), ("alpha", 1))
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_strict_limit_keeps_the_first_layers_in_float_until_it_is_met(tmp_path):
    graph = chain([2, 2, 2, 16, 16, 16])
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16), dtype=np.float32)
    onnx.save(graph, tmp_path / "float.onnx")
    reference = images[:1], q._alphas(tmp_path / "float.onnx", images[:1])[:, None]

    def made(limit):
        row, data = q.quantise_graph(graph, images, [*"aabb"], limit, reference)
        onnx.save(onnx.load_from_string(data), tmp_path / "int8.onnx")
        off = q._alphas(tmp_path / "int8.onnx", images) - q._alphas(tmp_path / "float.onnx", images)
        assert row["diff_mse"] == pytest.approx(max(np.mean(off[:2] ** 2), np.mean(off[2:] ** 2)), rel=1e-4)
        return row, onnx.load_from_string(data).graph

    loose, _ = made(1.0)
    assert loose["float_convolutions"] == [] and loose["steps"] == [0, 1, 2], "two have less than 5 % of the weights"
    strict, graph8 = made(0.0)
    assert strict["diff_mse"] < loose["diff_mse"] and strict["float_convolutions"] in ([0], [0, 1])
    feeds = {name: node for node in graph8.node for name in node.output}
    plain = [i for i, n in enumerate(n for n in graph8.node if n.op_type == "Conv") if n.input[1] not in feeds]
    assert plain == [*strict["float_convolutions"], 6], "and the last"
    one = made(0.999 * loose["diff_mse"])[0]["float_convolutions"]
    assert one == [0], "no more than it takes"
    with pytest.raises(MattingError, match="strays"):
        q.quantise_graph(graph, images, [*"aabb"], 1.0, (images[:1], 1 - reference[1]))


def pools(folder: Path, **rows: list[tuple[str, str | None, str]]) -> Path:
    for pool in POOLS:
        frame = pd.DataFrame(rows.get(pool, []), columns=["sample_id", "category", "decoder"])
        frame.reindex(columns=SCHEMA.names).to_parquet(folder / f"{pool}.parquet", schema=SCHEMA)
    return folder


def test_calibration_photos_are_training_photos_unlabelled_first_and_all_categories_in_turn(tmp_path):
    labelled = [(f"p{i}", "portrait", "portrait") for i in range(5)] + [("m9", "multi_person", "portrait")]
    unlabelled = [("a0", "portrait", "portrait"), ("n0", None, "saliency"), ("c0", "cards", "saliency")]
    folder = pools(
        tmp_path,
        train_labeled=labelled[::-1],
        train_unlabeled=unlabelled,
        eval=[("e", "portrait", "portrait")],
        validation=[("v", "portrait", "portrait")],
    )
    assert c.calibration_ids(folder, "portrait", 3) == ["m9", "a0", "p0"]
    assert c.calibration_ids(folder, "portrait", 99) == ["m9", "a0", "p0", "p1", "p2", "p3", "p4"]
    assert c.calibration_ids(folder, "saliency", 99) == ["n0", "c0"]
    assert c.categories_of(folder, ["m9", "n0", "c0"]) == ["multi_person", "", "cards"]
    assert set(c.calibration_ids(folder, "scenery", 99)) == {r[0] for r in labelled + unlabelled}, "others' photos"


def test_no_training_photo_is_an_error_that_says_what_to_drop(tmp_path):
    with pytest.raises(NothingToTrainOn, match="drop"):
        c.calibration_ids(pools(tmp_path, eval=[("e", "portrait", "portrait")]), "portrait", 4)
