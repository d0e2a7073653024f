"""Choice of the training photos that set the int8 ranges and measure int8's difference; all formats use the same ones.

Photos without labels come first. The model is surest on photos whose mattes it has learnt: there int8 can differ from
float ten times less than on new photos (ADR 0042).
"""

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

POOLS = ("train_unlabeled", "train_labeled")


def calibration_ids(snapshot_dir: Path, decoder: str, count: int) -> list[str]:
    """Choose the photos that set one decoder's int8 ranges.

    The decoder's categories take turns, each with its unlabelled photos before its labelled ones. A decoder without any
    photo uses the photos of the other decoders: rough ranges are better than no file. Ids are content digests, so
    their order is random with respect to content and stable over time.

    Args:
        snapshot_dir: Folder of the snapshot.
        decoder: One of DECODERS.
        count: Largest number of photos.

    Returns:
        Sample ids.

    Raises:
        NothingToTrainOn: The snapshot has no training photo.
    """
    photos = pd.concat([read_pool(snapshot_dir, pool).assign(place=place) for place, pool in enumerate(POOLS)])
    own = photos.loc[photos["decoder"] == decoder]
    ids = _in_turn(photos if own.empty else own)
    if not ids:
        raise NothingToTrainOn(f"{snapshot_dir}: no training photo to calibrate int8 with: drop labelled ones first")
    return ids[:count]


def categories_of(snapshot_dir: Path, ids: Sequence[str]) -> list[str]:
    """Return the category of each calibration photo; empty for an unknown one."""
    categories: dict[str, str] = {}
    for pool in POOLS:
        frame = read_pool(snapshot_dir, pool)
        categories |= dict(zip(frame["sample_id"], frame["category"].fillna(""), strict=True))
    return [categories[i] for i in ids]


def calibration_images(ids: Sequence[str], size: int, store: Store) -> np.ndarray:
    """Return the photos as prepared model inputs, float32 (N, 3, S, S)."""
    # Decoding at four times the input size leaves enough detail for the resize.
    return np.stack([prepare(load_rgb(fetch_blob(store, i), 4 * size), size) for i in ids])


def _in_turn(frame: pd.DataFrame) -> list[str]:
    """Return sample ids by `place` and id, one of each category after the other."""
    # Number the photos of each category, then sort by that number.
    ordered = frame.assign(category=frame["category"].fillna("")).sort_values(["place", "sample_id"])
    ordered = ordered.drop_duplicates("sample_id")
    ordered["turn"] = ordered.groupby("category").cumcount()
    return ordered.sort_values(["turn", "category"])["sample_id"].tolist()
