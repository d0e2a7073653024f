"""Read the energy counters of the machine's processors, if the system offers them."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
"""Linux powercap: one `intel-rapl:N` folder per processor package (AMD too); only root can read the counters."""


def joules() -> float | None:
    """Return the energy of all processor packages in joules since an unknown start, or None if it is not readable.

    The counters include the energy of all other programs on the machine.
    """
    counters = sorted(COUNTERS.glob("intel-rapl:[0-9]*/energy_uj"))
    # `intel-rapl:0` is a package; `intel-rapl:0:1` is a part of it and would be counted twice.
    packages = [counter for counter in counters if counter.parent.name.count(":") == 1]
    try:
        # The files hold microjoules.
        return sum(int(counter.read_text()) for counter in packages) / 1e6 if packages else None
    except (OSError, ValueError):
        return None


def watts(before: float | None, seconds: float) -> float | None:
    """Return the mean power in watts since an earlier `joules()` reading.

    Args:
        before: The earlier reading in joules, or None.
        seconds: Time since that reading.

    Returns:
        Watts, or None if a reading is missing or a counter wrapped around in between.
    """
    now = joules()
    if before is None or now is None or now < before or seconds <= 0:
        return None
    return (now - before) / seconds
