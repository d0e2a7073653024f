"""Record of the best promoted model per category and metric; the reference named `anchor`.

A promoted candidate becomes the best model of a category and metric only if it is better with confidence. Chance
therefore does not raise the reference. The record keeps the scores of each photo, so a later candidate is compared on
the common photos with the same true matte. It belongs to the pinned anchor; moving the anchor (`mm anchor`) starts a
new record. Earlier best models stay in the record. After a rollback, the previous best model is the reference again.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import BlobNotFound
from mm_core.core.layout import Layout
from mm_core.core.params import GateParams
from mm_core.core.records import ALL_CATEGORIES, parse_record
from mm_core.eval.cells import judge_category
from mm_core.eval.evidence import ANCHOR, INT8, Evidence, gather, read_scores
from mm_core.eval.questions import JUDGED, not_worse
from mm_core.ingest.snapshot import read_pool
from mm_core.storage.store import Store

PREFIX = "gate/best"


Places = dict[str, dict[str, list[str]]]
"""Category → metric → digests of the weights of the successive best models, oldest first."""


@dataclass(frozen=True)
class Ratchet:
    """Location of the record of the best models."""

    store: Store
    anchor: str | None
    """Digest of the pinned anchor that the record belongs to; None before the first promotion."""
    fallen: Collection[str] = ()
    """Digests of the models that were rolled back; they are ignored."""


def read_best(ratchet: Ratchet) -> dict[str, dict[str, str]]:
    """Return category → metric → digest of the best model that was not rolled back; empty without a record."""
    best: dict[str, dict[str, str]] = {}
    for category, of_metric in _read_places(ratchet).items():
        for metric, holders in of_metric.items():
            if standing := [holder for holder in holders if holder not in ratchet.fallen]:
                best.setdefault(category, {})[metric] = standing[-1]
    return best


def best_models(ratchet: Ratchet) -> list[str]:
    """Return the sorted digests of the models that are the best so far in any category and metric."""
    return sorted({digest for of_metric in read_best(ratchet).values() for digest in of_metric.values()})


def _read_places(ratchet: Ratchet) -> Places:
    if ratchet.anchor is None:
        return {}
    try:
        key = f"{PREFIX}/{ratchet.anchor}.json"
        content, where = ratchet.store.fetch(key).read_bytes(), f"{ratchet.store.url}/{key}"
        record = parse_record(content, dict[str, dict[str, str | list[str]]], where, "restore it from a backup")
    except BlobNotFound:
        return {}
    # Older records have one digest per category and metric instead of a list.
    return {
        category: {metric: [held] if isinstance(held, str) else held for metric, held in of_metric.items()}
        for category, of_metric in record.items()
    }


def with_best(
    evidence: Evidence, eval_frame: pd.DataFrame, store: Store, best: dict[str, dict[str, str]], champion: str | None
) -> Evidence:
    """Return the evidence with the scores of the best models under the key ANCHOR.

    Photos without a score of the best model are NaN. The anchor's own scores stay, if available, if the best model has
    scores for less than half of the category's photos. All scores are NaN if the best model is the champion, because
    the comparison with the champion already covers it.

    Args:
        evidence: Scores of the evaluated models.
        eval_frame: The eval pool with sample_id and alpha_sha256.
        store: Holds the recorded scores.
        best: Category → metric → digest, from `read_best`.
        champion: Digest of the champion.
    """
    if not best:
        return evidence
    # A corrected true matte has another digest, so scores against the old matte are not reused.
    alpha = dict(zip(eval_frame["sample_id"], eval_frame["alpha_sha256"], strict=True))
    labels = [alpha[sample] for sample in evidence.sample_id]
    shape = {metric: values.shape for metric, values in evidence.values[INT8].items()}
    own = evidence.values.get(ANCHOR)
    # Start from the anchor's own scores, then replace them category by category.
    merged = {m: np.array(own[m]) if own else np.full(shape[m], np.nan) for m in shape}
    kept: dict[str, pd.DataFrame] = {}
    for category, of_metric in best.items():
        here = np.flatnonzero(evidence.category == category)
        for metric, digest in of_metric.items():
            if digest == champion:
                merged[metric][here] = np.nan
                continue
            # One model is often the best in several places; its file is read once.
            if digest not in kept:
                kept[digest] = _read_scores(store, digest)
            table = kept[digest].reindex([(evidence.sample_id[i], labels[i]) for i in here])
            found = table["fcurve" if metric == "maxf" else metric].tolist()
            rows = [np.atleast_1d(value) for value in found]
            width = shape[metric][1]
            # Photos that the best model never scored are NaN after the reindex.
            scored = [len(row) == width and bool(np.isfinite(row).all()) for row in rows]
            if 2 * sum(scored) >= len(here):
                nothing = np.full(width, np.nan)
                merged[metric][here] = [row if ok else nothing for row, ok in zip(rows, scored, strict=True)]
    return Evidence(evidence.category, evidence.group, evidence.sample_id, {**evidence.values, ANCHOR: merged})


def update_best(
    params: GateParams, layout: Layout, ratchet: Ratchet, candidate: str, left_out: Collection[str] = ()
) -> dict[str, list[str]]:
    """Record a promoted candidate wherever it is the best model so far.

    The function is idempotent. It uses the candidate's scores of this cycle's evaluation.

    Args:
        params: Margins and levels.
        layout: The workspace with the evaluation.
        ratchet: Location of the record.
        candidate: Digest of the promoted weights.
        left_out: Sample ids that did not judge, because a judged model was trained on them. Their scores would be a
            reference that no later candidate can reach honestly.

    Returns:
        Category → metrics in which the candidate is the best.
    """
    scores, _ = read_scores(layout)
    frame = read_pool(layout.snapshot, "eval")
    scores, frame = (table.loc[~table["sample_id"].isin(list(left_out))] for table in (scores, frame))
    evidence, _ = gather(scores, frame, [INT8], [])
    if evidence is None:
        return {}
    store = ratchet.store
    # Scores are written before the record that refers to them.
    _write_scores(store, candidate, evidence, frame)
    places, best = _read_places(ratchet), read_best(ratchet)
    compared = with_best(evidence, frame, store, best, candidate)
    won: dict[str, list[str]] = {}
    for category in ALL_CATEGORIES:
        if not (evidence.category == category).any():
            continue
        for metric in JUDGED:
            holder = best.get(category, {}).get(metric)
            # A place without a best model is free and needs no test.
            if holder == candidate or (holder and not _is_better(params, compared, category, metric)):
                continue
            places.setdefault(category, {}).setdefault(metric, []).append(candidate)
            won.setdefault(category, []).append(metric)
    store.put(f"{PREFIX}/{ratchet.anchor}.json", json.dumps(places, sort_keys=True).encode())
    return won


def _is_better(params: GateParams, evidence: Evidence, category: str, metric: str) -> bool:
    """Return whether the candidate beats the best model with confidence, or that model has too few scores."""
    question = not_worse(params, metric, "anchor", ANCHOR)
    cells = judge_category(params, evidence, category, [question], np.random.default_rng(0))
    return not cells or cells[0].bound > 0


def _write_scores(store: Store, digest: str, evidence: Evidence, frame: pd.DataFrame) -> None:
    alpha = dict(zip(frame["sample_id"], frame["alpha_sha256"], strict=True))
    values = evidence.values[INT8]
    columns: dict[str, object] = {
        "sample_id": list(evidence.sample_id),
        "alpha_sha256": [alpha[sample] for sample in evidence.sample_id],
    }
    columns |= {metric: values[metric][:, 0] for metric in JUDGED if metric != "maxf"}
    columns["fcurve"] = [np.asarray(curve, np.float32) for curve in values["maxf"]]
    stream = BytesIO()
    pq.write_table(pa.table(columns), stream, compression="zstd")
    store.put(f"{PREFIX}/{digest}.parquet", stream.getvalue())


def _read_scores(store: Store, digest: str) -> pd.DataFrame:
    """Read the scores of a model, indexed by (sample id, digest of the true matte)."""
    table = pq.read_table(store.fetch(f"{PREFIX}/{digest}.parquet")).to_pandas()
    return table.set_index(["sample_id", "alpha_sha256"])
