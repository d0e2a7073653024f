"""Calls the programs of this room: each in the environment that has its toolchain, none by a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.core.errors import InputError, MattingError
from mm_core.core.settings import Settings

SUFFIX = {"onnx": ".int8.onnx", "executorch": ".int8.pte", "litert": ".int8.tflite"}
"""Format → what `<decoder>` is followed by."""
HERE = Path(__file__).parent
PATIENCE = 1800
"""Seconds that a program may take: a conversion was seen to take two minutes on a busy machine."""


def python_of(name: str, settings: Settings) -> Path:
    """The Python that has a format's toolchain; raises InputError with the remedy where it was not installed."""
    if name in ("onnx", "torch"):
        return Path(sys.executable)
    python = {"executorch": settings.executorch_python, "litert": settings.litert_python}[name]
    if not python.is_file():
        raise InputError(
            f"params.yaml: export.formats: {name} needs {python}, which is missing: run `make formats`, "
            f"set MM_{name.upper()}_PYTHON, or take {name} out of the list"
        )
    return python


def call(name: str, settings: Settings, program: str, arguments: Iterable[str | Path]) -> dict[str, Any]:
    """Runs `program` of this folder in the format's environment; gives the JSON line that it printed.

    Raises InputError where the environment is missing, MattingError with the program's last words where it failed.
    """
    # A hash seed of its own would order sets, and so bytes, anew in each process; PYTHONPATH could bring our packages.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python_of(name, settings)), "-s", str(HERE / program), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env=environment | {"PYTHONHASHSEED": "0"}
        )
    except subprocess.TimeoutExpired:
        raise MattingError(f"{program} took more than {PATIENCE} s; try again on a less busy machine") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise MattingError(f"{program} failed (exit {done.returncode}); run `make formats` to renew its tools: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def run_file(
    name: str, settings: Settings, file: Path, images: np.ndarray, threads: Iterable[int]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs a file in a fresh process with its format's runtime: mattes and what they cost.

    `name`: a format, or `torch` for a float `torch.export` program. `images` float32 (N,3,S,S), prepared → float32
    (N,S,S) in [0,1] and `{"latency_ms": {threads: ms}, "cpu_ms", "peak_mb", "model_mb", "versions"}`. Raises as `call`.
    """
    with tempfile.TemporaryDirectory(prefix="mm-run-") as folder:
        inputs, out = Path(folder) / "inputs.npy", Path(folder) / "alphas.npy"
        np.save(inputs, images)
        cost = call(name, settings, f"run_{name}.py", [file, inputs, out, *map(str, threads)])
        return np.load(out), cost
