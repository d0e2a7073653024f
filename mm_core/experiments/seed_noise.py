"""How much two trainings differ by their seed alone: what the gate must not take for a gain."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.pins import read_snapshot
from mm_core.core.records import CATEGORIES, Report, digest_of
from mm_core.eval.evaluate import score_all
from mm_core.eval.metrics import category_scores
from mm_core.ingest.snapshot import read_pool
from mm_core.model.predict import TorchPredictor
from mm_core.storage.store import Store
from mm_core.training.scratch import copy_data, part_of, scratch_layout, train_all

RECORD = "gate/noise.json"
"""Store key of the last measurement."""
FEWEST = 3
TRAINED_BY = {"model", "train", "clip", "split"}
"""Sections of the params that a training depends on; the seed is what differs."""
SIZE_RATIO, MAX_AGE = 1.5, timedelta(days=90)
"""How far a training set may have grown, and time have passed, since the noise was measured."""


def measure_noise(
    params: Params,
    layout: Layout,
    store: Store,
    report: Report,
    *,
    start: Path | None,
    seeds: int,
    progress: Callable[[str, int, int], None],
) -> Report:
    """Trains the cycle's snapshot `seeds` times with other seeds and keeps, per category, the standard deviation of the
    relative difference of the primary metric between two such models, as `RECORD` in the store.

    The float models are scored on the eval photos; nothing is chosen by the scores. Killed, the next call goes on with
    the seeds that are not done. Raises InputError for fewer than 3 seeds.
    """
    if seeds < FEWEST:
        raise InputError(f"--seeds {seeds}: a spread needs at least {FEWEST} trainings")
    frame, metric, values = read_pool(layout.snapshot, "eval"), params.gate.primary, []
    digest = read_snapshot(layout)["digest"]
    base = scratch_layout(layout, f"noise-{digest[:12]}")
    for index in range(1, seeds + 1):
        own = part_of(base, str(index))
        copy_data(layout, own)
        weights = train_all(params.with_values(seed=params.seed + 1009 * index), own, store, start, progress)
        model = TorchPredictor(weights, layout.settings.device)
        rows = score_all(frame, {(TRAIN_STAGES[-1], "float"): model}, store, params.evaluate.max_side, progress)
        values.append(category_scores(rows)[metric].to_dict())
    found = relative_noise(values)
    record = {
        "metric": metric,
        "seeds": seeds,
        "noise": found,
        "values": values,
        "snapshot": digest,
        "training": digest_of(params.model_dump(mode="json", include=TRAINED_BY)),
        "photos": len(read_pool(layout.snapshot, "train_labeled")),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.put(RECORD, json.dumps(record, sort_keys=True).encode())
    shutil.rmtree(base.root)
    report.facts |= {"metric": metric, "seeds": seeds, "snapshot": digest, "stored": f"{store.url}/{RECORD}"}
    report.metrics |= {f"noise/{category}": value for category, value in found.items()}
    report.tables["noise"] = [
        {"category": category, "noise": round(value, 4)}
        | {f"seed {i + 1}": round(float(scores[category]), 6) for i, scores in enumerate(values)}
        for category, value in found.items()
    ]
    return report


def relative_noise(values: list[dict[Any, Any]]) -> dict[str, float]:
    """Category → √2 · s / mean over the seeds (`values`, one each): the spread of a difference of two trainings."""
    found = {}
    for category in CATEGORIES:
        scores = np.array([seed[category] for seed in values if category in seed], np.float64)
        if len(scores) == len(values) and scores.mean() > 0:
            found[category] = float(math.sqrt(2) * scores.std(ddof=1) / scores.mean())
    return found


def recorded_noise(params: Params, layout: Layout, store: Store) -> dict[str, float] | None:
    """Return what was measured last, category → noise, where it still says something about this cycle; else None.

    It does not where it was measured for another metric, with other params of training, for a training set smaller or
    larger by more than SIZE_RATIO, or more than MAX_AGE ago.
    """
    try:
        record = json.loads(store.fetch(RECORD).read_text())
    except BlobNotFound:
        return None
    photos = max(1, len(read_pool(layout.snapshot, "train_labeled")))
    measured = max(1, int(record.get("photos", 0)))
    fits = (
        record["metric"] == params.gate.primary
        and record.get("training") == digest_of(params.model_dump(mode="json", include=TRAINED_BY))
        and max(photos, measured) <= SIZE_RATIO * min(photos, measured)
        and datetime.now(UTC) - datetime.fromisoformat(record["measured_at"]) <= MAX_AGE
    )
    return record["noise"] if fits else None
