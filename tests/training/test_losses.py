"""Losses against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from mm_core.core.params import LossParams
from mm_core.training.losses import (
    bce,
    consistency,
    contrastive,
    gradient,
    laplacian,
    matting_losses,
    soft_iou_loss,
    unknown_band,
)

ALL = LossParams(bce=1, l1=1, iou=1, band=1, laplacian=1, gradient=1, deep=1)
SOFT = torch.tensor([False])
BINARY = torch.tensor([True])


def step_edge(size: int = 32) -> torch.Tensor:
    alpha = torch.zeros(1, 1, size, size)
    alpha[..., size // 2 :] = 1
    return alpha


def test_a_perfect_matte_costs_nothing() -> None:
    alpha = step_edge()
    terms = matting_losses([(alpha - 0.5) * 100], alpha, SOFT, ALL)
    assert set(terms) == {"bce", "l1", "iou", "band", "laplacian", "gradient"}
    assert all(float(term) < 1e-5 for term in terms.values())


def test_an_undecided_matte_costs_what_paper_and_pencil_say() -> None:
    alpha = step_edge()
    terms = matting_losses([torch.zeros_like(alpha)] * 3, alpha, SOFT, ALL)
    assert float(terms["bce"]) == pytest.approx(math.log(2), rel=1e-5)
    assert float(terms["deep"]) == pytest.approx(2 * math.log(2), rel=1e-5)
    assert float(terms["l1"]) == pytest.approx(0.5)
    assert float(terms["band"]) == pytest.approx(0.5)
    # Two columns at the step with response 1, of 32, and two directions.
    assert float(terms["gradient"]) == pytest.approx(2 / 32 / 2)


def test_soft_targets_are_optimal_at_their_own_value() -> None:
    alpha = torch.full((1, 1, 8, 8), 0.3)
    at = torch.tensor(0.3).logit().expand_as(alpha)
    everywhere = torch.ones_like(alpha)
    best = float(bce(at, alpha, everywhere))
    assert best == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)), rel=1e-5)
    assert best < float(bce(at + 0.2, alpha, everywhere))


def test_logits_that_are_sure_and_wrong_keep_a_finite_loss_and_a_gradient_in_half_precision() -> None:
    """A sigmoid in bf16 rounds to 0 or 1: a cross-entropy of it, as the public recipe has it, learns no more."""
    alpha, logits = step_edge(), (50 * (0.5 - step_edge())).bfloat16().requires_grad_()
    total = torch.stack(list(matting_losses([logits, logits], alpha, SOFT, ALL).values())).sum()
    (grad,) = torch.autograd.grad(total, logits)
    assert 20 < float(total.detach()) < 1e4
    assert (grad != 0).all() and torch.isfinite(grad).all()
    after = logits.sigmoid()
    (naive,) = torch.autograd.grad(torch.nn.functional.binary_cross_entropy(after.float(), alpha), logits)
    assert (naive[alpha == 0] == 0).all()  # where the sigmoid has become 1


def test_the_band_is_the_dilated_soft_zone() -> None:
    alpha = torch.zeros(1, 1, 1, 20)
    alpha[..., 10] = 0.5
    alpha[..., 11:] = 1
    assert unknown_band(alpha).flatten().nonzero().flatten().tolist() == [8, 9, 10, 11, 12]
    # A hard step has no soft pixel: the two beside it count.
    assert unknown_band(step_edge(20)[..., :1, :]).flatten().nonzero().flatten().tolist() == list(range(7, 13))


def test_a_binary_mask_does_not_drive_the_soft_band() -> None:
    alpha = step_edge()
    logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    terms = matting_losses([logits, logits], alpha, BINARY, ALL)
    assert terms["band"] == terms["laplacian"] == terms["gradient"] == 0
    (grad,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), logits)
    band = unknown_band(alpha) > 0
    assert (grad[band] == 0).all()
    assert (grad[~band] != 0).all()


def test_each_sample_keeps_its_own_kind_in_a_mixed_batch() -> None:
    alpha = step_edge().repeat(2, 1, 1, 1)
    logits = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mixed = matting_losses([logits], alpha, torch.tensor([True, False]), ALL)
    soft = matting_losses([logits[1:]], alpha[1:], SOFT, ALL)
    for name in ("band", "laplacian", "gradient"):
        assert float(mixed[name]) == pytest.approx(float(soft[name]), rel=1e-5)


def test_laplacian_sees_nothing_of_a_constant_shift_and_all_of_a_checkerboard() -> None:
    alpha = torch.zeros(1, 1, 64, 64)
    assert float(laplacian(alpha + 0.25, alpha)) == pytest.approx(0, abs=1e-6)
    board = (torch.arange(64).view(-1, 1) + torch.arange(64)).remainder(2).float().expand(1, 1, 64, 64) - 0.5
    # The binomial filter removes the highest frequency: but for the border, all stays in level 0, of weight 1 in 5.
    assert float(laplacian(board, alpha)) == pytest.approx(0.5 / 5, rel=0.12)


def test_laplacian_halves_as_a_textbook_pyramid() -> None:
    """Against OpenCV's pyrDown on the inside (its border rule differs)."""
    import cv2
    import numpy as np

    from mm_core.training.losses import _halve

    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    ours = _halve(torch.from_numpy(image)[None, None])[0, 0].numpy()
    assert ours[1:-1, 1:-1] == pytest.approx(cv2.pyrDown(image)[1:-1, 1:-1], abs=1e-6)


def test_soft_iou_of_known_areas() -> None:
    alpha, trusted = torch.zeros(1, 1, 10, 10), torch.ones(1, 1, 10, 10)
    alpha[..., :5, :] = 1  # 50 pixels
    half = alpha * 0.5
    assert float(soft_iou_loss(half, alpha, trusted)) == pytest.approx(1 - 26 / 51)
    shifted = alpha.roll(2, dims=2)  # 30 pixels in common, 70 in either
    assert float(soft_iou_loss(shifted, alpha, trusted)) == pytest.approx(1 - 31 / 71)
    assert float(soft_iou_loss(half, half, trusted)) == pytest.approx(0, abs=1e-6)
    assert float(soft_iou_loss(alpha * 0, alpha * 0, trusted)) == 0
    assert float(soft_iou_loss(shifted, alpha, alpha)) == pytest.approx(1 - 31 / 51), (
        "pixels without trust do not count"
    )


def test_gradient_of_a_ramp() -> None:
    ramp = (torch.arange(20.0) / 20).expand(1, 1, 20, 20)
    inside = gradient(ramp, torch.zeros_like(ramp))
    # Slope 0.05 over two pixels, at 18 of 20 columns; half of that at the repeated borders; two directions.
    assert float(inside) == pytest.approx((18 * 0.1 + 2 * 0.05) / 20 / 2, rel=1e-5)


def test_consistency_moves_the_prediction_alone() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    target = torch.full((1, 1, 4, 4), 0.8, requires_grad=True)
    loss = consistency(logits, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.09, rel=1e-5)
    assert logits.grad is not None
    assert target.grad is None


def test_infonce_known_answers() -> None:
    e = torch.eye(4)
    anchor, positive = e[:1], e[:1]
    negatives, every = e[None, 1:3], torch.ones(1, 2, dtype=torch.bool)
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 2))
    assert float(contrastive(anchor, positive, negatives, every, 0.5)) == pytest.approx(expected, rel=1e-5)
    one = contrastive(anchor, positive, negatives, torch.tensor([[True, False]]), 0.5)
    assert float(one) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)), rel=1e-5)
    none = contrastive(anchor, positive, negatives, torch.zeros(1, 2, dtype=torch.bool), 0.5)
    assert float(none) == pytest.approx(0, abs=1e-6)
