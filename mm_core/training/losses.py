"""Losses of a predicted alpha matte, on logits.

Everything is computed in float32, per sample first, so that a sample's label kind can decide what it drives:
a binary mask (`binary`) says nothing about the soft band along its edge, so the pixels there are left out of
BCE, L1 and IoU, and the band, Laplacian and gradient terms come from soft mattes alone.
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
"""Alpha strictly between these is unknown (notes of the project, "Metrics")."""


def matting_losses(outputs: Sequence[Tensor], alpha: Tensor, binary: Tensor, weights: LossParams) -> dict[str, Tensor]:
    """The weighted supervised terms by name; their sum is the loss.

    outputs: logits (B, 1, S, S), main first, the others deep supervision (summed BCE; U2-Net, Qin et al. 2020, eq. 1);
    alpha (B, 1, S, S) in [0, 1]; binary (B,) bool. Terms of weight 0 are not computed.
    """
    main = outputs[0].float()
    predicted = main.sigmoid()
    band = unknown_band(alpha)
    soft = (~binary).float()
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
    """Binary cross-entropy against a soft target, mean over trusted pixels, then over samples: scalar."""
    return _weighted(F.binary_cross_entropy_with_logits(logits, alpha, reduction="none"), trusted).mean()


def soft_iou_loss(predicted: Tensor, alpha: Tensor, trusted: Tensor) -> Tensor:
    """One minus the soft intersection over union of trusted pixels, mean over samples: scalar.

    predicted, alpha (B, 1, S, S) in [0, 1], trusted the same of 0 and 1. The term of BASNet
    (Qin et al. 2019, eq. 7), with minimum and maximum in place of product and sum: equal for binary mattes, and 0
    where a soft matte is met. One pixel is added to both areas, so that an empty matte has a finite loss.
    """
    both = (torch.minimum(predicted, alpha) * trusted).sum((1, 2, 3))
    either = (torch.maximum(predicted, alpha) * trusted).sum((1, 2, 3))
    return (1 - (both + 1) / (either + 1)).mean()


def unknown_band(alpha: Tensor, reach: int = 2) -> Tensor:
    """1.0 where alpha is strictly within `BAND` or a step edge passes, dilated by `reach` pixels; (B, 1, S, S)."""
    around = F.max_pool2d(alpha, 3, 1, 1) + F.max_pool2d(-alpha, 3, 1, 1)
    unsure = ((alpha > BAND[0]) & (alpha < BAND[1])) | (around > 0.5)
    return F.max_pool2d(unsure.float(), 2 * reach + 1, 1, reach)


def laplacian(predicted: Tensor, alpha: Tensor, levels: int = 5) -> Tensor:
    """L1 between Laplacian pyramids, level k weighted 2^k (Niklaus and Liu 2018, eq. 6), per sample (B,).

    Levels stop early where the image gets smaller than 4 pixels.
    """
    difference, total = predicted - alpha, predicted.new_zeros(len(predicted))
    for level in range(levels):
        if min(difference.shape[-2:]) < 4:
            break
        # The pyramid is linear: the pyramid of the difference is the difference of the pyramids.
        smaller = _halve(difference)
        larger = F.interpolate(smaller, difference.shape[-2:], mode="bilinear", align_corners=False)
        total = total + 2**level * (difference - larger).abs().mean((1, 2, 3))
        difference = smaller
    return total / levels


def gradient(predicted: Tensor, alpha: Tensor) -> Tensor:
    """L1 between Sobel gradients, scaled so that a step of 1 has response 1; per sample (B,)."""
    sobel = predicted.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([sobel, sobel.T]).unsqueeze(1)
    edges = F.conv2d(F.pad(predicted - alpha, (1, 1, 1, 1), mode="replicate"), kernels)
    return edges.abs().mean((1, 2, 3))


def consistency(logits: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of sigmoid(logits) to a target without gradient (Ouali et al. 2020, eq. 2): scalar."""
    return F.mse_loss(logits.float().sigmoid(), target.detach().float())


def contrastive(anchor: Tensor, positive: Tensor, negatives: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4) with its own negatives per anchor: scalar.

    anchor, positive (B, D) and negatives (B, N, D) are unit vectors; allowed (B, N) bool leaves out negatives whose
    caption is the anchor's own. Rows without an allowed negative contribute 0.
    """
    near = (anchor * positive).sum(-1, keepdim=True)
    far = torch.einsum("bd,bnd->bn", anchor, negatives).masked_fill(~allowed, float("-inf"))
    logits = torch.cat([near, far], 1).float() / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def _weighted(error: Tensor, weight: Tensor) -> Tensor:
    """Mean of each sample's error over its weighted pixels (B,); 0 where it has none."""
    return (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen samples; 0 where there is none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def _halve(image: Tensor) -> Tensor:
    """Every second pixel of a one-channel image after a 5×5 binomial filter, edges repeated."""
    row = image.new_tensor([1.0, 4, 6, 4, 1]) / 16
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), torch.outer(row, row).view(1, 1, 5, 5), stride=2)
