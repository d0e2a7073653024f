"""Choose the number format that a device trains fastest in without emulation."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def choose_precision(setting: Literal["auto", "bf16", "fp32"], device: torch.device) -> Precision:
    """Return the precision of the forward pass on a device.

    Args:
        setting: `train.common.precision`; `auto` takes bfloat16 where the hardware computes in it.
        device: Where training runs.

    Returns:
        `bf16` for mixed precision, `fp32` for plain float32. A CPU without bfloat16 instructions emulates them and
        takes several times as long, so `auto` never picks bfloat16 there.
    """
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_bf16_instructions() else "fp32"


def has_bf16_instructions() -> bool:
    """Return whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX) and oneDNN may use it.

    `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` restrict the instructions that torch uses, so torch is queried for
    both instead of the processor.
    """
    # These levels exclude the bfloat16 instructions.
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("DEFAULT", "NO AVX", "AVX2") or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
