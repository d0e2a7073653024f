"""What `to_executorch.py` and `to_litert.py` share: int8 by PyTorch's PT2E, with sensitive layers in float.

Runs in the environments of these two; imports nothing of ours.

    python to_<format>.py PROGRAM.pt2 CALIBRATION.npz PLAN.json OUT
    python to_<format>.py versions

PROGRAM: a `torch.export` program, image (1,3,S,S) → alpha (1,1,S,S). CALIBRATION: `images` float32 (N,3,S,S),
`categories` (N,) numbers. PLAN: `float`, lists of convolutions (numbers in the order of execution) to keep in float
beside the last one, tried in turn until the worst category's mean square to float is at most `max_mse`; else the
closest one is taken. Prints one JSON line: `float_convolutions`, `diff_mse`, and what the format adds.
"""

# pyright: reportMissingImports=false
# (they lie in the environment that runs this file)
from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def partly(quantiser: type, kept: Sequence[int]) -> Any:
    """An instance of this quantiser class that leaves the convolutions `kept`, and what follows each, in float."""

    class Partly(quantiser):
        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            nodes = list(model.graph.nodes)
            starts = [i for i, n in enumerate(nodes) if n.op == "call_function" and "conv" in str(n.target)]
            for number in {*kept, len(starts) - 1}:
                end = starts[number + 1] if number + 1 < len(starts) else len(nodes)
                for node in nodes[starts[number] : end]:
                    node.meta.pop("quantization_annotation", None)
            return model

    return Partly()


def choose(
    program: Path, calibration: Path, plan: Path, quantiser_of: Callable[[Sequence[int]], Any], **options: Any
) -> tuple[dict[str, Any], Any, Any, Any]:
    """The record, the converted module, its quantiser and one example image, of the first good entry of the plan."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    data, asked = np.load(calibration), json.loads(plan.read_text())
    # Not image[None]: ExecuTorch refuses the stride of 0 that numpy gives the new axis.
    images = torch.from_numpy(data["images"]).split(1)

    def alphas(module: Any) -> np.ndarray:
        with torch.no_grad():
            return np.stack([module(image).numpy().squeeze() for image in images])

    truth = alphas(torch.export.load(program).module())
    best: tuple[dict[str, Any], Any, Any, Any] | None = None
    for kept in asked["float"]:
        quantiser = quantiser_of(kept)
        prepared = prepare_pt2e(torch.export.load(program).module(), quantiser)
        for image in images:
            prepared(image)
        converted = convert_pt2e(prepared, **options)
        squares = ((alphas(converted) - truth) ** 2).mean((1, 2))
        mse = max(float(squares[data["categories"] == name].mean()) for name in set(data["categories"].tolist()))
        if best is None or mse < best[0]["diff_mse"]:
            best = {"float_convolutions": kept, "diff_mse": mse}, converted, quantiser, images[0]
        if mse <= asked["max_mse"]:
            break
    assert best is not None
    return best


def main(packages: Sequence[str], make: Callable[[Path, Path, Path, Path], dict[str, Any]]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like an answer
    if sys.argv[1] == "versions":
        answer = {name: importlib.metadata.version(name) for name in packages}
    else:
        program, calibration, plan, out = map(Path, sys.argv[1:5])
        answer = make(program, calibration, plan, out)
    print(json.dumps(answer), file=answers, flush=True)
