"""Makes one int8 LiteRT file; see pt2e.py for how it is called.

By PT2E: the default calibration of ai-edge-quantizer clipped the input's range (largest error 0.64).
"""

# pyright: reportMissingImports=false
# (they lie in the environment that runs this file)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pt2e


def make(program: Path, calibration: Path, plan: Path, out: Path) -> dict[str, Any]:
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    def quantiser(kept: Any) -> Any:
        return pt2e.partly(PT2EQuantizer, kept).set_global(get_symmetric_quantization_config(is_per_channel=True))

    record, converted, used, image = pt2e.choose(program, calibration, plan, quantiser, fold_quantize=False)
    litert_torch.convert(converted, (image,), quant_config=QuantConfig(pt2e_quantizer=used)).export(str(out))
    return record


if __name__ == "__main__":
    pt2e.main(("litert-torch", "litert-converter", "torch", "torchao"), make)
