"""Run a `.pte` file with ExecuTorch (see measure.py). Only the Python binding needs torch, not a phone."""

# pyright: reportMissingImports=false
# (these imports exist only in the environment that runs this file)
from __future__ import annotations

import importlib.metadata

import measure
import numpy as np
import torch
from executorch.extension.pybindings import portable_lib


def open_model(file: str, threads: int) -> measure.Run:
    """Load a .pte file with a number of threads."""
    # The thread pool is global to the process.
    portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(file)
    return lambda image: np.array(module.run_method("forward", (torch.from_numpy(image),))[0])


if __name__ == "__main__":
    measure.main(open_model, lambda: {"executorch": importlib.metadata.version("executorch")})
