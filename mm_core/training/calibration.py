"""Correct the overconfidence of a trained net: scale its positive logits as held-out photos ask for.

A net that has seen its training photos many times is too sure of new ones. Where its alpha was 0.99 on held-out real
photos, the true mean was 0.80; below 0.5 both differed by less than 0.1 (docs/decisions/0050-foreground-scale.md). One
factor for all logits is temperature scaling (Guo et al. 2017, arXiv:1706.04599). This is the same for positive logits
alone, which leaves the background clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mm_core.model.network import scale_foreground
from mm_core.training.checkpoint import Errors

SCALES = tuple(round(1 - 0.05 * step, 2) for step in range(15))
"""The scales that are tried: 1, 0.95, … 0.3."""
MOST_RISE = 0.06
"""The scale may raise the mean absolute error by this share. On real photos Connectivity rises by less than its margin
of 5 % then."""
FEWEST = 8
"""Fewer photos than these cannot choose a scale."""
DEFAULT = 0.65
"""The scale where there are too few photos. By the rule below, held-out real photos give two models 0.65 and 0.6."""


@dataclass
class Calibration:
    """Collects errors of photos at every scale, and chooses one."""

    squared: list[Tensor] = field(default_factory=list)
    """Per batch: mean squared errors (photos, scales)."""
    absolute: list[Tensor] = field(default_factory=list)
    """Per batch: mean absolute errors (photos, scales)."""
    categories: list[str] = field(default_factory=list)

    @torch.no_grad()
    def add(self, logits: Tensor, alpha: Tensor, categories: Sequence[str]) -> None:
        """Add photos: unscaled logits (B, 1, S, S), true mattes (B, 1, S, S) in [0, 1], one category per photo."""
        errors = [scale_foreground(logits.float(), scale).sigmoid() - alpha for scale in SCALES]
        self.squared.append(torch.stack([(error**2).mean((1, 2, 3)) for error in errors], 1).cpu())
        self.absolute.append(torch.stack([error.abs().mean((1, 2, 3)) for error in errors], 1).cpu())
        self.categories += categories

    def choose(self) -> float:
        """Return the scale with the lowest macro MSE whose macro absolute error is within `MOST_RISE`.

        The errors are means over categories of the means over their photos. Too few photos give `DEFAULT`.
        """
        if len(self.categories) < FEWEST:
            return DEFAULT
        squared, absolute = self._macro(self.squared), self._macro(self.absolute)
        allowed = absolute <= (1 + MOST_RISE) * absolute[0]
        # Scale 1 is always allowed, and the first of equal errors wins.
        return SCALES[int(np.where(allowed, squared, np.inf).argmin())]

    def errors(self, scale: float) -> Errors:
        """Return the mean squared errors of the photos at a scale, by category."""
        by_category: Errors = {}
        if self.squared:
            column = torch.cat(self.squared)[:, SCALES.index(scale)].tolist()
            for category, error in zip(self.categories, column, strict=True):
                by_category.setdefault(category, []).append(error)
        return dict(sorted(by_category.items()))

    def _macro(self, batches: Sequence[Tensor]) -> np.ndarray:
        """Return the macro error of each scale: (scales,)."""
        errors, categories = torch.cat(list(batches)).double().numpy(), np.array(self.categories)
        return np.mean([errors[categories == name].mean(0) for name in sorted(set(self.categories))], 0)
