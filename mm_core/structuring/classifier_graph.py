"""Export the packaged ImageNet classifier once per workspace, so that structuring needs onnxruntime and not torch.

Importing torch and timm costs more than classifying hundreds of photos, and on a CPU onnxruntime classifies at least
twice as many photos per second as torch (benchmarks/structuring.md; ADR 0053).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mm_core.core.code_digest import code_digest
from mm_core.core.deferred import Deferred
from mm_core.core.records import digest_of, sha256_bytes, write_bytes
from mm_core.model.exporters import quiet
from mm_core.model.packaged import PACKAGED, load_packaged_classifier
from mm_core.structuring.imagenet import class_names

if TYPE_CHECKING:
    import onnx
    import torch
else:
    onnx = Deferred("onnx")
    torch = Deferred("torch")

SIDE = 224
"""Side in pixels of the square input, the size that the classifier was trained at."""
CLASSES = "classes"
"""Key of the class names (JSON list) in the file's metadata."""


def classifier_graph(encoder: str, folder: Path) -> bytes:
    """Return the classifier as an ONNX file; it is exported if the folder has no whole copy.

    Args:
        encoder: timm model name, one of `PACKAGED`.
        folder: Where the file is kept.

    Returns:
        A graph with the input `images`, float32 (B, 3, 224, 224) RGB in [0, 1], and the outputs `logits` (B, 1000) and
        `vectors`, unit vectors (B, 1280). Its metadata holds the names of the classes.

    Raises:
        InputError: The package with the weights is missing or damaged.
    """
    tools = {name: version(name) for name in ("torch", "timm", "onnx")}
    key = digest_of({"code": code_digest(__name__), "weights": PACKAGED[encoder].sha256, **tools})[:16]
    for kept in folder.glob(f"classifier-{key}-*.onnx"):
        data = kept.read_bytes()
        # The file name holds the digest of the content, so a damaged file is noticed and exported again.
        if kept.stem == _stem(key, data):
            return data
    data = _export(encoder)
    write_bytes(folder / f"{_stem(key, data)}.onnx", data)
    return data


def _stem(key: str, data: bytes) -> str:
    return f"classifier-{key}-{sha256_bytes(data)[:16]}"


@cache
def _export(encoder: str) -> bytes:
    """Export the classifier; one process does it once."""
    model: Any = load_packaged_classifier(encoder)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model  # registers the weights

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # Normalise as the classifier was trained. The head runs in two steps: its input is the vector.
            features = model.forward_features((images - mean) / std)
            pooled = model.forward_head(features, pre_logits=True)
            return model.classifier(pooled), torch.nn.functional.normalize(pooled, dim=1)

    with torch.no_grad(), quiet(), TemporaryDirectory(prefix="mm-classifier-") as folder:
        made = Path(folder) / "classifier.onnx"
        # The exporter by tracing: the newer one takes ten times as long, and this network has no control flow.
        torch.onnx.export(
            Classifier().eval(), (torch.rand(2, 3, SIDE, SIDE),), made, dynamo=False, input_names=["images"],
            output_names=["logits", "vectors"],
            dynamic_axes={name: {0: "batch"} for name in ("images", "logits", "vectors")},
        )  # fmt: skip
        graph = onnx.load(made)
    graph.metadata_props.add(key=CLASSES, value=json.dumps(class_names()))
    return graph.SerializeToString(deterministic=True)
