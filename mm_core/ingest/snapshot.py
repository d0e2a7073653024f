"""Freeze one catalog version into five parquet frames for training, validation and evaluation of a cycle.

The rules apply in this order:

1. **Only arriving groups are held out** (`mm_core.ingest.holdout`). A group that arrived earlier for training cannot be
   used for evaluation, independent of its role. Role `train` excludes a photo. A photo that arrived with a label is
   used for evaluation if a stable hash of its group is below `eval_share`, or if its category needs more groups. An
   eval photo remains one. A row of role `eval` that cannot be used is in no pool, and `dropped` gives the reason.
2. **Eval has priority.** Declared groups that share near-duplicates (perceptual hash) form one component. The other
   photos of a component with an eval sample are removed from all training pools.
3. Validation is drawn from the remaining arriving groups if a category has enough of them to choose a checkpoint. The
   other photos of these components are removed from the training pools.

The same catalog version and parameters give the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

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
        ("group", pa.string()),  # smallest declared group of the component, which must not be split
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
    """Write `<pool>.parquet` for each of POOLS and `snapshot.json`, and replace `out_dir` as a whole.

    `train_text_image` contains all captioned photos of text-image drops, also those that were labelled later.

    Args:
        params: Shares and thresholds.
        catalog: The catalog.
        inputs: Result of `stages.read_inputs`, with the pinned catalog versions.
        out_dir: Folder of the snapshot.
        report: The report to fill.

    Returns:
        The same report, with counts per pool and category and the dropped samples.

    Raises:
        InputError: The catalog has no samples.
        MattingError: A pool contains a sample that leaks evaluation or validation.
    """
    # Read the pinned versions, so that a concurrent ingest does not change the snapshot.
    pinned = inputs["catalog"]
    samples = catalog.read("samples", version=pinned["samples"])
    if samples.empty:
        raise InputError(f"{catalog.url} holds no samples: put a drop into the inbox and run `mm ingest`")
    placed = place(params, samples, catalog.read("labels", version=pinned["labels"]))
    frames = {pool: _frame(placed.loc[placed[pool]]) for pool in POOLS}
    # An independent check of the result, before anything is written.
    assert_no_leak(frames, samples, params.near_duplicate_bits)
    dropped = placed.loc[placed["dropped"] != ""]
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
    if "start" in inputs:
        facts["start"] = inputs["start"]
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
    """Read a frame of the snapshot, in order of sample ids, with nullable pandas integers and booleans.

    Args:
        snapshot_dir: Folder of the snapshot.
        pool: One of POOLS.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = snapshot_dir / f"{pool}.parquet"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm snapshot` first")
    try:
        return pq.read_table(path).to_pandas(types_mapper=NULLABLE.get)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged ({said}): run `mm snapshot` again") from None


def newest_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the newest label of each sample: the highest version that is not withdrawn.

    Two writers may create equal versions. The later one is used, then the greater id.
    """
    labels = labels_in_use(labels)
    return labels.sort_values(["version", "created_at", "id"]).drop_duplicates("sample_id", keep="last")


def labels_in_use(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the labels that are not withdrawn (`withdrawn_at`)."""
    return labels.loc[labels["withdrawn_at"].isna()] if "withdrawn_at" in labels else labels


def place(params: SnapshotParams, samples: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Assign every sample to its pools.

    Args:
        params: Shares and thresholds.
        samples: Table `samples` of the catalog.
        labels: Table `labels` of the catalog.

    Returns:
        One row per sample: its columns, its newest label, its component's `group`, one bool column per pool, and
        `dropped`, the reason for being in no pool (empty for a sample in a pool).
    """
    newest = newest_labels(labels).loc[:, ["sample_id", "alpha_sha256", "version", "binary"]]
    newest = newest.rename(columns={"version": "label_version", "binary": "label_binary"})
    samples = samples.sort_values("id", ignore_index=True)
    # Components join near-duplicates across declared groups, so that copies are never split.
    links = _links(samples, params.near_duplicate_bits)
    component = _connect(samples, links)
    table = samples.rename(columns={"id": "sample_id"}).merge(newest, on="sample_id", how="left")
    table["category"] = table["category"].where(table["category"].isin(ALL_CATEGORIES), None)
    table["decoder"] = table["category"].map(decoder_of, na_action=None)
    declared = _declared(samples)
    table["group"] = declared.groupby(component).transform("min")

    labelled = table["alpha_sha256"].notna()
    # Two salts make evaluation and validation independent draws.
    groups = {salt: {g: stable_share(g, salt) for g in declared.unique()} for salt in ("eval", "validation")}
    held = hold_out(
        params,
        table.assign(
            declared=declared,
            lost_at=pd.Series(table["sample_id"]).map(_lost_at(labels)).where(~labelled, None),
            eval_share_of=declared.map(groups["eval"]),
            validation_share_of=declared.map(groups["validation"]),
        ),
        links,
    )
    judged = pd.Series(held.evaluation, index=table.index)
    refused = pd.Series(held.refused, index=table.index)
    # One eval photo marks its whole component.
    near_eval = pd.Series(judged.groupby(component).transform("any"))
    caption = pd.Series(table["caption"].fillna("") != "")

    # An eval photo of unknown category is not used, because the evaluation reports per category.
    table["eval"] = judged & labelled & table["category"].notna()
    free = ~near_eval
    table["validation"] = free & labelled & held.validation
    near_validation = pd.Series(table["validation"].groupby(component).transform("any"))
    learnable = free & ~near_validation & (refused == "")
    # A labelled photo with a caption stays in the text pool only if it arrived in a text-image drop.
    text = caption & ((table["kind"] == "text_image") | ~labelled)
    table["train_labeled"] = learnable & labelled
    table["train_text_image"] = learnable & text
    table["train_unlabeled"] = learnable & ~labelled & ~text
    unused = ~pd.Series(table.loc[:, list(POOLS)].any(axis=1))
    table["dropped"] = np.select(
        # The first matching condition gives the reason.
        [unused & (refused != ""), unused & judged, unused & near_eval, unused & near_validation],
        [refused, "eval without label or category", "near an eval photo", "near a validation photo"],
        default="",
    )
    return table


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
        batches: List refused rows of these batches only, as kind/batch; of all batches if empty.

    Returns:
        `categories`, one row each: category, eval (photos), needed, labelled (photos), labelled_needed; `refused`, the
        rows of role `eval` that cannot be used for evaluation: sample_id, batch, why; `words`, a line for each category
        below its need and for the refused rows.
    """
    samples = catalog.read("samples")
    if samples.empty:
        return {"categories": [], "refused": [], "words": []}
    table: pd.DataFrame = place(params, samples, catalog.read("labels"))
    labelled = table.loc[table["alpha_sha256"].notna()]
    rows: list[EvalCount] = []
    words: list[str] = []
    # Evaluation may use at most MOST_SHARE of the groups, so it needs this many labelled photos.
    wanted = math.ceil(params.eval_least / MOST_SHARE)
    for category in CATEGORIES:
        here = labelled["category"] == category
        judging, count = int(labelled.loc[here, "eval"].sum()), int(here.sum())
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
            words.append(
                f"{category}: {judging} of {params.eval_least} eval photos; {count} of about {wanted} labelled"
            )
    refused = table.loc[table["dropped"] == LEARNT]
    if batches:
        refused = refused.loc[(refused["kind"] + "/" + refused["batch"]).isin(set(batches))]
    listed: list[RefusedToJudge] = [
        {"sample_id": sample, "batch": batch, "why": why}
        for sample, batch, why in zip(refused["sample_id"], refused["batch"], refused["dropped"], strict=True)
    ]
    if listed:
        some = ", ".join(row["sample_id"][:12] for row in listed[:5])
        words.append(f"{len(listed)} photos cannot judge and are not trained on ({LEARNT}): {some}")
    return {"categories": rows, "refused": listed, "words": words}


def components(samples: pd.DataFrame, bits: int) -> np.ndarray:
    """Return the connected components of samples by declared groups, near-duplicate hashes and `near`.

    Args:
        samples: Columns id, group, phash and near (ids, or null) of the catalog.
        bits: Largest Hamming distance of two near-duplicate hashes, in bits.

    Returns:
        int (samples,): a component number per sample.
    """
    return _connect(samples, _links(samples, bits))


def _connect(samples: pd.DataFrame, links: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    count = len(samples)
    # Graph nodes: first the samples, then the declared groups. Each sample has an edge to its group.
    groups = count + pd.factorize(_declared(samples))[0]
    left, right = links
    rows, columns = np.concatenate((np.arange(count), left)), np.concatenate((groups, right))
    nodes = int(groups.max()) + 1 if count else 0
    edges = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][:count]


def _links(samples: pd.DataFrame, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions of samples with the same content, by perceptual hash or by `near`.

    Among samples with equal hashes, the first arrival is linked with all others. The links between the samples at one
    time therefore do not depend on later arrivals.
    """
    # Samples without a hash have no near-duplicates by hash.
    hashed = np.flatnonzero(samples["phash"].fillna("").to_numpy(dtype=object) != "")
    if "accepted_at" in samples:
        arrival = samples["accepted_at"].fillna("").to_numpy(dtype=object)[hashed]
        hashed = hashed[np.argsort(arrival, kind="stable")]
    left, right = connected(np.array([int(text, 16) for text in samples["phash"].iloc[hashed]], np.uint64), bits)
    # Links that ingest found by landmarks are added to those of the hashes.
    linked = pd.Series(samples["near"].to_numpy(dtype=object)).explode().dropna()
    earlier = pd.Index(samples["id"]).get_indexer(pd.Index(linked))  # -1: the sample was erased
    known = earlier >= 0
    return (
        np.concatenate((hashed[left], linked.index.to_numpy(int)[known])),
        np.concatenate((hashed[right], earlier[known])),
    )


def _lost_at(labels: pd.DataFrame) -> dict[str, str]:
    """Return sample id → time when its last label was withdrawn, for samples without any remaining label."""
    if "withdrawn_at" not in labels:
        return {}
    gone = labels.loc[~labels["sample_id"].isin(labels_in_use(labels)["sample_id"])]
    newest = gone.sort_values("withdrawn_at").drop_duplicates("sample_id", keep="last")
    return dict(zip(newest["sample_id"], newest["withdrawn_at"], strict=True))


def _declared(samples: pd.DataFrame) -> pd.Series:
    """Return the declared group of each sample, or its id as a group of its own."""
    group = pd.Series(samples["group"])
    return group.where(group.fillna("") != "", samples["id"])


def stable_share(group: str, salt: str) -> float:
    """Return a hash of the arguments in [0, 1), uniform over groups.

    Args:
        group: Name of a group.
        salt: Purpose of the draw; different salts give independent numbers.
    """
    # 7 bytes are 56 bits, more than the 53 bits of a float.
    return int.from_bytes(hashlib.sha256(f"{salt}:{group}".encode()).digest()[:7]) / 2**56


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
    component = pd.Series(components(samples, bits), index=pd.Index(samples["id"]))
    for guarded, others in (("eval", (*TRAINING, "validation")), ("validation", TRAINING)):
        kept = frames[guarded]
        near = component[component.isin(component.reindex(kept["sample_id"]))].index
        for pool in others:
            frame = frames[pool]
            found = set(frame["sample_id"]) & ({*kept["sample_id"]} | {*near})
            # The stored group column is a second, independent check.
            found |= set(frame.loc[frame["group"].isin(kept["group"]), "sample_id"])
            if found:
                some = ", ".join(sorted(found)[:5])
                raise MattingError(f"leak: {len(found)} samples of {pool} belong with {guarded} photos ({some})")


def _frame(table: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the types of `read_pool`, so that written and read frames have the same digest."""
    arrow = pa.Table.from_pandas(table[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    return arrow.replace_schema_metadata(None).to_pandas(types_mapper=NULLABLE.get)


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    counted = frame["category"].fillna("unknown").value_counts().sort_index()
    return {str(category): int(count) for category, count in counted.items()}


def frame_digest(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the digest of some columns of a frame, as `snapshot.json` keeps it."""
    return hashlib.sha256(frame.to_csv(columns=list(columns), index=False, lineterminator="\n").encode()).hexdigest()


def write_frames(out_dir: Path, frames: Mapping[str, pd.DataFrame], schema: pa.Schema, facts: object = None) -> None:
    """Write `<name>.parquet` of each frame and `snapshot.json` of `facts`; equal frames give equal bytes.

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
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
        with disk_faults_of(out_dir / f"{name}.parquet"):
            pq.write_table(table, fresh / f"{name}.parquet", compression="zstd")
    if facts is not None:
        write_json(fresh / "snapshot.json", facts)
    # Two renames replace the folder: a rename cannot overwrite a folder with files.
    if out_dir.exists():
        out_dir.rename(stale)
    fresh.rename(out_dir)
    shutil.rmtree(stale, ignore_errors=True)
