"""Rank convolutions by their sensitivity to int8; the most sensitive ones can stay in float.

Layers are numbered in the order in which the network runs its convolutions. This order is the same in every format's
graph; the names of nodes differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import torch

RANKED_ON = 6
"""Number of photos for the ranking; each costs one run per convolution."""
MOST = 0.5
"""Largest share of convolutions in float; above it the file is hardly an int8 file."""


def ranked(served: torch.nn.Module, images: np.ndarray) -> list[int]:
    """Rank the convolutions by their sensitivity to int8.

    Each convolution alone is quantised as on a phone: its input to 8 bits per tensor over the observed range, its
    weights to int8 per output channel. The mean squared change of the alpha is its sensitivity. The last convolution
    always stays in float.

    Args:
        served: A torch module, image (1, 3, S, S) → alpha.
        images: Prepared photos, float32 (N, 3, S, S).

    Returns:
        Numbers of the convolutions in the order of execution, without the last one, most sensitive first.
    """
    import torch

    tensors = [torch.from_numpy(image[None]) for image in images[:RANKED_ON]]
    order: list[torch.nn.Conv2d] = []
    low: dict[torch.nn.Module, float] = {}
    high: dict[torch.nn.Module, float] = {}

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # First pass: the order of execution and each input's range.
        if module not in low:
            order.append(cast(torch.nn.Conv2d, module))
        low[module] = min(low.get(module, 0.0), float(inputs[0].min()))
        high[module] = max(high.get(module, 0.0), float(inputs[0].max()))

    def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        # Fake quantisation of the input, asymmetric over its range.
        scale = max(high[module] - low[module], 1e-12) / 255
        zero = round(-low[module] / scale)
        return (((inputs[0] / scale).round() + zero).clamp(0, 255) - zero) * scale

    convolutions = [module for module in served.modules() if isinstance(module, torch.nn.Conv2d)]
    with torch.inference_mode():
        watches = [module.register_forward_pre_hook(watch) for module in convolutions]
        plain = [served(image) for image in tensors]
        for handle in watches:
            handle.remove()
        moved = []
        # Second pass: quantise one convolution at a time, and restore its weights.
        for module in order[:-1]:
            weight = module.weight.data
            scale = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 127
            module.weight.data = (weight / scale).round() * scale
            handle = module.register_forward_pre_hook(rounded)
            moved.append(sum(float(((served(i) - p) ** 2).mean()) for i, p in zip(tensors, plain, strict=True)))
            handle.remove()
            module.weight.data = weight
    return sorted(range(len(moved)), key=lambda number: -moved[number])


def ladder(rank: Sequence[int]) -> list[list[int]]:
    """Return the sets of convolutions to keep in float, in the order of trial.

    They are none, then the 1, 2, 4, 6, 8, 12, … most sensitive ones. Early layers are the most sensitive and the
    smallest, so later steps cost more bytes.
    """
    # Steps between the powers of two keep the files small.
    counts = [1, 2, *(count for power in range(2, 11) for count in (2**power, 3 * 2 ** (power - 1)))]
    return [[], *(sorted(rank[:count]) for count in counts if count <= MOST * len(rank))]


def worst(difference: np.ndarray, categories: Sequence[str]) -> float:
    """Return the largest mean square over categories of `difference` (N, S, S), with one category per photo."""
    # The worst category decides, so that no category pays for the mean.
    squares = np.mean(np.asarray(difference, np.float64) ** 2, axis=(1, 2))
    names = np.asarray(categories)
    return max(float(squares[names == name].mean()) for name in set(categories))
