"""A gallery of generated photos, its moments, and a bundle of small int8 networks in `mm export`'s form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mm_core import operations
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import DECODERS, sha256_file, write_json
from mm_core.core.settings import Settings
from mm_core.export.runtime import OnnxPredictor
from mm_core.gallery.library import Library
from mm_core.model.preprocess import prepare
from mm_core.pinned_inputs import Run
from samplegen import generate
from samplegen.gallery import PlantedEvent, write_gallery

SIDE = 64
PARAMS = Params().with_values(**{"structure.ocr": []})
NOON = datetime(2026, 5, 2, 12)


def _int8(path: Path, seed: int) -> None:
    """Two convolutions and a vignette that makes the middle foreground, quantised to int8 as the real export does."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "w2": rng.normal(0, 0.15, (1, 8, 3, 3)),
        "middle": (6 - 10 * np.hypot(x, y))[None, None],
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c2", "middle"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["alpha"]),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("alpha", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    plain = path.with_suffix(".float.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), plain)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [prepare(generate("pets", n, size=SIDE).image, SIDE)[None] for n in range(4)]

        def get_next(self):
            return {"image": self.left.pop()} if self.left else None

    quantize_static(
        plain, path, Reader(), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
    )  # fmt: skip
    plain.unlink()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    files = {decoder: f"{decoder}.int8.onnx" for decoder in DECODERS}
    golden = {}
    for number, name in enumerate(files.values()):
        _int8(folder / name, number)
    predictor = OnnxPredictor.of_folder(folder, threads=1)
    for decoder in DECODERS:
        photo = generate("portrait", 3, size=SIDE).image
        golden |= {f"{decoder}_image": photo, f"{decoder}_alpha": predictor.alpha(prepare(photo, SIDE), decoder)}
    np.savez(folder / "golden.npz", **golden)
    names = [*files.values(), "golden.npz"]
    manifest = {
        "schema_version": 2,
        "version": "small",
        "decoders": {decoder: {"file": name, "formats": {}} for decoder, name in files.items()},
        "input": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "shape": [1, 3, SIDE, SIDE]},
        "golden": {"file": "golden.npz", "tolerance": {"mse": 1e-4, "max": 0.1}},
        "files": {n: {"sha256": sha256_file(folder / n), "bytes": (folder / n).stat().st_size} for n in names},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> SimpleNamespace:
    """A gallery with moments and pieces, made by the stage; read-only."""
    root = tmp_path_factory.mktemp("made")
    events = [
        PlantedEvent(NOON, 2, (48.2, 16.37), ("portrait", "pets"), 3),
        PlantedEvent(NOON + timedelta(days=2), 2, (47.07, 15.44), ("scenery", "delicacy"), 3),
    ]
    write_gallery(root / "gallery", events, size=256, bursts=0)
    layout = Layout(Settings.from_env(root / "workspace"))
    operations.moments(Run(PARAMS, layout), root / "gallery", root / "moments", model=str(bundle))
    told = json.loads((root / "moments" / "moments.json").read_text())["moments"]
    return SimpleNamespace(gallery=root / "gallery", moments=root / "moments", told=told)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Settings.from_env(tmp_path / "workspace"))


@pytest.fixture
def library(made: SimpleNamespace, bundle: Path, layout: Layout) -> Library:
    return Library(made.gallery, made.moments, bundle, layout.root / "gallery-uploads", 12_000_000)


@pytest.fixture
def own_gallery(made: SimpleNamespace, tmp_path: Path) -> Iterator[Path]:
    """A copy of the gallery to change."""
    yield Path(shutil.copytree(made.gallery, tmp_path / "gallery"))
