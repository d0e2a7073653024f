"""Measure the difference of two trainings that differ only by seed; the gate must not take it for a gain."""

from __future__ import annotations

import json
import math
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.pins import read_snapshot
from mm_core.core.records import CATEGORIES, Report, digest_of, parse_record
from mm_core.eval.metrics import category_scores
from mm_core.eval.scoring import score_all
from mm_core.ingest.snapshot import read_pool
from mm_core.model.predict import TorchPredictor
from mm_core.storage.run import StorageRun
from mm_core.training.scratch import copy_data, part_of, scratch_layout, train_all

RECORD = "gate/noise.json"
"""Store key of the last measurement."""
FEWEST = 3
"""Least number of trainings for a standard deviation."""
TRAINED_BY = {"model", "train", "clip", "split"}
"""Sections of the params that influence a training; only the seed may differ."""
SIZE_RATIO, MAX_AGE = 1.5, timedelta(days=90)
"""A measurement stays valid up to this ratio of the training sets' sizes, and up to this age."""


class _Noise(TypedDict):
    """The fields of `RECORD` that are read again."""

    metric: str
    measured_at: str
    """ISO time."""
    noise: dict[str, float]
    """Category → noise."""
    training: NotRequired[str]
    """Digest of the params in `TRAINED_BY`."""
    photos: NotRequired[int]
    """Photos that were trained on."""


def measure_noise(run: StorageRun, report: Report, *, start: Path | None, seeds: int) -> Report:
    """Train the cycle's snapshot with several seeds, and store the noise of the primary metric as `RECORD`.

    The noise is, per category, the standard deviation of the relative difference between two such models. The float
    models are scored on the evaluation photos; nothing is selected by the scores. After a kill, the next call
    continues with the missing seeds.

    Args:
        run: Params, workspace, storage and progress.
        report: Receives the noise as metrics and as a table.
        start: Weights to start from, or None.
        seeds: Number of trainings, at least 3.

    Returns:
        The report.

    Raises:
        InputError: Fewer than 3 seeds.
    """
    params, layout = run.params, run.layout
    if seeds < FEWEST:
        raise InputError(f"--seeds {seeds}: a spread needs at least {FEWEST} trainings")
    frame, metric, values = read_pool(layout.snapshot, "eval"), params.gate.primary, []
    digest = read_snapshot(layout)["digest"]
    base = scratch_layout(layout, f"noise-{digest[:12]}")
    for index in range(1, seeds + 1):
        seed_layout = part_of(base, str(index))
        copy_data(layout, seed_layout)
        # Seeds far apart from each other and from the cycle's own.
        weights = train_all(run.with_layout(seed_layout, params.with_values(seed=params.seed + 1009 * index)), start)
        model = TorchPredictor(weights, layout.settings.device)
        rows = score_all(frame, {(TRAIN_STAGES[-1], "float"): model}, run.store, params.evaluate.max_side, run.progress)
        values.append(category_scores(rows)[metric].to_dict())
    noise = relative_noise(values)
    # The record names the conditions of the measurement, so that `recorded_noise` can check them.
    record = {
        "metric": metric,
        "seeds": seeds,
        "noise": noise,
        "values": values,
        "snapshot": digest,
        "training": digest_of(params.model_dump(mode="json", include=TRAINED_BY)),
        "photos": len(read_pool(layout.snapshot, "train_labeled")),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    run.store.put(RECORD, json.dumps(record, sort_keys=True).encode())
    # The models are needed no longer once the record is stored.
    shutil.rmtree(base.root)
    report.facts |= {"metric": metric, "seeds": seeds, "snapshot": digest, "stored": f"{run.store.url}/{RECORD}"}
    report.metrics |= {f"noise/{category}": value for category, value in noise.items()}
    report.tables["noise"] = [
        {"category": category, "noise": round(value, 4)}
        | {f"seed {i + 1}": round(float(scores[category]), 6) for i, scores in enumerate(values)}
        for category, value in noise.items()
    ]
    return report


def relative_noise(values: list[dict[str, float]]) -> dict[str, float]:
    """Return category → √2 · s / mean over the seeds' scores: the noise of a difference of two trainings."""
    noise = {}
    for category in CATEGORIES:
        scores = np.array([seed[category] for seed in values if category in seed], np.float64)
        # A category must have a score in every training.
        if len(scores) == len(values) and scores.mean() > 0:
            noise[category] = float(math.sqrt(2) * scores.std(ddof=1) / scores.mean())
    return noise


def recorded_noise(run: StorageRun) -> dict[str, float] | None:
    """Return the last measurement, category → noise, if it applies to this cycle; else None.

    It applies for the same metric and training params, a training set within SIZE_RATIO, and an age up to MAX_AGE.
    """
    try:
        content, where = run.store.fetch(RECORD).read_bytes(), f"{run.store.url}/{RECORD}"
    except BlobNotFound:
        return None
    remedy = "delete it, then measure again by `mm gate noise`"
    record = parse_record(content, _Noise, where, remedy, ("metric", "measured_at", "noise"))
    photos = max(1, len(read_pool(run.layout.snapshot, "train_labeled")))
    measured = max(1, int(record.get("photos", 0)))
    # Other conditions make the measurement invalid.
    fits = (
        record["metric"] == run.params.gate.primary
        and record.get("training") == digest_of(run.params.model_dump(mode="json", include=TRAINED_BY))
        and max(photos, measured) <= SIZE_RATIO * min(photos, measured)
        and datetime.now(UTC) - datetime.fromisoformat(record["measured_at"]) <= MAX_AGE
    )
    return record["noise"] if fits else None
