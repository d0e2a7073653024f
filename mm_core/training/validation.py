"""Errors on the validation photos, by which the trainer keeps the best weights of a stage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from mm_core.imaging.pixel_cache import UNKNOWN, Pool
from mm_core.model.network import MattingNet
from mm_core.training.calibration import Calibration
from mm_core.training.checkpoint import Errors
from mm_core.training.trainer import DeviceBatch, to_device


class Validation:
    """Compute the squared error of each validation photo by category, at the model's size, in float32.

    The photos stay in the host's memory as bytes, because thousands of them as floats would fill a GPU.
    """

    def __init__(self, pool: Pool, batch: int, device: torch.device) -> None:
        self._batches, self._device = list(pool.in_order(batch)), device

    def _samples(self) -> Iterator[DeviceBatch]:
        return (to_device(batch, self._device) for batch in self._batches)

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> Errors:
        """Return the mean squared errors of the photos by category."""
        assert isinstance(net, MattingNet)
        errors: Errors = {}
        for sample in self._samples():
            # Mean over the pixels of each photo: (B,).
            alpha = net.route(net.encode(sample.images), sample.decoders)[0].sigmoid()
            squared = ((alpha - sample.alpha) ** 2).mean((1, 2, 3)).tolist()
            for category, error in zip(sample.categories, squared, strict=True):
                errors.setdefault(category, []).append(error)
        return dict(sorted(errors.items()))

    @torch.no_grad()
    def choose_scale(self, net: MattingNet) -> tuple[float, Errors]:
        """Return the foreground scale for a net whose own scale is 1, and the errors of the photos with it."""
        net.eval()
        calibration = Calibration()
        for sample in self._samples():
            logits = net.route(net.encode(sample.images), sample.decoders)[0]
            calibration.add(logits, sample.alpha, sample.categories)
        scale = calibration.choose()
        return scale, calibration.errors(scale)

    @torch.no_grad()
    def rightly_chosen(self, net: MattingNet) -> list[float]:
        """Return the share of photos for which the net chooses the decoder of their category, as a list of one number.

        Photos of unknown category are left out; the list is empty if no photo remains.
        """
        net.eval()
        right = [
            name == decoder
            for sample in self._samples()
            for name, decoder, category in zip(
                net.chosen(net.encode(sample.images)), sample.decoders, sample.categories, strict=True
            )
            if category != UNKNOWN
        ]
        return [float(np.mean(right))] if right else []
