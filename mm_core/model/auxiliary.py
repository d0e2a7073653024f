"""Auxiliary decoders of cross-consistency training (Ouali, Hudelot, Tami 2020, section 3.2).

They exist in training only. Each receives the encoder's features with one kind of perturbation and must agree with the
main decoder. Differences from the paper:

- A softmax over one alpha channel is constantly 1, so divergences are those of Bernoulli variables, and the object is
  the region with alpha > 0.5.
- The main decoder has skip connections. The skips are perturbed together with the bottleneck at the same positions,
  because a decoder with clean skips would have nothing to learn.
- The auxiliary decoders have half the width and end at half resolution, which keeps seven of them cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_core.model.network import LightDecoder, MattingNet
from mm_core.model.u2net import resize_like

Features = list[Tensor]

VAT_STEP = 1e-3
"""First step of the power iteration, as a share of each feature's norm. The paper's absolute 1e-6 is below the rounding
of float32 for features with ten thousands of values, so its direction would be noise."""
VAT_LENGTH = 2.0
DROP_PROBABILITY = 0.5
CUTOUT_SHARE = 0.4
DROP_RANGE = (0.7, 0.9)
NOISE = 0.3


class AuxiliaryDecoders(nn.Module):
    """One light decoder per perturbation name in `params.train.semi.perturbations`.

    `net` provides the channels of the features. Its own decoders are not part of this module and get no gradient from
    it.
    """

    def __init__(self, net: MattingNet, names: Sequence[str]) -> None:
        """Create the decoders, with half of the network's channels at stride 4.

        Raises:
            ValueError: A name is not in `PERTURBATIONS`.
        """
        super().__init__()
        unknown = [name for name in names if name not in PERTURBATIONS]
        if unknown:
            raise ValueError(f"unknown perturbation {unknown[0]!r}; available are {', '.join(PERTURBATIONS)}")
        # Skip features finer than stride 2: the decoders end at half resolution.
        self.first = sum(reduction < 2 for reduction in net.reductions)
        channels, reductions = net.channels[self.first :], net.reductions[self.first :]
        width = max(8, net.config.width // 2)
        self.decoders = nn.ModuleDict({name: LightDecoder(channels, reductions, width) for name in names})

    def forward(self, features: Features, main_alpha: Tensor) -> dict[str, Tensor]:
        """Return logits (B, 1, S, S) by perturbation name.

        Args:
            features: The encoder's features, fine to coarse, with gradient.
            main_alpha: Matte of the main decoder (B, 1, S, S) in [0, 1]. It only locates the object and gets no
                gradient.
        """
        features = features[self.first :]
        main_alpha = main_alpha.detach()
        logits: dict[str, Tensor] = {}
        for name, decoder in self.decoders.items():
            # Each decoder has its own perturbation; its output is resized to the main matte.
            (out,) = decoder(PERTURBATIONS[name](features, main_alpha, decoder))
            logits[name] = resize_like(out, main_alpha)
        return logits


def bernoulli_kl(target: Tensor, logits: Tensor) -> Tensor:
    """Return the mean KL divergence of Bernoulli variables, both given as logits; `target` gets no gradient."""
    target = target.detach()
    p = target.sigmoid()
    inside = p * (F.logsigmoid(target) - F.logsigmoid(logits))
    outside = (1 - p) * (F.logsigmoid(-target) - F.logsigmoid(-logits))
    return (inside + outside).mean()


def vat(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Virtual adversarial perturbation: a step of length 2 per sample and feature that changes the output most.

    The direction is that of one power iteration (Miyato et al. 2018) in float32. The gradient is computed for the
    perturbation alone, so neither the decoder nor the encoder accumulates any.
    """
    clean = [feature.detach().float() for feature in features]
    with torch.enable_grad(), torch.autocast(features[0].device.type, enabled=False):
        # Start from a small random direction; its gradient approximates the most sensitive direction.
        steps = [_unit(torch.randn_like(f)) * (VAT_STEP * _norm(f)) for f in clean]
        steps = [step.requires_grad_() for step in steps]
        with torch.no_grad():
            target = decoder(clean)[0]
        logits = decoder([f + step for f, step in zip(clean, steps, strict=True)])[0]
        # Sum instead of mean: the mean over all pixels would bring small gradients close to underflow.
        gradients = torch.autograd.grad(bernoulli_kl(target, logits) * logits.numel(), steps)
    return [f + (VAT_LENGTH * _unit(g)).to(f.dtype) for f, g in zip(features, gradients, strict=True)]


def dropout(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Spatial dropout: zero whole channels with probability 0.5."""
    return [F.dropout2d(f, DROP_PROBABILITY) for f in features]


def guided_cutout(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Erase one random rectangle, 0.4 of the object's bounding box in each direction, inside that box."""
    batch, _, height, width = main_alpha.shape
    keep = torch.ones_like(main_alpha)
    for row in range(batch):
        inside = (main_alpha[row, 0] > 0.5).nonzero()
        # Without an object the whole image counts as the box.
        top, left = (int(v) for v in inside.amin(0)) if len(inside) else (0, 0)
        bottom, right = (int(v) + 1 for v in inside.amax(0)) if len(inside) else (height, width)
        h, w = max(1, round(CUTOUT_SHARE * (bottom - top))), max(1, round(CUTOUT_SHARE * (right - left)))
        y = int(torch.randint(top, bottom - h + 1, ()))
        x = int(torch.randint(left, right - w + 1, ()))
        keep[row, :, y : y + h, x : x + w] = 0
    return _masked(features, keep)


def object_mask(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Erase the object and keep its surroundings."""
    return _masked(features, (main_alpha <= 0.5).to(main_alpha.dtype))


def context_mask(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Erase the surroundings and keep the object."""
    return _masked(features, (main_alpha > 0.5).to(main_alpha.dtype), touched=True)


def feature_drop(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Erase the most active positions of the bottleneck: channel mean above U(0.7, 0.9) of its maximum.

    The mean is taken over absolute values. After a ReLU this equals the paper's mean; some encoders end without a ReLU
    and have signed features.
    """
    attention = features[-1].detach().float().abs().mean(1, keepdim=True)
    low, high = DROP_RANGE
    # One threshold per sample.
    share = torch.empty(len(attention), 1, 1, 1, device=attention.device).uniform_(low, high)
    keep = (attention < share * attention.amax((2, 3), keepdim=True)).to(attention.dtype)
    return _masked(features, keep)


def feature_noise(features: Features, main_alpha: Tensor, decoder: nn.Module) -> Features:
    """Multiply each value by 1 + U(-0.3, 0.3)."""
    return [f * (1 + torch.empty_like(f).uniform_(-NOISE, NOISE)) for f in features]


PERTURBATIONS: dict[str, Callable[[Features, Tensor, nn.Module], Features]] = {
    "vat": vat,
    "dropout": dropout,
    "guided_cutout": guided_cutout,
    "context_mask": context_mask,
    "object_mask": object_mask,
    "feature_drop": feature_drop,
    "feature_noise": feature_noise,
}


def _masked(features: Features, keep: Tensor, touched: bool = False) -> Features:
    """Multiply the features by one 0/1 map (B, 1, h, w) at every resolution.

    A coarse position is kept if all of it is kept, so that a small hole does not vanish at the bottleneck. With
    `touched` it is kept if any of it is. A sample that would lose every position stays unchanged.
    """
    keep = torch.where(keep.amax((1, 2, 3), keepdim=True) > 0, keep, torch.ones_like(keep))
    # Tolerance for rounding in the average pooling.
    least = 1e-4 if touched else 1 - 1e-4
    shares = (F.adaptive_avg_pool2d(keep, (f.shape[-2], f.shape[-1])) for f in features)
    return [f * (share >= least).to(f.dtype) for f, share in zip(features, shares, strict=True)]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _unit(x: Tensor) -> Tensor:
    return x / (_norm(x) + 1e-12)
