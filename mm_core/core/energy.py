"""What the machine's processors have drawn so far, where the system tells."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
"""Linux's powercap: one `intel-rapl:N` (AMD's too) per processor package, readable by root alone."""


def joules() -> float | None:
    """Energy of all processor packages since some moment of the past, other programs' share included; None: unknown."""
    found = sorted(COUNTERS.glob("intel-rapl:[0-9]*/energy_uj"))
    packages = [counter for counter in found if counter.parent.name.count(":") == 1]
    try:
        return sum(int(counter.read_text()) for counter in packages) / 1e6 if packages else None
    except (OSError, ValueError):
        return None


def watts(before: float | None, seconds: float) -> float | None:
    """Mean power since `joules` said `before`; None where it is unknown or a counter has begun again in between."""
    now = joules()
    if before is None or now is None or now < before or seconds <= 0:
        return None
    return (now - before) / seconds
