"""New skies: known haze, known edges, nothing of the old sky left."""

from __future__ import annotations

import numpy as np
import pytest

from mm_core.core.errors import InputError
from mm_core.effects.haze import haze
from mm_core.effects.sky import SKIES, painted_sky, replaced
from samplegen import render


def scene(seed: int, size: int = 160) -> tuple[np.ndarray, np.ndarray]:
    r = render("scenery", seed, size=size, aspect=4 / 3)
    return np.clip(r.light, 0, 255).round().astype(np.uint8), r.alpha


@pytest.mark.parametrize("seed", [1, 6, 12])
def test_haze_that_was_put_over_a_scene_is_found(seed: int) -> None:
    """I = J t + A (1 - t) over the land: the estimate rises with 1 - t and comes near it."""
    photo, sky = scene(seed)
    found = []
    for share in (0.0, 0.4, 0.7):
        hazy = photo * (1 - share) + 225.0 * share
        seen = np.where(sky[..., None] > 0.5, 225.0, hazy).round().astype(np.uint8)
        found.append(haze(seen, sky).share)
    assert found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(0.7, abs=0.15)
    assert haze(seen, sky).word == "foggy"


def test_a_clear_scene_is_clear_and_all_sky_has_no_land_to_judge() -> None:
    photo, sky = scene(1)
    assert haze(photo, sky).share < 0.45
    assert haze(photo, np.ones_like(sky)).share == 0.0


def test_under_a_new_sky_no_edge_of_the_old_one_shows() -> None:
    """The same land rendered before black shows what belongs to it; the naive blend keeps the old sky's light."""
    r = render("scenery", 6, size=192, aspect=4 / 3)
    photo, sky = np.clip(r.light, 0, 255).round().astype(np.uint8), r.alpha
    new = np.zeros((80, 256, 3), np.uint8)
    band = (sky > 0.05) & (sky < 0.95)
    assert band.sum() > 50
    ours = replaced(photo, sky, new)
    naive = photo * (1 - sky[..., None])
    # Before black the land's edge can only be darker than the naive blend, which carries the old bright sky.
    assert ours[band].mean() < naive[band].mean()


def test_the_new_sky_is_where_the_old_one_was_and_the_land_keeps_its_detail() -> None:
    photo, sky = scene(12)
    done = replaced(photo, sky, "sunset")
    assert done.shape == photo.shape and done.dtype == np.uint8
    firm = sky > 0.99
    assert np.abs(done[firm].astype(int) - photo[firm]).mean() > 20
    land = sky < 0.01
    grey, was = done[land].mean(1), photo[land].mean(1)
    assert np.corrcoef(grey, was)[0, 1] > 0.95


def test_at_night_the_land_is_darker_than_at_noon() -> None:
    photo, sky = scene(12)
    land = sky < 0.01
    assert replaced(photo, sky, "night")[land].mean() < 0.7 * replaced(photo, sky, "clear")[land].mean()


def test_without_a_sky_nothing_changes_and_unknown_skies_are_named() -> None:
    photo, sky = scene(1)
    empty = np.zeros_like(sky)
    assert np.array_equal(replaced(photo, empty, "clear"), photo)
    with pytest.raises(InputError, match="sunset"):
        replaced(photo, sky, "green")


def test_painted_skies_have_their_horizon_below_and_repeat_by_seed() -> None:
    for name, (high, low, _, _) in SKIES.items():
        sky = painted_sky(name, 64, 96, seed=4)
        assert np.array_equal(sky, painted_sky(name, 64, 96, seed=4))
        if name == "clear":
            assert np.abs(sky[0].mean(0) - high).max() < 3 and np.abs(sky[-1].mean(0) - low).max() < 3
