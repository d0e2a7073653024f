"""Group photos into events by density clustering in time and place.

ST-DBSCAN (Birant & Kut 2007): two photos are neighbours if both their times and their places are close. Clusters are
connected neighbours (DBSCAN, Ester et al. 1996, by scikit-learn, on the sparse graph of neighbours). The owner of a
camera may travel between two consecutive photos, so that a trip is one event. Photos of another camera at another place
do not belong to it. Photos without a place join the event nearest in time, if possible of their own camera. Photos
without a time form no event.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_matrix

from mm_core.core.deferred import Deferred

if TYPE_CHECKING:
    from sklearn import cluster as sklearn_cluster
else:
    sklearn_cluster = Deferred("sklearn.cluster")

EARTH_KM = 6371.0
DENSE = 3
"""Photos, itself included, that make a photo a core of an event; a single photo on the way joins no two events."""
TRAVEL_HOURS = 1.25
"""Largest time between two photos of one camera for which a journey is assumed; beyond it a distant place is another
event. Chosen on other seeds than those in benchmarks/moments.md."""
QUALITY = 0.6
"""Weight of quality against variety among the photos of an event, in [0, 1]."""
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
    """Assign photos to events.

    Args:
        seconds: Times, float (N,), from any epoch; NaN for unknown.
        places: Latitude and longitude in degrees, float (N, 2); NaN for unknown.
        cameras: Names of the cameras; None: all photos are of one.
        gap_hours: Largest time between neighbours.
        radius_km: Largest distance between neighbours.
        speed_kmh: Speed of travel that extends the distance between photos of one camera within TRAVEL_HOURS.

    Returns:
        Number of each photo's event, int64 (N,), by time from 0; -1 for photos without a time.
    """
    camera = np.unique(np.asarray(cameras if cameras is not None else [""] * len(seconds), str), return_inverse=True)[1]
    # Seconds, kilometres, and kilometres per second.
    limits = gap_hours * 3600, radius_km, speed_kmh / 3600
    labels = np.full(len(seconds), -1, np.int64)
    timed = np.isfinite(seconds)
    located = timed & np.isfinite(places).all(1)
    # First pass: photos with time and place form the events.
    _dense(labels, np.flatnonzero(located), seconds, places, camera, limits)
    loose = np.flatnonzero(timed & ~located)
    anchors = np.flatnonzero(labels >= 0)
    # Second pass: photos without a place join an event close in time, first of their own camera.
    for photo in loose:
        off = np.abs(seconds[anchors] - seconds[photo])
        for mine in (camera[anchors] == camera[photo], np.ones(len(anchors), bool)):
            near = mine & (off <= limits[0])
            if labels[photo] < 0 and near.any():
                labels[photo] = labels[anchors[near][np.argmin(off[near])]]
    # Third pass: the remaining ones form events by time alone.
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
    """Cluster the given photos under new numbers, in place; `limits`: seconds, kilometres, kilometres per second."""
    if not len(photos):
        return
    order = photos[np.argsort(seconds[photos], kind="stable")]
    gap, radius, speed = limits
    times, spots, owners = seconds[order], np.radians(places[order]), camera[order]
    rows, columns = [], []
    # All later photos within the time gap of each photo.
    ends = np.searchsorted(times, times + gap, side="right")
    for first in range(len(order)):
        near = np.arange(first + 1, ends[first])
        # All neighbours in time are examined, because a distant one must not hide a near one behind it. In a burst of
        # thousands of photos at one place, the first 256 links connect the rest.
        passed = times[near] - times[first]
        travelled = speed * passed * ((owners[near] == owners[first]) & (passed <= TRAVEL_HOURS * 3600))
        near = near[haversine(spots[first], spots[near]) <= radius + travelled][:256]
        rows.append(np.full(len(near), first))
        columns.append(near)
    r, c = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(2 * len(r)), (np.r_[r, c], np.r_[c, r])), shape=(len(order), len(order))).tocsr()
    clusters = sklearn_cluster.DBSCAN(eps=1.5, min_samples=DENSE, metric="precomputed").fit_predict(graph)
    # Photos below the density form events too: pairs and single photos.
    sparse = np.flatnonzero(clusters < 0)
    if len(sparse):
        rest = sklearn_cluster.DBSCAN(eps=1.5, min_samples=1, metric="precomputed").fit_predict(
            graph[sparse][:, sparse]
        )
        clusters[sparse] = rest + clusters.max(initial=-1) + 1
    # Numbers continue after those of earlier passes.
    labels[order] = clusters + labels.max(initial=-1) + 1


def haversine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distances in kilometres from a place (2,) to places (N, 2), latitude and longitude in radians."""
    across = np.sin((b - a) / 2) ** 2
    share = across[:, 0] + np.cos(a[0]) * np.cos(b[:, 0]) * across[:, 1]
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(share, 0, 1)))


def _by_time(labels: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    # Renumber the events by the time of their first photo.
    numbers = [n for n in np.unique(labels) if n >= 0]
    numbers.sort(key=lambda n: (float(seconds[labels == n].min()), int(n)))
    result = np.full_like(labels, -1)
    for new, old in enumerate(numbers):
        result[labels == old] = new
    return result


def time_of(taken_at: str | None, name: str) -> datetime | None:
    """Return a photo's local time from EXIF, or from a file name such as IMG_20260501_183000.jpg; None if unknown."""
    if taken_at:
        return datetime.fromisoformat(taken_at).replace(tzinfo=None)
    match = _IN_NAME.search(name)
    if not match:
        return None
    parts = [int(text) if text else None for text in match.groups()]
    try:
        # Messengers name only the day; noon has the least distance to all its hours.
        return datetime(*(parts[:3]), *(parts[3:] if parts[3] is not None else (12, 0, 0)))  # pyright: ignore
    except ValueError:
        return None


def representatives(scores: np.ndarray, vectors: np.ndarray, kinds: Sequence[str], count: int) -> list[int]:
    """Choose the best photos of an event by quality and variety.

    Maximal marginal relevance (Carbonell & Goldstein 1998): each next photo maximises `QUALITY` times its quality minus
    the rest times its similarity to the chosen ones. A chosen photo of the same kind counts like a similarity of 0.5.

    Args:
        scores: Quality, (N,) in [0, 1].
        vectors: Embeddings, (N, dim).
        kinds: Kind of each photo.
        count: Number of photos to choose.

    Returns:
        Positions of the chosen photos, best first.
    """
    # Cosine similarity needs vectors of unit length.
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    chosen: list[int] = []
    while len(chosen) < min(count, len(scores)):
        like = (unit @ unit[chosen].T).max(1) if chosen else np.zeros(len(scores))
        again = np.array([sum(kinds[c] == kind for c in chosen) for kind in kinds])
        # The penalty for a kind grows with up to two chosen photos of it.
        value = QUALITY * scores - (1 - QUALITY) * (np.clip(like, 0, 1) + 0.5 * np.minimum(again, 2))
        value[chosen] = -np.inf
        chosen.append(int(np.argmax(value)))
    return chosen
