"""Chooses the photos that people should label, and the labels that they should look at again.

candidates ─► first pass, by features ─► the champion looks ─► choice within the budgets ─┐
suspect mattes in quarantine, eval labels that every model contradicts ─► reviews ─────────┴─► outbox
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mm_core.core.layout import Layout
from mm_core.core.params import RouteParams, SnapshotParams
from mm_core.core.pins import ModelPin, PinnedInputs, has_snapshot, read_snapshot
from mm_core.core.records import Report
from mm_core.imaging.images import load_rgb
from mm_core.labeling.candidates import candidates, first_pass, nothing, sent_today
from mm_core.labeling.need import Need, category_need
from mm_core.labeling.outbox import QUEUES, ROUTED, Outgoing, finish_pending, send
from mm_core.labeling.review import eval_reviews, suspect_reviews
from mm_core.labeling.selection import UNKNOWN, choose
from mm_core.labeling.signals import UNCERTAINTY, look
from mm_core.model.predict import TorchPredictor, decoders_for
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.store import Store, fetch_blob
from mm_core.structuring import photo_features
from mm_core.structuring.rows import VECTORS

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor

LOOK_SIDE, LOOK_BATCH = 512, 8
"""Long side in pixels at which the champion looks, and photos at once."""
Progress = Callable[[str, int, int], None]
__all__ = ["ROUTED", "route_hard"]


def route_hard(
    params: RouteParams,
    catalog: Catalog,
    store: Store,
    inputs: PinnedInputs,
    layout: Layout,
    report: Report,
    *,
    progress: Progress,
    now: datetime | None = None,
) -> Report:
    """Writes chosen photos as tasks to `labels/outbox/<batch>.json`, its pictures to `<batch>/`.

    Each task's `data` says `queue`, `why` in one sentence, `score` and `tags`; the score's parts go to `features`.
    `train`: photos without a label that were not sent before and are neither eval photos nor near one, chosen by value
    (`selection.py`) within the budgets per run, day (UTC) and category. `suspect` and `eval`: labels to look at
    (`review.py`), with budgets of their own. Without a champion, photos are valued by quality instead of uncertainty
    and difficulty. Killed at any point, the next run finishes or forgets the unfinished batch: no photo is sent twice.
    """
    now = now or datetime.now(UTC)
    finish_pending(catalog, layout)
    need = category_need(layout, inputs)
    found = candidates(catalog, _snapshot_params(layout))
    today = sent_today(catalog, now)
    budget = max(0, min(params.budget, params.per_day - today.total()))
    looked = first_pass(params, catalog, found, need) if budget else nothing()
    champion = inputs.get("champion")
    predictor = _predictor(champion, store, layout) if champion and len(looked.table) else None
    signals = _seen(looked.table, store, predictor, progress) if predictor else _quality(looked.table, catalog)
    weights = {category: one.weight for category, one in need.items()}
    caps = {c: params.per_category - today[c] for c in {*looked.table["category"].fillna(UNKNOWN)}}
    chosen = choose(
        looked.table, signals, looked.vectors, looked.known, weights, budget=budget, caps=caps, seed=params.seed
    )
    outgoing = _outgoing(chosen, signals, need, catalog, store, predictor, _version(champion))
    outgoing += suspect_reviews(params, catalog, store)
    outgoing += eval_reviews(params, catalog, store, layout)

    report.metrics |= {"route/candidates": len(found), "route/looked_at": len(looked.table)}
    report.metrics |= {"route/chosen": len(chosen), "route/sent_today_before": today.total()}
    queues = Counter(one.queue for one in outgoing)
    report.metrics |= {f"route/{queue}": queues[queue] for queue in QUEUES}
    shown = ("sample_id", "queue", "category", "score", "why")
    report.tables["routed"] = [{name: getattr(one, name) for name in shown} | dict(one.numbers) for one in outgoing]
    report.tables["need"] = [{"category": c, "need": round(one.weight, 3), "why": one.why} for c, one in need.items()]
    if outgoing:
        tasks = send(outgoing, catalog, layout, now, progress)
        report.facts |= {"tasks": str(tasks), "model": _version(champion)}
    return report


# ── what is measured of them ─────────────────────────────────────────────────────────────────────


def _seen(table: Any, store: Store, predictor: Predictor, progress: Progress) -> dict[str, pd.DataFrame]:
    rows: list[dict[str, float]] = []
    for start in range(0, len(table), LOOK_BATCH):
        part = table.iloc[start : start + LOOK_BATCH]
        photos = [load_rgb(fetch_blob(store, i), LOOK_SIDE) for i in part["sample_id"]]
        categories = [c if isinstance(c, str) else None for c in part["category"]]
        rows += look(photos, decoders_for(predictor, photos, categories), predictor)
        progress("uncertainty", len(rows), len(table))
    frame: Any = pd.DataFrame(rows, columns=[*UNCERTAINTY, "matte_difficulty"])
    return {"uncertainty": frame[list(UNCERTAINTY)], "difficulty": frame[["matte_difficulty"]]}


def _quality(table: Any, catalog: Catalog) -> dict[str, pd.DataFrame]:
    """Without a model: good photos first. A photo that has not been structured yet counts as the worst."""
    numbers = _numbers(catalog, photo_features.EXTRACTOR, list(table["sample_id"]))
    rows = [numbers.get(sample, {}) for sample in table["sample_id"]]
    light = [1 - row.get("dark_share", 1.0) - row.get("bright_share", 0.0) for row in rows]
    return {"quality": pd.DataFrame({"sharpness": [row.get("sharpness", 0.0) for row in rows], "light": light})}


def _numbers(catalog: Catalog, extractor: str, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    filters: list[Filter] = [("extractor", "=", extractor), ("sample_id", "in", list(ids))]
    rows = catalog.read("features", columns=["sample_id", "numbers"], filters=filters)
    return {sample: dict(found) for sample, found in zip(rows["sample_id"], rows["numbers"], strict=True)}


# ── what is said of them ─────────────────────────────────────────────────────────────────────────


def _outgoing(
    chosen: Any,
    signals: Mapping[str, pd.DataFrame],
    need: Mapping[str, Need],
    catalog: Catalog,
    store: Store,
    predictor: Predictor | None,
    version: str,
) -> list[Outgoing]:
    tags = _tags(catalog, list(chosen["sample_id"]))
    parts = [*signals, *(name for raw in signals.values() for name in raw), "diversity", "need", "feedback"]
    found = []
    for row in chosen.to_dict("records"):
        category = row["category"] if isinstance(row["category"], str) else None
        words = [f"guessed {category}"] if category and not isinstance(row["stated"], str) else []
        found.append(
            Outgoing(
                row["sample_id"],
                "train",
                fetch_blob(store, row["sample_id"]),
                explain(row, need.get(category or "")),
                float(row["score"]),
                row["stated"] if isinstance(row["stated"], str) else None,
                [*words, *tags.get(row["sample_id"], [])],
                _matte_of(predictor, category) if predictor else None,
                version,
                {name: float(row[name]) for name in parts},
                {"chosen_as": category or ""},
            )
        )
    return found


def explain(row: Mapping[str, Any], need: Need | None) -> str:
    """One plain sentence about a chosen photo: the parts that speak for it."""
    name = row["category"] if isinstance(row["category"], str) else "photos of unknown category"
    words = []
    if row["feedback"] > 1:
        words.append("users complained of its cut")
    if need and need.why:
        words.append(f"{name} needs labels ({need.why})")
    for part, said in (("uncertainty", "the model is less sure of it"), ("difficulty", "it looks harder")):
        if row.get(part, 0) >= 0.75:
            words.append(f"{said} than {_percent(row[part])} of {name}")
    if row.get("quality", 0) >= 0.75:
        words.append("sharp and well lit")
    if row["diversity"] >= 0.5:
        words.append("unlike what is labelled so far")
    return "Chosen because " + "; ".join(words or ["nothing better is left"]) + "."


def _percent(part: float) -> str:
    return f"{round(100 * (2 * part - 1))} %"


def _matte_of(predictor: Predictor, category: str | None) -> Callable[[np.ndarray], np.ndarray]:
    def matte(rgb: np.ndarray) -> np.ndarray:
        alpha = predictor.predict([rgb], decoders_for(predictor, [rgb], [category]))[0]
        return np.rint(alpha * 255).astype(np.uint8)

    return matte


def _tags(catalog: Catalog, ids: list[str]) -> dict[str, list[str]]:
    filters: list[Filter] = [("extractor", "in", list(VECTORS)), ("sample_id", "in", ids)]
    rows = catalog.read("features", columns=["sample_id", "extractor", "texts"], filters=filters)
    # The most telling extractor comes last, so that its words win.
    rows = rows.assign(rank=[-VECTORS.index(name) for name in rows["extractor"]]).sort_values("rank", kind="stable")
    rows = rows.loc[np.array([bool(dict(texts).get("tags")) for texts in rows["texts"]], bool)]
    words = [dict(texts).get("tags", "").split("; ") for texts in rows["texts"]]
    return {i: [word for word in found if word] for i, found in zip(rows["sample_id"], words, strict=True)}


def _version(champion: Mapping[str, Any] | None) -> str:
    return f"{champion['version']}:{champion['digest'][:12]}" if champion else "none"


def _predictor(champion: ModelPin, store: Store, layout: Layout) -> Predictor:
    return TorchPredictor(fetch_blob(store, champion["digest"]), layout.settings.device)


def _snapshot_params(layout: Layout) -> SnapshotParams:
    """Those of the last snapshot, so that its eval photos are known; the defaults before the first."""
    return SnapshotParams.model_validate(read_snapshot(layout)["params"] if has_snapshot(layout) else {})
