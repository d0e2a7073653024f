"""Fuse text into the matting network during training (Matting Moments, section 2.2, multimodal stage).

The paper specifies neither the fusion nor its direction. Here a frozen CLIP text embedding modulates the bottleneck by
FiLM (Perez et al. 2018). The output layer starts at zero, so that a stage starts with exactly the features of its
start network. With `attention` each position of the bottleneck has its own gate on the text.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextFusion(nn.Module):
    """Fuse text embeddings (B, text_dim) into the bottleneck; project bottlenecks to vectors for a contrastive loss."""

    def __init__(
        self,
        channels: int,
        text_dim: int,
        kind: Literal["film", "attention"] = "film",
        hidden: int = 128,
        projection: int = 64,
    ) -> None:
        """Create the fusion.

        Args:
            channels: Channels of the bottleneck.
            text_dim: Size of the text embedding.
            kind: Scale and shift per channel (`film`) or a gated addition per position (`attention`).
            hidden: Size of the hidden layer.
            projection: Size of the contrastive vectors.
        """
        super().__init__()
        self.kind = kind
        if kind == "film":
            self.text = nn.Sequential(nn.Linear(text_dim, hidden), nn.ReLU())
            self.out = nn.Linear(hidden, 2 * channels)
        else:
            self.text = nn.Linear(text_dim, 2 * hidden)
            self.query = nn.Conv2d(channels, hidden, 1)
            self.out = nn.Conv2d(hidden, channels, 1)
        # Zero weights: the untrained fusion returns its input.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]
        self.head = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, projection))

    def forward(self, features: list[Tensor], text: Tensor) -> list[Tensor]:
        """Return the features, fine to coarse, with the bottleneck fused with `text` (B, text_dim), unit vectors."""
        bottleneck = features[-1]
        if self.kind == "film":
            # FiLM: one scale and one shift per channel.
            scale, shift = self.out(self.text(text))[:, :, None, None].chunk(2, 1)
            fused = bottleneck * (1 + scale) + shift
        else:
            key, value = self.text(text)[:, :, None, None].chunk(2, 1)
            # Attention over a single text token has a constant softmax of 1, so a sigmoid gate replaces it.
            gate = ((self.query(bottleneck) * key).sum(1, keepdim=True) / key.shape[1] ** 0.5).sigmoid()
            fused = bottleneck + self.out(gate * value)
        return [*features[:-1], fused]

    def project(self, bottleneck: Tensor) -> Tensor:
        """Return unit vectors (B, projection), float32, of bottlenecks (B, C, h, w)."""
        pooled = bottleneck.float().mean((2, 3))
        # Project and normalise in float32, also under autocast.
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.head(pooled), dim=1)
