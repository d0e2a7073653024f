"""Compare the models of a cycle with the data in the workspace.

Each model file records its snapshot, the digest of its rows and its start weights. The gate compares these records
with the files in the workspace, so that a model is judged and registered only with the data it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import SnapshotFacts, read_snapshot, start_digest
from mm_core.core.records import sha256_file
from mm_core.ingest.snapshot import read_pool
from mm_core.model.meta import ModelMeta, read_meta
from mm_core.storage.seals import read_sealed_table
from mm_core.training.stage_data import read_data

_ROW = ["sample_id", "alpha_sha256"]


def require_start(stage: str, layout: Layout) -> Path | None:
    """Return the model of the previous stage, which `stage` starts from; None for the first stage.

    Raises:
        InputError: The split or the model is missing or was made from another snapshot than the current one.
    """
    snapshot = read_snapshot(layout)["digest"]
    if stage in ("simple", "hard") and (mismatches := split_mismatches(layout)):
        raise InputError(f"{mismatches[0]}: run `mm split` before `mm train-{stage}`")
    if stage == TRAIN_STAGES[0]:
        return None
    before = TRAIN_STAGES[TRAIN_STAGES.index(stage) - 1]
    start, remedy = layout.model(before), f"run `mm train-{before}` before `mm train-{stage}`"
    if not has_file(start):
        raise InputError(f"{start} is missing: {remedy}")
    if read_meta(start).get("snapshot") != snapshot:
        raise InputError(f"{start} was trained on another snapshot: {remedy}")
    return start


def find_mismatches(layout: Layout) -> list[str]:
    """Return one line per mismatch between the cycle's models and its snapshot and split; empty if they match.

    For each stage three records are compared: the snapshot, the digest of the rows, and the start weights. The start
    weights must be the model of the previous stage or, in the first stage, the champion or candidate that the snapshot
    froze.

    Raises:
        InputError: A file of the cycle is missing or is not a model of this project.
    """
    frozen = read_snapshot(layout)
    mismatches = split_mismatches(layout)
    start: str | None = None
    for stage in TRAIN_STAGES:
        path = layout.model(stage)
        meta = read_meta(path)
        if stage == TRAIN_STAGES[0]:
            start = _first_start(meta, frozen)
        # Record → (expected value, words for the message if it differs).
        wanted = {
            "snapshot": (frozen["digest"], "on another snapshot"),
            "data": (read_data(stage, layout).digest(), "on other rows than its snapshot and split hold"),
            "start": (start, "from other weights than those of the stage before"),
        }
        if stage == TRAIN_STAGES[0]:
            wanted["start"] = (start, "from other weights than those that the snapshot froze")
        mismatches += [
            f"{path} was trained {words}" for name, (value, words) in wanted.items() if meta.get(name) != value
        ]
        # The next stage must have started from this file.
        start = sha256_file(path)
    return mismatches


def split_mismatches(layout: Layout) -> list[str]:
    """Return a list of one line if the split and the snapshot's labelled pool differ in rows; empty if they match."""
    halves = [layout.split / f"{name}.parquet" for name in ("simple", "hard")]
    if missing := [path for path in halves if not has_file(path)]:
        return [f"{missing[0]} is missing"]
    pool = read_pool(layout.snapshot, "train_labeled")[_ROW]
    halves = [read_sealed_table(path, "run `mm split` again", _ROW).to_pandas() for path in halves]
    # The two halves together must hold exactly the rows of the pool.
    divided = {row for half in halves for row in half.itertuples(index=False, name=None)}
    if divided == set(pool.itertuples(index=False, name=None)):
        return []
    return [f"{layout.split} divides another snapshot than the one in {layout.snapshot}"]


def _first_start(meta: ModelMeta, frozen: SnapshotFacts) -> str | None:
    """Return the digest of the weights that the first stage must have started from; None means from scratch."""
    sections = cast(Mapping[str, Mapping[str, Mapping[str, object]]], meta.get("params", {}))
    warm = sections.get("train", {}).get("common", {}).get("warm_start")
    return start_digest(frozen) if warm == "champion" else None
