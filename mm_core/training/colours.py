"""A matte that agrees with its photo's own colours: what the network's teacher does not know of a single photo.

A subject's pixels share their colours, whatever the network makes of each. The mean of a matte over all pixels of one
colour therefore corrects it where it is unsure, as the colour models of GrabCut do (Rother et al. 2004) and the
colour kernel of a dense conditional random field (Krähenbühl and Koltun 2011), of which this is one step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 32
"""Of each channel."""
SPREAD = 0.8
"""Standard deviation of the Gaussian by which near colours count, in bins."""


@torch.no_grad()
def by_colour(images: Tensor, matte: Tensor) -> Tensor:
    """At each pixel the mean of `matte` over its photo's pixels of like colour: (B, 1, S, S) in [0, 1], float32.

    images (B, 3, S, S) in [0, 1]; matte (B, 1, S, S) in [0, 1]. A bilateral grid (Chen, Paris and Durand
    2007) of colours alone: the cost is that of the grid and grows with the pixels no faster than they do.
    """
    with torch.autocast(images.device.type, enabled=False):
        colours = images.float().clamp(0, 1)
        cells = (colours * (BINS - 1)).round().long().flatten(2)
        cells = (cells[:, 0] * BINS + cells[:, 1]) * BINS + cells[:, 2]
        both = torch.cat([matte.float(), torch.ones_like(matte, dtype=torch.float32)], 1).flatten(2)
        grid = both.new_zeros(len(images), 2, BINS**3).scatter_add_(2, cells.unsqueeze(1).expand_as(both), both)
        places = torch.arange(BINS, device=images.device, dtype=torch.float32)
        near = torch.exp(-((places[:, None] - places) ** 2) / (2 * SPREAD**2))
        grid = grid.unflatten(2, (BINS, BINS, BINS))
        for axis in (2, 3, 4):
            grid = (grid.movedim(axis, -1) @ near).movedim(-1, axis)
        # grid_sample counts the last axis first.
        at = (2 * colours - 1).flip(1).permute(0, 2, 3, 1).unsqueeze(1)
        total, count = F.grid_sample(grid, at, align_corners=True).squeeze(2).split(1, 1)
        return (total / count).clamp(0, 1)
