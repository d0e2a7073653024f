"""Which averaged weights a stage keeps."""

from __future__ import annotations

import numpy as np

from mm_core.training.checkpoint import MIN_VALIDATION_PHOTOS, can_choose, choose_checkpoint


def errors(count: int, level: float, noise: float = 0.0, seed: int = 0) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {name: list(level + noise * rng.standard_normal(count)) for name in ("cards", "pets")}


def test_few_validation_photos_choose_nothing() -> None:
    few = errors(MIN_VALIDATION_PHOTOS - 1, 0.01)
    assert not can_choose(few) and not can_choose({})
    keep, reason = choose_checkpoint(few, errors(MIN_VALIDATION_PHOTOS - 1, 0.5))
    assert not keep and "7 of 8" in reason
    assert not choose_checkpoint({}, {})[0]


def test_an_earlier_checkpoint_must_win_by_more_than_the_noise() -> None:
    best = errors(20, 0.050)
    clearly_worse, by_luck = errors(20, 0.060, 0.002), errors(20, 0.051, 0.02)
    assert choose_checkpoint(best, clearly_worse)[0]
    assert not choose_checkpoint(best, by_luck)[0]
    assert not choose_checkpoint(best, best)[0]


def test_the_reason_says_that_the_stage_did_not_help() -> None:
    keep, reason = choose_checkpoint(errors(20, 0.05), errors(20, 0.06, 0.001), stage_start=True)
    assert keep and reason.startswith("the stage's start is better")
