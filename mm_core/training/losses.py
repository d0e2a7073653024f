"""Losses of a predicted alpha matte, on logits, in float32.

Each loss is computed per sample first, because its label kind decides which terms apply. A binary mask (`binary`) has
no information about the soft band along its edge. The pixels of that band are left out of BCE, L1 and IoU, and the
band, Laplacian and gradient terms use soft mattes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mm_core.core.params import LossParams

BAND = (0.05, 0.95)
"""Alpha strictly between these values is unknown (notes of the project, "Metrics")."""
LEVELS = 5
"""Levels of the Laplacian pyramid."""


def matting_losses(outputs: Sequence[Tensor], alpha: Tensor, binary: Tensor, weights: LossParams) -> dict[str, Tensor]:
    """Return the weighted supervised terms by name; their sum is the loss. Terms of weight 0 are not computed.

    Args:
        outputs: Logits (B, 1, S, S), the main output first. The others get deep supervision (summed BCE; U2-Net,
            Qin et al. 2020, eq. 1).
        alpha: True mattes (B, 1, S, S) in [0, 1].
        binary: (B,) bool, true for samples with a binary mask.
        weights: Weight of each term.
    """
    main = outputs[0].float()
    predicted = main.sigmoid()
    band = unknown_band(alpha)
    soft = (~binary).float()
    # 0 in the band of binary masks, 1 everywhere else: soft mattes are trusted in their band.
    trusted = 1 - band * binary.float().view(-1, 1, 1, 1)
    terms: dict[str, Tensor] = {}
    if weights.bce:
        terms["bce"] = weights.bce * bce(main, alpha, trusted)
    if weights.l1:
        terms["l1"] = weights.l1 * _weighted((predicted - alpha).abs(), trusted).mean()
    if weights.band:
        terms["band"] = weights.band * _mean_of(_weighted((predicted - alpha).abs(), band), soft)
    if weights.laplacian:
        terms["laplacian"] = weights.laplacian * _mean_of(laplacian(predicted, alpha), soft)
    if weights.gradient:
        terms["gradient"] = weights.gradient * _mean_of(gradient(predicted, alpha), soft)
    if weights.iou:
        terms["iou"] = weights.iou * soft_iou_loss(predicted, alpha, trusted)
    if weights.deep and len(outputs) > 1:
        terms["deep"] = weights.deep * torch.stack([bce(o.float(), alpha, trusted) for o in outputs[1:]]).sum()
    return terms


def bce(logits: Tensor, alpha: Tensor, trusted: Tensor) -> Tensor:
    """Return the binary cross-entropy against a soft target, mean over trusted pixels, then over samples: scalar."""
    return _weighted(F.binary_cross_entropy_with_logits(logits, alpha, reduction="none"), trusted).mean()


def soft_iou_loss(predicted: Tensor, alpha: Tensor, trusted: Tensor) -> Tensor:
    """Return one minus the soft intersection over union of trusted pixels, mean over samples: scalar.

    The loss is the IoU term of BASNet (Qin et al. 2019, eq. 7) with minimum and maximum in place of product and sum.
    Both are equal for binary mattes, but only this one is 0 for a correct soft matte. One pixel is added to both areas,
    so that an empty matte has a finite loss.

    Args:
        predicted: (B, 1, S, S) in [0, 1].
        alpha: (B, 1, S, S) in [0, 1].
        trusted: (B, 1, S, S), 0 or 1.
    """
    # Soft intersection and union per sample.
    both = (torch.minimum(predicted, alpha) * trusted).sum((1, 2, 3))
    either = (torch.maximum(predicted, alpha) * trusted).sum((1, 2, 3))
    return (1 - (both + 1) / (either + 1)).mean()


def unknown_band(alpha: Tensor) -> Tensor:
    """Return (B, 1, S, S): 1.0 where alpha is strictly within `BAND` or jumps, dilated by two pixels."""
    # `around` is the range of alpha in a 3×3 window.
    around = F.max_pool2d(alpha, 3, 1, 1) + F.max_pool2d(-alpha, 3, 1, 1)
    unsure = ((alpha > BAND[0]) & (alpha < BAND[1])) | (around > 0.5)
    return F.max_pool2d(unsure.float(), 5, 1, 2)


def laplacian(predicted: Tensor, alpha: Tensor) -> Tensor:
    """Return the L1 distance of Laplacian pyramids per sample (B,) (Niklaus and Liu 2018, eq. 6).

    Level k has weight 2^k. The pyramid ends early when a level is smaller than 4 pixels.
    """
    difference, total = predicted - alpha, predicted.new_zeros(len(predicted))
    for level in range(LEVELS):
        if min(difference.shape[-2:]) < 4:
            break
        # The pyramid is linear: the pyramid of the difference is the difference of the pyramids.
        smaller = _halve(difference)
        larger = F.interpolate(smaller, difference.shape[-2:], mode="bilinear", align_corners=False)
        total = total + 2**level * (difference - larger).abs().mean((1, 2, 3))
        difference = smaller
    return total / LEVELS


def gradient(predicted: Tensor, alpha: Tensor) -> Tensor:
    """Return the L1 distance of Sobel gradients, scaled so that a step of 1 has response 1; per sample (B,)."""
    # The weights of one side sum to 4.
    sobel = predicted.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([sobel, sobel.T]).unsqueeze(1)
    # A border of zeros would add edges. The gradient is linear: that of the difference suffices.
    edges = F.conv2d(F.pad(predicted - alpha, (1, 1, 1, 1), mode="replicate"), kernels)
    return edges.abs().mean((1, 2, 3))


def consistency(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance of sigmoid(logits) to a constant target (Ouali et al. 2020, eq. 2): scalar."""
    return F.mse_loss(logits.float().sigmoid(), target.detach().float())


def contrastive(anchor: Tensor, positive: Tensor, negatives: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE (van den Oord et al. 2018, eq. 4) with separate negatives per anchor: scalar.

    Args:
        anchor: Unit vectors (B, D).
        positive: Unit vectors (B, D).
        negatives: Unit vectors (B, N, D).
        allowed: (B, N) bool, false for negatives with the anchor's own caption. Rows without an allowed negative
            contribute 0.
        temperature: Divisor of the similarities.
    """
    near = (anchor * positive).sum(-1, keepdim=True)
    # exp(-inf) is 0: such a negative adds nothing to the denominator.
    far = torch.einsum("bd,bnd->bn", anchor, negatives).masked_fill(~allowed, float("-inf"))
    # The positive is class 0 of each row.
    logits = torch.cat([near, far], 1).float() / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def _weighted(error: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of each sample's error over its weighted pixels (B,); 0 for samples without any."""
    return (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean over the chosen samples; 0 if there are none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def _halve(image: Tensor) -> Tensor:
    """Return every second pixel of a one-channel image after a 5×5 binomial filter with replicated edges."""
    row = image.new_tensor([1.0, 4, 6, 4, 1]) / 16
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), torch.outer(row, row).view(1, 1, 5, 5), stride=2)
