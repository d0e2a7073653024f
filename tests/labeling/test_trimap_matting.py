"""Painted Unknown bands: solved inside, untouched outside, near the truth on a photo made by compositing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pymatting import estimate_alpha_cf

from mm_core.labeling import trimap_matting as room
from mm_core.labeling.trimap_matting import solve_unknown


def composite(side: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A disk with a soft edge of 16 px over a background of another colour: photo, true alpha, hard mask of it."""
    y, x = np.mgrid[:side, :side]
    true = np.clip((side / 3 - np.hypot(y - side / 2, x - side / 2)) / 16 + 0.5, 0, 1)
    noise = np.random.default_rng(0).normal(0, 3, (side, side, 3))
    colours = true[..., None] * (200, 60, 40) + (1 - true[..., None]) * (40, 90, 180) + noise
    return np.clip(colours, 0, 255).astype(np.uint8), true, (255 * (true > 0.5)).astype(np.uint8)


def test_the_band_is_solved_and_the_rest_untouched() -> None:
    rgb, true, hard = composite()
    band = (true > 0) & (true < 1)
    solved = solve_unknown(rgb, hard, band)
    assert np.array_equal(solved[~band], hard[~band])
    error = np.abs(solved / 255 - true)[band].mean()
    assert error < 0.2 * np.abs(hard / 255 - true)[band].mean()


def test_soft_alpha_outside_the_band_is_kept_and_leaned_on() -> None:
    rgb, true, _ = composite()
    soft = np.rint(255 * true).astype(np.uint8)
    half = (true > 0) & (true < 1) & (np.arange(96) < 48)
    painted = np.where(half, 255, soft).astype(np.uint8)
    solved = solve_unknown(rgb, painted, half)
    assert np.array_equal(solved[~half], soft[~half])
    assert np.abs(solved / 255 - true)[half].mean() < 0.05


def test_a_large_area_is_solved_small(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, true, hard = composite()
    band = (true > 0) & (true < 1)
    monkeypatch.setattr(room, "MOST_UNKNOWN", int(band.sum()) // 4)
    solved = solve_unknown(rgb, hard, band)
    assert np.array_equal(solved[~band], hard[~band])
    assert np.abs(solved / 255 - true)[band].mean() < 0.4 * np.abs(hard / 255 - true)[band].mean()


def test_nothing_known_around_leaves_what_was_painted() -> None:
    rgb, _, hard = composite()
    assert np.array_equal(solve_unknown(rgb, hard, np.ones(hard.shape, bool)), hard)
    assert np.array_equal(solve_unknown(rgb, hard, np.zeros(hard.shape, bool)), hard)


@pytest.mark.parametrize("level", [0, 255, 90])
def test_a_band_where_all_around_is_one_value_takes_it(level: int) -> None:
    rgb, _, hard = composite()
    band = np.zeros(hard.shape, bool)
    band[40:50, 20:70] = True
    painted = np.full_like(hard, level)
    painted[band] = 255
    assert (solve_unknown(rgb, painted, band) == level).all()


def test_areas_far_apart_are_cut_apart() -> None:
    mask = np.zeros((400, 300), bool)
    mask[10:20, 10:20] = mask[300:310, 250:260] = True
    cuts = [cut for cut, _ in room._areas(mask)]
    assert cuts == [(slice(0, 44), slice(0, 44)), (slice(276, 334), slice(226, 284))]


def test_an_area_in_the_box_of_another_is_not_cut_by_it() -> None:
    """An L and a dot within its box: each is solved as if it were alone."""
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)
    painted = np.where(np.arange(160) < 80, 0, 255).astype(np.uint8)[None].repeat(160, 0)
    line, dot = np.zeros((160, 160), bool), np.zeros((160, 160), bool)
    line[4:150, 4:10] = line[144:150, 4:150] = True
    dot[60:75, 70:90] = True
    both = solve_unknown(rgb, painted, line | dot)
    for one in (line, dot):
        assert np.array_equal(both[one], solve_unknown(rgb, painted, one)[one])


@pytest.mark.parametrize("strip", [1 << 18, 700])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_pymatting_solves_on_the_whole_photo(seed: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STRIP", strip)
    rgb, true, hard = composite(64)
    rng = np.random.default_rng(seed)
    smooth: Any = cv2.GaussianBlur(rng.normal(size=(64, 64)), (0, 0), 4)
    band = ((true > 0) & (true < 1)) | (smooth > np.quantile(smooth, 0.9))
    trimap = np.where(band, 0.5, hard / 255)
    expected = estimate_alpha_cf(rgb / 255, trimap, cg_kwargs={"rtol": 1e-10})
    solved = solve_unknown(rgb, hard, band)
    assert np.abs(solved / 255 - expected)[band].max() < 1 / 255


@pytest.mark.parametrize("seed", range(4))
def test_the_order_names_every_pixel_once_and_parts_halves(seed: int) -> None:
    places = np.argwhere(np.random.default_rng(seed).random((40, 30)) < 0.5)
    order = room._dissected(places)
    assert sorted(order) == list(range(len(places)))
    last = places[order[-20:]]
    assert min(np.ptp(last, axis=0)) < room.REACH, "what parts the whole is eliminated last"
