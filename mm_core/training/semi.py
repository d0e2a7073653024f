"""Semi-supervised stage: cross-consistency training (Ouali, Hudelot and Tami, CVPR 2020) for a one-channel matte.

The main decoder's matte of an unlabelled photo is the target, without gradient; auxiliary decoders see perturbed
features of the same photo and must agree with it. The gradient reaches the auxiliary decoders and the encoder.

The paper ramps the loss up. Here the ramp is on what reaches the encoder: the auxiliary decoders begin from nothing and
learn at full weight from the first step, but the encoder listens to them only as far as the ramp has risen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mm_core.model.auxiliary import AuxiliaryDecoders
from mm_core.model.network import MattingNet
from mm_core.params import LossParams, SemiParams
from mm_core.training.loop import Sample
from mm_core.training.losses import consistency
from mm_core.training.supervised import Features, Pools, Supervised


def ramp(progress: float, share: float) -> float:
    """exp(-5 (1 - t)²) over the first `share` of training, then 1 (Laine and Aila 2017, section 2)."""
    return math.exp(-5 * (1 - min(1.0, progress / share)) ** 2)


def damped(features: Tensor, share: float) -> Tensor:
    """The same values; only `share` of the gradient passes back."""
    return features.detach() + share * (features - features.detach())


class Semi(Supervised):
    """Supervised plus agreement on unlabelled photos."""

    def __init__(self, net: MattingNet, pools: Pools, loss: LossParams, semi: SemiParams, weight: float | None = None):
        """`pools` may lack `unlabeled`: then this is Supervised. `weight` replaces `semi.weight`."""
        super().__init__(net, pools, loss)
        self._semi, self._weight = semi, semi.weight if weight is None else weight
        active = "unlabeled" in pools and self._weight and semi.perturbations
        self.auxiliary = AuxiliaryDecoders(net, semi.perturbations) if active else None

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        terms = super().terms(features, batches, progress)
        if self.auxiliary is not None:
            maps = features["unlabeled"]
            with torch.no_grad():
                target = self.net.route(maps, batches["unlabeled"].decoders)[0].float().sigmoid()
            rise = ramp(progress, self._semi.ramp_share)
            views = self.auxiliary([damped(m, rise) for m in maps], target)
            agreement = torch.stack([consistency(logits, target) for logits in views.values()]).mean()
            terms["semi"] = self._weight * agreement
        return terms
