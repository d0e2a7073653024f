"""Computes what is missing in the table `features`: each photo once per structurer version, each label once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from mm_core.catalog import Catalog
from mm_core.data.images import UnreadableImage, load_alpha, load_rgb
from mm_core.data.snapshot import newest_labels
from mm_core.errors import BlobNotFound
from mm_core.records import Report
from mm_core.store import Store, fetch_blob
from mm_core.structuring import difficulty, photo

CHUNK = 256
"""Rows of one commit at most: a killed run loses at most this many photos' work."""
CHUNK_SECONDS = 20.0
"""…or this much time's."""


@dataclass(frozen=True)
class Task:
    """What one sample still lacks."""

    sample_id: str
    photo: bool
    alpha: str | None
    """Digest of the newest label, where its difficulty is missing."""


def structure_new(
    catalog: Catalog, store: Store, report: Report, *, progress: Callable[[str, int, int], None]
) -> Report:
    """Adds the rows of extractors `photo` and `difficulty` that the current versions lack.

    Counts in `report.metrics` (structure/photos, structure/labels, structure/unreadable), what could not be read in
    `report.tables["unreadable"]` (tried again next time), and mean difficulty per category of all newest labels in
    `report.tables["difficulty"]`. Done work is committed in chunks: killed at any point, the next run goes on.
    """
    samples = catalog.read("samples", columns=["id", "category"])
    labels = newest_labels(catalog.read("labels"))
    tasks = missing(samples, labels, catalog.read("features", columns=["sample_id", "extractor", "version"]))
    unreadable: list[dict[str, Any]] = []
    photos = scored = done = 0
    for rows, failures in _in_chunks(_work(store, tasks)):
        catalog.upsert("features", rows)
        unreadable += failures
        photos += sum(row["extractor"] == photo.EXTRACTOR for row in rows)
        scored += sum(row["extractor"] == difficulty.EXTRACTOR for row in rows)
        done += len({row["sample_id"] for row in rows}) + len(failures)
        progress("structure", done, len(tasks))
    report.metrics |= {
        "structure/samples": len(samples),
        "structure/photos": photos,
        "structure/labels": scored,
        "structure/unreadable": len(unreadable),
    }
    report.tables["unreadable"] = unreadable
    report.tables["difficulty"] = difficulty_table(samples, labels, catalog.read("features"))
    return report


def missing(samples: pd.DataFrame, labels: pd.DataFrame, features: pd.DataFrame) -> list[Task]:
    """Tasks in the order of sample ids. `labels` holds the newest label of each sample."""
    have = set(zip(features["sample_id"], features["extractor"], features["version"], strict=True))
    alpha_of = dict(zip(labels["sample_id"], labels["alpha_sha256"], strict=True))
    tasks = []
    for sample_id in sorted(samples["id"]):
        alpha = alpha_of.get(sample_id)
        if alpha and (sample_id, difficulty.EXTRACTOR, difficulty.version_for(alpha)) in have:
            alpha = None
        lacks_photo = (sample_id, photo.EXTRACTOR, photo.VERSION) not in have
        if lacks_photo or alpha:
            tasks.append(Task(sample_id, lacks_photo, alpha))
    return tasks


def difficulty_of(labels: pd.DataFrame, features: pd.DataFrame) -> pd.Series:
    """Difficulty score by sample id; NaN where the current label has none at the current version.

    `labels`: columns sample_id, alpha_sha256, one row per sample.
    """
    rows = features[features["extractor"] == difficulty.EXTRACTOR]
    scores = {
        (sample, version): dict(numbers)["score"]
        for sample, version, numbers in zip(rows["sample_id"], rows["version"], rows["numbers"], strict=True)
    }
    values = [
        scores.get((sample, difficulty.version_for(alpha)), float("nan"))
        for sample, alpha in zip(labels["sample_id"], labels["alpha_sha256"], strict=True)
    ]
    return pd.Series(values, index=pd.Index(labels["sample_id"], name="sample_id"), dtype="float64", name="difficulty")


def difficulty_table(samples: pd.DataFrame, labels: pd.DataFrame, features: pd.DataFrame) -> list[dict[str, Any]]:
    """Labels and their mean difficulty per category."""
    scores = difficulty_of(labels, features).dropna().rename_axis("id").reset_index()
    joined = scores.merge(samples, on="id")
    joined["category"] = joined["category"].fillna("unknown")
    means = joined.groupby("category")["difficulty"].agg(["size", "mean"])
    return [
        {"category": category, "labels": int(count), "difficulty": round(float(mean), 4)}
        for category, count, mean in zip(means.index, means["size"], means["mean"], strict=True)
    ]


def _work(store: Store, tasks: Sequence[Task]) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows and failures of each task, in order, on all cores (the decoders and OpenCV let go of the interpreter)."""
    workers = min(os.cpu_count() or 1, 16)
    step = 8 * workers
    with ThreadPoolExecutor(workers) as pool:
        # In small slices: a pool's `map` takes all of its input at once, and a stop would wait for all of it.
        for start in range(0, len(tasks), step):
            yield from pool.map(lambda task: _features(store, task), tasks[start : start + step])


def _features(store: Store, task: Task) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"sample_id": task.sample_id, "computed_at": now}
    rows = []
    try:
        path = fetch_blob(store, task.sample_id)
        rgb = load_rgb(path, photo.SIDE)
        if task.photo:
            found = photo.photo_features(path, rgb)
            extractor = {"extractor": photo.EXTRACTOR, "version": photo.VERSION}
            rows.append(row | extractor | {"numbers": dict(found.numbers), "texts": dict(found.texts)})
        if task.alpha:
            signals = difficulty.measure(rgb, load_alpha(fetch_blob(store, task.alpha)))
            extractor = {"extractor": difficulty.EXTRACTOR, "version": difficulty.version_for(task.alpha)}
            rows.append(row | extractor | {"numbers": signals.numbers(), "texts": {"alpha_sha256": task.alpha}})
    except (UnreadableImage, BlobNotFound) as error:
        return [], [{"sample_id": task.sample_id, "reason": str(error)}]
    return rows, []


def _in_chunks(
    results: Iterable[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    since = time.monotonic()
    for more, failed in results:
        rows += more
        failures += failed
        if len(rows) >= CHUNK or time.monotonic() - since > CHUNK_SECONDS:
            yield rows, failures
            rows, failures, since = [], [], time.monotonic()
    if rows or failures:
        yield rows, failures
