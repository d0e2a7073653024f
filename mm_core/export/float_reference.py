"""The float network of one decoder, image to alpha: the reference for every int8 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def served(model: Path, decoder: str) -> torch.nn.Module:
    """Return one decoder as a torch module in eval mode: float32 (B, 3, S, S), prepared → (B, 1, S, S) in [0, 1]."""
    from mm_core.model.files import load_model

    return load_model(model)[0].one_decoder(decoder).eval()


def float_alphas(model: Path, decoder: str, images: np.ndarray) -> np.ndarray:
    """Return the float network's mattes: float32 (N, 3, S, S) → (N, S, S)."""
    import torch

    network = served(model, decoder)
    # One photo at a time, like the runtimes on phones.
    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(image[None])).numpy()[:, 0] for image in images])
