"""Times decide between people and drops, and an answer that is read again changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from mm_core.labeling.apply_annotations import Asked, Work, _is_newer_category, _is_news
from mm_core.labeling.consensus import Answer

EARLY, LATE = "2026-11-01T10:00:00+00:00", "2026-11-02T10:00:00.250000+00:00"


def label(alpha: str, origin: str, when: str, version: int, task: str | None = None) -> dict[str, Any]:
    return {
        "id": f"{origin}-{alpha}", "sample_id": "s", "alpha_sha256": alpha, "origin": origin, "created_at": when,
        "version": version, "task": task, "withdrawn_at": None,
    }  # fmt: skip


def asked(labels: list[dict[str, Any]], **more: Any) -> Asked:
    return Asked(
        {"id": "s", "category": "pets", "accepted_at": EARLY}, labels, labels[-1] if labels else None, "", **more
    )


@pytest.mark.parametrize("task", ["", "http://server/7"])
def test_a_newer_drop_stands_against_an_answer_that_is_read_again(task: str) -> None:
    person = label("P", "label_studio", EARLY, 2, task)
    photo = asked([label("A", "drop", "2026-10-01T00:00:00+00:00", 1), person, label("B", "drop", LATE, 3)])
    assert not _is_news(photo, Work("s", [], task), person)
    assert _is_news(photo, Work("s", [], task), person | {"created_at": "2026-11-03T00:00:00+00:00"}), "edited since"


def test_a_first_answer_is_weighed_by_its_time_too() -> None:
    drop = label("B", "drop", LATE, 1)
    assert not _is_news(asked([drop]), Work("s", []), label("P", "label_studio", EARLY, 2))
    assert _is_news(asked([drop | {"created_at": EARLY}]), Work("s", []), label("P", "label_studio", LATE, 2))


def test_an_answer_from_a_clock_that_was_ahead_does_not_come_back_when_it_is_read_again() -> None:
    person = label("P", "label_studio", "2099-01-01T00:00:00+00:00", 2, "http://server/7")
    photo = asked([label("A", "drop", EARLY, 1), person, label("B", "drop", LATE, 3)])
    assert not _is_news(photo, Work("s", [], "http://server/7"), person), "the drop came after it was read"
    person["withdrawn_at"] = LATE
    assert _is_news(photo, Work("s", [], "http://server/7"), person), "it was taken back, and is given again"


def test_times_are_compared_as_times() -> None:
    """Another zone, and a whole second against a fraction of it, sort otherwise as text."""
    drop = label("B", "drop", "2026-11-02T11:30:00+02:00", 1)
    assert _is_news(asked([drop]), Work("s", []), label("P", "label_studio", "2026-11-02T10:00:00+00:00", 2))
    drop = label("B", "drop", "2026-11-02T10:00:00.5+00:00", 1)
    assert not _is_news(asked([drop]), Work("s", []), label("P", "label_studio", "2026-11-02T10:00:00+00:00", 2))


def test_a_category_is_the_newest_word_too() -> None:
    answer = Answer(None, "cards", "", "ana", EARLY)
    assert _is_newer_category(asked([]), answer)
    assert not _is_newer_category(asked([], category_at=LATE), answer), "a drop has said another one since"
    assert not _is_newer_category(asked([label("P", "label_studio", LATE, 2)]), answer), "a person has, with a matte"
    assert not _is_newer_category(asked([], keeps_category=True), answer)
    assert not _is_newer_category(asked([]), Answer(None, "pets", "", "ana", LATE)), "it is that category"
