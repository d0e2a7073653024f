"""The runtime's predictor: no torch, every size, the right decoder, clear errors."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import pytest
from onnx import TensorProto, helper, numpy_helper

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.export.bundle_manifest import load_golden
from mm_core.export.formats.measure import WARM_UP, median_ms
from mm_core.export.runtime import OnnxPredictor


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_runs_without_torch(base):
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from mm_core.export.runtime import OnnxPredictor\n"
        "predictor = OnnxPredictor.of_folder(Path(sys.argv[1]))\n"
        "alpha, = predictor.predict([np.zeros((50, 70, 3), np.uint8)], ['pets' and 'saliency'])\n"
        "assert alpha.shape == (50, 70), alpha.shape\n"
        "heavy = {'torch', 'mlflow', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(base.quantised)], check=True)


def test_each_photo_comes_back_in_its_own_size_and_by_its_own_decoder(base):
    predictor = OnnxPredictor.of_folder(base.quantised, threads=1)
    photos = [photo(40, 90), photo(64, 64, 1), photo(40, 90), photo(1, 3)]
    decoders = ["portrait", "saliency", "scenery", "portrait"]
    together = predictor.predict(photos, decoders)
    for image, matte, decoder in zip(photos, together, decoders, strict=True):
        assert matte.shape == image.shape[:2] and matte.dtype == np.float32
        assert 0 <= matte.min() <= matte.max() <= 1
        assert np.array_equal(matte, predictor.predict([image], [decoder])[0])
    assert not np.array_equal(together[0], together[2])


def test_files_may_lie_anywhere_under_any_name(base, tmp_path):
    blob = tmp_path / "0a1b2c"
    blob.write_bytes((base.quantised / "portrait.int8.onnx").read_bytes())
    predictor = OnnxPredictor({"portrait.int8.onnx": blob, "portrait.pte": tmp_path / "of another format"})
    assert predictor.predict([photo(10, 12)], ["portrait"])[0].shape == (10, 12)
    with pytest.raises(InputError, match="saliency"):
        predictor.predict([photo(10, 12)], ["saliency"])
    with pytest.raises(ValueError, match="one decoder per photo"):
        predictor.predict([photo(10, 12)], [])


def test_files_from_before_the_choice_serve_by_the_first_decoder(base, tmp_path):
    whole = OnnxPredictor.of_folder(base.quantised)
    photos = [photo(64, 64, seed) for seed in range(3)]
    assert len(whole.choose(photos)) == 3
    for decoder in DECODERS:
        name = f"{decoder}.int8.onnx"
        onnx.utils.extract_model(base.quantised / name, tmp_path / name, ["image"], ["alpha"])
    old = OnnxPredictor.of_folder(tmp_path)
    assert old.choose(photos) == ["saliency"] * 3
    assert np.array_equal(old.predict(photos, ["portrait"] * 3)[0], whole.predict(photos, ["portrait"] * 3)[0])


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="mm evaluate"):
        OnnxPredictor.of_folder(tmp_path)
    with pytest.raises(InputError, match="unheard"):
        OnnxPredictor({"unheard.int8.onnx": tmp_path})
    broken = tmp_path / "portrait.int8.onnx"
    for content in (b"", b"not a model"):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="portrait.int8.onnx"):
            OnnxPredictor.of_folder(tmp_path).predict([photo(8, 8)], ["portrait"])
    broken.unlink()
    with pytest.raises(InputError, match="portrait.int8.onnx"):
        OnnxPredictor({"portrait.int8.onnx": broken}).predict([photo(8, 8)], ["portrait"])


def network(
    *,
    inputs: str = "image",
    output: str = "alpha",
    sides: tuple[Any, Any] = (64, 64),
    constant: Any = None,
    weights_file: str = "",
    logits: Any = None,
) -> bytes:
    """Return an ONNX file whose matte is the mean of the channels. Each argument changes one part of it.

    Args:
        inputs: Name of the input.
        output: Name of the matte.
        sides: Height and width of the input.
        constant: Values that are returned in place of the mean.
        weights_file: Name of another file that holds a weight.
        logits: Values of an output `decoder`.
    """
    steps, weights, last = [helper.make_node("ReduceMean", [inputs], ["mean"], axes=[1], keepdims=1)], [], "mean"
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    if constant is not None:
        weights.append(numpy_helper.from_array(np.asarray(constant, np.float32), "constant"))
        last = "constant"
    if weights_file:
        tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", weights_file), ("offset", "0"), ("length", "4")):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
        steps.append(helper.make_node("Add", [last, "far"], ["sum"]))
        last = "sum"
    steps.append(helper.make_node("Identity", [last], [output]))
    if logits is not None:
        weights.append(numpy_helper.from_array(np.asarray(logits, np.float32), "logits"))
        steps.append(helper.make_node("Identity", ["logits"], ["decoder"]))
        outputs.append(helper.make_tensor_value_info("decoder", TensorProto.FLOAT, None))
    image = helper.make_tensor_value_info(inputs, TensorProto.FLOAT, [1, 3, *sides])
    graph = helper.make_graph(steps, "graph", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"inputs": "photo"}, "no matting network"),
        ({"output": "matte"}, "no matting network"),
        ({"sides": ("S", "S")}, "no matting network"),
        ({"sides": (64, 32)}, "no matting network"),
        ({"sides": (60_000, 60_000)}, "no matting network"),
        ({"constant": np.zeros(2)}, "its output is no matte"),
        ({"constant": np.zeros((1, 1, 3, 3))}, "its output is no matte"),
        ({"constant": np.full((1, 1, 64, 64), np.nan)}, "its output is no matte"),
        ({"logits": np.zeros((1, 7))}, "chooses no decoder"),
        ({"logits": np.full((1, 3), np.nan)}, "chooses no decoder"),
        ({"weights_file": "weights.bin"}, "cannot load it"),
        ({"weights_file": "../weights.bin"}, "cannot load it"),
    ],
)
def test_a_hostile_network_is_refused_in_one_line(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    """It never gives NaN, takes all memory, or reads a file that no manifest lists."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "weights.bin").write_bytes(np.float32(1).tobytes())
    for decoder in DECODERS:
        (folder / f"{decoder}.int8.onnx").write_bytes(network(**parts))
    with pytest.raises(InputError, match=words) as told:
        predictor = OnnxPredictor.of_folder(folder)
        predictor.predict([photo(40, 50)], predictor.choose([photo(40, 50)]))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("shape", ["(1000000, 1000000, 10)", "(" * 40, "[" * 4000])
def test_hostile_golden_pairs_are_refused_in_one_line(tmp_path: Path, shape: str) -> None:
    """A header that declares terabytes, and headers that are no Python."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "golden.npz", "w") as archive:
        archive.writestr("saliency_image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    manifest: Any = {"golden": {"file": "golden.npz"}, "decoders": {"saliency": {}}}
    with pytest.raises(InputError, match="not the golden pairs"):
        load_golden(tmp_path, manifest)


def test_latency_is_the_median_after_warm_up():
    calls = []
    median_ms(lambda: calls.append(1), runs=5)
    assert len(calls) == WARM_UP + 5
