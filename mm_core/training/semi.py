"""Semi-supervised stage: train on unlabelled photos by consistency (Matting Moments, section 2.2).

`params.train.semi` weighs two terms:

- `semi`: cross-consistency (Ouali et al. 2020). Auxiliary decoders receive perturbed encoder features and must match
  the target. The gradient reaches them and the encoder. The encoder's share of it rises with the ramp, because the
  auxiliary decoders start from random weights.
- `view`: the net receives a strongly augmented photo (`strong_augment.py`) and must match the teacher's prediction
  for the original photo. The teacher is the best averaged weights so far; its prediction is the mean over the photo
  and its mirror image.

Unlabelled and captioned photos are not cropped, as at inference.
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
    """Return exp(-5 (1 - t)²) over the first `share` of training, then 1 (Laine and Aila 2017, section 2)."""
    return math.exp(-5 * (1 - min(1.0, progress / share)) ** 2)


def scale_gradient(features: Tensor, share: float) -> Tensor:
    """Return the same values; only the fraction `share` of the gradient passes back."""
    return features.detach() + share * (features - features.detach())


@contextmanager
def frozen_batch_norm_stats(module: nn.Module) -> Iterator[None]:
    """Let batch norms normalise with the statistics of the batch but keep their running statistics unchanged.

    Decoders receive augmented photos and fused features here, which they never receive at inference. Running
    statistics that included them would be wrong for inference.
    """
    norms = [(norm, norm.momentum) for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
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

    def __init__(
        self, net: MattingNet, pools: Pools, loss: LossParams, semi: SemiParams, weight: float | None = None
    ) -> None:
        """Create the strategy and its auxiliary decoders.

        Args:
            net: Net to train.
            pools: As in `Supervised`, with `unlabeled` in addition. Without it the strategy equals `Supervised`.
            loss: Weights of the supervised terms.
            semi: Weights and options of the consistency terms.
            weight: Replaces `semi.weight`.
        """
        super().__init__(net, pools, loss)
        self._semi, self._weight = semi, semi.weight if weight is None else weight
        active = "unlabeled" in pools and self._weight and semi.perturbations
        self.auxiliary = AuxiliaryDecoders(net, semi.perturbations) if active else None

    def losses(
        self, batches: Mapping[str, Sample], progress: float, teacher: MattingNet | None = None
    ) -> dict[str, Tensor]:
        """Return named losses. Without a teacher, or with `view` 0, the main decoder's own prediction is the target."""
        if teacher is not None and self._semi.view:
            batches = {name: self.pseudo_labeled(name, batch, teacher) for name, batch in batches.items()}
        return super().losses(batches, progress)

    def pseudo_labeled(self, name: str, batch: Sample, teacher: MattingNet) -> Sample:
        """Return the batch augmented for the student; its `alpha` is the teacher's prediction for the original."""
        if name == "labeled":
            return batch
        decoders, alpha = predict_pseudo_labels(batch, teacher)
        images = batch.images if batch.lit is None else batch.lit
        # CutMix mixes the predictions together with the photos.
        images, alpha = altered(images, alpha, decoders, self._semi.mix)
        return replace(batch, images=images, alpha=alpha, decoders=decoders, taught=True)

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        """Return the supervised terms and, with unlabelled photos, the terms `view` and `semi`."""
        terms = super().terms(features, batches, progress)
        if "unlabeled" not in batches:
            return terms
        maps, batch, rise = features["unlabeled"], batches["unlabeled"], ramp(progress, self._semi.ramp_share)
        # Without a teacher the main decoder only provides the target, so no gradient passes through it.
        with torch.set_grad_enabled(batch.taught), frozen_batch_norm_stats(self.net.decoders):
            logits = self.net.route(maps, batch.decoders)[0]
        if batch.taught:
            terms["view"] = self._semi.view * rise * pseudo_label_loss(logits, batch.alpha)
        if self.auxiliary is not None:
            target = batch.alpha if batch.taught else logits.float().sigmoid()
            # The auxiliary decoders get the full gradient, the encoder only the ramp's share of it.
            views = self.auxiliary([scale_gradient(m, rise) for m in maps], target)
            agreement = torch.stack([consistency(logits, target) for logits in views.values()]).mean()
            terms["semi"] = self._weight * agreement
        return terms


@torch.no_grad()
def predict_pseudo_labels(batch: Sample, teacher: MattingNet) -> tuple[list[str], Tensor]:
    """Return the decoder of each photo and the teacher's mattes (B, 1, S, S), averaged over photo and mirror image.

    Errors that occur in only one orientation are random; averaging halves them before the student learns them.
    """
    features = teacher.encode(batch.images)
    decoders = _known_or_chosen(batch, teacher.chosen(features))
    mirrored = teacher.encode(batch.images.flip(-1))
    plain, flipped = (teacher.route(maps, decoders)[0].float().sigmoid() for maps in (features, mirrored))
    return decoders, (plain + flipped.flip(-1)) / 2


def _known_or_chosen(batch: Sample, chosen: Sequence[str]) -> list[str]:
    """Return the decoder of each photo's category, or the teacher's choice for photos of unknown category."""
    rows = zip(batch.decoders, batch.categories, chosen, strict=True)
    return [other if category == UNKNOWN else name for name, category, other in rows]


def pseudo_label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the scalar cross-entropy against the teacher's prediction; the target gets no gradient."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.detach())
