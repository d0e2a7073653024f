"""Export a network as one float ONNX graph; the export itself runs once per architecture.

torch's exporter takes seconds, and its graph depends on the architecture and the foreground scale alone. The graph is
kept without weights. A model that agrees in both brings its own, and only the simplification runs again: it folds
weights, for example of batch normalization into convolutions. The caller compares the result with torch's.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from mm_core.core.code_digest import code_digest
from mm_core.core.deferred import Deferred
from mm_core.core.records import DECODERS, digest_of, write_bytes
from mm_core.export.runtime import CHOICE
from mm_core.model.exporters import quiet

if TYPE_CHECKING:
    import torch
    from onnxscript import optimizer
else:
    optimizer = Deferred("onnxscript.optimizer")
    torch = Deferred("torch")

NET = "net."
"""Prefix of the names of weights in the graph."""


def float_graph(model: Path, folder: Path) -> tuple[onnx.ModelProto, Callable[[str], tuple[np.ndarray, np.ndarray]]]:
    """Export the float network as one ONNX graph for all decoders.

    Args:
        model: The trained weights.
        folder: Where graphs without weights are kept.

    Returns:
        The graph: input `image` (1, 3, S, S), one alpha output per decoder with its name, and `decoder` (1, 3), logits
        of the decoder for the photo. And a function from a decoder to torch's (image, alpha) on a fixed random image,
        to check the graph with.
    """
    from mm_core.model.files import load_model

    net, _ = load_model(model)
    size = net.config.size

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = self.net.encode(image)
            alphas = (torch.sigmoid(self.net.decode(features, decoder)[0]) for decoder in DECODERS)
            return *alphas, self.net.choice(features)

    served = Served().eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    # Besides the weights, the graph depends on these values. The scale is a constant in it.
    architecture = {"config": net.config.model_dump(mode="json"), "foreground_scale": net.foreground_scale}
    key = digest_of({"code": code_digest(__name__), "versions": tool_versions(), **architecture})
    kept = folder / f"{key}.onnx"
    weights = {
        f"{NET}{name}": tensor.detach().numpy() for name, tensor in chain(net.named_parameters(), net.named_buffers())
    }
    with torch.no_grad(), quiet():
        graph = _read(kept)
        if graph is None:
            graph = _export(served, image)
            write_bytes(kept, _without(graph, weights).SerializeToString(deterministic=True))
        for tensor in graph.graph.initializer:
            if tensor.name in weights:
                # A kept graph has no values; a new graph gets the same values again.
                tensor.raw_data = weights[tensor.name].tobytes()
        # `strict=False`: the network's outputs have the choice after the alphas.
        alphas = {str(name): alpha for name, alpha in zip(DECODERS, served(image), strict=False)}
        graph = optimizer.optimize(graph)
    return graph, lambda decoder: (image.numpy(), alphas[decoder].numpy())


def tool_versions() -> dict[str, str]:
    """Return the versions of the tools that influence the files."""
    return {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}


def _export(served: torch.nn.Module, image: torch.Tensor) -> onnx.ModelProto:
    # `optimize=False`: folded weights could not be replaced by those of another model.
    program = torch.onnx.export(
        served, (image,), dynamo=True, optimize=False, input_names=["image"], output_names=[*DECODERS, CHOICE],
        verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model_proto


def _read(path: Path) -> onnx.ModelProto | None:
    """Return a kept graph; None if there is none, or a damaged one."""
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except (OSError, ValueError, DecodeError):
        return None


def _without(graph: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a copy of a graph without the values of its weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    for tensor in bare.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    return bare
