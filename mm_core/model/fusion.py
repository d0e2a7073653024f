"""Fuse text into the matting network during training (Matting Moments, section 2.2, multimodal stage).

The paper specifies neither the fusion nor its direction. Here a frozen CLIP text embedding modulates the bottleneck by
FiLM (Perez et al. 2018). The output layer starts at zero, so that a stage starts with exactly the features of its
start network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, PROJECTION = 128, 64
"""Sizes of the hidden layers and of the contrastive vectors."""


class TextFusion(nn.Module):
    """Fuse text embeddings (B, text_dim) into the bottleneck; project bottlenecks to vectors for a contrastive loss."""

    def __init__(self, channels: int, text_dim: int) -> None:
        """Create the fusion for a bottleneck of `channels` and text embeddings of size `text_dim`."""
        super().__init__()
        self.text = nn.Sequential(nn.Linear(text_dim, HIDDEN), nn.ReLU())
        self.out = nn.Linear(HIDDEN, 2 * channels)
        # Zero weights: the untrained fusion returns its input.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.head = nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PROJECTION))

    def forward(self, features: list[Tensor], text: Tensor) -> list[Tensor]:
        """Return the features, fine to coarse, with the bottleneck fused with `text` (B, text_dim), unit vectors."""
        # One scale and one shift per channel.
        scale, shift = self.out(self.text(text))[:, :, None, None].chunk(2, 1)
        return [*features[:-1], features[-1] * (1 + scale) + shift]

    def project(self, bottleneck: Tensor) -> Tensor:
        """Return unit vectors (B, projection), float32, of bottlenecks (B, C, h, w)."""
        pooled = bottleneck.float().mean((2, 3))
        # Project and normalise in float32, also under autocast.
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.head(pooled), dim=1)
