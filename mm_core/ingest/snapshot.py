"""Freeze one catalog version into five parquet frames for training, validation and evaluation of a cycle.

The rules apply in this order:

1. **Only arriving groups are held out** (`mm_core.ingest.holdout`). A group that arrived earlier for training cannot be
   used for evaluation, independent of its role. Nor can a photo that an earlier cycle has learnt from
   (`mm_core.ingest.learnt`). Role `train` excludes a photo. A photo that arrived with a label is
   used for evaluation if a stable hash of its group is below `eval_share`, or if its category needs more groups. Group,
   category and role are those of the arrival, so an eval photo remains one until it gets the role `train`. A row of
   role `eval` that cannot be used is in no pool, and `dropped` gives the reason.
2. **Eval has priority.** Declared groups that share near-duplicates (perceptual hash) form one component. The other
   photos of a component with an eval sample are removed from all training pools.
3. Validation is drawn from the remaining arriving groups if a category has enough of them to choose a checkpoint. The
   other photos of these components are removed from the training pools.

The same catalog version and parameters give the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.params import SnapshotParams
from mm_core.core.pins import LEARNT_TABLE, PinnedInputs, SnapshotFacts, are_pins, news_of, start_for
from mm_core.core.records import CATEGORIES, Report, digest_of, write_json
from mm_core.ingest.as_arrived import SinceArrival, changes_since, given_by
from mm_core.ingest.holdout import LEARNT, MOST_SHARE
from mm_core.ingest.learnt import Learnt
from mm_core.ingest.placement import (
    LABEL_COLUMNS,
    NULLABLE,
    POOLS,
    REASONS,
    SAMPLE_COLUMNS,
    SCHEMA,
    check_pools,
    place_tables,
    read_placement,
    table_digest,
)
from mm_core.ingest.scenes import connect, declared_of, links_of
from mm_core.ingest.subset import is_within_limit
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.seals import seal_folder

LISTED = 200
"""Largest number of dropped samples that a report lists."""


def build_snapshot(
    params: SnapshotParams, catalog: Catalog, inputs: PinnedInputs, out_dir: Path, report: Report
) -> Report:
    """Write `<pool>.parquet` for each of POOLS and `snapshot.json`, and replace `out_dir` as a whole.

    `train_text_image` contains all captioned photos of text-image drops, also those that were labelled later.

    Args:
        params: Shares and thresholds.
        catalog: The catalog.
        inputs: Result of `stages.read_inputs`, with the pinned catalog versions. The newest version of the table
            `learnt` is used if it is not among them, and `snapshot.json` names it.
        out_dir: Folder of the snapshot.
        report: The report to fill.

    Returns:
        The same report, with counts per pool and category and the dropped samples.

    Raises:
        InputError: The catalog has no samples.
        MattingError: A pool contains a sample that leaks evaluation or validation.
    """
    # Read the pinned versions, so that a concurrent ingest does not change the snapshot.
    pinned = {LEARNT_TABLE: catalog.version(LEARNT_TABLE)} | inputs["catalog"]
    placed = read_placement(params, catalog, pinned)
    if not placed.samples.num_rows:
        raise InputError(f"{catalog.url} holds no photos: `mm quarantine list` shows what was refused")
    ids = placed.samples["id"].combine_chunks()
    # A check of the result that does not depend on the replay, before anything is written.
    members = {pool: np.flatnonzero(placed.pools[pool]) for pool in POOLS}
    check_pools(ids, members, placed.component, np.asarray(placed.group.indices))
    frames = {pool: placed.frame(pool) for pool in POOLS}
    whole = frames["eval"]
    within = is_within_limit(whole.select(["category", "group"]).to_pandas(), params.eval_most, "evaluation")
    frames["eval"] = whole.filter(pa.array(within))
    dropped = np.flatnonzero(placed.dropped)
    reasons = np.bincount(placed.dropped, minlength=len(REASONS)).tolist()
    counts = {pool: _counts(frames[pool]) for pool in POOLS}
    facts: SnapshotFacts = {
        "digest": digest_of({pool: table_digest(frames[pool], SCHEMA.names) for pool in POOLS}),
        # Only columns that change a photo's scores; a new caption must not change this digest.
        "eval_digest": table_digest(frames["eval"], ("sample_id", "category", "alpha_sha256")),
        "catalog": pinned,
        "champion": inputs.get("champion"),
        "anchor": inputs.get("anchor"),
        "params": params.model_dump(),
        "counts": counts,
        "dropped_for_leakage": {
            why: count for why, count in sorted(zip(REASONS, reasons, strict=True)) if why and count
        },
    }
    if start := start_for(inputs, facts["digest"]):
        facts["start"] = start
    if same := _version_of_same(out_dir, facts):
        facts["catalog"] = same
    write_frames(out_dir, frames, SCHEMA, facts)
    report.facts |= facts
    report.metrics |= {f"snapshot/{pool}": len(frames[pool]) for pool in POOLS}
    report.metrics["snapshot/eval_above_limit"] = len(whole) - len(frames["eval"])
    report.metrics["snapshot/dropped_for_leakage"] = len(dropped)
    report.tables["pools"] = [
        {"category": category} | {pool: counts[pool].get(category, 0) for pool in POOLS}
        for category in sorted({c for pool in POOLS for c in counts[pool]})
    ]
    listed = dropped[:LISTED]
    report.tables["dropped_for_leakage"] = [
        {"sample_id": sample, "group": group, "why": REASONS[why]}
        for sample, group, why in zip(
            ids.take(pa.array(listed)).to_pylist(),
            placed.group.take(pa.array(listed)).to_pylist(),
            placed.dropped[listed].tolist(),
            strict=True,
        )
    ]
    return report


def _version_of_same(snapshot_dir: Path, facts: SnapshotFacts) -> dict[str, int] | None:
    """Return the catalog versions of an equal snapshot in the folder, or None.

    A cycle records what it learns from, which does not change its own snapshot. The same snapshot keeps its bytes.
    """
    path = snapshot_dir / "snapshot.json"
    try:
        earlier = json.loads(path.read_bytes()) if has_file(path) else None
    except ValueError:
        return None
    if not are_pins(earlier) or LEARNT_TABLE not in earlier["catalog"]:
        return None
    differs = {**earlier, "catalog": news_of(earlier["catalog"])} != {**facts, "catalog": news_of(facts["catalog"])}
    return None if differs else earlier["catalog"]


def read_pool(snapshot_dir: Path, pool: str) -> pd.DataFrame:
    """Read a frame of the snapshot, in order of sample ids, with nullable pandas integers and booleans.

    Args:
        snapshot_dir: Folder of the snapshot.
        pool: One of POOLS.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = snapshot_dir / f"{pool}.parquet"
    if not has_file(path):
        raise InputError(f"{path} is missing: run `mm snapshot` first")
    try:
        # pandas would read integers and booleans with missing values as floats and objects.
        return pq.read_table(path).to_pandas(types_mapper=NULLABLE.get)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged ({said}): run `mm snapshot` again") from None


def place(
    params: SnapshotParams,
    samples: pd.DataFrame,
    labels: pd.DataFrame,
    corrections: pd.DataFrame | None = None,
    learnt: Learnt = Learnt(),
) -> pd.DataFrame:
    """Assign every sample to its pools, for tables that fit into memory as Python objects.

    Args:
        params: Shares and thresholds.
        samples: Table `samples` of the catalog.
        labels: Table `labels` of the catalog.
        corrections: Table `corrections` of the catalog; None: no photo was changed since it arrived.
        learnt: What earlier cycles have learnt from.

    Returns:
        One row per sample: its columns, its newest label, its component's `group`, one bool column per pool, and
        `dropped`, the reason for being in no pool (empty for a sample in a pool).
    """
    since = SinceArrival() if corrections is None else changes_since(corrections)
    rows, mattes = _arrow("samples", samples, SAMPLE_COLUMNS), _arrow("labels", labels, LABEL_COLUMNS)
    placed = place_tables(params, rows, mattes, since, learnt)
    table = samples.sort_values("id", ignore_index=True).rename(columns={"id": "sample_id"})
    for name in placed.labels.column_names:
        table[name] = placed.labels[name].to_pandas()
    table["category"] = pd.Series(placed.category.to_pylist(), dtype=object)
    table["group"] = pd.Series(placed.group.to_pylist(), dtype=object)
    for pool in POOLS:
        table[pool] = placed.pools[pool]
    table["dropped"] = np.array(REASONS, object)[placed.dropped]
    return table


def _arrow(table: str, rows: pd.DataFrame, columns: Sequence[str]) -> pa.Table:
    schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
    # `reindex` adds missing columns, full of nulls.
    return pa.Table.from_pandas(rows.reindex(columns=list(columns)), schema=schema, preserve_index=False)


class EvalCount(TypedDict):
    """How far the evaluation set of a category is."""

    category: str
    eval: int
    """Photos in the set."""
    needed: int
    labelled: int
    labelled_needed: int
    """Labelled photos that are needed for `needed` eval photos."""


class RefusedToJudge(TypedDict):
    """A photo that cannot judge and is not trained on."""

    sample_id: str
    image: str
    """Name of its file in the drop."""
    batch: str
    why: str


class EvalState(TypedDict):
    """The progress of the evaluation set."""

    categories: list[EvalCount]
    refused: list[RefusedToJudge]
    words: list[str]
    """Plain sentences about what is missing."""


def eval_state(params: SnapshotParams, catalog: Catalog, batches: Collection[str] = ()) -> EvalState:
    """Return the progress of the evaluation set in the catalog's newest version.

    Args:
        params: Shares and least numbers.
        catalog: The catalog.
        batches: List refused rows of these batches only, as kind/batch; of all batches if empty. A batch that gave a
            known photo its role counts as the photo's batch too.

    Returns:
        `categories`, one row each: category, eval (photos), needed, labelled (photos), labelled_needed; `refused`, the
        rows of role `eval` that cannot be used for evaluation: sample_id, image, batch, why; `words`, a line for each
        category below its need and for the refused rows.
    """
    placed = read_placement(params, catalog)
    if not placed.samples.num_rows:
        return {"categories": [], "refused": [], "words": []}
    labelled = np.asarray(placed.labels["alpha_sha256"].is_valid())
    labelled_count = _count(placed.category.filter(pa.array(labelled)))
    eval_count = _count(placed.category.filter(pa.array(placed.pools["eval"])))
    rows: list[EvalCount] = []
    words: list[str] = []
    # Evaluation may use at most MOST_SHARE of the groups, so it needs this many labelled photos.
    wanted = math.ceil(params.eval_least / MOST_SHARE)
    for category in CATEGORIES:
        judging, count = eval_count.get(category, 0), labelled_count.get(category, 0)
        rows.append(
            {
                "category": category,
                "eval": judging,
                "needed": params.eval_least,
                "labelled": count,
                "labelled_needed": wanted,
            }
        )
        if judging < params.eval_least:
            words.append(f"{category}: {judging} of {params.eval_least} eval photos; {_labelled_words(count, wanted)}")
    # Rows without label or category may judge later; rows refused as LEARNT never do.
    chosen = pa.array(np.flatnonzero(placed.dropped == REASONS.index(LEARNT)))
    refused = placed.samples.select(["id", "kind", "batch"]).take(chosen).to_pylist()
    if refused and batches:
        given = given_by(catalog, batches)
        refused = [row for row in refused if f"{row['kind']}/{row['batch']}" in batches or row["id"] in given]
    listed: list[RefusedToJudge] = []
    if refused:
        # A producer knows a photo by its file's name, which placement does not read.
        named = catalog.read("samples", columns=["id", "name"])
        names = dict(zip(named["id"], named["name"].fillna(""), strict=True))
        listed = [
            {"sample_id": row["id"], "image": names[row["id"]], "batch": row["batch"], "why": LEARNT} for row in refused
        ]
        some = ", ".join(row["image"] or row["sample_id"][:12] for row in listed[:5])
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        what = "1 photo cannot judge and is" if len(listed) == 1 else f"{len(listed)} photos cannot judge and are"
        words.append(f"{what} not trained on ({LEARNT}): {some}{more}")
    return {"categories": rows, "refused": listed, "words": words}


def _labelled_words(count: int, wanted: int) -> str:
    if count < wanted:
        return f"{count} of about {wanted} labelled"
    # The labels suffice, but photos of role train, or labelled after their arrival, never become eval photos.
    return f"{count} labelled, but only newly arriving photos can judge: drop labelled ones with role eval"


def components(samples: pd.DataFrame, bits: int) -> np.ndarray:
    """Return the connected components of samples by declared groups, near-duplicate hashes and `near`.

    Args:
        samples: Columns id, group, phash and near (ids, or null) of the catalog.
        bits: Largest Hamming distance of two near-duplicate hashes, in bits.

    Returns:
        int (samples,): a component number per sample.
    """
    names = [name for name in ("id", "group", "phash", "near", "accepted_at") if name in samples]
    table = _arrow("samples", samples, names)
    declared = declared_of(table)
    codes = np.asarray(declared.indices)
    return connect(codes, len(declared.dictionary), links_of(table, bits))[codes]


def assert_no_leak(frames: Mapping[str, pd.DataFrame], samples: pd.DataFrame, bits: int) -> None:
    """Check that no pool leaks evaluation or validation photos.

    No photo of an evaluation component may be in a training pool or in validation, apart from the eval photos
    themselves. No photo of a validation component may be in a training pool.

    Args:
        frames: Pool → frame.
        samples: Columns id, group, phash and near of the whole catalog. A photo outside all pools may connect two
            photos in pools.
        bits: Largest Hamming distance of two near-duplicate hashes, in bits.

    Raises:
        MattingError: A pool leaks; the message names some samples.
    """
    groups = pd.concat([frame.set_index("sample_id")["group"] for frame in frames.values()])
    # A sample outside the catalog is a component of its own.
    ids = pd.Index(samples["id"]).append(groups.index.difference(pd.Index(samples["id"])))
    component = components(samples, bits)
    component = np.concatenate((component, len(ids) + np.arange(len(ids) - len(samples))))
    members = {pool: ids.get_indexer(pd.Index(frame["sample_id"])) for pool, frame in frames.items()}
    # A sample outside all pools has no group column; its code is never compared.
    codes = pd.factorize(groups[~groups.index.duplicated()].reindex(ids))[0]
    check_pools(pa.array(ids, pa.string()), members, component, codes)


def _counts(frame: pa.Table) -> dict[str, int]:
    return dict(sorted(_count(pc.fill_null(frame["category"], "unknown")).items()))


def _count(column: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Return value → number of rows."""
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def write_frames(
    out_dir: Path, frames: Mapping[str, pd.DataFrame | pa.Table], schema: pa.Schema, facts: object = None
) -> None:
    """Write `<name>.parquet` of each frame, `snapshot.json` of `facts`, and a seal; equal frames give equal bytes.

    The files are written to a temporary folder, which then replaces `out_dir`. A reader never sees a partial snapshot.

    Args:
        out_dir: Folder of the snapshot.
        frames: Name → frame.
        schema: Schema of all frames.
        facts: Content of snapshot.json, or None.
    """
    fresh = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    stale = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.old")
    # A killed process with the same id may have left this folder.
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, frame in frames.items():
        # Drop the metadata of pandas: it contains library versions, which would change the bytes.
        if isinstance(frame, pd.DataFrame):
            frame = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        table = frame.combine_chunks().replace_schema_metadata(None)
        with disk_faults_of(out_dir / f"{name}.parquet"):
            pq.write_table(table, fresh / f"{name}.parquet", compression="zstd")
    if facts is not None:
        write_json(fresh / "snapshot.json", facts)
    seal_folder(fresh)
    # Two renames replace the folder: a rename cannot overwrite a folder with files.
    if out_dir.exists():
        out_dir.rename(stale)
    fresh.rename(out_dir)
    shutil.rmtree(stale, ignore_errors=True)
