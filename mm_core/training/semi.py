"""Semi-supervised stage: unlabelled photos teach by agreement (Matting Moments, section 2.2).

Two terms are on offer, and `params.train.semi` weighs them:

- `semi`: cross-consistency (Ouali et al. 2020). Auxiliary decoders see perturbed features of the photo and must agree
  with the target; the gradient reaches them and the encoder. The encoder listens only as far as the ramp has risen,
  because the auxiliary decoders begin from nothing.
- `view`: the network sees a strongly altered photo (`strong_augment.py`) and follows the matte that a teacher gives of
  the photo as it came. The teacher is the best averaged weights so far; its matte is the mean over photo and mirror
  image.

Unlabelled and captioned photos are drawn whole, as at inference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.core.params import LossParams, SemiParams
from mm_core.imaging.pixel_cache import UNKNOWN
from mm_core.model.auxiliary import AuxiliaryDecoders
from mm_core.model.network import MattingNet
from mm_core.training.losses import consistency
from mm_core.training.strong_augment import altered
from mm_core.training.supervised import Features, Pools, Supervised
from mm_core.training.trainer import Sample


def ramp(progress: float, share: float) -> float:
    """exp(-5 (1 - t)²) over the first `share` of training, then 1 (Laine and Aila 2017, section 2)."""
    return math.exp(-5 * (1 - min(1.0, progress / share)) ** 2)


def scale_gradient(features: Tensor, share: float) -> Tensor:
    """Return the same values; only `share` of the gradient passes back."""
    return features.detach() + share * (features - features.detach())


@contextmanager
def frozen_batch_norm_stats(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise each batch by itself, but leave their running statistics alone.

    A decoder meets altered photos and fused features here. At inference it meets neither, and statistics that had taken
    them in would misjudge what it does meet.
    """
    norms = [(norm, norm.momentum) for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum


class Semi(Supervised):
    """Supervised plus agreement on unlabelled photos."""

    def __init__(self, net: MattingNet, pools: Pools, loss: LossParams, semi: SemiParams, weight: float | None = None):
        """`pools` may lack `unlabeled`: then this is Supervised. `weight` replaces `semi.weight`."""
        super().__init__(net, pools, loss)
        self._semi, self._weight = semi, semi.weight if weight is None else weight
        active = "unlabeled" in pools and self._weight and semi.perturbations
        self.auxiliary = AuxiliaryDecoders(net, semi.perturbations) if active else None

    def losses(
        self, batches: Mapping[str, Sample], progress: float, teacher: MattingNet | None = None
    ) -> dict[str, Tensor]:
        """Named losses. Without a teacher, or with `view` 0, the main decoder's own matte is the target."""
        if teacher is not None and self._semi.view:
            batches = {name: self.pseudo_labeled(name, batch, teacher) for name, batch in batches.items()}
        return super().losses(batches, progress)

    def pseudo_labeled(self, name: str, batch: Sample, teacher: MattingNet) -> Sample:
        """Return an unlabelled batch as the student sees it; its `alpha` is the teacher's matte of the photo itself."""
        if name == "labeled":
            return batch
        decoders, alpha = predict_pseudo_labels(batch, teacher)
        images = batch.images if batch.lit is None else batch.lit
        images, alpha = altered(images, alpha, decoders, self._semi.mix)
        return replace(batch, images=images, alpha=alpha, decoders=decoders, taught=True)

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        terms = super().terms(features, batches, progress)
        if "unlabeled" not in batches:
            return terms
        maps, batch, rise = features["unlabeled"], batches["unlabeled"], ramp(progress, self._semi.ramp_share)
        # Without a teacher the main decoder only gives the target, so no gradient passes through it.
        with torch.set_grad_enabled(batch.taught), frozen_batch_norm_stats(self.net.decoders):
            logits = self.net.route(maps, batch.decoders)[0]
        if batch.taught:
            terms["view"] = self._semi.view * rise * pseudo_label_loss(logits, batch.alpha)
        if self.auxiliary is not None:
            target = batch.alpha if batch.taught else logits.float().sigmoid()
            views = self.auxiliary([scale_gradient(m, rise) for m in maps], target)
            agreement = torch.stack([consistency(logits, target) for logits in views.values()]).mean()
            terms["semi"] = self._weight * agreement
        return terms


@torch.no_grad()
def predict_pseudo_labels(batch: Sample, teacher: MattingNet) -> tuple[list[str], Tensor]:
    """Return the decoder of each photo, and the teacher's mattes (B, 1, S, S): the mean over photo and mirror image.

    What the teacher holds of a photo one way round but not the other is its chance error; the student would learn it.
    """
    features = teacher.encode(batch.images)
    decoders = _known_or_chosen(batch, teacher.chosen(features))
    mirrored = teacher.encode(batch.images.flip(-1))
    one, other = (teacher.route(maps, decoders)[0].float().sigmoid() for maps in (features, mirrored))
    return decoders, (one + other.flip(-1)) / 2


def _known_or_chosen(batch: Sample, chosen: Sequence[str]) -> list[str]:
    """Return the decoder of each photo's category; where none is known, the one that the teacher chooses."""
    rows = zip(batch.decoders, batch.categories, chosen, strict=True)
    return [other if category == UNKNOWN else name for name, category, other in rows]


def pseudo_label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against the teacher's matte, without gradient to it: scalar."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.detach())
