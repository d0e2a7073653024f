"""Which function suits a photo; documents are found and straightened."""

from __future__ import annotations

from datetime import datetime

import cv2
import numpy as np
import pytest

from mm_core.core.records import ALL_CATEGORIES
from mm_core.effects.document import find_quad, straightened
from mm_core.moments.strategy import FUNCTIONS, RULES, Facts, offers
from mm_core.structuring.rows import Found
from samplegen import generate


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        (Facts(category="cards", text="Library\nNo. 17"), "document"),
        (Facts(category="delicacy", text="a\nb\nc\nd\ne", text_share=0.2), "cutout"),
        (Facts(category=None, text="a\nb\nc\nd\ne", text_share=0.2), "document"),
        (Facts(category="scenery", haze=0.7), "sky"),
        (Facts(category="pets", simplicity=0.9, colourfulness=10.0), "cutout"),
        (Facts(category="portrait", simplicity=0.1), "blur"),
        (Facts(category="portrait", simplicity=0.9, colourfulness=70.0), "splash"),
        (Facts(category="portrait", subjects=3, simplicity=0.9), "eraser"),
        (Facts(), "cutout"),
    ],
)
def test_the_first_offer_is_the_fitting_one_and_says_why(facts: Facts, first: str) -> None:
    made = offers(facts)
    assert made[0].function == first
    assert all(offer.why.endswith(".") and 0 < offer.score <= 1 for offer in made)
    assert len({offer.function for offer in made}) == len(made)


def test_haze_is_named_and_outweighs_the_hour() -> None:
    evening = datetime(2026, 5, 1, 20)
    foggy, clear = (offers(Facts(category="scenery", haze=h, taken_at=evening))[0] for h in (0.7, 0.1))
    assert "foggy" in foggy.why and foggy.choice == "clouds"
    assert "evening" in clear.why and clear.choice == "sunset"


def test_every_category_has_an_offer_and_every_function_a_rule() -> None:
    for category in ALL_CATEGORIES:
        assert offers(Facts(category=category))
    rich = [Facts(category=c, haze=0.9, subjects=2, colourfulness=60.0, text="x") for c in ALL_CATEGORIES]
    named = {offer.function for facts in rich for offer in offers(facts)}
    assert named == set(FUNCTIONS) and len(RULES) >= len(FUNCTIONS)


def test_facts_come_from_the_rows_of_the_catalog() -> None:
    rows = {
        "photo": Found({"brightness": 0.4, "latitude": 48.2}, {"taken_at": "2026-05-01T18:30:00"}),
        "ocr": Found({"text_share": 0.1}, {"text": "hello"}),
        "guess": Found({"confidence": 0.9}, {"category": "cards"}),
        "clip": Found({}, {"tags": "menu; book"}),
    }
    facts = Facts.of(None, rows)
    assert (facts.category, facts.text, facts.tags, facts.located) == ("cards", "hello", ("menu", "book"), True)
    assert facts.taken_at == datetime(2026, 5, 1, 18, 30) and facts.brightness == 0.4
    assert Facts.of("pets", rows).category == "pets", "what a manifest says beats a guess"
    assert Facts.of(None, {}) == Facts()


CORNERS = np.array([[60, 40], [260, 70], [240, 210], [40, 190]], np.float32)


def page() -> tuple[np.ndarray, np.ndarray]:
    """A page with a red top left and a blue bottom right corner, seen askew on a dark table; and the flat page."""
    flat = np.full((150, 210, 3), 245, np.uint8)
    flat[:30, :30], flat[-30:, -30:] = (250, 200, 200), (200, 200, 250)
    corners = np.array([[0, 0], [210, 0], [210, 150], [0, 150]], np.float32)
    view = cv2.getPerspectiveTransform(corners, CORNERS)
    table = np.full((260, 320, 3), 40, np.uint8)
    over = cv2.warpPerspective(flat, view, (320, 260))
    mask = cv2.warpPerspective(np.full((150, 210), 255, np.uint8), view, (320, 260))
    return np.where(mask[..., None] > 0, over, table).astype(np.uint8), flat


def test_a_page_seen_askew_is_found_and_lies_straight_afterwards() -> None:
    photo, flat = page()
    quad = find_quad(photo)
    assert quad is not None
    assert np.abs(quad * [320, 260] - CORNERS).max() < 4
    straight = cv2.resize(straightened(photo, quad), (210, 150))
    assert np.abs(straight[8:-8, 8:-8].astype(int) - flat[8:-8, 8:-8]).mean() < 6


def test_generated_cards_are_found_by_their_matte() -> None:
    found = 0
    for seed in range(6):
        card = generate("cards", seed, size=256)
        quad = find_quad(card.image, card.alpha)
        found += quad is not None
    assert found >= 4


def test_what_is_no_quadrangle_is_none() -> None:
    assert find_quad(np.full((100, 120, 3), 90, np.uint8), np.zeros((100, 120), np.float32)) is None
    disc = np.zeros((200, 200), np.float32)
    cv2.circle(disc, (100, 100), 60, 1.0, -1)
    blank = np.full((200, 200, 3), 128, np.uint8)
    assert find_quad(blank, disc) is None
