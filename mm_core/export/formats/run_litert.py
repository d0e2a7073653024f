"""Run a `.tflite` file with LiteRT (see measure.py); inputs and outputs in int8 are converted here."""

# pyright: reportMissingImports=false
# (these imports exist only in the environment that runs this file)
from __future__ import annotations

import importlib.metadata

import measure
import numpy as np
from ai_edge_litert.interpreter import Interpreter


def open_model(file: str, threads: int) -> measure.Run:
    """Load a .tflite file with a number of threads."""
    interpreter = Interpreter(model_path=file, num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        # Quantise the input if the file expects integers.
        if source["dtype"] != np.float32:
            scale, zero = source["quantization"]
            limits = np.iinfo(source["dtype"])
            image = np.clip(np.round(image / scale) + zero, limits.min, limits.max).astype(source["dtype"])
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        alpha = interpreter.get_tensor(got["index"])
        # Dequantise the output in the same way.
        if got["dtype"] != np.float32:
            scale, zero = got["quantization"]
            alpha = (alpha.astype(np.float32) - zero) * np.float32(scale)
        return alpha

    return run


if __name__ == "__main__":
    measure.main(open_model, lambda: {"ai-edge-litert": importlib.metadata.version("ai-edge-litert")})
