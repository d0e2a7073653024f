"""Makes one int8 LiteRT file. Runs in the environment `.tools/litert`; imports nothing of ours.

    python to_litert.py PROGRAM.pt2 CALIBRATION.npy OUT.tflite
    python to_litert.py versions

PROGRAM: a `torch.export` program, image (1,3,S,S) → alpha (1,1,S,S). CALIBRATION: float32 (N,3,S,S). Quantised by
PT2E: the default calibration of ai-edge-quantizer clipped the input's range (largest error 0.64). Prints one JSON line.
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
    return {name: importlib.metadata.version(name) for name in ("litert-torch", "litert-converter", "torch", "torchao")}


def make(program: Path, calibration: Path, out: Path) -> dict[str, Any]:
    import litert_torch
    import torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    images = torch.from_numpy(np.load(calibration))
    quantiser = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.load(program).module(), quantiser)
    for image in images:
        prepared(image[None])
    converted = convert_pt2e(prepared, fold_quantize=False)
    litert_torch.convert(converted, (images[:1],), quant_config=QuantConfig(pt2e_quantizer=quantiser)).export(str(out))
    return {}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like an answer
    answer = versions() if sys.argv[1] == "versions" else make(*map(Path, sys.argv[1:4]))
    print(json.dumps(answer), file=answers, flush=True)
