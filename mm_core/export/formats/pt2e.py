"""Shared by `to_executorch.py` and `to_litert.py`: int8 by PyTorch's PT2E, with the first layers in float where needed.

Runs in the environments of these two programs and imports none of our packages.

    python to_<format>.py PROGRAM.pt2 CALIBRATION.npz PLAN.json OUT
    python to_<format>.py versions

PROGRAM: a `torch.export` program, image (1, 3, S, S) → alpha (1, 1, S, S). CALIBRATION: `images` float32 (N, 3, S, S),
`categories` (N,) numbers. PLAN: `float` is a list of numbers: how many of the first convolutions stay
in float in addition to the last one. They are tried in turn until the worst category's mean squared difference from
float is at most `max_mse`; if none reaches it, the closest one is used. Prints one JSON line: `float_convolutions`,
`diff_mse`, and fields of the format.
"""

# pyright: reportMissingImports=false
# (these imports exist only in the environment that runs this file)
from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:
    import torch
    from torchao.quantization.pt2e.quantizer import Quantizer


class Record(TypedDict):
    """What a converted file reports of itself."""

    float_convolutions: list[int]
    """Numbers of the convolutions that stay in float, in addition to the last one."""
    diff_mse: float
    """The worst category's mean squared difference from float."""


class Converted(NamedTuple):
    """The chosen entry of a plan."""

    record: Record
    module: torch.nn.Module
    quantiser: Quantizer
    image: torch.Tensor
    """An example, float32 (1, 3, S, S)."""


def partly(quantiser: type[Quantizer], kept: int) -> Quantizer:
    """Return an instance of a quantiser class that leaves the first `kept` convolutions and the last in float."""

    class Partly(quantiser):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            model = super().annotate(model)
            nodes = list(model.graph.nodes)
            starts = [i for i, n in enumerate(nodes) if n.op == "call_function" and "conv" in str(n.target)]
            # A convolution's segment ends at the next convolution; without annotation its nodes stay in float.
            for number in {*range(kept), len(starts) - 1}:
                end = starts[number + 1] if number + 1 < len(starts) else len(nodes)
                for node in nodes[starts[number] : end]:
                    node.meta.pop("quantization_annotation", None)
            return model

    return Partly()


def choose(
    program: Path, calibration: Path, plan: Path, quantiser_of: Callable[[int], Quantizer], *, fold: bool = True
) -> Converted:
    """Return the first good entry of the plan.

    Args:
        program: The float program.
        calibration: Photos with their categories.
        plan: The entries to try.
        quantiser_of: Returns the quantiser that leaves some first convolutions in float.
        fold: Whether the converted module stores its weights as int8.
    """
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    data, settings = np.load(calibration), json.loads(plan.read_text())
    # `image[None]` would give the new axis stride 0, which ExecuTorch refuses.
    images = torch.from_numpy(data["images"]).split(1)

    def alphas(module: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            return np.stack([module(image).numpy().squeeze() for image in images])

    truth = alphas(torch.export.load(program).module())
    best: Converted | None = None
    # PT2E: insert observers, run the calibration photos, convert to int8.
    for kept in settings["float"]:
        quantiser = quantiser_of(kept)
        prepared = prepare_pt2e(torch.export.load(program).module(), quantiser)
        for image in images:
            prepared(image)
        converted = convert_pt2e(prepared, fold_quantize=fold)
        squares = ((alphas(converted) - truth) ** 2).mean((1, 2))
        mse = max(float(squares[data["categories"] == name].mean()) for name in set(data["categories"].tolist()))
        if best is None or mse < best.record["diff_mse"]:
            record = Record(float_convolutions=list(range(kept)), diff_mse=mse)
            best = Converted(record, converted, quantiser, images[0])
        if mse <= settings["max_mse"]:
            break
    assert best is not None
    return best


def main(packages: Sequence[str], make: Callable[[Path, Path, Path, Path], dict[str, object]]) -> None:
    """Print the answer to the program's arguments as one JSON line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not mix with the JSON line
    if sys.argv[1] == "versions":
        answer = {name: importlib.metadata.version(name) for name in packages}
    else:
        program, calibration, plan, out = map(Path, sys.argv[1:5])
        answer = make(program, calibration, plan, out)
    print(json.dumps(answer), file=answers, flush=True)
