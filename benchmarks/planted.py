"""A year of a family's photos as metadata: who took what when and where, and which event it belongs to.

Three cameras: two phones, and one without GPS whose clock is an hour off. Events are stays; trips that move on; two
visits to one place on one day; two phones at different places at once; one event that all cameras shared, with clocks
that differ. Some photos have no place, some no time or the day alone (as messengers name them), and some belong to
nothing: a snapshot on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

HOME = (48.2, 16.37)
KM = 1 / 111.2
PHONES, COMPACT = ("Acme One", "Acme Two"), "Olden Compact"
PLACELESS, TIMELESS, DATED, ALONE = 0.15, 0.015, 0.015, 0.05
"""Shares of photos without a place, without a time, with the day alone, and of no event."""


@dataclass(frozen=True)
class Shot:
    """One photo."""

    taken: datetime
    """As its camera's clock said."""
    place: tuple[float, float] | None
    camera: str
    event: int
    clock: str = "exif"
    """What is left of the time: `exif`, `day` (in the name), or `none`."""


class Year:
    """Draws events until there are enough photos. `density`: photos an hour."""

    def __init__(self, photos: int, seed: int, density: float):
        self.rng = np.random.default_rng([seed, round(100 * density)])
        self.density, self.shots, self.events = density, [], 0
        self.now = datetime(2026, 1, 3, 9)
        kinds = (self.stay, self.trip, self.twice, self.apart, self.shared)
        while len(self.shots) < photos:
            end = kinds[int(self.rng.choice(5, p=[0.4, 0.2, 0.15, 0.15, 0.1]))]()
            # The next one within the hour, later the same day, the next day, or some days later; mostly elsewhere.
            pause = self.rng.choice(
                [0.7, 1.5, 2.5, 5.0, 16.0, 40.0, 120.0], p=[0.08, 0.08, 0.12, 0.12, 0.25, 0.2, 0.15]
            )
            self.now = end + timedelta(hours=float(pause + self.rng.uniform(0, 1)))
        self.shots = [self._spoilt(shot) for shot in self.shots[:photos]]

    def stay(self) -> datetime:
        hours = self._hours()
        self._add(self._event(), self.now, hours, [self._place()], self.rng.choice(PHONES))
        return self.now + timedelta(hours=hours)

    def trip(self) -> datetime:
        """Three to six stops, 2 to 15 km from one to the next; a fifth of the photos on the way."""
        place, stops = self._place(), []
        heading = self.rng.uniform(0, 2 * np.pi)
        for _ in range(int(self.rng.integers(3, 7))):
            stops.append(place)
            heading += self.rng.normal(0, 0.6)
            place = self._moved(place, self.rng.uniform(2, 15), heading)
        hours = len(stops) * float(self.rng.uniform(0.7, 1.5))
        self._add(self._event(), self.now, hours, stops, self.rng.choice(PHONES))
        return self.now + timedelta(hours=hours)

    def twice(self) -> datetime:
        place, camera = self._place(), self.rng.choice(PHONES)
        for visit in range(2):
            if visit:
                self.now += timedelta(hours=float(self.rng.uniform(3.5, 8)))
            hours = float(self.rng.choice([0.5, 1.0, 2.0]))
            self._add(self._event(), self.now, hours, [place], camera)
            self.now += timedelta(hours=hours)
        return self.now

    def apart(self) -> datetime:
        """Both phones at once, 5 to 400 km from each other."""
        hours, place = max(1.0, self._hours()), self._place()
        far = self._moved(place, float(np.exp(self.rng.uniform(np.log(5), np.log(400)))), self.rng.uniform(0, 6.28))
        for camera, where in zip(PHONES, (place, far), strict=True):
            start = self.now + timedelta(hours=float(self.rng.uniform(0, 0.5)))
            self._add(self._event(), start, hours, [where], camera)
        return self.now + timedelta(hours=hours + 0.5)

    def shared(self) -> datetime:
        hours, place, event = max(1.0, self._hours()), self._place(), self._event()
        for camera in (*PHONES, COMPACT):
            off = float(self.rng.normal(0, 5)) if camera != COMPACT else 60.0
            self._add(event, self.now + timedelta(minutes=off), hours, [place], camera)
        return self.now + timedelta(hours=hours)

    def _event(self) -> int:
        self.events += 1
        return self.events - 1

    def _hours(self) -> float:
        return float(self.rng.choice([0.3, 1.0, 2.0, 4.0, 6.0]))

    def _place(self) -> tuple[float, float]:
        return self._moved(
            HOME, abs(self.rng.normal(0, 250 if self.rng.random() < 0.4 else 4)), self.rng.uniform(0, 6.28)
        )

    @staticmethod
    def _moved(place: tuple[float, float], km: float, heading: float) -> tuple[float, float]:
        north, east = km * np.cos(heading) * KM, km * np.sin(heading) * KM / np.cos(np.radians(place[0]))
        return float(place[0] + north), float(place[1] + east)

    def _add(self, event: int, start: datetime, hours: float, stops: list[tuple[float, float]], camera: str) -> None:
        """Photos of one camera: in clumps, as people take them; along the stops in order."""
        count = 3 + int(self.rng.poisson(self.density * hours))
        clumps = np.sort(self.rng.uniform(0, hours, max(2, count // 3)))
        offsets = np.sort(np.clip(self.rng.choice(clumps, count) + self.rng.exponential(0.05, count), 0, hours))
        spread = self.rng.uniform(0.05, 0.5)
        for offset in offsets.tolist():
            at = offset / hours * len(stops)
            here = stops[min(int(at), len(stops) - 1)]
            following = stops[min(int(at) + 1, len(stops) - 1)]
            share = max(0.0, (at % 1 - 0.8) / 0.2)
            centre = np.array(here) + share * (np.array(following) - here)
            place = self._moved((centre[0], centre[1]), abs(self.rng.normal(0, spread)), self.rng.uniform(0, 6.28))
            self.shots.append(Shot(start + timedelta(hours=offset), place, str(camera), event))
        for _ in range(int(self.rng.poisson(ALONE * count))):
            when = self.now + timedelta(hours=float(self.rng.uniform(-60, 60)))
            self.shots.append(Shot(when, self._place(), str(self.rng.choice(PHONES)), self._event()))

    def _spoilt(self, shot: Shot) -> Shot:
        lost = self.rng.random()
        if shot.camera == COMPACT or self.rng.random() < PLACELESS:
            shot = replace(shot, place=None)
        if lost < TIMELESS + DATED:
            shot = replace(shot, place=None, clock="none" if lost < TIMELESS else "day", camera="")
        return shot
