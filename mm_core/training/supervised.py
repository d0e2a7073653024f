"""Supervised stages (simple, hard): the labelled batch through the decoder of each sample's category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.core.params import LossParams
from mm_core.core.records import DECODERS
from mm_core.imaging.pixel_cache import UNKNOWN, Batch, Pool
from mm_core.model.network import MattingNet
from mm_core.training import process_group
from mm_core.training.losses import matting_losses
from mm_core.training.trainer import Sample

Features = list[Tensor]
"""Encoder maps of some samples, fine to coarse."""
Pools = Mapping[str, Sequence[tuple[Pool, int]]]
"""Batch name → pools and how many samples each gives per step."""


class Supervised(nn.Module):
    """Learns from mattes. The later stages add terms to this one."""

    def __init__(self, net: MattingNet, pools: Pools, loss: LossParams, shared_decoder: float = 0.0):
        """`pools` holds `labeled`: one pool, or hard and simple ones for replay.

        `shared_decoder`: share of the steps, in [0, 1], in which the first decoder learns from all photos and the
        others copy it (docs/decisions/0035-shared-decoder.md).
        """
        super().__init__()
        self.net = net
        self._pools, self._loss, self._shared_decoder = pools, loss, shared_decoder

    def draw(self, step: int) -> dict[str, Batch]:
        """This process's rows of each batch: every n-th of n processes', counted through its pools."""
        return {name: Batch.join(_shares(sources, step)) for name, sources in self._pools.items()}

    def losses(
        self, batches: Mapping[str, Sample], progress: float, teacher: MattingNet | None = None
    ) -> dict[str, Tensor]:
        """All pools pass the encoder as one batch: its batch norm sees one mixture, the one it will meet."""
        images = torch.cat([batch.images for batch in batches.values()])
        maps = self.net.encode(images.contiguous(memory_format=torch.channels_last))
        sizes = [len(batch.ids) for batch in batches.values()]
        parts = zip(*(torch.split(m, sizes) for m in maps), strict=True)
        features = {name: list(part) for name, part in zip(batches, parts, strict=True)}
        terms = self.terms(features, batches, progress)
        if self._loss.choice:
            terms["choice"] = self._loss.choice * choice_loss(self.net.choice(maps), list(batches.values()))
        return terms

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        batch = batches["labeled"]
        if progress < self._shared_decoder:
            # The copies are one step behind, and so is their moving average: nothing else has to be told.
            self.net.copy_first_decoder()
            outputs = self.net.decode(features["labeled"], DECODERS[0])
        else:
            outputs = self.net.route(features["labeled"], batch.decoders)
        return matting_losses(outputs, batch.alpha, batch.binary, self._loss)


def choice_loss(logits: Tensor, batches: Sequence[Sample]) -> Tensor:
    """Cross-entropy of the chooser's logits (B, 3), 0 for samples of unknown category, mean over all: scalar.

    Rows as in `batches`, one after the other; whether they have mattes makes no difference.
    """
    truth = torch.tensor([DECODERS.index(name) for batch in batches for name in batch.decoders], device=logits.device)
    categories = [category for batch in batches for category in batch.categories]
    known = torch.tensor([category != UNKNOWN for category in categories], device=logits.device)
    # Over all, not over those of known category: so the mean over several processes' rows is that of one process.
    return (F.cross_entropy(logits.float(), truth, reduction="none") * known).mean()


def _shares(sources: Sequence[tuple[Pool, int]], step: int) -> list[Batch]:
    drawn, before, world = [], 0, process_group.world()
    for pool, count in sources:
        if count:
            drawn.append(pool.draw(step, count, rank=(process_group.rank() - before) % world, world=world))
        before += count
    return drawn
