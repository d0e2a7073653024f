"""Which convolutions int8 hurts most, so that those few can stay in float where a file strays too far.

Layers are named by the order in which the network runs its convolutions: every format's graph has the same order,
whatever it calls its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RANKED_ON = 6
"""Photos that the ranking looks at; each costs one run per convolution."""
MOST = 0.5
"""Share of the convolutions that may stay in float: beyond it the file is hardly an int8 one."""


def ranked(served: Any, images: np.ndarray) -> list[int]:
    """Numbers of the convolutions (in the order of execution, the last left out), most sensitive first.

    `served`: a torch module, image (1,3,S,S) → alpha; `images` float32 (N,3,S,S), prepared. Each convolution alone is
    quantised as a phone would (input 8 bits per tensor over the range seen, weights int8 per output channel); the mean
    square of what that moves the alpha is its rank. The last convolution is in float anyway.
    """
    import torch

    tensors = [torch.from_numpy(image[None]) for image in images[:RANKED_ON]]
    order: list[Any] = []
    low, high = {}, {}

    def watch(module: Any, inputs: Any) -> None:
        if module not in low:
            order.append(module)
        low[module] = min(low.get(module, 0.0), float(inputs[0].min()))
        high[module] = max(high.get(module, 0.0), float(inputs[0].max()))

    def rounded(module: Any, inputs: Any) -> Any:
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
    """What to keep in float, tried in this order: nothing, then the most sensitive 1, 2, 4, 6, 8, 12, 16, 24 …
    convolutions. The early layers are the most sensitive ones and the smallest, so each step more costs more bytes."""
    counts = [1, 2, *(count for power in range(2, 11) for count in (2**power, 3 * 2 ** (power - 1)))]
    return [[], *(sorted(rank[:count]) for count in counts if count <= MOST * len(rank))]


def worst(difference: np.ndarray, categories: Sequence[str]) -> float:
    """The largest of the categories' mean squares; `difference` (N,S,S), one category per photo."""
    squares = np.mean(np.asarray(difference, np.float64) ** 2, axis=(1, 2))
    names = np.asarray(categories)
    return max(float(squares[names == name].mean()) for name in set(categories))
