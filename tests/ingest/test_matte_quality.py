"""Known answers: what each measure says of a subject that is there, and of mattes with one planted fault."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import numpy as np
import pytest

from mm_core.core.params import SuspectParams
from mm_core.core.records import ALL_CATEGORIES
from mm_core.ingest.matte_quality import MatteQuality, edge_agreement, edge_width, inversion, measure
from samplegen import generate

LIMITS = SuspectParams()


def suspicions(found: MatteQuality) -> set[str]:
    """The measures beyond their limits."""
    judged = {name: value for name, value in asdict(found).items() if name not in ("foreground", "lowest", "highest")}
    values = {name: value for name, value in judged.items() if value is not None}
    low = ("edge_match", "edge_contrast")
    return {
        n for n, value in values.items() if (value < getattr(LIMITS, n) if n in low else value > getattr(LIMITS, n))
    }


@pytest.fixture(scope="module")
def disc() -> tuple[np.ndarray, np.ndarray]:
    """A photo uint8 (192, 256, 3) of a bright disc before clutter, and its soft-edged matte."""
    random = np.random.default_rng(0)
    ground = cv2.resize(random.integers(0, 120, (24, 32, 3), np.uint8), (256, 192), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:192, :256]
    alpha = np.clip(55 - np.hypot(x - 128, y - 96), 0, 1).astype(np.float32)
    photo = ground * (1 - alpha[..., None]) + np.array([230, 180, 120]) * alpha[..., None]
    return photo.astype(np.uint8), alpha


def test_a_true_matte_is_not_suspected(disc: tuple[np.ndarray, np.ndarray]) -> None:
    found = measure(disc[1], disc[0])
    assert suspicions(found) == set()
    assert found.foreground == pytest.approx(np.pi * 54.5**2 / (192 * 256), rel=0.01)
    assert found.inversion == -1 and found.holes == found.specks == 0
    assert found.edge_match == 1 and (found.edge_contrast or 0) > 5


@pytest.mark.parametrize("fault", ["inversion", "holes", "specks", "edge_width", "plateau", "edge_match"])
def test_a_planted_fault_shows_in_its_measure(disc: tuple[np.ndarray, np.ndarray], fault: str) -> None:
    photo, alpha = disc
    wrong = alpha.copy()
    if fault == "inversion":
        wrong = 1 - alpha
    elif fault == "holes":
        for x in range(100, 160, 12):
            cv2.circle(wrong, (x, 96), 2, 0.0, -1)
    elif fault == "specks":
        for x in range(10, 250, 24):
            cv2.circle(wrong, (x, 12), 2, 1.0, -1)
    elif fault == "edge_width":
        wrong = cv2.GaussianBlur(alpha, (0, 0), 6)
    elif fault == "plateau":
        unknown = cv2.dilate(alpha, np.ones((61, 61))) > 0
        wrong[unknown] = np.maximum(alpha, 0.5)[unknown]
    else:
        wrong = np.roll(alpha, 13, axis=1)
    assert fault in suspicions(measure(wrong, photo))


def test_a_thin_subject_of_few_pixels_need_not_be_whole_anywhere(disc: tuple[np.ndarray, np.ndarray]) -> None:
    photo, alpha = disc
    faded = measure(0.8 * alpha, photo)
    assert (faded.lowest, faded.highest) == (0, pytest.approx(0.8))
    small = measure(cv2.resize(alpha, (64, 48)), cv2.resize(photo, (64, 48)))
    assert small.lowest is None and small.highest is None


def test_holes_that_the_photo_shows_are_no_fault(disc: tuple[np.ndarray, np.ndarray]) -> None:
    photo, alpha = disc[0].copy(), disc[1].copy()
    for x in range(100, 160, 12):
        cv2.circle(alpha, (x, 96), 2, 0.0, -1)
        cv2.circle(photo, (x, 96), 2, (20, 60, 20), -1)
    assert measure(alpha, photo).holes == 0


def test_a_sky_is_at_home_at_the_top() -> None:
    sky = np.zeros((90, 60), np.float32)
    sky[:40] = 1
    assert inversion(sky, "scenery") == pytest.approx(-1) and inversion(1 - sky, "scenery") == pytest.approx(1)
    card = np.ones((90, 60), np.float32)
    assert inversion(card, "cards") == 0, "what fills the frame is not inverted"


def test_the_width_of_a_ramp_is_its_width() -> None:
    ramp = np.clip((np.arange(200, dtype=np.float32) - 80) / 20, 0, 1)[None].repeat(100, 0)
    assert edge_width(ramp) == pytest.approx(20 / 200, rel=0.02)
    assert edge_width(np.ones((50, 50), np.float32)) is None


def test_the_edge_of_another_photo_does_not_agree(disc: tuple[np.ndarray, np.ndarray]) -> None:
    """Without structure where the matte has its edge, no shift stands out."""
    noise = np.random.default_rng(1).integers(0, 255, (192, 256, 3), np.uint8)
    _, contrast = edge_agreement(noise, disc[1])
    assert contrast is not None and contrast < 3.5
    assert edge_agreement(noise, np.zeros((192, 256), np.float32)) == (None, None)


def test_nothing_is_said_of_edges_in_tiny_photos(disc: tuple[np.ndarray, np.ndarray]) -> None:
    photo, alpha = (cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA) for picture in disc)
    found = measure(alpha, photo)
    assert (found.edge_width, found.edge_match, found.edge_contrast) == (None, None, None)


def test_a_large_matte_measures_as_a_small_one(disc: tuple[np.ndarray, np.ndarray]) -> None:
    large = cv2.resize(disc[1], (1024, 768), interpolation=cv2.INTER_LINEAR)
    small, same = measure(disc[1], disc[0]), measure(large, disc[0])
    assert same.edge_match == small.edge_match
    assert same.foreground == pytest.approx(small.foreground, abs=0.005)
    assert same.inversion == small.inversion and suspicions(same) == set()


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_generated_mattes_are_believable(category: str) -> None:
    for seed, mode in ((2, "easy"), (5, "hard")):
        sample = generate(category, seed, size=192, mode=mode)
        assert suspicions(measure(sample.alpha, sample.image, category)) == set()
