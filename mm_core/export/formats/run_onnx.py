"""Run an ONNX file with onnxruntime (see measure.py)."""

# pyright: reportMissingImports=false
# (these imports exist only in the environment that runs this file)
from __future__ import annotations

import measure
import numpy as np
import onnxruntime


def open_model(file: str, threads: int) -> measure.Run:
    """Load an ONNX file with a number of threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda image: np.asarray(session.run(["alpha"], {"image": image})[0])


if __name__ == "__main__":
    measure.main(open_model, lambda: {"onnxruntime": onnxruntime.__version__})
