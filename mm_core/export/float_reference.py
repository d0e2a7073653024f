"""The float network of one decoder, image to alpha: the reference for every int8 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def served(model: Path, decoder: str) -> torch.nn.Module:
    """Return one decoder as a torch module in eval mode: float32 (B, 3, S, S), prepared → (B, 1, S, S) in [0, 1]."""
    import torch

    from mm_core.model.files import load_model
    from mm_core.model.network import scale_foreground

    net, _ = load_model(model)

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Only this decoder's parts: the weights of the others would enter an exported program too.
            self.normalize, self.encoder, self.decoder = net.normalize, net.encoder, net.decoders[decoder]
            self.scale = net.foreground_scale

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = self.decoder(self.encoder(self.normalize(image)))[0]
            return torch.sigmoid(scale_foreground(logits, self.scale))

    return Served().eval()


def float_alphas(model: Path, decoder: str, images: np.ndarray) -> np.ndarray:
    """Return the float network's mattes: float32 (N, 3, S, S) → (N, S, S)."""
    import torch

    network = served(model, decoder)
    # One photo at a time, like the runtimes on phones.
    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(image[None])).numpy()[:, 0] for image in images])
