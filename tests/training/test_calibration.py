"""The scale of positive logits against photos of which everything is known."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.model.files import load_model
from mm_core.model.network import scale_foreground
from mm_core.storage.run import StorageRun
from mm_core.training.calibration import DEFAULT, FEWEST, MOST_RISE, SCALES, Calibration
from mm_core.training.stage import train_stage


def photos(count: int, logit: float, right: float) -> tuple[Tensor, Tensor]:
    """Left halves with this logit, of which this share is foreground; right halves are surely background."""
    logits = torch.full((count, 1, 10, 20), -9.0)
    logits[..., :10] = logit
    alpha = torch.zeros_like(logits)
    alpha[:, :, : round(10 * right), :10] = 1
    return logits, alpha


def scale_of(logits: Tensor, alpha: Tensor, categories: list[str] | None = None) -> float:
    calibration = Calibration()
    calibration.add(logits, alpha, categories or ["pets"] * len(logits))
    return calibration.choose()


def test_negative_logits_stay_and_positive_ones_shrink() -> None:
    scaled = scale_foreground(torch.tensor([-3.0, 0.0, 4.0]), 0.5)
    assert scaled.tolist() == [-3, 0, 2]


def test_a_net_that_is_right_is_left_alone() -> None:
    assert scale_of(*photos(FEWEST, 6.0, 1.0)) == 1


def test_a_net_that_is_too_sure_gets_the_least_squared_error_within_the_rise() -> None:
    # Alpha is 0.982 where 80 % is foreground. Scale 0.35 has the lowest MSE, but raises the absolute error too much.
    logits, alpha = photos(FEWEST, 4.0, 0.8)
    chosen = scale_of(logits, alpha)

    def errors(scale: float) -> tuple[float, float]:
        error = scale_foreground(logits, scale).sigmoid() - alpha
        return float((error**2).mean()), float(error.abs().mean())

    within = [scale for scale in SCALES if errors(scale)[1] <= (1 + MOST_RISE) * errors(1)[1]]
    assert chosen == min(within, key=lambda scale: errors(scale)[0])
    assert 0.3 < chosen < 1 and errors(chosen)[0] < errors(1)[0]


def test_where_half_is_wrong_the_absolute_error_does_not_rise_and_the_lowest_scale_is_allowed() -> None:
    assert scale_of(*photos(FEWEST, 4.0, 0.5)) == SCALES[-1]


def test_categories_weigh_the_same_however_many_photos_they_have() -> None:
    sure, alpha = photos(30, 6.0, 1.0)
    unsure, half = photos(2, 6.0, 0.5)
    together = scale_of(torch.cat([sure, unsure]), torch.cat([alpha, half]), ["pets"] * 30 + ["cards"] * 2)
    repeated = scale_of(
        torch.cat([sure[:4], unsure, unsure]), torch.cat([alpha[:4], half, half]), ["p"] * 4 + ["c"] * 4
    )
    assert together == repeated < 1


def test_the_errors_at_a_scale_are_those_of_the_scaled_mattes() -> None:
    logits, alpha = photos(3, 4.0, 0.8)
    calibration = Calibration()
    calibration.add(logits, alpha, ["pets", "cards", "pets"])
    expected = float(((scale_foreground(logits[0], 0.5).sigmoid() - alpha[0]) ** 2).mean())
    assert calibration.errors(0.5) == {"cards": [pytest.approx(expected)], "pets": [pytest.approx(expected)] * 2}
    assert Calibration().errors(1.0) == {}


def test_few_photos_give_the_default() -> None:
    assert scale_of(*photos(FEWEST - 1, 6.0, 1.0)) == Calibration().choose() == DEFAULT < 1


def test_a_stage_ends_with_a_scale_and_the_next_one_does_not_learn_with_it(
    workspace: Layout, params: Params, draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(3, 3).to_parquet(workspace.snapshot / "validation.parquet")
    assert len(pd.read_parquet(workspace.snapshot / "validation.parquet")) > FEWEST
    monkeypatch.setattr("mm_core.training.calibration.SCALES", (0.5,))
    run = StorageRun(params, workspace)
    first = train_stage("simple", run, Report("train-simple"), start=None)
    net, _ = load_model(workspace.model("simple"))
    assert first.facts["foreground_scale"] == net.foreground_scale == 0.5
    # A stage without steps passes the scale on with the weights.
    idle = StorageRun(params.with_values(**{"train.hard.steps": 0}), workspace)
    train_stage("hard", idle, Report("train-hard"), start=workspace.model("simple"))
    assert load_model(workspace.model("hard"))[0].foreground_scale == 0.5
    # The losses of the next stage see the unscaled net.
    seen: list[float] = []
    plain = type(net).decode

    def decode(self, features, decoder):
        if self.training:
            seen.append(self.foreground_scale)
        return plain(self, features, decoder)

    monkeypatch.setattr(type(net), "decode", decode)
    train_stage("hard", run, Report("train-hard"), start=workspace.model("simple"))
    assert seen and set(seen) == {1.0}
