"""Strong augmentation of the student's photos in the semi-supervised stage.

Colour, grey, blur and noise as in FixMatch (Sohn et al. 2020) and UniMatch (Yang et al. 2023), and a rectangle of
another photo (CutMix; French et al. 2020). All random numbers come from torch, so a resumed run draws the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

COLOUR, GREY, BLUR, NOISE = 0.8, 0.2, 0.5, 0.5
"""Probability of each change, per photo."""
MIX_SHARE = (0.1, 0.4)
"""Range of the area of the rectangle from another photo, as a share of the photo."""


def altered(images: Tensor, target: Tensor, decoders: Sequence[str], mix: float) -> tuple[Tensor, Tensor]:
    """Change colour, blur and noise, and with probability `mix` paste a rectangle of another photo of the same decoder.

    Args:
        images: RGB (B, 3, S, S) in [0, 1].
        target: Mattes (B, 1, S, S) in [0, 1]; they are pasted together with the photos.
        decoders: Decoder name of each row.
        mix: Probability of a rectangle, per photo.

    Returns:
        Augmented images and targets in the shapes of the inputs.
    """
    with torch.autocast(images.device.type, enabled=False):
        return mixed(_noisy(_blurred(_recoloured(images))), target, decoders, mix)


def mixed(images: Tensor, target: Tensor, decoders: Sequence[str], share: float) -> tuple[Tensor, Tensor]:
    """Apply CutMix with the next photo of the same decoder; a photo without such a partner stays unchanged."""
    size, count, images, target = images.shape[-1], len(images), images.clone(), target.clone()
    # Draw for every row, also for unchanged ones, so that the numbers of later rows do not depend on earlier ones.
    sources = images.clone(), target.clone()
    chosen, places, areas = torch.rand(count), torch.rand(3, count), torch.empty(count).uniform_(*MIX_SHARE)
    for row, other in enumerate(_partners(decoders)):
        if other == row or chosen[row] >= share:
            continue
        # The aspect ratio is log-uniform between 1:2 and 2:1.
        stretch = float(torch.exp2(places[2, row] - 0.5))
        side = size * float(areas[row]) ** 0.5
        height, width = min(size, max(1, round(side * stretch))), min(size, max(1, round(side / stretch)))
        y, x = int(places[0, row] * (size - height + 1)), int(places[1, row] * (size - width + 1))
        for whole, source in zip((images, target), sources, strict=True):
            whole[row, :, y : y + height, x : x + width] = source[other, :, y : y + height, x : x + width]
    return images, target


def _partners(decoders: Sequence[str]) -> list[int]:
    """Return for each row the next row of the same decoder, in a cycle."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(decoders):
        rows.setdefault(name, []).append(row)
    following = {row: group[(k + 1) % len(group)] for group in rows.values() for k, row in enumerate(group)}
    return [following[row] for row in range(len(decoders))]


def _recoloured(images: Tensor) -> Tensor:
    """Change contrast, colour balance and brightness of some photos and turn some grey."""
    count = len(images)
    contrast = torch.exp(0.4 * (2 * torch.rand(count, 1, 1, 1) - 1))
    gain, shift = 1 + 0.15 * (2 * torch.rand(count, 3, 1, 1) - 1), 0.11 * (2 * torch.rand(count, 1, 1, 1) - 1)
    # Factor 1 and shift 0 leave a photo's colours unchanged.
    on = torch.rand(count, 1, 1, 1) < COLOUR
    scale, shift = torch.where(on, contrast * gain, 1.0), torch.where(on, shift, 0.0)
    # Scale the contrast around a middle grey of 0.45.
    images = (images - 0.45) * scale.to(images.device) + 0.45 + shift.to(images.device)
    grey = (torch.rand(count, 1, 1, 1) < GREY).to(images.device)
    return torch.where(grey, images.mean(1, keepdim=True), images)


def _blurred(images: Tensor) -> Tensor:
    """Blur some photos by a random strength with a 5×5 binomial filter."""
    row = images.new_tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = torch.outer(row, row).expand(3, 1, 5, 5)
    smooth = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return torch.lerp(images, smooth, _some(len(images), BLUR).to(images.device))


def _noisy(images: Tensor) -> Tensor:
    """Add Gaussian noise of a random strength to some photos."""
    return images + 0.056 * torch.randn_like(images) * _some(len(images), NOISE).to(images.device)


def _some(count: int, share: float) -> Tensor:
    """Return strengths (count, 1, 1, 1): uniform in [0, 1] for a random share of the rows, 0 for the others."""
    return torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < share)
