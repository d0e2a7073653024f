"""Divide the labelled training pool into simple and hard (Matting Moments, section 2.2: 160k simple, 20k hard)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from mm_core.core.errors import InputError
from mm_core.core.params import SplitParams
from mm_core.core.pins import PinnedInputs
from mm_core.core.records import Report
from mm_core.ingest.placement import COLUMNS as POOL_COLUMNS
from mm_core.ingest.snapshot import read_pool, write_frames
from mm_core.storage.catalog import Catalog
from mm_core.storage.schemas import Column, schema_of
from mm_core.structuring.structure import difficulty_of, scores_of

COLUMNS: Sequence[Column] = (*POOL_COLUMNS, ("difficulty", pa.float64(), "how hard the photo is; larger is harder"))
SPLIT_SCHEMA = schema_of(COLUMNS)


def split_by_difficulty(
    params: SplitParams,
    catalog: Catalog,
    inputs: PinnedInputs,
    snapshot_dir: Path,
    out_dir: Path,
    report: Report,
) -> Report:
    """Write `simple.parquet` and `hard.parquet` to `out_dir`: the columns of the snapshot plus `difficulty`.

    Within each category the `hard_share` with the highest difficulty is hard. Both sides get at least one sample if
    there are two or more; a single sample is simple. Ties are broken by sample id, so the same input gives the same
    files. If fewer than `min_hard` samples would be hard, all are simple.

    Args:
        params: Shares and limits.
        catalog: Catalog with the difficulty scores.
        inputs: The cycle's pinned inputs; `catalog.features` is the version to read.
        snapshot_dir: Folder of the snapshot.
        out_dir: Folder to write to.
        report: Report that is filled and returned.

    Raises:
        InputError: A label of the snapshot has no score at the pinned catalog version.
    """
    pool = read_pool(snapshot_dir, "train_labeled")
    features = scores_of(catalog, version=inputs["catalog"]["features"])
    pool["difficulty"] = difficulty_of(pool, features).to_numpy()
    unscored = int(np.count_nonzero(pool["difficulty"].isna()))
    if unscored:
        raise InputError(
            f"{snapshot_dir / 'train_labeled.parquet'}: {unscored} of {len(pool)} labels have no difficulty in the "
            f"pinned catalog ({catalog.url}): run `mm ingest`, which scores what is new, and start the cycle again"
        )
    # Photos without a category form their own group.
    pool["category"] = pool["category"].astype(object).where(pool["category"].notna(), None)
    is_hard = pd.Series(False, index=pool.index)
    difficulties: list[dict[str, object]] = []
    for category, rows in pool.groupby(pool["category"].fillna("unknown")):
        # Hardest first, ties by id.
        ranked = rows.sort_values(["difficulty", "sample_id"], ascending=[False, True])
        hard = ranked.head(hard_count(len(ranked), params.hard_share))
        simple = ranked.iloc[len(hard) :]
        is_hard[hard.index] = True
        difficulties.append(
            {
                "category": category,
                "simple": len(simple),
                "hard": len(hard),
                "threshold": round(float(np.min(hard["difficulty"])), 4) if len(hard) else None,
                "mean_simple": round(float(np.mean(simple["difficulty"])), 4),
                "mean_hard": round(float(np.mean(hard["difficulty"])), 4) if len(hard) else None,
            }
        )
    if difficulties:
        report.tables["split"] = difficulties
    # Too few hard photos for a training stage of their own.
    if 0 < is_hard.sum() < params.min_hard:
        report.facts["hard"] = (
            f"{int(is_hard.sum())} hard photos are fewer than split.min_hard {params.min_hard}: "
            "they are trained with the simple ones"
        )
        is_hard[:] = False
    write_frames(out_dir, {"simple": pool.loc[~is_hard], "hard": pool.loc[is_hard]}, SPLIT_SCHEMA)
    report.metrics |= {"split/simple": int((~is_hard).sum()), "split/hard": int(is_hard.sum())}
    return report


def hard_count(count: int, share: float) -> int:
    """Return how many of `count` samples are hard: the rounded share, with at least one on each side of two or more."""
    return min(max(1, round(count * share)), count - 1) if count >= 2 else 0
