"""Read the time at which a photo was taken, as EXIF and manifests write it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

_FORM = re.compile(
    r"(?P<y>\d{4})(?P<sign>[-:/]?)(?P<m>\d\d?)(?P=sign)(?P<d>\d\d?)"
    r"(?:[T\s]\s*(?P<H>\d\d?):(?P<M>\d\d?)(?::(?P<S>\d\d?)(?P<f>[.,]\d{1,9})?)?\s*(?P<zone>[Zz]|[+-]\d\d:?\d\d)?)?"
)
"""Year first, because 01/05/2026 is two days. An offset is a number, because names of zones are ambiguous."""
FIRST_PHOTO = 1826
"""Year of the oldest photograph that is preserved."""


EPOCHS = ("1904-01-01T00:00:00", "1970-01-01T00:00:00", "1980-01-01T00:00:00")
"""Times at which clocks begin to count that were never set."""


def is_unset(text: str) -> bool:
    """Return whether a text is what a camera writes whose clock is not set: blanks, zeros, or one of EPOCHS."""
    return not text.strip("0 :-/TZ+.") or (_parse(text) or "").startswith(EPOCHS)


def parse_taken_at(text: str) -> str | None:
    """Return the time of capture in ISO 8601, without a zone if none is stated.

    Args:
        text: Year, month, day and perhaps the time and the offset to UTC: `2026:05:01 12:30:00` as in EXIF,
            `2026-05-01T12:30:00+02:00`, or `2026-05-01`.

    Returns:
        The time to the second, or the date alone where no time is stated; None where the text is no possible time of a
        photo: another form, a date that does not exist, the future, before photography, or a clock that is not set.
    """
    return None if is_unset(text) else _parse(text)


def _parse(text: str) -> str | None:
    match = _FORM.fullmatch(text.strip())
    if not match:
        return None
    number = {name: int(match[name] or 0) for name in "ymdHMS"}
    zone = (match["zone"] or "").upper().replace("Z", "+00:00")
    try:
        day = date(number["y"], number["m"], number["d"])
        clock = f"{number['H']:02}:{number['M']:02}:{number['S']:02}"
        when = datetime.fromisoformat(f"{day.isoformat()}T{clock}{zone}")
        # Without a zone, the time is that of the place of the photo, up to 14 hours ahead of UTC.
        known = when if when.tzinfo else when.replace(tzinfo=UTC)
        if day.year < FIRST_PHOTO or known > datetime.now(UTC) + timedelta(days=1):
            return None
    except (ValueError, OverflowError):
        return None
    return when.isoformat() if match["H"] else day.isoformat()
