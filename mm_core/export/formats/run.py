"""Call the programs of this folder, each in the environment with its toolchain and without a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np

from mm_core.core.errors import InputError, MattingError
from mm_core.core.settings import Settings
from mm_core.export.formats.measure import RunCost

SUFFIX = {"onnx": ".int8.onnx", "executorch": ".int8.pte", "litert": ".int8.tflite"}
"""Format → file name after `<decoder>`."""
HERE = Path(__file__).parent
PATIENCE = 1800
"""Seconds before a program is killed; a conversion took two minutes on a busy machine."""


def python_of(name: str, settings: Settings) -> Path:
    """Return the Python with a format's toolchain; raise InputError with the remedy if it is not installed."""
    if name in ("onnx", "torch"):
        return Path(sys.executable)
    python = {"executorch": settings.executorch_python, "litert": settings.litert_python}[name]
    if not python.is_file():
        raise InputError(
            f"params.yaml: export.formats: {name} needs {python}, which is missing: run `make formats`, "
            f"set MM_{name.upper()}_PYTHON, or take {name} out of the list"
        )
    return python


def call(name: str, settings: Settings, program: str, arguments: Iterable[str | Path]) -> object:
    """Run `program` of this folder in the format's environment; return the JSON line that it printed.

    Raises InputError for a missing environment, MattingError with the end of the program's output for a failure.
    """
    # A random hash seed would change the order of sets, and so the bytes; PYTHONPATH could import our packages.
    # Variables of this Python would lead the other one to packages of this environment.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python_of(name, settings)), "-s", str(HERE / program), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env=environment | {"PYTHONHASHSEED": "0"}
        )
    except subprocess.TimeoutExpired:
        raise MattingError(f"{program} took more than {PATIENCE} s; try again on a less busy machine") from None
    if done.returncode:
        message = " ".join(done.stderr.split())[-400:]
        raise MattingError(
            f"{program} failed (exit {done.returncode}); run `make formats` to renew its tools: {message}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def run_file(
    name: str, settings: Settings, file: Path, images: np.ndarray, threads: Iterable[int]
) -> tuple[np.ndarray, RunCost]:
    """Run a file in a fresh process with its format's runtime.

    Args:
        name: A format, or `torch` for a float `torch.export` program.
        settings: Names the environments.
        file: The model file.
        images: Prepared photos, float32 (N, 3, S, S).
        threads: Thread counts to measure.

    Returns:
        Mattes, float32 (N, S, S) in [0, 1], and the costs.

    Raises:
        MattingError: As `call`.
    """
    with tempfile.TemporaryDirectory(prefix="mm-run-") as folder:
        # Arrays go through files, the costs through the printed line.
        inputs, out = Path(folder) / "inputs.npy", Path(folder) / "alphas.npy"
        np.save(inputs, images)
        cost = call(name, settings, f"run_{name}.py", [file, inputs, out, *map(str, threads)])
        return np.load(out), cast(RunCost, cost)
