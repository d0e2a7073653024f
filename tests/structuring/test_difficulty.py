import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import SIDE, disk, hair, painted, star

import samplegen
from mm_core.core.records import ALL_CATEGORIES
from mm_core.structuring.difficulty import HALF, WEIGHTS, Difficulty, boundary_length, measure, version_for


def test_boundary_of_a_disk_is_its_circumference():
    for radius in (20, 50, 80):
        assert boundary_length(disk(radius)) == pytest.approx(2 * math.pi * radius, rel=0.02)


def test_boundary_of_a_half_plane_is_a_straight_line_and_the_frame_does_not_count():
    alpha = np.zeros((64, 100), np.float32)
    alpha[:20] = 1
    assert boundary_length(alpha) == pytest.approx(99)


def test_a_faint_edge_counts_by_its_opacity():
    assert boundary_length(disk() * 0.3) == pytest.approx(0.3 * boundary_length(disk()), rel=1e-5)


def test_disk_then_star_then_hair():
    measured = {shape.__name__: measure(painted(shape()), shape()) for shape in (disk, star, hair)}
    assert measured["disk"].score < measured["star"].score < measured["hair"].score
    assert measured["disk"].boundary == pytest.approx(1, rel=0.02)
    assert measured["disk"].thin < 0.01 < measured["star"].thin < measured["hair"].thin
    assert measured["hair"].unknown > 5 * measured["disk"].unknown


def test_holes_and_components_are_counted_and_specks_are_not():
    alpha = np.zeros((200, 200), np.float32)
    alpha[20:80, 20:80] = 1
    assert measure(painted(alpha), alpha).parts == 0
    alpha[40:60, 40:60] = 0
    alpha[120:160, 120:160] = 1
    alpha[190, 190] = 1
    assert measure(painted(alpha), alpha).parts == 2


def test_background_cut_off_by_the_frame_is_no_hole():
    alpha = np.zeros((100, 100), np.float32)
    alpha[40:60] = 1
    assert measure(painted(alpha), alpha).parts == 0


def test_colour_overlap_is_none_for_unlike_and_full_for_equal_colours():
    alpha = disk()
    assert measure(painted(alpha), alpha).overlap == pytest.approx(0, abs=1e-9)
    same = painted(alpha, (90, 90, 90), (90, 90, 90))
    assert measure(same, alpha).overlap == pytest.approx(1)


def test_camouflage_is_harder_than_contrast_and_small_is_harder_than_large():
    alpha = disk()
    assert measure(painted(alpha, (90, 90, 90), (92, 90, 90)), alpha).score > measure(painted(alpha), alpha).score
    assert measure(painted(disk(15)), disk(15)).score > measure(painted(disk(80)), disk(80)).score


@given(st.lists(st.floats(0, 1e6), min_size=6, max_size=6), st.sampled_from(sorted(WEIGHTS)), st.floats(0.01, 10))
def test_score_lies_in_the_unit_interval_and_rises_with_every_signal(values, name, more):
    signals = dict(zip(WEIGHTS, values, strict=True))
    score = Difficulty(**signals).score
    assert 0 <= score <= 1
    assert Difficulty(**{**signals, name: signals[name] + more * HALF[name]}).score >= score
    signals[name] = HALF[name]
    assert Difficulty(**{**signals, name: HALF[name] * (1 + more)}).score > Difficulty(**signals).score


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_mattes_have_a_score(value):
    alpha = np.full((50, 70), value, np.float32)
    found = measure(painted(alpha), alpha)
    assert math.isfinite(found.score)
    assert found.smallness == 1 - value


def test_resolution_hardly_matters():
    small, large = hair(384), hair(1152)
    assert measure(painted(large), large).score == pytest.approx(measure(painted(small), small).score, abs=0.05)


def test_photo_and_matte_may_differ_in_resolution():
    alpha = star(SIDE * 2)
    assert measure(painted(star()), alpha).score == pytest.approx(measure(painted(alpha), alpha).score, abs=0.02)


def test_a_new_label_has_a_new_version():
    assert version_for("a" * 64) != version_for("b" * 64)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_generated_hard_samples_score_above_easy_ones(category):
    def mean(mode):
        made = [samplegen.generate(category, seed, size=128, mode=mode) for seed in range(8)]
        return np.mean([measure(sample.image, sample.alpha).score for sample in made])

    assert mean("hard") > mean("easy")
