"""Freezes one catalog version into five parquet frames: what a cycle learns from and what it is judged on.

The rules, in the order in which they hold:

1. **Eval never moves.** Whether a sample is evaluated depends only on itself and its declared group (its own id where
   none is declared), so that it cannot change when data grows: role `eval` is in, role `train` is out, and of the rest
   a photo that arrived labelled is in where a stable hash of its group lies under `eval_share`. Where chance gives a
   category less than its share, more groups join, and they stay (`_topped_up`). A photo that arrived unlabelled may
   have been trained on since, so a later label never makes it an eval photo.
2. **Eval wins.** Declared groups that share near-duplicates (perceptual hash) form one component. Whatever stands in a
   component with an eval sample, and is none itself, leaves every training pool.
3. Validation is drawn from the rest, by another hash of the component; its components leave the other pools too.

Same catalog version and parameters, same bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.catalog import Catalog
from mm_core.data.neighbours import connected
from mm_core.errors import InputError, MattingError
from mm_core.params import SnapshotParams
from mm_core.records import ALL_CATEGORIES, Report, decoder_of, digest_of, write_json

TRAINING = ("train_labeled", "train_unlabeled", "train_text_image")
POOLS = (*TRAINING, "validation", "eval")
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("category", pa.string()),  # null: unknown
        ("decoder", pa.string()),
        ("group", pa.string()),  # smallest declared group of the component: what must stay together
        ("caption", pa.string()),
        ("alpha_sha256", pa.string()),  # null: unlabelled
        ("label_version", pa.int32()),
        ("label_binary", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("kind", pa.string()),
        ("batch", pa.string()),
    ]
)
ENOUGH_GROUPS = 5
"""A category with this many labelled groups gets at least one for eval and one for validation."""


def build_snapshot(
    params: SnapshotParams, catalog: Catalog, inputs: Mapping[str, Any], out_dir: Path, report: Report
) -> Report:
    """Writes `<pool>.parquet` for each of POOLS and `snapshot.json` into `out_dir`, replacing it whole.

    `inputs` is what `stages.read_inputs` returns. Raises InputError where the catalog holds no samples.
    `train_text_image` holds every captioned photo of a text-image drop, also where it has since been labelled.
    """
    pinned = inputs["catalog"]
    samples = catalog.read("samples", version=pinned["samples"])
    if samples.empty:
        raise InputError(f"{catalog.url} holds no samples: put a drop into the inbox and run `mm ingest`")
    placed = place(params, samples, catalog.read("labels", version=pinned["labels"]))
    frames = {pool: _frame(placed[placed[pool]]) for pool in POOLS}
    assert_no_leak(frames, samples, params.near_duplicate_bits)
    dropped: Any = placed[placed["dropped"] != ""]
    counts = {pool: _counts(frames[pool]) for pool in POOLS}
    facts = {
        "digest": digest_of({pool: frame_digest(frames[pool], SCHEMA.names) for pool in POOLS}),
        "eval_digest": frame_digest(frames["eval"], ("sample_id", "category", "alpha_sha256")),
        "catalog": dict(pinned),
        "champion": inputs.get("champion"),
        "anchor": inputs.get("anchor"),
        "params": params.model_dump(),
        "counts": counts,
        "dropped_for_leakage": {str(k): int(v) for k, v in dropped["dropped"].value_counts().sort_index().items()},
    }
    write_frames(out_dir, frames, SCHEMA, facts)
    report.facts |= facts
    report.metrics |= {f"snapshot/{pool}": len(frames[pool]) for pool in POOLS}
    report.metrics["snapshot/dropped_for_leakage"] = len(dropped)
    report.tables["pools"] = [
        {"category": category} | {pool: counts[pool].get(category, 0) for pool in POOLS}
        for category in sorted({c for pool in POOLS for c in counts[pool]})
    ]
    report.tables["dropped_for_leakage"] = [
        {"sample_id": sample, "group": group, "why": why}
        for sample, group, why in zip(dropped["sample_id"], dropped["group"], dropped["dropped"], strict=True)
    ][:200]
    return report


def read_pool(snapshot_dir: Path, pool: str) -> pd.DataFrame:
    """A frame of the snapshot, in order of sample ids; integers and booleans are pandas' nullable ones."""
    path = snapshot_dir / f"{pool}.parquet"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm snapshot` first")
    nullable = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
    try:
        return pq.read_table(path).to_pandas(types_mapper=nullable.get)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged ({said}): run `mm snapshot` again") from None


def newest_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """The label that counts for each sample: highest version that is not withdrawn; of two writers' equal versions the
    later, then by id."""
    labels = labels_in_use(labels)
    return labels.sort_values(["version", "created_at", "id"]).drop_duplicates("sample_id", keep="last")


def labels_in_use(labels: pd.DataFrame) -> pd.DataFrame:
    """The rows that no person withdrew (`withdrawn_at`)."""
    return labels.loc[labels["withdrawn_at"].isna()] if "withdrawn_at" in labels else labels


def place(params: SnapshotParams, samples: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Every sample with its newest label, its component `group`, one boolean column per pool, and `dropped`: why a
    sample that could be learned from is in no pool (empty where it is in one)."""
    newest: Any = newest_labels(labels)[["sample_id", "alpha_sha256", "version", "binary"]]
    newest = newest.rename(columns={"version": "label_version", "binary": "label_binary"})
    samples = samples.sort_values("id", ignore_index=True)
    component = components(samples, params.near_duplicate_bits)
    table: Any = samples.rename(columns={"id": "sample_id"}).merge(newest, on="sample_id", how="left")
    table["category"] = table["category"].where(table["category"].isin(ALL_CATEGORIES), None)
    table["decoder"] = table["category"].map(decoder_of, na_action=None)
    declared = _declared(samples)
    table["group"] = declared.groupby(component).transform("min")

    role = table["role"].fillna("")
    labelled = table["alpha_sha256"].notna()
    drawable = (table["kind"] == "pixel_labeled") & (role == "") & (table["near"].str.len().fillna(0) == 0)
    share = declared.map({group: stable_share(group, "eval") for group in declared.unique()})
    by_hash = drawable & (share < params.eval_share)
    topped_up = _topped_up(
        params,
        table.assign(declared=declared, share=share)[labelled & (drawable | (role == "eval"))],
        by_hash | (role == "eval"),
    )
    judged = (role == "eval") | by_hash | (drawable & declared.isin(topped_up))
    near_eval = judged.groupby(component).transform("any")
    caption = table["caption"].fillna("") != ""

    # An eval photo of unknown category waits: no row of the verdict could count it.
    table["eval"] = judged & labelled & table["category"].notna()
    free = ~near_eval
    table["validation"] = free & labelled & table["group"].isin(_validation_groups(params, table[free & labelled]))
    near_validation = table["validation"].groupby(component).transform("any")
    learnable = free & ~near_validation
    text = caption & ((table["kind"] == "text_image") | ~labelled)
    table["train_labeled"] = learnable & labelled
    table["train_text_image"] = learnable & text
    table["train_unlabeled"] = learnable & ~labelled & ~text
    unused = ~table[list(POOLS)].any(axis=1)
    table["dropped"] = np.select(
        [unused & judged, unused & near_eval, unused & near_validation],
        ["eval without label or category", "near an eval photo", "near a validation photo"],
        default="",
    )
    return table


def components(samples: pd.DataFrame, bits: int) -> np.ndarray:
    """A number per sample, equal where declared groups, near-duplicate hashes or `near` connect samples.

    `samples`: columns id, group, phash and near (ids, or null) of the catalog.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(samples)
    groups = count + pd.factorize(_declared(samples))[0]
    hashed = np.flatnonzero(samples["phash"].fillna("").to_numpy(dtype=object) != "")
    left, right = connected(np.array([int(text, 16) for text in samples["phash"].iloc[hashed]], np.uint64), bits)
    linked = pd.Series(samples["near"].to_numpy(dtype=object)).explode().dropna()
    earlier = pd.Index(samples["id"]).get_indexer(pd.Index(linked))  # -1: it has been forgotten
    known = earlier >= 0
    rows = np.concatenate((np.arange(count), hashed[left], linked.index.to_numpy(int)[known]))
    columns = np.concatenate((groups, hashed[right], earlier[known]))
    nodes = int(groups.max()) + 1 if count else 0
    edges = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:count]


def _declared(samples: pd.DataFrame) -> pd.Series:
    """The group of each sample; its own id where it has none."""
    declared: Any = samples["group"].where(samples["group"].fillna("") != "", samples["id"])
    return declared


def stable_share(group: str, salt: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, uniform over groups."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{group}".encode()).digest()[:7]) / 2**56


def assert_no_leak(frames: Mapping[str, pd.DataFrame], samples: pd.DataFrame, bits: int) -> None:
    """Raises MattingError where an eval photo, one of its group, a near-duplicate, or whatever these lead to, is in a
    training pool or in validation, or the like of a validation photo in a training pool.

    `samples`: columns id, group, phash and near of the whole catalog, for a photo in no pool may connect two that are.
    """
    component: Any = pd.Series(components(samples, bits), index=pd.Index(samples["id"]))
    for guarded, others in (("eval", (*TRAINING, "validation")), ("validation", TRAINING)):
        kept = frames[guarded]
        near = component[component.isin(component.reindex(kept["sample_id"]))].index
        for pool in others:
            frame = frames[pool]
            found = set(frame["sample_id"]) & ({*kept["sample_id"]} | {*near})
            found |= set(frame.loc[frame["group"].isin(kept["group"]), "sample_id"])
            if found:
                some = ", ".join(sorted(found)[:5])
                raise MattingError(f"leak: {len(found)} samples of {pool} belong with {guarded} photos ({some})")


def _topped_up(params: SnapshotParams, table: Any, judged: pd.Series) -> set[str]:
    """Declared groups that become eval because chance left their category less than its share of groups.

    The smallest hashes fill the quota. A pick must stay one when later batches bring smaller hashes or end the need, so
    arrivals are replayed in order, and every pick that was right at its time counts.
    `table`: labelled samples that may be evaluated, with columns declared, share, category, accepted_at.
    """
    # One run of ingest writes one time into all its rows, and commits them at once.
    table = table.assign(arrival=table["accepted_at"].fillna(""), judged=judged.reindex(table.index))
    picks: set[str] = set()
    for _, rows in table.groupby("category"):
        seen: set[str] = set()
        waiting: list[tuple[float, str]] = []
        filled = 0
        groups = rows.groupby(["arrival", "declared"], as_index=False).agg({"share": "first", "judged": "any"})
        for _, arrived in groups.groupby("arrival"):
            for group, share, chosen in zip(arrived["declared"], arrived["share"], arrived["judged"], strict=True):
                if group not in seen:
                    filled += bool(chosen)
                    if not chosen:
                        heapq.heappush(waiting, (share, group))
                seen.add(group)
            while filled < _quota(len(seen), params.eval_share) and waiting:
                picks.add(heapq.heappop(waiting)[1])
                filled += 1
    return picks


def _validation_groups(params: SnapshotParams, table: Any) -> set[str]:
    """By hash of the component, topped up by the smallest hashes where a category has less than its share."""
    share_of = {group: stable_share(group, "validation") for group in table["group"].unique()}
    chosen = {group for group, share in share_of.items() if share < params.validation_share}
    for _, rows in table.groupby("category"):
        groups = sorted(set(rows["group"]), key=lambda group: (share_of[group], group))
        # Eval may have taken the fifth.
        chosen |= set(groups[: _quota(len(groups), params.validation_share, ENOUGH_GROUPS - 1)])
    return chosen


def _quota(groups: int, share: float, enough: int = ENOUGH_GROUPS) -> int:
    """Groups that a category with so many must have: its share, rounded down, and one where there are enough."""
    return max(int(share * groups), int(groups >= enough))


def _frame(table: Any) -> pd.DataFrame:
    return table[SCHEMA.names].reset_index(drop=True)


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    counted = frame["category"].fillna("unknown").value_counts().sort_index()
    return {str(category): int(count) for category, count in counted.items()}


def frame_digest(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the digest of some columns of a frame, as `snapshot.json` keeps it."""
    return hashlib.sha256(frame.to_csv(columns=list(columns), index=False, lineterminator="\n").encode()).hexdigest()


def write_frames(
    out_dir: Path, frames: Mapping[str, pd.DataFrame], schema: pa.Schema, facts: Mapping[str, Any] | None = None
) -> None:
    """Writes `<name>.parquet` of each frame, and `snapshot.json` of `facts`, into a folder beside `out_dir`, then
    exchanges it whole: no reader ever sees half of it. Same frames, same bytes."""
    fresh = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    stale = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, frame in frames.items():
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
        pq.write_table(table, fresh / f"{name}.parquet", compression="zstd")
    if facts is not None:
        write_json(fresh / "snapshot.json", facts)
    if out_dir.exists():
        out_dir.rename(stale)
    fresh.rename(out_dir)
    shutil.rmtree(stale, ignore_errors=True)
