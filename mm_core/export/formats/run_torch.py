"""Run a `torch.export` program in eager float: the baseline for the formats' latencies (see measure.py)."""

from __future__ import annotations

import measure
import numpy as np
import torch


def open_model(file: str, threads: int) -> measure.Run:
    """Load a `torch.export` program with a number of threads."""
    torch.set_num_threads(threads)
    module = torch.export.load(file).module()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(image)).numpy()

    return run


if __name__ == "__main__":
    measure.main(open_model, lambda: {"torch": torch.__version__})
