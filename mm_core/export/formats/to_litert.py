"""Make one int8 LiteRT file; pt2e.py describes the arguments.

PT2E is used because the default calibration of ai-edge-quantizer clipped the input's range (largest error 0.64).
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
    """Write `out` and return its record."""
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    def quantiser(kept: int) -> Quantizer:
        return pt2e.partly(PT2EQuantizer, kept).set_global(get_symmetric_quantization_config(is_per_channel=True))

    # LiteRT's converter takes quantised weights unfolded.
    record, converted, used, image = pt2e.choose(program, calibration, plan, quantiser, fold=False)
    litert_torch.convert(converted, (image,), quant_config=QuantConfig(pt2e_quantizer=used)).export(str(out))
    return {**record}


if __name__ == "__main__":
    pt2e.main(("litert-torch", "litert-converter", "torch", "torchao"), make)
