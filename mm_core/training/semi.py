"""Semi-supervised stage: train on unlabelled photos by consistency (Matting Moments, section 2.2).

The term `semi` is cross-consistency (Ouali et al. 2020). Auxiliary decoders receive perturbed encoder features and must
match the main decoder's matte. The gradient reaches the auxiliary decoders and the encoder, but not the main decoder.
The encoder's share of it rises with the ramp, because the auxiliary decoders start from random weights.

Unlabelled and captioned photos are not cropped, as at inference.

With `train.semi.teacher` the term `pseudo_label` is added: the supervised terms on the mattes of a teacher
(pseudo_labels.py). These photos are cropped and lit like labelled ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_core.core.params import LossParams, SemiParams
from mm_core.model.auxiliary import AuxiliaryDecoders
from mm_core.model.network import MattingNet
from mm_core.training.losses import consistency, matting_losses
from mm_core.training.supervised import Features, Pools, Supervised
from mm_core.training.trainer import DeviceBatch


def ramp(progress: float, share: float) -> float:
    """Return exp(-5 (1 - t)²) over the first `share` of training, then 1 (Laine and Aila 2017, section 2)."""
    return math.exp(-5 * (1 - min(1.0, progress / share)) ** 2)


def scale_gradient(features: Tensor, share: float) -> Tensor:
    """Return the same values; only the fraction `share` of the gradient passes back."""
    return features.detach() + share * (features - features.detach())


@contextmanager
def frozen_batch_norm_stats(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise with the statistics of the batch but keep their running statistics unchanged.

    The running statistics of the decoders come from labelled photos alone. At inference the decoders never receive
    features that are fused with text; statistics that included them would be wrong.
    """
    # The base class covers the norms of several GPUs (process_group.py) too.
    norms = [(norm, norm.momentum) for norm in module.modules() if isinstance(norm, _BatchNorm)]
    # With momentum 0 the running statistics keep their values.
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum


class Semi(Supervised):
    """Supervised training plus consistency on unlabelled photos."""

    def __init__(self, net: MattingNet, pools: Pools, loss: LossParams, semi: SemiParams) -> None:
        """Create the strategy and its auxiliary decoders.

        Args:
            net: Net to train.
            pools: As in `Supervised`, with `unlabeled` and `pseudo_labeled` in addition. Without them the strategy
                equals `Supervised`.
            loss: Weights of the supervised terms.
            semi: Weight and options of the consistency term.
        """
        super().__init__(net, pools, loss)
        self._semi = semi
        active = "unlabeled" in pools and semi.weight and semi.perturbations
        self.auxiliary = AuxiliaryDecoders(net, semi.perturbations) if active else None

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, DeviceBatch], progress: float
    ) -> dict[str, Tensor]:
        """Return the supervised terms and, with unlabelled photos, the terms `pseudo_label` and `semi`."""
        terms = super().terms(features, batches, progress)
        if "pseudo_labeled" in batches:
            batch = batches["pseudo_labeled"]
            outputs = self.net.route(features["pseudo_labeled"], batch.decoders)
            losses = matting_losses(outputs, batch.alpha, batch.binary, self._loss)
            terms["pseudo_label"] = self._semi.teacher_weight * torch.stack(list(losses.values())).sum()
        if self.auxiliary is None:
            return terms
        maps = features["unlabeled"]
        # The main decoder only provides the target, so no gradient passes through it.
        with torch.no_grad(), frozen_batch_norm_stats(self.net.decoders):
            target = self.net.route(maps, batches["unlabeled"].decoders)[0].float().sigmoid()
        # The auxiliary decoders get the full gradient, the encoder only the ramp's share of it.
        rise = ramp(progress, self._semi.ramp_share)
        views = self.auxiliary([scale_gradient(m, rise) for m in maps], target)
        agreement = torch.stack([consistency(logits, target) for logits in views.values()]).mean()
        return terms | {"semi": self._semi.weight * agreement}
