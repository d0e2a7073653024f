"""The exporter runs once per architecture, and the graph does not show for which weights it ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mm_core.core.params import ModelParams
from mm_core.core.records import DECODERS
from mm_core.export import float_graph as fg
from mm_core.model.files import save_model
from mm_core.model.network import build_model

CONFIG = ModelParams(encoder="test_efficientnet", pretrained="", size=64, width=8)


def model(folder: Path, seed: int, config: ModelParams = CONFIG, scale: float = 1.0) -> Path:
    path = folder / f"{config.width}-{seed}.safetensors"
    net = build_model(config, seed)
    net.foreground_scale = scale
    for name, buffer in net.named_buffers():
        # As after training: what is folded into convolutions differs between models.
        if name.endswith("running_mean"):
            buffer += seed
    save_model(path, net, {})
    return path


def test_a_kept_graph_with_other_weights_is_that_of_a_fresh_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = []
    export = fg._export
    monkeypatch.setattr(fg, "_export", lambda *given: exports.append(1) or export(*given))
    first, second = (model(tmp_path, seed) for seed in (1, 2))

    def graph(path: Path, folder: str) -> bytes:
        return fg.float_graph(path, tmp_path / folder)[0].SerializeToString(deterministic=True)

    one = graph(first, "a")
    other = graph(second, "a")
    assert len(exports) == 1 and one != other
    (kept,) = (tmp_path / "a").iterdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / kept.name).write_bytes(kept.read_bytes()[:1000])
    assert graph(second, "b") == other and len(exports) == 2, "a damaged graph is made again"
    graph(model(tmp_path, 1, CONFIG.model_copy(update={"width": 16})), "b")
    assert len(exports) == 3 and len([*(tmp_path / "b").iterdir()]) == 2


def test_it_computes_what_torch_computes(tmp_path: Path, kept_graphs: Path) -> None:
    fg.float_graph(model(tmp_path, 1), kept_graphs)
    fg.float_graph(model(tmp_path, 2), kept_graphs)
    # The scale is a constant of the graph.
    graph, check = fg.float_graph(model(tmp_path, 3, scale=0.5), kept_graphs)
    onnx.save(graph, tmp_path / "float.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "float.onnx"), providers=["CPUExecutionProvider"])
    for decoder in DECODERS:
        image, alpha = check(decoder)
        assert np.abs(np.asarray(session.run([decoder], {"image": image})[0]) - alpha).max() < 1e-4
