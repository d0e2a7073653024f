"""The training photos that set int8's ranges, the same for every format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mm_core.core.errors import NothingToTrainOn
from mm_core.imaging.images import load_rgb
from mm_core.ingest.snapshot import read_pool
from mm_core.model.preprocess import prepare
from mm_core.storage.store import Store, fetch_blob

POOLS = ("train_labeled", "train_unlabeled")


def calibration_ids(snapshot_dir: Path, decoder: str, count: int) -> list[str]:
    """Sample ids whose photos set one decoder's ranges: its training photos, labelled first, its categories in turn.

    A decoder without any takes those of the others: rough ranges are better than no file. Ids are
    content digests, so their order is random in content and the same for ever. Raises NothingToTrainOn where the
    snapshot has no training photo.
    """
    frames = [read_pool(snapshot_dir, pool) for pool in POOLS]
    own = [_in_turn(frame.loc[frame["decoder"] == decoder]) for frame in frames]
    ids = list(dict.fromkeys(own[0] + own[1])) or list(dict.fromkeys(_in_turn(frames[0]) + _in_turn(frames[1])))
    if not ids:
        raise NothingToTrainOn(f"{snapshot_dir}: no training photo to calibrate int8 with: drop labelled ones first")
    return ids[:count]


def categories_of(snapshot_dir: Path, ids: Sequence[str]) -> list[str]:
    """The category of each calibration photo; empty where nobody said."""
    known: dict[str, str] = {}
    for pool in POOLS:
        frame = read_pool(snapshot_dir, pool)
        known |= dict(zip(frame["sample_id"], frame["category"].fillna(""), strict=True))
    return [known[i] for i in ids]


def calibration_images(ids: Sequence[str], size: int, store: Store) -> np.ndarray:
    """The photos as a model of this input size sees them, float32 (N,3,S,S)."""
    return np.stack([prepare(load_rgb(fetch_blob(store, i), 4 * size), size) for i in ids])


def _in_turn(frame: pd.DataFrame) -> list[str]:
    """Sample ids by order, one of each category after the other."""
    ordered = frame.assign(category=frame["category"].fillna("")).sort_values("sample_id")
    ordered["turn"] = ordered.groupby("category").cumcount()
    return ordered.sort_values(["turn", "category"])["sample_id"].tolist()
