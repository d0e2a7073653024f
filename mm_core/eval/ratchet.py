"""The anchor that ratchets: for each category and metric, the scores of the best promoted model so far.

A promoted candidate takes a place only where it is better than the place's holder with confidence, so luck does not
move the bar. Scores are kept per photo: a later candidate is compared on the photos that both have seen, with the same
true matte. The record belongs to the pinned anchor: a person who moves the anchor (`mm anchor`) starts it anew.
Each place remembers its earlier holders: where a model was rolled back, the one before it holds the place again.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import BlobNotFound
from mm_core.core.layout import Layout
from mm_core.core.params import GateParams
from mm_core.core.records import ALL_CATEGORIES
from mm_core.eval.cells import judge_category
from mm_core.eval.evidence import ANCHOR, INT8, Evidence, gather, read_scores
from mm_core.eval.questions import JUDGED, not_worse
from mm_core.ingest.snapshot import read_pool
from mm_core.storage.store import Store

PREFIX = "gate/best"


Places = dict[str, dict[str, list[str]]]
"""Category → metric → digests of the weights of the models that took this place, oldest first."""


@dataclass(frozen=True)
class Ratchet:
    """Where the best models so far are on record."""

    store: Store
    anchor: str | None
    """Digest of the pinned anchor, whom the record belongs to; None before the first promotion."""
    fallen: Collection[str] = ()
    """Digests of the models that were rolled back: they hold no place."""


def read_best(ratchet: Ratchet) -> dict[str, dict[str, str]]:
    """Return category → metric → digest of the best model that stands; empty where nothing was promoted since."""
    best: dict[str, dict[str, str]] = {}
    for category, of_metric in _read_places(ratchet).items():
        for metric, holders in of_metric.items():
            if standing := [holder for holder in holders if holder not in ratchet.fallen]:
                best.setdefault(category, {})[metric] = standing[-1]
    return best


def _read_places(ratchet: Ratchet) -> Places:
    if ratchet.anchor is None:
        return {}
    try:
        record = json.loads(ratchet.store.fetch(f"{PREFIX}/{ratchet.anchor}.json").read_text())
    except BlobNotFound:
        return {}
    # Records of before have one digest per place.
    return {
        category: {metric: [held] if isinstance(held, str) else held for metric, held in of_metric.items()}
        for category, of_metric in record.items()
    }


def with_best(
    evidence: Evidence, eval_frame: pd.DataFrame, store: Store, best: dict[str, dict[str, str]], champion: str | None
) -> Evidence:
    """Return the evidence with the best models' scores as ANCHOR, NaN for photos that they have not seen.

    Where the holder of a place has seen less than half of the category's photos the anchor's own scores stay, if it was
    evaluated. Where the holder is the champion there are none: the comparison with the champion says it all.
    """
    if not best:
        return evidence
    alpha = dict(zip(eval_frame["sample_id"], eval_frame["alpha_sha256"], strict=True))
    labels = [alpha[sample] for sample in evidence.sample_id]
    shape = {metric: values.shape for metric, values in evidence.values[INT8].items()}
    own = evidence.values.get(ANCHOR)
    merged = {m: np.array(own[m]) if own else np.full(shape[m], np.nan) for m in shape}
    kept: dict[str, pd.DataFrame] = {}
    for category, of_metric in best.items():
        here = np.flatnonzero(evidence.category == category)
        for metric, digest in of_metric.items():
            if digest == champion:
                merged[metric][here] = np.nan
                continue
            if digest not in kept:
                kept[digest] = _read_scores(store, digest)
            table = kept[digest].reindex([(evidence.sample_id[i], labels[i]) for i in here])
            found = table["fcurve" if metric == "maxf" else metric].tolist()
            rows = [np.atleast_1d(value) for value in found]
            width = shape[metric][1]
            scored = [len(row) == width and bool(np.isfinite(row).all()) for row in rows]
            if 2 * sum(scored) >= len(here):
                nothing = np.full(width, np.nan)
                merged[metric][here] = [row if ok else nothing for row, ok in zip(rows, scored, strict=True)]
    return Evidence(evidence.category, evidence.group, evidence.sample_id, {**evidence.values, ANCHOR: merged})


def update_best(params: GateParams, layout: Layout, ratchet: Ratchet, candidate: str) -> dict[str, list[str]]:
    """Give a promoted candidate the places in which it is the best so far; return them, category → metrics.

    Repeating it changes nothing. The candidate's scores are those of this cycle's evaluation.
    """
    scores, _ = read_scores(layout)
    frame = read_pool(layout.snapshot, "eval")
    evidence, _ = gather(scores, frame, [INT8], [])
    if evidence is None:
        return {}
    store = ratchet.store
    _write_scores(store, candidate, evidence, frame)
    places, best = _read_places(ratchet), read_best(ratchet)
    compared = with_best(evidence, frame, store, best, candidate)
    won: dict[str, list[str]] = {}
    for category in ALL_CATEGORIES:
        if not (evidence.category == category).any():
            continue
        for metric in JUDGED:
            holder = best.get(category, {}).get(metric)
            if holder == candidate or (holder and not _is_better(params, compared, category, metric)):
                continue
            places.setdefault(category, {}).setdefault(metric, []).append(candidate)
            won.setdefault(category, []).append(metric)
    store.put(f"{PREFIX}/{ratchet.anchor}.json", json.dumps(places, sort_keys=True).encode())
    return won


def _is_better(params: GateParams, evidence: Evidence, category: str, metric: str) -> bool:
    """Whether the candidate is better than the place's holder with confidence, or the holder has hardly any scores."""
    question = not_worse(params, metric, "anchor", ANCHOR)
    cells = judge_category(params, evidence, category, [question], np.random.default_rng(0))
    return not cells or cells[0].bound > 0


def _write_scores(store: Store, digest: str, evidence: Evidence, frame: pd.DataFrame) -> None:
    alpha = dict(zip(frame["sample_id"], frame["alpha_sha256"], strict=True))
    values = evidence.values[INT8]
    columns: dict[str, Any] = {
        "sample_id": list(evidence.sample_id),
        "alpha_sha256": [alpha[sample] for sample in evidence.sample_id],
    }
    columns |= {metric: values[metric][:, 0] for metric in JUDGED if metric != "maxf"}
    columns["fcurve"] = [np.asarray(curve, np.float32) for curve in values["maxf"]]
    stream = BytesIO()
    pq.write_table(pa.table(columns), stream, compression="zstd")
    store.put(f"{PREFIX}/{digest}.parquet", stream.getvalue())


def _read_scores(store: Store, digest: str) -> pd.DataFrame:
    """Scores of a model by (sample id, digest of the true matte)."""
    table = pq.read_table(store.fetch(f"{PREFIX}/{digest}.parquet")).to_pandas()
    return table.set_index(["sample_id", "alpha_sha256"])
