"""What the gate may believe: per-image scores that are whole, about these very files, and on unseen photos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mm_core.core.errors import InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import PinnedInputs
from mm_core.eval.evaluate import SCHEMA, identity
from mm_core.ingest.snapshot import POOLS, read_pool

Key = tuple[str, str]
"""(model, precision) as in per_image.parquet."""
CANDIDATE = TRAIN_STAGES[-1]
FLOAT: Key = (CANDIDATE, "float")
INT8: Key = (CANDIDATE, "int8")
CHAMPION: Key = ("champion", "int8")
ANCHOR: Key = ("anchor", "int8")
"""The best model so far: the anchor, or for each category and metric what `mm_core.eval.ratchet` put in its place."""
SCALARS = ("mse", "sad", "grad", "conn", "biou")


@dataclass(frozen=True)
class Evidence:
    """Scores of several models on the same photos, in the order of their ids."""

    category: np.ndarray
    """(photos,) str."""
    group: np.ndarray
    """(photos,) str."""
    sample_id: np.ndarray
    """(photos,) str."""
    values: Mapping[Key, Mapping[str, np.ndarray]]
    """Metric → (photos, 1); `maxf` → (photos, 256), the F curves."""


def read_scores(layout: Layout) -> tuple[pd.DataFrame, dict[str, Any]]:
    """per_image.parquet and the identity it was written with; raises InputError where it is missing or not ours."""
    path = layout.per_image
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm evaluate` before `mm gate`")
    table = pq.read_table(path)
    about = (table.schema.metadata or {}).get(b"mm")
    if about is None or set(table.schema.names) != set(SCHEMA.names):
        raise InputError(f"{path}: not written by this version of `mm evaluate`: run it again")
    return table.to_pandas(), json.loads(about)


def problems_with(layout: Layout, inputs: PinnedInputs, about: Mapping[str, Any]) -> list[str]:
    """Why scores written with identity `about` say nothing on what lies in the workspace now; empty where they do."""
    words = {
        "metrics": "were made with other metric definitions",
        "snapshot": "are about another snapshot",
        "eval_digest": "are about another eval set",
        "candidate": "are about another candidate",
        "quantised": "are about other int8 files",
        "champion": "are about another champion",
        "anchor": "are about another anchor",
    }
    now = identity(layout, inputs)
    found = [f"the scores {text}: run `mm evaluate` again" for key, text in words.items() if about.get(key) != now[key]]
    return found + leaks(layout.snapshot)


def leaks(snapshot_dir: Path) -> list[str]:
    """Eval photos, or photos of an eval group, that a training or validation pool of the snapshot holds."""
    held_out = read_pool(snapshot_dir, "eval")
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
    """The needed models' scores joined by photo, or None and what is wrong with them.

    Every photo of the eval frame exactly once for each model, no other photo, and no value of `metrics`
    that is not finite.
    """
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
        if have != ids:
            lost, extra = sorted(set(ids) - set(have)), sorted(set(have) - set(ids))
            what = f"lacks {len(lost)} photos, {lost[0]} among them" if lost else "scores photos twice"
            what = f"scores {len(extra)} photos that are not in the eval set" if extra and not lost else what
            problems.append(f"{name} {what if have else 'has no scores'}")
            continue
        found = {metric: np.asarray(part[metric], np.float64)[:, None] for metric in SCALARS}
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
        return None, problems or ["the eval set is empty"]
    category, group, sample_id = (np.asarray(expected[name], dtype=str) for name in ("category", "group", "sample_id"))
    return Evidence(category, group, sample_id, values), []
