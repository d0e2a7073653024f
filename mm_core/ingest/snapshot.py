"""Freezes one catalog version into five parquet frames: what a cycle learns from and what it is judged on.

The rules, in the order in which they hold:

1. **Only arriving groups are held out** (`mm_core.ingest.holdout`): of a group that arrived earlier for training no
   photo can judge any more, whatever its role. Role `train` is out. Of the rest a photo that arrived labelled is in
   where a stable hash of its group lies under `eval_share`, and where its category has fewer than it needs. An eval
   photo stays one. A row of role `eval` that cannot judge is in no pool, and `dropped` says why.
2. **Eval wins.** Declared groups that share near-duplicates (perceptual hash) form one component. Whatever stands in a
   component with an eval sample, and is none itself, leaves every training pool.
3. Validation is drawn from the rest's arriving groups where a category has enough of them to choose a checkpoint;
   its components leave the other pools too.

Same catalog version and parameters, same bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import InputError, MattingError
from mm_core.core.params import SnapshotParams
from mm_core.core.pins import PinnedInputs, SnapshotFacts
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, Report, decoder_of, digest_of, write_json
from mm_core.imaging.hash_index import connected
from mm_core.ingest.holdout import LEARNT, MOST_SHARE, hold_out
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import disk_faults_of

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
NULLABLE = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


def build_snapshot(
    params: SnapshotParams, catalog: Catalog, inputs: PinnedInputs, out_dir: Path, report: Report
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
    facts: SnapshotFacts = {
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
    try:
        return pq.read_table(path).to_pandas(types_mapper=NULLABLE.get)
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
    links = _links(samples, params.near_duplicate_bits)
    component = _connect(samples, links)
    table: Any = samples.rename(columns={"id": "sample_id"}).merge(newest, on="sample_id", how="left")
    table["category"] = table["category"].where(table["category"].isin(ALL_CATEGORIES), None)
    table["decoder"] = table["category"].map(decoder_of, na_action=None)
    declared = _declared(samples)
    table["group"] = declared.groupby(component).transform("min")

    labelled = table["alpha_sha256"].notna()
    groups = {salt: {g: stable_share(g, salt) for g in declared.unique()} for salt in ("eval", "validation")}
    held = hold_out(
        params,
        table.assign(
            declared=declared,
            lost_at=table["sample_id"].map(_lost_at(labels)).where(~labelled, None),
            eval_share_of=declared.map(groups["eval"]),
            validation_share_of=declared.map(groups["validation"]),
        ),
        links,
    )
    judged = pd.Series(held.evaluation, index=table.index)
    refused = pd.Series(held.refused, index=table.index)
    near_eval = judged.groupby(component).transform("any")
    caption = table["caption"].fillna("") != ""

    # An eval photo of unknown category waits: no row of the verdict could count it.
    table["eval"] = judged & labelled & table["category"].notna()
    free = ~near_eval
    table["validation"] = free & labelled & held.validation
    near_validation = table["validation"].groupby(component).transform("any")
    learnable = free & ~near_validation & (refused == "")
    text = caption & ((table["kind"] == "text_image") | ~labelled)
    table["train_labeled"] = learnable & labelled
    table["train_text_image"] = learnable & text
    table["train_unlabeled"] = learnable & ~labelled & ~text
    unused = ~table[list(POOLS)].any(axis=1)
    table["dropped"] = np.select(
        [unused & (refused != ""), unused & judged, unused & near_eval, unused & near_validation],
        [refused, "eval without label or category", "near an eval photo", "near a validation photo"],
        default="",
    )
    return table


def eval_state(params: SnapshotParams, catalog: Catalog, batches: Collection[str] = ()) -> dict[str, Any]:
    """Return how far the evaluation set of the catalog's newest version is.

    Args:
        params: Shares and least numbers.
        catalog: The catalog.
        batches: Batches, as kind/batch, of which refused rows are listed; all of the catalog's where empty.

    Returns:
        `categories`, one row each: category, eval (photos), needed, labelled (photos), labelled_needed; `refused`, the
        rows of role `eval` that cannot judge: sample_id, batch, why; `words`, a line for each category below its need
        and for the refused rows.
    """
    samples = catalog.read("samples")
    if samples.empty:
        return {"categories": [], "refused": [], "words": []}
    table: Any = place(params, samples, catalog.read("labels"))
    labelled = table.loc[table["alpha_sha256"].notna()]
    rows, words = [], []
    wanted = math.ceil(params.eval_least / MOST_SHARE)
    for category in CATEGORIES:
        here = labelled["category"] == category
        judging, count = int(labelled.loc[here, "eval"].sum()), int(here.sum())
        row = {"category": category, "eval": judging, "needed": params.eval_least, "labelled": count}
        rows.append(row | {"labelled_needed": wanted})
        if judging < params.eval_least:
            words.append(
                f"{category}: {judging} of {params.eval_least} eval photos; {count} of about {wanted} labelled"
            )
    refused = table.loc[table["dropped"] == LEARNT]
    if batches:
        refused = refused.loc[(refused["kind"] + "/" + refused["batch"]).isin(set(batches))]
    listed = [
        {"sample_id": sample, "batch": batch, "why": why}
        for sample, batch, why in zip(refused["sample_id"], refused["batch"], refused["dropped"], strict=True)
    ]
    if listed:
        some = ", ".join(row["sample_id"][:12] for row in listed[:5])
        words.append(f"{len(listed)} photos cannot judge and are not trained on ({LEARNT}): {some}")
    return {"categories": rows, "refused": listed, "words": words}


def components(samples: pd.DataFrame, bits: int) -> np.ndarray:
    """A number per sample, equal where declared groups, near-duplicate hashes or `near` connect samples.

    `samples`: columns id, group, phash and near (ids, or null) of the catalog.
    """
    return _connect(samples, _links(samples, bits))


def _connect(samples: pd.DataFrame, links: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(samples)
    groups = count + pd.factorize(_declared(samples))[0]
    left, right = links
    rows, columns = np.concatenate((np.arange(count), left)), np.concatenate((groups, right))
    nodes = int(groups.max()) + 1 if count else 0
    edges = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:count]


def _links(samples: pd.DataFrame, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of samples that show the same, by perceptual hash or by what ingest found (`near`).

    Of samples with equal hashes the one that arrived first is linked with the others, so that the links between the
    samples of a moment do not depend on later arrivals.
    """
    hashed = np.flatnonzero(samples["phash"].fillna("").to_numpy(dtype=object) != "")
    if "accepted_at" in samples:
        arrival = samples["accepted_at"].fillna("").to_numpy(dtype=object)[hashed]
        hashed = hashed[np.argsort(arrival, kind="stable")]
    left, right = connected(np.array([int(text, 16) for text in samples["phash"].iloc[hashed]], np.uint64), bits)
    linked = pd.Series(samples["near"].to_numpy(dtype=object)).explode().dropna()
    earlier = pd.Index(samples["id"]).get_indexer(pd.Index(linked))  # -1: it has been forgotten
    known = earlier >= 0
    return (
        np.concatenate((hashed[left], linked.index.to_numpy(int)[known])),
        np.concatenate((hashed[right], earlier[known])),
    )


def _lost_at(labels: pd.DataFrame) -> dict[str, str]:
    """Sample id → when its last label was withdrawn, of samples that have lost all of theirs."""
    if "withdrawn_at" not in labels:
        return {}
    gone = labels.loc[~labels["sample_id"].isin(labels_in_use(labels)["sample_id"])]
    newest = gone.sort_values("withdrawn_at").drop_duplicates("sample_id", keep="last")
    return dict(zip(newest["sample_id"], newest["withdrawn_at"], strict=True))


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


def _frame(table: Any) -> pd.DataFrame:
    """The frame as `read_pool` reads it back: the digest of what is written is the digest of what is read."""
    arrow = pa.Table.from_pandas(table[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    return arrow.replace_schema_metadata(None).to_pandas(types_mapper=NULLABLE.get)


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
        with disk_faults_of(out_dir / f"{name}.parquet"):
            pq.write_table(table, fresh / f"{name}.parquet", compression="zstd")
    if facts is not None:
        write_json(fresh / "snapshot.json", facts)
    if out_dir.exists():
        out_dir.rename(stale)
    fresh.rename(out_dir)
    shutil.rmtree(stale, ignore_errors=True)
