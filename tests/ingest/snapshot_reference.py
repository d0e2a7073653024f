"""The pools of a snapshot in plain pandas, as they were computed before the columns: the oracle of the tests.

Everything is computed for all samples at once, and the replay sees all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mm_core.core.params import SnapshotParams
from mm_core.core.records import ALL_CATEGORIES, decoder_of
from mm_core.ingest.learnt import Learnt
from mm_core.ingest.placement import POOLS, SCHEMA, labels_in_use, newest_labels, stable_share
from tests.ingest.holdout_reference import hold_out


def frame_of(placed: pd.DataFrame, pool: str) -> pd.DataFrame:
    """Return the frame of a pool in the columns of the snapshot."""
    return placed.loc[placed[pool], SCHEMA.names]


def frame_digest(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the digest of some columns of a frame, by the CSV of pandas."""
    return hashlib.sha256(frame.to_csv(columns=list(columns), index=False, lineterminator="\n").encode()).hexdigest()


def reference_place(
    params: SnapshotParams, samples: pd.DataFrame, labels: pd.DataFrame, learnt: Learnt = Learnt()
) -> pd.DataFrame:
    """Assign every sample to its pools.

    Args:
        params: Shares and thresholds.
        samples: Table `samples` of the catalog.
        labels: Table `labels` of the catalog.
        learnt: What earlier cycles have learnt from.

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
            trained=_is_learnt(table["sample_id"], declared, learnt.training, learnt.training_groups),
            validated=_is_learnt(table["sample_id"], declared, learnt.validation, learnt.validation_groups),
            near=table["near"].str.len().fillna(0) > 0,
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
    validation = pd.Series(free & held.validation)
    table["validation"] = validation & labelled
    near_validation = pd.Series(validation.groupby(component).transform("any"))
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


def _is_learnt(ids: pd.Series, declared: pd.Series, known: pa.Array, groups: Collection[str]) -> pd.Series:
    return ids.isin(known.to_pylist()) | declared.isin(list(groups))


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
    """Return all pairs within `bits` and all pairs by `near`, by comparison of all with all."""
    hashes = [int(text, 16) if text else None for text in samples["phash"].fillna("")]
    arrival = samples["accepted_at"].fillna("").tolist()
    pairs = []
    for one, first in enumerate(hashes):
        for other, second in enumerate(hashes[:one]):
            if first is not None and second is not None and first != second and (first ^ second).bit_count() <= bits:
                pairs.append((one, other))
    # Equal hashes are linked to the first arrival, distinct ones by it too.
    first_of: dict[int, int] = {}
    for place in sorted(range(len(hashes)), key=lambda n: (arrival[n], n)):
        if hashes[place] is not None:
            first_of.setdefault(hashes[place], place)
    pairs = [(first_of[hashes[a]], first_of[hashes[b]]) for a, b in pairs]
    pairs += [(first_of[value], n) for n, value in enumerate(hashes) if value is not None]
    ids = {sample: n for n, sample in enumerate(samples["id"])}
    for n, near in enumerate(samples["near"]):
        pairs += [(n, ids[earlier]) for earlier in ([] if near is None else near) if earlier in ids]
    left, right = np.array(pairs, int).reshape(-1, 2).T
    return left, right


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
