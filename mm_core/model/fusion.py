"""Text in the matting network (Matting Moments, section 2.2, multimodal stage). Exists in training only.

The paper fixes neither the fusion nor its direction. Here a frozen CLIP text embedding modulates the bottleneck by
FiLM (Perez et al. 2018), from zero, so that a stage begins at exactly the network it was given; `attention` lets every
place of the bottleneck ask the text instead.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextFusion(nn.Module):
    """Fuses a text embedding (B,text_dim) into the bottleneck, and projects bottlenecks for a contrastive loss."""

    def __init__(
        self,
        channels: int,
        text_dim: int,
        kind: Literal["film", "attention"] = "film",
        hidden: int = 128,
        projection: int = 64,
    ):
        """`channels`: the bottleneck's. `projection`: size of the contrastive vectors."""
        super().__init__()
        self.kind = kind
        if kind == "film":
            self.text = nn.Sequential(nn.Linear(text_dim, hidden), nn.ReLU())
            self.out = nn.Linear(hidden, 2 * channels)
        else:
            self.text = nn.Linear(text_dim, 2 * hidden)
            self.query = nn.Conv2d(channels, hidden, 1)
            self.out = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]
        self.head = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, projection))

    def forward(self, features: list[Tensor], text: Tensor) -> list[Tensor]:
        """Features fine→coarse, the bottleneck fused; `text` are unit vectors. Untrained: the features given."""
        bottleneck = features[-1]
        if self.kind == "film":
            scale, shift = self.out(self.text(text))[:, :, None, None].chunk(2, 1)
            fused = bottleneck * (1 + scale) + shift
        else:
            key, value = self.text(text)[:, :, None, None].chunk(2, 1)
            # With one text token a softmax would always be 1: a gate says how much each place listens.
            gate = ((self.query(bottleneck) * key).sum(1, keepdim=True) / key.shape[1] ** 0.5).sigmoid()
            fused = bottleneck + self.out(gate * value)
        return [*features[:-1], fused]

    def project(self, bottleneck: Tensor) -> Tensor:
        """(B,C,h,w) → (B,projection) unit vectors, float32."""
        pooled = bottleneck.float().mean((2, 3))
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.head(pooled), dim=1)
