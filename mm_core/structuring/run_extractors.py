"""Run extractors on photos; each photo is decoded once for all extractors that it lacks (`extractors.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypedDict

from mm_core.core.errors import BlobDamaged, BlobNotFound
from mm_core.imaging.images import UnreadableImage, load_alpha
from mm_core.storage.rows import FeatureRow
from mm_core.storage.store import Store, fetch_blob
from mm_core.structuring import difficulty, photo_features
from mm_core.structuring.decode import decode, shrunk
from mm_core.structuring.extractors import Extractor
from mm_core.structuring.ocr import OcrFailed
from mm_core.structuring.rows import Found, Photo, row_of


@dataclass(frozen=True)
class Task:
    """Missing rows of one sample."""

    sample_id: str
    lacks: frozenset[str]
    """Names of extractors without a row."""
    alpha: str | None = None
    """Digest of the newest label if its difficulty is missing."""
    name: str | None = None


class Unread(TypedDict):
    """A photo that could not be read."""

    sample_id: str
    reason: str


@dataclass
class Done:
    """Result of a piece of work."""

    rows: list[FeatureRow] = field(default_factory=list)
    failures: list[Unread] = field(default_factory=list)

    def __iadd__(self, other: Done) -> Done:
        self.rows += other.rows
        self.failures += other.failures
        return self


def measured(
    store: Store, tasks: Sequence[Task], extractors: Sequence[Extractor], workers: int | None = None
) -> Iterator[Done]:
    """Yield rows and failures in order.

    Args:
        store: Store of the photos and mattes.
        tasks: Missing rows by sample.
        extractors: The extractors.
        workers: Number of threads; by default one per core, since decoders and OpenCV release Python's lock.
    """
    # Extractors that run photo by photo, and those that take many photos per call.
    each, together = ([e for e in extractors if e.together is kind] for kind in (False, True))
    workers = workers or min(os.cpu_count() or 1, 16)
    # Work in small slices. `map` of a thread pool takes all of its input at once, so an interrupt would wait for all
    # of it. The decoded photos of a slice (at most 2.8 MB each) stay in memory until the last extractor has run.
    step = 4 * workers
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(tasks), step):
            chunk = tasks[start : start + step]
            photos: list[tuple[Task, Photo]] = []
            for task, (done, decoded) in zip(chunk, pool.map(lambda t: _one(store, t, each), chunk), strict=True):
                yield done
                if decoded is not None:
                    photos.append((task, decoded))
            # Networks and programs take the photos of a slice in one call.
            for extractor in together:
                if wanted := [decoded for task, decoded in photos if extractor.name in task.lacks]:
                    yield _together(extractor, wanted)


def _one(store: Store, task: Task, each: Sequence[Extractor]) -> tuple[Done, Photo | None]:
    """Decode one photo and run the extractors that work photo by photo."""
    done = Done()
    try:
        path = fetch_blob(store, task.sample_id)
        rgb = decode(path)
        decoded = Photo(task.sample_id, task.name, path, rgb, shrunk(rgb, photo_features.SIDE))
        for extractor in each:
            if extractor.name in task.lacks:
                (result,) = extractor.run([decoded])
                done.rows.append(row_of(task.sample_id, extractor.name, extractor.version, result))
        # The difficulty needs the label in addition to the photo.
        if task.alpha:
            signals = difficulty.measure(decoded.small, load_alpha(fetch_blob(store, task.alpha)))
            result = Found(signals.numbers(), {"alpha_sha256": task.alpha})
            version = difficulty.version_for(task.alpha)
            done.rows.append(row_of(task.sample_id, difficulty.EXTRACTOR, version, result))
    except (UnreadableImage, BlobDamaged, BlobNotFound) as error:
        return Done(failures=[{"sample_id": task.sample_id, "reason": str(error)}]), None
    return done, decoded


def _together(extractor: Extractor, photos: Sequence[Photo]) -> Done:
    """Run an extractor on several photos in one call."""
    try:
        results = extractor.run(photos)
    except OcrFailed as error:
        if len(photos) > 1:  # run the photos singly, so that one bad photo does not fail the others
            one_by_one = Done()
            for photo in photos:
                one_by_one += _together(extractor, [photo])
            return one_by_one
        return Done(failures=[{"sample_id": photo.sample_id, "reason": str(error)} for photo in photos])
    rows = [row_of(p.sample_id, extractor.name, extractor.version, f) for p, f in zip(photos, results, strict=True)]
    return Done(rows)
