"""Generated photos as the network sees them, and mattes that a doubtful teacher might make of them."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from samplegen import generate


def doubted(category: str, seed: int, level: float, contrast: float, clouds: int) -> tuple[torch.Tensor, ...]:
    """Photo (1, 3, 64, 64), its matte and a doubtful one (1, 1, 64, 64): faint, with `clouds` × `clouds` of error."""
    sample = generate(category, seed, size=64)
    photo = torch.from_numpy(sample.image).float().div(255).permute(2, 0, 1).unsqueeze(0)
    truth = torch.from_numpy(sample.alpha).float().view(1, 1, 64, 64)
    error = interpolate(torch.randn(1, 1, clouds, clouds), (64, 64), mode="bilinear")
    return photo, truth, (level + contrast * truth + 0.3 * error).clamp(0, 1)
