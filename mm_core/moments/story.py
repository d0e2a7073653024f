"""Titles and tones of events from times, categories, tags and brightness of their photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from mm_core.core.categories import NOUNS
from mm_core.moments.strategy import Facts

TONES = ("joyful", "festive", "calm", "cosy", "adventurous", "everyday")
PARTS = ((5, "Night"), (11, "Morning"), (14, "Midday"), (18, "Afternoon"), (22, "Evening"), (24, "Night"))
"""Parts of the day with the hour at which each ends."""
FESTIVE = frozenset({"candle", "confectionery", "balloon", "wine", "goblet", "stage", "cake", "party", "gown"})
OUTDOORS = frozenset({"alp", "valley", "cliff", "lakeside", "seashore", "volcano", "tent", "backpack", "mountain"})
"""Words in tags that indicate a tone."""


def title(facts: Sequence[Facts], times: Sequence[datetime | None]) -> str:
    """Return a title in a person's words: `Saturday evening with friends, 12 December 2026`."""
    dated = sorted(t for t in times if t is not None)
    what = _company(facts)
    if not dated:
        return f"Undated photos {what}".strip()
    first, last = dated[0], dated[-1]
    # Several days: a night alone does not make a trip.
    if (last.date() - first.date()).days >= 1 and (last - first).total_seconds() > 18 * 3600:
        days = (last.date() - first.date()).days + 1
        return f"{days} days {what}, {_span(first, last)}".replace(" ,", ",")
    # The median photo represents the event: the first may be hours earlier.
    middle = dated[len(dated) // 2]
    return f"{_weekday(middle)} {_part(middle).lower()} {what}, {_date(middle)}".replace(" ,", ",")


def tone(facts: Sequence[Facts], times: Sequence[datetime | None]) -> tuple[str, str]:
    """Return one of TONES, and a sentence with the reason."""
    kinds = Counter(f.category for f in facts if f.category)
    total = max(1, len(facts))
    share = {kind: count / total for kind, count in kinds.items()}
    people = share.get("multi_person", 0.0) + share.get("portrait", 0.0)
    tags = {word for f in facts for tag in f.tags for word in (tag, *tag.split())}
    late = [t for t in times if t is not None and (t.hour >= 18 or t.hour < 3)]
    # Share of dated photos between 18:00 and 03:00.
    evening = len(late) / max(1, sum(t is not None for t in times))
    bright = _mean([f.brightness for f in facts], 0.5)
    colour = _mean([f.colourfulness for f in facts], 35.0)
    # Hand-set weights; the values are only compared with each other.
    scores = {
        "festive": share.get("multi_person", 0.0) * (0.5 + evening) + 0.5 * share.get("delicacy", 0.0) * evening
        + 0.4 * bool(tags & FESTIVE),
        "joyful": people * (0.3 + 0.5 * min(1.0, colour / 60) + 0.4 * bright) + 0.5 * share.get("pets", 0.0),
        "calm": share.get("scenery", 0.0) * (0.9 - 0.4 * min(1.0, colour / 80)),
        "adventurous": share.get("scenery", 0.0) * (0.35 + people) + 0.4 * bool(tags & OUTDOORS),
        "cosy": (share.get("delicacy", 0.0) + 0.6 * share.get("pets", 0.0)) * (1.0 - 0.5 * bright),
        "everyday": 0.3 + 0.6 * (share.get("cards", 0.0) + share.get("accessories", 0.0)),
    }  # fmt: skip
    # Ties go to the earlier tone.
    best = max(TONES, key=lambda name: (scores[name], -TONES.index(name)))
    return best, _why(best, kinds, total, evening)


def _why(name: str, kinds: Counter, total: int, evening: float) -> str:
    counted = kinds.most_common(2)
    shown = ", ".join(f"{n} of {total} {'show' if n > 1 else 'shows'} {NOUNS[kind]}" for kind, n in counted)
    when = ", mostly in the evening" if evening > 0.5 else ""
    return f"{name.capitalize()}: {shown or 'nothing in particular stands out'}{when}."


def _company(facts: Sequence[Facts]) -> str:
    kinds = Counter(f.category for f in facts if f.category)
    if not kinds:
        return ""
    total = sum(kinds.values())
    # Company first, then place; each needs a share of the photos with a known category.
    if kinds["multi_person"] / total >= 0.25:
        with_whom = "with friends"
    elif kinds["pets"] / total >= 0.3:
        with_whom = "with a pet"
    elif kinds["portrait"] / total >= 0.3:
        with_whom = "with someone"
    else:
        with_whom = ""
    where = {"scenery": "outdoors", "delicacy": "at the table", "cards": "among papers", "accessories": "with things"}
    place = next((where[k] for k, n in kinds.most_common() if k in where and n / total >= 0.25), "")
    return f"{place} {with_whom}".strip()


def _part(t: datetime) -> str:
    return next(name for until, name in PARTS if t.hour < until)


def _weekday(t: datetime) -> str:
    return ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[t.weekday()]


def _date(t: datetime) -> str:
    return f"{t.day} {_month(t)} {t.year}"


def _month(t: datetime) -> str:
    return ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
            "November", "December")[t.month - 1]  # fmt: skip


def _span(first: datetime, last: datetime) -> str:
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} to {_date(last)}"
    return f"{first.day} {_month(first)} to {_date(last)}"


def _mean(values: Sequence[float | None], default: float) -> float:
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if numbers else default
