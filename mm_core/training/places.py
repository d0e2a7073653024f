"""Where in a photo the subjects of its category usually are, and what colours are there.

A teacher that takes a whole wall for its subject knows no better next time. Two things do not depend on its weights:
the mean matte of a category's labelled photos, and this photo's own colours at such places. Their log-odds are added to
the teacher's, as a product of experts (Hinton 2002); place and colour as potentials beside a learned one are
TextonBoost's (Shotton et al. 2006, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mm_core.data.dataset import UNKNOWN, Pool
from mm_core.training.colours import by_colour

VIEWS = 64
"""Draws of labelled photos that a category's mean is taken over; a few photos come up again and again."""
BORROWED = 2.0
"""Photos' worth of the mean over all categories in each: of a category's one photo nobody knows what is usual."""
SUREST = 0.99
"""No expert is surer than this."""


def usual_places(sources: Sequence[tuple[Pool, int]]) -> dict[str, Tensor]:
    """Mean matte (S, S) in [0, 1] of each category, and of all under "", also for photos of none; left and right alike.

    `sources`: pools of labelled photos and how many each gives per step. Depends on them alone: a resumed run finds the
    same, and so does every process of several.
    """
    sums: dict[str, Tensor] = {}
    seen, held = Counter[str](), Counter[str]()
    for pool, count in sources:
        held.update(pool.categories)
        steps = -(-VIEWS * len(set(pool.categories)) // count) if count else 0
        for batch in (pool.uncut(step, count) for step in range(steps)):
            for category, matte in zip(batch.categories, torch.from_numpy(batch.alphas).float() / 255, strict=True):
                sums[category] = sums.get(category, torch.zeros_like(matte)) + (matte + matte.flip(-1)) / 2
                seen[category] += 1
    means = {category: total / seen[category] for category, total in sums.items()}
    if len(means) > 1:
        means.pop(UNKNOWN, None)  # not a category: its photos have no place in common
    of_all = torch.stack(list(means.values())).mean(0)
    own = {c: (held[c] * mean + BORROWED * of_all) / (held[c] + BORROWED) for c, mean in means.items()}
    return own | {"": of_all}


def evidence(images: Tensor, places: Tensor) -> Tensor:
    """Log-odds (B, 1, S, S), float32, of what place and colour say for the subject and against it.

    images (B, 3, S, S), in [0, 1]; `places`, the usual one of each photo's category, (B, 1, S, S) in [0, 1].
    Zero where the subject is as likely as in the mean over the photo: how large it usually is the teacher knows.
    """
    usual = _log_odds(places.mean((2, 3), keepdim=True))
    return _log_odds(places) + _log_odds(by_colour(images, places)) - 2 * usual


def by_evidence(matte: Tensor, said: Tensor, weight: float) -> Tensor:
    """`matte`, (B, 1, S, S) in [0, 1], with the `evidence` that `said` holds beside it by `weight`: of the same shape,
    float32, between 1 - `SUREST` and `SUREST` where nothing is said."""
    return torch.sigmoid(_log_odds(matte) + weight * said)


def _log_odds(share: Tensor) -> Tensor:
    return torch.logit(share.float(), eps=1 - SUREST)
