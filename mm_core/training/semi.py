"""Semi-supervised stage: cross-consistency training (Ouali, Hudelot and Tami, CVPR 2020) for a one-channel matte.

The target of an unlabelled photo is the matte of a teacher: the best weights so far by validation, themselves a moving
average (Tarvainen and Valpola 2017), without gradient. It is corrected by what does not depend on weights: where the
subjects of its category usually are (`places.py`), and the photo's own colours (`colours.py`). Unlabelled and
captioned photos are drawn whole, as at inference: of a cut the teacher knows less (benchmarks/teacher.md). It sees them
as they came, the network in other light. Two terms follow the teacher:

- `semi`, the paper's: auxiliary decoders see perturbed features and must agree with it. The gradient reaches them and
  the encoder. The paper ramps the loss up; here the ramp is on what reaches the encoder: the auxiliary decoders begin
  from nothing and learn at full weight from the first step, but the encoder listens to them only as far as the ramp
  has risen.
- `view`: the network itself sees a strongly altered photo (`views.py`) where the teacher saw the photo. The paper's
  term alone teaches the main decoder nothing, and did not earn its steps (benchmarks/stage_order.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.data.dataset import UNKNOWN
from mm_core.model.auxiliary import AuxiliaryDecoders
from mm_core.model.network import MattingNet
from mm_core.params import LossParams, SemiParams
from mm_core.training import ranks
from mm_core.training.colours import by_colour
from mm_core.training.loop import Sample
from mm_core.training.losses import consistency
from mm_core.training.places import by_evidence, evidence, usual_places
from mm_core.training.supervised import Features, Pools, Supervised
from mm_core.training.views import altered

SHARES = (0.0, 0.25, 0.5, 1.0)
"""Of `semi.place`, of which the validation photos choose one."""
WITHOUT_VALIDATION = 0.5
"""Share of `semi.place` that counts where no photos can choose one."""


def ramp(progress: float, share: float) -> float:
    """exp(-5 (1 - t)²) over the first `share` of training, then 1 (Laine and Aila 2017, section 2)."""
    return math.exp(-5 * (1 - min(1.0, progress / share)) ** 2)


def damped(features: Tensor, share: float) -> Tensor:
    """The same values; only `share` of the gradient passes back."""
    return features.detach() + share * (features - features.detach())


@contextmanager
def unrecorded(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise each batch by itself, as ever, but leave their running statistics alone.

    A decoder meets altered photos and fused features here; at inference it meets neither, and statistics that had taken
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

    def __init__(
        self,
        net: MattingNet,
        pools: Pools,
        loss: LossParams,
        semi: SemiParams,
        weight: float | None = None,
        validation: Sequence[Sample] = (),
    ):
        """`pools` may lack `unlabeled`: then this is Supervised. `weight` replaces `semi.weight`; `validation` tells
        how far a teacher needs correcting."""
        super().__init__(net, pools, loss)
        self._semi, self._weight = semi, semi.weight if weight is None else weight
        self._validation, self._weight_of_place = validation, 0.0
        self._weights_of_place: list[float] = []
        active = "unlabeled" in pools and self._weight and semi.perturbations
        self.auxiliary = AuxiliaryDecoders(net, semi.perturbations) if active else None
        if semi.place and (active or (semi.view and {"unlabeled", "text"} & set(pools))):
            self._weights_of_place = [semi.place * share for share in SHARES]
            self._weight_of_place = semi.place * WITHOUT_VALIDATION
            usual = usual_places(pools["labeled"])
            self._row = {category: row for row, category in enumerate(usual)}
            self._places: Tensor
            self.register_buffer("_places", torch.stack(list(usual.values())).unsqueeze(1), persistent=False)

    def losses(
        self, batches: Mapping[str, Sample], progress: float, teacher: MattingNet | None = None
    ) -> dict[str, Tensor]:
        """`teacher`: gives the targets; without one the network's own main decoder does, and there is no `view`."""
        taught = {
            name: batch if teacher is None else self.taught(name, batch, teacher) for name, batch in batches.items()
        }
        return super().losses(taught, progress)

    def taught(self, name: str, batch: Sample, teacher: MattingNet) -> Sample:
        """An unlabelled batch as the student sees it; its `alpha` is the corrected matte of the photo itself."""
        if name == "labeled":
            return batch
        decoders, alpha = _told(batch, teacher)
        if self._weight_of_place:
            alpha = by_evidence(alpha, self._evidence(batch), self._weight_of_place)
        alpha = self._coloured(batch, alpha)
        images = batch.images if batch.lit is None else batch.lit
        if self._semi.view:
            images, alpha = altered(images, alpha, decoders, self._semi.mix)
        return replace(batch, images=images, alpha=alpha, decoders=decoders, taught=True)

    def heed(self, teacher: MattingNet) -> dict[str, float]:
        """Takes the weight of place with which this teacher's mattes of the validation photos come nearest to theirs.

        A student that has learned what is usual where would be told so twice.
        """
        if not (self._weights_of_place and self._validation):
            return {}
        self._weight_of_place = ranks.agreed(self._best_weight(teacher) if ranks.rank() == 0 else 0.0)
        return {"place": self._weight_of_place}

    @torch.no_grad()
    def _best_weight(self, teacher: MattingNet) -> float:
        errors: dict[float, dict[str, list[float]]] = {weight: {} for weight in self._weights_of_place}
        for batch in self._validation:
            alpha, said = _told(batch, teacher)[1], self._evidence(batch)
            for weight, by_category in errors.items():
                corrected = self._coloured(batch, by_evidence(alpha, said, weight) if weight else alpha)
                squared = (corrected - batch.alpha).square().mean((1, 2, 3)).tolist()
                for category, error in zip(batch.categories, squared, strict=True):
                    by_category.setdefault(category, []).append(error)
        macro = {weight: fmean(fmean(values) for values in found.values()) for weight, found in errors.items()}
        return min(macro, key=macro.__getitem__)

    def _evidence(self, batch: Sample) -> Tensor:
        rows = [self._row.get(category, self._row[""]) for category in batch.categories]
        return evidence(batch.images, self._places[rows])

    def _coloured(self, batch: Sample, alpha: Tensor) -> Tensor:
        return torch.lerp(alpha, by_colour(batch.images, alpha), self._semi.colour) if self._semi.colour else alpha

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        terms = super().terms(features, batches, progress)
        if "unlabeled" not in batches:
            return terms
        maps, batch, rise = features["unlabeled"], batches["unlabeled"], ramp(progress, self._semi.ramp_share)
        with torch.set_grad_enabled(batch.taught), unrecorded(self.net.decoders):
            logits = self.net.route(maps, batch.decoders)[0]
        if batch.taught and self._semi.view:
            terms["view"] = self._semi.view * rise * followed(logits, batch.alpha)
        if self.auxiliary is not None:
            target = batch.alpha if batch.taught else logits.float().sigmoid()
            views = self.auxiliary([damped(m, rise) for m in maps], target)
            agreement = torch.stack([consistency(logits, target) for logits in views.values()]).mean()
            terms["semi"] = self._weight * agreement
        return terms


@torch.no_grad()
def _told(batch: Sample, teacher: MattingNet) -> tuple[list[str], Tensor]:
    """The decoder that serves each photo, and the teacher's matte (B, 1, S, S): the mean over photo and mirror image.

    What the teacher holds of a photo one way round but not the other is its chance error; the student would learn it.
    """
    features = teacher.encode(batch.images)
    decoders = _served_by(batch, teacher.chosen(features))
    mirrored = teacher.encode(batch.images.flip(-1))
    one, other = (teacher.route(maps, decoders)[0].float().sigmoid() for maps in (features, mirrored))
    return decoders, (one + other.flip(-1)) / 2


def _served_by(batch: Sample, chosen: Sequence[str]) -> list[str]:
    """The decoder of each photo; where no category is known, the one that the teacher chooses."""
    rows = zip(batch.decoders, batch.categories, chosen, strict=True)
    return [other if category == UNKNOWN else name for name, category, other in rows]


def followed(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against the teacher's matte, without gradient to it: scalar."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.detach())
