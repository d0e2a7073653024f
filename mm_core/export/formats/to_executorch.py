"""Makes one int8 ExecuTorch file. Runs in the environment `.tools/executorch`; imports nothing of ours.

    python to_executorch.py PROGRAM.pt2 CALIBRATION.npy OUT.pte
    python to_executorch.py versions

PROGRAM: a `torch.export` program, image (1,3,S,S) → alpha (1,1,S,S). CALIBRATION: float32 (N,3,S,S). Weights int8 per
output channel, activations int8 per tensor; everything is handed to XNNPACK. Prints one JSON line.
"""

# pyright: reportMissingImports=false
# (they lie in the environment that runs this file)
from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("executorch", "torch", "torchao")}


def head_of(nodes: list[Any]) -> list[Any]:
    """The last convolution and what follows it: in float it costs little time and much less error."""
    last = max(i for i, node in enumerate(nodes) if "conv" in str(node.target) and node.op == "call_function")
    return nodes[last:]


def make(program: Path, calibration: Path, out: Path) -> dict[str, Any]:
    """Writes `out`; `undelegated` counts the operators that XNNPACK did not take (the phone would run them slowly)."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class FloatHead(XNNPACKQuantizer):
        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            for node in head_of(list(model.graph.nodes)):
                node.meta.pop("quantization_annotation", None)
            return model

    images = torch.from_numpy(np.load(calibration))
    quantiser = FloatHead().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.load(program).module(), quantiser)
    for image in images:
        prepared(image[None])
    converted = convert_pt2e(prepared)
    lowered = to_edge_transform_and_lower(
        torch.export.export(converted, (images[:1],)), partitioner=[XnnpackPartitioner()]
    )
    found = get_delegation_info(lowered.exported_program().graph_module)
    left = {
        operator: counts.non_delegated
        for operator, counts in found.delegation_by_operator.items()
        # `getitem` hands over the delegate's result: no work.
        if counts.non_delegated and operator != "getitem"
    }
    out.write_bytes(lowered.to_executorch().buffer)
    return {"undelegated": sum(left.values()), "delegates": found.num_delegated_subgraphs}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like an answer
    answer = versions() if sys.argv[1] == "versions" else make(*map(Path, sys.argv[1:4]))
    print(json.dumps(answer), file=answers, flush=True)
