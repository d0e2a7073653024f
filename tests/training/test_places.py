"""Where subjects usually are: known answers, the sum of log-odds by hand, and what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from mm_core.data.dataset import PixelCache, Pool
from mm_core.data.samplegen import generate
from mm_core.params import Params
from mm_core.records import CATEGORIES
from mm_core.store import LocalStore
from mm_core.training.places import BORROWED, SUREST, by_evidence, evidence, usual_places
from tests.training.photos import doubted


class Flat:
    """A pool whose mattes are of one value per category."""

    def __init__(self, values: dict[str, int], photos: dict[str, int]):
        self.categories = [category for category, count in photos.items() for _ in range(count)]
        self._values = values

    def uncut(self, step: int, count: int):
        names = [list(self._values)[(step * count + k) % len(self._values)] for k in range(count)]
        mattes = np.stack([np.full((4, 4), self._values[name], np.uint8) for name in names])
        return type("Drawn", (), {"categories": names, "alphas": mattes})()


def test_a_category_s_own_mean_with_a_little_of_all() -> None:
    pool = Flat({"pets": 255, "cards": 0}, {"pets": 6, "cards": 1})
    found = usual_places([(pool, 3)])  # pyright: ignore[reportArgumentType]
    assert set(found) == {"pets", "cards", ""}
    assert torch.allclose(found[""], torch.tensor(0.5))
    assert torch.allclose(found["pets"], torch.tensor((6 + BORROWED * 0.5) / (6 + BORROWED)))
    assert torch.allclose(found["cards"], torch.tensor(BORROWED * 0.5 / (1 + BORROWED)))


def test_photos_of_no_category_have_no_place_of_their_own() -> None:
    values = {"pets": 255, "cards": 0, "unknown": 255}
    found = usual_places([(Flat(values, dict.fromkeys(values, 4)), 3)])  # pyright: ignore[reportArgumentType]
    assert set(found) == {"pets", "cards", ""} and torch.allclose(found[""], torch.tensor(0.5))
    alone = usual_places([(Flat({"unknown": 255}, {"unknown": 4}), 3)])  # pyright: ignore[reportArgumentType]
    assert torch.allclose(alone[""], torch.tensor(1.0))


def test_real_pools_give_symmetric_shares_and_the_same_again(
    tmp_path: Path, store: LocalStore, draw, params: Params
) -> None:
    frame, cache = draw(3, 1), PixelCache(tmp_path / "cache", params.model.size)
    cache.fill(store, frame)
    pool = Pool(frame, cache, 0, "labeled")
    found = usual_places([(pool, 4)])
    pool.draw(7, 4)
    again = usual_places([(pool, 4)])
    assert set(found) == {*frame["category"], ""}
    for name, share in found.items():
        assert share.shape == (params.model.size, params.model.size)
        assert torch.allclose(share, share.flip(-1), atol=1e-6) and torch.equal(share, again[name])
        assert 0 <= float(share.min()) < float(share.max()) <= 1
        assert float(share[params.model.size // 2 :].mean()) > float(share[: params.model.size // 4].mean())


def test_log_odds_of_teacher_place_and_colour_are_added() -> None:
    """Two colours side by side, the subject usually on the left: by hand."""
    colours = torch.zeros(1, 3, 8, 8)
    colours[:, 0, :, :4], colours[:, 2, :, 4:] = 0.9, 0.8
    rng = np.random.default_rng(0)
    places, matte = rng.uniform(0.1, 0.4, (8, 8)), rng.uniform(0.2, 0.8, (8, 8))
    places[:, :4] += 0.5
    sides = np.concatenate([np.full((8, 4), places[:, :4].mean()), np.full((8, 4), places[:, 4:].mean())], 1)
    expected = expit(logit(matte) + 0.5 * (logit(places) + logit(sides) - 2 * logit(places.mean())))
    one, two = (torch.from_numpy(values).float().view(1, 1, 8, 8) for values in (matte, places))
    found = by_evidence(one, evidence(colours, two), 0.5)
    assert np.allclose(found[0, 0], expected, atol=1e-4)


@given(seed=st.integers(0, 99), level=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_without_weight_or_without_a_usual_place_the_matte_stays(seed: int, level: float) -> None:
    torch.manual_seed(seed)
    colours, matte = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8) * 0.96 + 0.02
    assert torch.allclose(by_evidence(matte, evidence(colours, torch.rand(2, 1, 8, 8)), 0.0), matte, atol=1e-5)
    assert torch.allclose(by_evidence(matte, evidence(colours, torch.full((2, 1, 8, 8), level)), 1.0), matte, atol=1e-3)


def test_a_sure_answer_of_any_expert_stays_finite() -> None:
    colours = torch.rand(1, 3, 8, 8)
    bounds = by_evidence(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 1.0).flatten()
    assert torch.allclose(bounds, torch.tensor([1 - SUREST, SUREST]), atol=1e-5)
    sure = (torch.arange(64).view(1, 1, 8, 8) < 32).float()
    found = by_evidence(1 - sure, evidence(colours, sure), 3.0)
    assert torch.isfinite(found).all() and float(found.min()) >= 0 and float(found.max()) <= 1


def of_usual_size(matte: torch.Tensor, truth: torch.Tensor) -> float:
    """Squared error after the best shift of all log-odds: darker or brighter would not help."""
    shifts = torch.linspace(-4, 4, 33)
    return min(float((torch.sigmoid(matte.logit(eps=0.01) + shift) - truth).square().mean()) for shift in shifts)


@pytest.mark.parametrize("category", CATEGORIES)
def test_it_finds_the_subject_where_the_teacher_is_led_astray(category: str) -> None:
    """A faint matte with clouds of error: nearer to the truth than any brightness of it."""
    torch.manual_seed(0)
    others = [torch.from_numpy(generate(category, 1000 + n, size=64).alpha).float() for n in range(12)]
    usual = torch.stack([(one + one.flip(-1)) / 2 for one in others]).mean(0).view(1, 1, 64, 64)
    errors = []
    for seed in range(8):
        photo, truth, astray = doubted(category, seed, 0.4, 0.2, clouds=4)
        better = by_evidence(astray, evidence(photo, usual), 1.0)
        errors.append([of_usual_size(matte, truth) for matte in (astray, better)])
    before, after = np.mean(errors, 0)
    assert after < 0.8 * before
