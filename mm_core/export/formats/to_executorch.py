"""Make one int8 ExecuTorch file with XNNPACK as its delegate; pt2e.py describes the arguments.

Weights are int8 per output channel, activations int8 per tensor.
"""

# pyright: reportMissingImports=false
# (these imports exist only in the environment that runs this file)
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pt2e

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer


def make(program: Path, calibration: Path, plan: Path, out: Path) -> dict[str, object]:
    """Write `out` and return its record; `undelegated` counts operators outside XNNPACK, which are slow on phones."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    def quantiser(kept: int) -> Quantizer:
        return pt2e.partly(XNNPACKQuantizer, kept).set_global(get_symmetric_quantization_config(is_per_channel=True))

    record, converted, _, image = pt2e.choose(program, calibration, plan, quantiser)
    lowered = to_edge_transform_and_lower(torch.export.export(converted, (image,)), partitioner=[XnnpackPartitioner()])
    # Lower to XNNPACK, and count the operators that stay on portable kernels.
    delegation = get_delegation_info(lowered.exported_program().graph_module)
    undelegated = {
        operator: counts.non_delegated
        for operator, counts in delegation.delegation_by_operator.items()
        # `getitem` only passes on the delegate's result and does no work.
        if counts.non_delegated and operator != "getitem"
    }
    out.write_bytes(lowered.to_executorch().buffer)
    return {**record, "undelegated": sum(undelegated.values()), "delegates": delegation.num_delegated_subgraphs}


if __name__ == "__main__":
    pt2e.main(("executorch", "torch", "torchao"), make)
