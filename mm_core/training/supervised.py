"""Supervised stages (simple, hard): each labelled photo is decoded by the decoder of its category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.core.params import LossParams
from mm_core.core.records import DECODERS
from mm_core.imaging.pixel_cache import UNKNOWN, Batch, Pool
from mm_core.model.network import MattingNet
from mm_core.training import process_group
from mm_core.training.losses import matting_losses
from mm_core.training.trainer import DeviceBatch

Features = list[Tensor]
"""Encoder features of some samples, fine to coarse."""
Pools = Mapping[str, Sequence[tuple[Pool, int]]]
"""Batch name → its pools, each with its number of samples per step."""


class Supervised(nn.Module):
    """Train on mattes. The later stages extend this class."""

    def __init__(self, net: MattingNet, pools: Pools, loss: LossParams, shared_decoder: float = 0.0) -> None:
        """Create the strategy.

        Args:
            net: Net to train.
            pools: Must contain `labeled`: one pool, or a hard and a simple one for replay.
            loss: Weights of the terms.
            shared_decoder: Share of the steps, in [0, 1], in which the first decoder learns from all photos and the
                others copy it (docs/decisions/0035-shared-decoder.md).
        """
        super().__init__()
        self.net = net
        self._pools, self._loss, self._shared_decoder = pools, loss, shared_decoder

    def draw(self, step: int) -> dict[str, Batch]:
        """Return this process's rows of each batch: every n-th row, for n processes."""
        return {name: Batch.join(_shares(sources, step)) for name, sources in self._pools.items()}

    def drawn(self, steps: int) -> list[pd.DataFrame]:
        """Return the rows that the steps before `steps` draw, one frame per pool."""
        return [pool.drawn(steps, count) for sources in self._pools.values() for pool, count in sources]

    def losses(self, batches: Mapping[str, DeviceBatch], progress: float) -> dict[str, Tensor]:
        """Return named losses.

        All pools pass the encoder as one batch, so that its batch norm normalises over the same mixture in every step.
        """
        images = torch.cat([batch.images for batch in batches.values()])
        maps = self.net.encode(images.contiguous(memory_format=torch.channels_last))
        sizes = [len(batch.ids) for batch in batches.values()]
        # Split the features back into the pools.
        splits = zip(*(torch.split(m, sizes) for m in maps), strict=True)
        features = {name: list(split) for name, split in zip(batches, splits, strict=True)}
        terms = self.terms(features, batches, progress)
        if self._loss.choice:
            terms["choice"] = self._loss.choice * choice_loss(self.net.choice(maps), list(batches.values()))
        return terms

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, DeviceBatch], progress: float
    ) -> dict[str, Tensor]:
        """Return the supervised terms; the later stages add theirs."""
        batch = batches["labeled"]
        if progress < self._shared_decoder:
            # The copies are one step behind, and so is their moving average.
            self.net.copy_first_decoder()
            outputs = self.net.decode(features["labeled"], DECODERS[0])
        else:
            outputs = self.net.route(features["labeled"], batch.decoders)
        return matting_losses(outputs, batch.alpha, batch.binary, self._loss)


def choice_loss(logits: Tensor, batches: Sequence[DeviceBatch]) -> Tensor:
    """Return the cross-entropy of the chooser over all photos of known category, with or without mattes: scalar.

    Args:
        logits: Chooser logits (B, 3).
        batches: Batches whose rows, one batch after the other, match the logits. Samples of unknown category count 0.
    """
    truth = torch.tensor([DECODERS.index(name) for batch in batches for name in batch.decoders], device=logits.device)
    categories = [category for batch in batches for category in batch.categories]
    is_known = torch.tensor([category != UNKNOWN for category in categories], device=logits.device)
    # The mean is over all rows, so that averaging it over several processes gives the result of one process.
    return (F.cross_entropy(logits.float(), truth, reduction="none") * is_known).mean()


def _shares(sources: Sequence[tuple[Pool, int]], step: int) -> list[Batch]:
    """Draw this process's rows from each pool of a batch."""
    drawn, before, world = [], 0, process_group.world()
    for pool, count in sources:
        if count:
            # Rows are dealt out in turn across the whole batch, so the offset of each pool shifts the rank.
            drawn.append(pool.draw(step, count, rank=(process_group.rank() - before) % world, world=world))
        before += count
    return drawn
