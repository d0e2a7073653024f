"""Validated input of the gate: complete per-image scores of the present files, on photos outside the training set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import PinnedInputs
from mm_core.eval.evaluate import identity
from mm_core.eval.metrics import MEAN_METRICS
from mm_core.eval.scoring import SCHEMA
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.storage.seals import read_sealed_table

Key = tuple[str, str]
"""(model, precision) as in per_image.parquet."""
CANDIDATE = TRAIN_STAGES[-1]
FLOAT: Key = (CANDIDATE, "float")
INT8: Key = (CANDIDATE, "int8")
CHAMPION: Key = ("champion", "int8")
ANCHOR: Key = ("anchor", "int8")
"""The best model so far: the pinned anchor, or per category and metric the model recorded by `mm_core.eval.ratchet`."""
SCALARS = tuple(name for name in MEAN_METRICS if name != "mse_band")


@dataclass(frozen=True)
class Evidence:
    """Scores of several models on the same photos, sorted by sample id."""

    category: np.ndarray
    """(photos,) str."""
    group: np.ndarray
    """(photos,) str."""
    sample_id: np.ndarray
    """(photos,) str."""
    values: Mapping[Key, Mapping[str, np.ndarray]]
    """Metric → (photos, 1); `maxf` → (photos, 256), the F curves."""


def read_scores(layout: Layout) -> tuple[pd.DataFrame, Mapping[str, object]]:
    """Read per_image.parquet and the identity in its metadata.

    Returns:
        The table (columns of `SCHEMA`) and the identity, as `mm_core.eval.evaluate.identity` returned it.

    Raises:
        InputError: The file is missing or damaged, or another version wrote it.
    """
    path = layout.per_image
    if not has_file(path):
        raise InputError(f"{path} is missing: run `mm evaluate` before `mm gate`")
    table = read_sealed_table(path, "run `mm evaluate` again")
    about = (table.schema.metadata or {}).get(b"mm")
    # Scores of an older format cannot be validated.
    if about is None or set(table.schema.names) != set(SCHEMA.names):
        raise InputError(f"{path}: not written by this version of `mm evaluate`: run it again")
    return table.to_pandas(), json.loads(about)


def problems_with(layout: Layout, inputs: PinnedInputs, about: Mapping[str, object]) -> list[str]:
    """Return the reasons why the scores do not describe the files in the workspace; empty if they do.

    Args:
        layout: The workspace.
        inputs: The pins of the cycle.
        about: The identity that the scores were written with.
    """
    words = {
        "metrics": "were made with other metric definitions",
        "snapshot": "are about another snapshot",
        "eval_digest": "are about another eval set",
        "candidate": "are about another candidate",
        "quantised": "are about other int8 files",
        "champion": "are about another champion",
        "anchor": "are about another anchor",
    }
    # Recompute the identity of the present files and compare it field by field.
    now = identity(layout, inputs)
    found = [f"the scores {text}: run `mm evaluate` again" for key, text in words.items() if about.get(key) != now[key]]
    return found + leaks(layout.snapshot)


def leaks(snapshot_dir: Path) -> list[str]:
    """Return one message per training or validation pool that contains eval photos or photos of an eval group."""
    # Photos of one group show the same scene, so a group must not be on both sides either.
    held_out = read_pool(snapshot_dir, "eval")
    # A photo leaks if itself or another photo of its scene is in a training pool.
    ids, groups = held_out["sample_id"].unique().tolist(), [g for g in held_out["group"].dropna().unique() if g]
    found = []
    for pool in POOLS:
        if pool == "eval":
            continue
        frame = read_pool(snapshot_dir, pool)
        seen = frame[frame["sample_id"].isin(ids) | frame["group"].isin(groups)]
        if len(seen):
            first = seen["sample_id"].tolist()[0]
            found.append(
                f"{len(seen)} photos of {pool} belong to the eval set, {first} among them: run `mm snapshot` again"
            )
    return found


def gather(
    scores: pd.DataFrame, eval_frame: pd.DataFrame, needed: Sequence[Key], metrics: Sequence[str]
) -> tuple[Evidence | None, list[str]]:
    """Join the scores of the needed models by photo and validate them.

    Each model must score every photo of the eval frame exactly once, and no other photo. All values of `metrics` must
    be finite.

    Args:
        scores: Table of `read_scores`.
        eval_frame: The snapshot's eval pool.
        needed: (model, precision) of the models to join.
        metrics: Names of the metrics that must be finite.

    Returns:
        The evidence and an empty list; or None and the problems.
    """
    # Sort both sides by id, so that arrays of different models are paired by position.
    expected = eval_frame.sort_values("sample_id", ignore_index=True)
    ids = expected["sample_id"].tolist()
    problems: list[str] = []
    values: dict[Key, dict[str, np.ndarray]] = {}
    if len(set(ids)) < len(ids):
        problems.append("the eval set lists a photo twice: run `mm snapshot` again")
    for key in needed:
        name = f"{key[0]} ({key[1]})"
        part = scores.loc[(scores["model"] == key[0]) & (scores["precision"] == key[1])]
        part = part.sort_values("sample_id", ignore_index=True)
        have = part["sample_id"].tolist()
        # A missing, extra or repeated photo would break the pairing.
        if have != ids:
            lost, extra = sorted(set(ids) - set(have)), sorted(set(have) - set(ids))
            what = f"lacks {len(lost)} photos, {lost[0]} among them" if lost else "scores photos twice"
            what = f"scores {len(extra)} photos that are not in the eval set" if extra and not lost else what
            problems.append(f"{name} {what if have else 'has no scores'}")
            continue
        found = {metric: np.asarray(part[metric], np.float64)[:, None] for metric in SCALARS}
        # MaxF of a set needs the curve of each photo (mm_core.eval.metrics).
        curves = [np.asarray(curve, np.float64) for curve in part["fcurve"]]
        if any(curve.shape != (256,) for curve in curves):
            problems.append(f"{name} has F curves that are not 256 long")
            continue
        found["maxf"] = np.stack(curves)
        for metric in metrics:
            if bad := int((~np.isfinite(found[metric])).any(axis=1).sum()):
                problems.append(f"{name} has no finite {metric} for {bad} photos")
        values[key] = found
    if problems or not ids:
        # All problems are reported together, so that one repair can fix them.
        return None, problems or ["the eval set is empty"]
    category, group, sample_id = (np.asarray(expected[name], dtype=str) for name in ("category", "group", "sample_id"))
    return Evidence(category, group, sample_id, values), []
