"""Which photos belong to one event: density clustering by time and place.

ST-DBSCAN (Birant & Kut 2007): two photos are neighbours where both their times and their places are near, and clusters
are what neighbours connect (DBSCAN, Ester et al. 1996, by scikit-learn, on the sparse graph of neighbours). One camera
may have travelled between two photos that it took soon after each other, so that a trip is one event; what another
camera took elsewhere meanwhile is not of it. Photos without a place join the event that is nearest in time, of their
own camera where it has one; photos without a time make no event.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import numpy as np

EARTH_KM = 6371.0
DENSE = 3
"""Photos, itself included, that make one a core of an event: a lone photo on the way does not join two events."""
TRAVEL_HOURS = 1.25
"""Between photos farther apart in time nobody is taken to have been on the way: elsewhere then is another event. Chosen
on other seeds than those that benchmarks/moments.md reports."""
_IN_NAME = re.compile(r"(20\d{2})-?([01]\d)-?([0-3]\d)(?:[-_T ]+(?:at )?([0-2]\d)[-.:]?([0-5]\d)[-.:]?([0-5]\d))?")


def cluster(
    seconds: np.ndarray,
    places: np.ndarray,
    cameras: Sequence[str] | None = None,
    *,
    gap_hours: float = 3.0,
    radius_km: float = 1.5,
    speed_kmh: float = 15.0,
) -> np.ndarray:
    """Event of each photo, int64 (N,), numbered by time from 0; -1: no time known.

    `seconds` float (N,) of any epoch, NaN unknown; `places` float (N, 2) latitude and longitude in degrees, NaN
    unknown; `cameras`: a name each, None: all are one's. Photos farther than `gap_hours` or `radius_km` from any other
    of an event are not of it; two of one camera soon after each other (TRAVEL_HOURS) may be farther apart by the way
    that `speed_kmh` allows.
    """
    camera = np.unique(np.asarray(cameras if cameras is not None else [""] * len(seconds), str), return_inverse=True)[1]
    limits = gap_hours * 3600, radius_km, speed_kmh / 3600
    labels = np.full(len(seconds), -1, np.int64)
    timed = np.isfinite(seconds)
    located = timed & np.isfinite(places).all(1)
    _dense(labels, np.flatnonzero(located), seconds, places, camera, limits)
    loose = np.flatnonzero(timed & ~located)
    anchors = np.flatnonzero(labels >= 0)
    for photo in loose:
        off = np.abs(seconds[anchors] - seconds[photo])
        for mine in (camera[anchors] == camera[photo], np.ones(len(anchors), bool)):
            near = mine & (off <= limits[0])
            if labels[photo] < 0 and near.any():
                labels[photo] = labels[anchors[near][np.argmin(off[near])]]
    loose = loose[labels[loose] < 0]
    _dense(labels, loose, seconds, np.zeros((len(seconds), 2)), camera, limits)
    return _by_time(labels, seconds)


def _dense(
    labels: np.ndarray,
    photos: np.ndarray,
    seconds: np.ndarray,
    places: np.ndarray,
    camera: np.ndarray,
    limits: tuple[float, float, float],
) -> None:
    """Clusters the given photos, in place, under new numbers. `limits`: seconds, kilometres, kilometres a second."""
    from scipy.sparse import coo_matrix
    from sklearn.cluster import DBSCAN

    if not len(photos):
        return
    order = photos[np.argsort(seconds[photos], kind="stable")]
    gap, radius, speed = limits
    times, spots, owners = seconds[order], np.radians(places[order]), camera[order]
    rows, columns = [], []
    ends = np.searchsorted(times, times + gap, side="right")
    for first in range(len(order)):
        near = np.arange(first + 1, ends[first])
        # A neighbour in time that is far away must not hide a near one behind it, so all are looked at; in a burst of
        # thousands at one place the first hundreds connect the rest.
        passed = times[near] - times[first]
        travelled = speed * passed * ((owners[near] == owners[first]) & (passed <= TRAVEL_HOURS * 3600))
        near = near[haversine(spots[first], spots[near]) <= radius + travelled][:256]
        rows.append(np.full(len(near), first))
        columns.append(near)
    r, c = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(2 * len(r)), (np.r_[r, c], np.r_[c, r])), shape=(len(order), len(order))).tocsr()
    found = DBSCAN(eps=1.5, min_samples=DENSE, metric="precomputed").fit_predict(graph)
    # What is too sparse to be dense is an event all the same: pairs, and photos by themselves.
    sparse = np.flatnonzero(found < 0)
    if len(sparse):
        rest = DBSCAN(eps=1.5, min_samples=1, metric="precomputed").fit_predict(graph[sparse][:, sparse])
        found[sparse] = rest + found.max(initial=-1) + 1
    labels[order] = found + labels.max(initial=-1) + 1


def haversine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kilometres between a place (2,) and places (N, 2), latitude and longitude in radians."""
    across = np.sin((b - a) / 2) ** 2
    share = across[:, 0] + np.cos(a[0]) * np.cos(b[:, 0]) * across[:, 1]
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(share, 0, 1)))


def _by_time(labels: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    numbers = [n for n in np.unique(labels) if n >= 0]
    numbers.sort(key=lambda n: (float(seconds[labels == n].min()), int(n)))
    result = np.full_like(labels, -1)
    for new, old in enumerate(numbers):
        result[labels == old] = new
    return result


def time_of(taken_at: str | None, name: str) -> datetime | None:
    """When a photo was taken: as its EXIF says, else as its file name does (IMG_20260501_183000.jpg); local time."""
    if taken_at:
        return datetime.fromisoformat(taken_at).replace(tzinfo=None)
    found = _IN_NAME.search(name)
    if not found:
        return None
    parts = [int(part) if part else None for part in found.groups()]
    try:
        # A messenger's name has the day alone: noon is nearest to all of it.
        return datetime(*(parts[:3]), *(parts[3:] if parts[3] is not None else (12, 0, 0)))  # pyright: ignore
    except ValueError:
        return None


def representatives(
    scores: np.ndarray, vectors: np.ndarray, kinds: Sequence[str], count: int, weight: float = 0.6
) -> list[int]:
    """Positions of the best photos of an event, best first: quality and variety, over its kinds.

    Maximal marginal relevance (Carbonell & Goldstein 1998): each next photo has the best `weight` x quality less the
    rest x likeness to what is chosen. `scores` (N,) in [0, 1]; `vectors` (N, dim); `kinds`: a kind that has a photo
    already counts as much as a likeness of a half.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    chosen: list[int] = []
    while len(chosen) < min(count, len(scores)):
        like = (unit @ unit[chosen].T).max(1) if chosen else np.zeros(len(scores))
        again = np.array([sum(kinds[c] == kind for c in chosen) for kind in kinds])
        value = weight * scores - (1 - weight) * (np.clip(like, 0, 1) + 0.5 * np.minimum(again, 2))
        value[chosen] = -np.inf
        chosen.append(int(np.argmax(value)))
    return chosen
