"""The number format follows what the hardware computes in."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from mm_core.training.precision import choose_precision, has_bf16_instructions

CPU = torch.device("cpu")


def test_a_named_precision_is_taken() -> None:
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("fp32", CPU) == "fp32"


def test_auto_follows_the_instructions() -> None:
    assert choose_precision("auto", CPU) == ("bf16" if has_bf16_instructions() else "fp32")


def test_a_cpu_with_avx2_alone_computes_in_float32() -> None:
    code = (
        "import torch; from mm_core.training.precision import choose_precision as c;"
        "print(c('auto', torch.device('cpu')))"
    )
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fp32"
