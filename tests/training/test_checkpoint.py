"""Which averaged weights a stage keeps."""

from __future__ import annotations

import numpy as np
import pytest

from mm_core.training.checkpoint import MIN_VALIDATION_PHOTOS, can_choose, choose_checkpoint, macro_error


def errors(count: int, level: float, noise: float = 0.0, seed: int = 0) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {name: list(level + noise * rng.standard_normal(count)) for name in ("cards", "pets")}


def test_few_validation_photos_choose_nothing() -> None:
    few = errors(MIN_VALIDATION_PHOTOS - 1, 0.01)
    assert not can_choose(few) and not can_choose({})
    keep, reason = choose_checkpoint(few, errors(MIN_VALIDATION_PHOTOS - 1, 0.5))
    assert not keep and "7 of 8" in reason
    assert not choose_checkpoint({}, {})[0]


def test_a_category_with_too_few_photos_has_no_say_and_does_not_silence_the_others() -> None:
    """A category has no validation photos or enough of them; one alone may have lost some to withdrawn labels."""
    best = errors(20, 0.05) | {"portrait": [0.9] * 7}
    last = errors(20, 0.06, 0.001) | {"portrait": [0.01] * 7}
    assert can_choose(best) and macro_error(best) == pytest.approx(0.05)
    keep, reason = choose_checkpoint(best, last)
    assert keep and reason.endswith("by the validation photos of cards, pets")
    assert choose_checkpoint({}, last) == choose_checkpoint({"portrait": [0.0] * 7}, last)


def test_an_earlier_checkpoint_must_win_by_more_than_the_noise() -> None:
    best = errors(20, 0.050)
    clearly_worse, by_luck = errors(20, 0.060, 0.002), errors(20, 0.051, 0.02)
    assert choose_checkpoint(best, clearly_worse)[0]
    assert not choose_checkpoint(best, by_luck)[0]
    assert not choose_checkpoint(best, best)[0]


def test_the_reason_says_that_the_stage_did_not_help() -> None:
    keep, reason = choose_checkpoint(errors(20, 0.05), errors(20, 0.06, 0.001), stage_start=True)
    assert keep and reason.startswith("the stage's start is better")
