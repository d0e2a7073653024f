"""What several answers come to."""

from __future__ import annotations

import numpy as np
import pytest

from mm_core.core.params import LabelParams
from mm_core.labeling.consensus import Answer, disagreement, settle

PARAMS = LabelParams(agree_mse=0.01, agree_iou=0.8)


def disk(radius: float, level: int = 255) -> np.ndarray:
    y, x = np.mgrid[:40, :40]
    return np.where(np.hypot(y - 20, x - 20) < radius, level, 0).astype(np.uint8)


def answer(who: str, alpha: np.ndarray | None, when: int = 1, category: str = "pets", rejected: str = "") -> Answer:
    return Answer(alpha, category, rejected, who, f"2026-01-0{when}")


def test_disagreement_has_known_values() -> None:
    whole, half = np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8)
    half[:2] = 255
    assert (disagreement(whole, half).mse, disagreement(whole, half).iou) == (0.5, 0.5)
    assert disagreement(0 * half, 0 * half).iou == 1


def test_nobody_and_one_person() -> None:
    assert settle([], PARAMS).answer is None and settle([], PARAMS).people == 0
    early, late = answer("a", disk(9), 1), answer("a", disk(10), 2)
    assert settle([late, early], PARAMS).answer is late


def test_two_who_agree_give_their_mean() -> None:
    outcome = settle([answer("a", disk(15, 200), 1), answer("b", disk(15, 220), 2)], PARAMS)
    assert outcome.answer is not None and outcome.answer.alpha is not None
    assert np.array_equal(outcome.answer.alpha, disk(15, 210))
    assert outcome.answer.annotator == "a + b" and outcome.answer.updated_at == "2026-01-02"
    assert outcome.apart is not None and outcome.apart.mse > 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (answer("b", disk(5)), "MSE"),
        (answer("b", disk(15), category="cards"), "pets or cards"),
        (answer("b", None, rejected="private"), "refuses"),
    ],
)
def test_two_who_disagree_give_nothing(other: Answer, said: str) -> None:
    outcome = settle([answer("a", disk(15)), other], PARAMS)
    assert outcome.answer is None and outcome.people == 2 and said in outcome.why


def test_the_third_decides_with_whom_it_agrees() -> None:
    outcome = settle([answer("a", disk(15)), answer("b", disk(5)), answer("c", disk(5))], PARAMS)
    assert outcome.answer is not None and outcome.answer.annotator == "b + c"
    refused = [answer("a", disk(15)), answer("b", None, rejected="private"), answer("c", None, rejected="other")]
    settled = settle(refused, PARAMS).answer
    assert settled is not None and settled.alpha is None and settled.rejected
    assert settle([answer("a", disk(15)), answer("b", disk(5)), answer("c", disk(10))], PARAMS).answer is None


def test_a_small_subject_needs_the_overlap_too() -> None:
    near = settle([answer("a", disk(2)), answer("b", np.roll(disk(2), 3, axis=1))], PARAMS)
    assert near.apart is not None and near.apart.mse < PARAMS.agree_mse + 0.01
    assert near.answer is None and near.apart.iou < PARAMS.agree_iou
