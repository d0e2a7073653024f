"""Choose photos for people to label, and labels for people to review.

candidates ─► first pass, by features ─► champion's signals ─► selection within the budgets ─┐
suspect mattes in quarantine, eval labels that every model contradicts ─► reviews ───────────┴─► outbox
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mm_core.core.layout import Layout
from mm_core.core.params import SnapshotParams
from mm_core.core.pins import ModelPin, PinnedInputs, has_snapshot, read_snapshot
from mm_core.core.progress import Progress
from mm_core.core.records import Report
from mm_core.imaging.images import load_rgb
from mm_core.labeling.candidates import candidates, first_pass, nothing, sent_today
from mm_core.labeling.need import Need, category_need
from mm_core.labeling.outbox import QUEUES, ROUTED, Outgoing, finish_pending, send
from mm_core.labeling.review import eval_reviews, suspect_reviews
from mm_core.labeling.selection import UNKNOWN, choose
from mm_core.labeling.signals import UNCERTAINTY, look
from mm_core.labeling.starter import cold_start
from mm_core.model.predict import TorchPredictor, decoders_for
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, fetch_blob
from mm_core.structuring import photo_features
from mm_core.structuring.rows import VECTORS

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor

LOOK_SIDE, LOOK_BATCH = 512, 8
"""Long side in pixels of the photos that the champion predicts, and photos per batch."""
__all__ = ["ROUTED", "route_hard"]


def route_hard(run: StorageRun, inputs: PinnedInputs, report: Report, *, now: datetime | None = None) -> Report:
    """Write chosen photos as tasks to `labels/outbox/<batch>.json`, with their pictures in `<batch>/`.

    Each task's `data` has `queue`, `why` in one sentence, `score` and `tags`; the factors of the score go to
    `features`. The queue `train` holds photos without a label that were not sent before and are neither eval photos
    nor near duplicates of one. They are chosen by value (`selection.py`) within the budgets per run, day (UTC) and
    category. The queues `suspect` and `eval` hold labels to review (`review.py`), with separate budgets. Without a
    champion, photos are ranked by quality instead of uncertainty and difficulty, and their initial mattes are those of
    `cold_start`. The next run completes or discards
    the batch of a killed run, so no photo is sent twice.

    Args:
        run: Params, workspace, storage and progress.
        inputs: As returned by `stages.read_inputs`.
        report: Report that is filled and returned.
        now: Time of the run; by default the current time.
    """
    params, catalog = run.params, run.catalog
    now = now or datetime.now(UTC)
    # First complete or discard the batch of a killed run.
    finish_pending(catalog, run.layout)
    need = category_need(run.layout, inputs)
    pool = candidates(catalog, _snapshot_params(run.layout))
    today = sent_today(catalog, now)
    budget = max(0, min(params.route.budget, params.route.per_day - today.total()))
    looked = first_pass(params.route, catalog, pool, need) if budget else nothing()
    # The champion's signals are expensive, so they are computed for the first pass's photos only.
    champion = inputs.get("champion")
    predictor = _predictor(champion, run.store, run.layout) if champion and len(looked.table) else None
    signals = _seen(looked.table, run.store, predictor, run.progress) if predictor else _quality(looked.table, catalog)
    weights = {category: entry.weight for category, entry in need.items()}
    # What the day's budget leaves for each category.
    caps = {c: params.route.per_category - today[c] for c in {*looked.table["category"].fillna(UNKNOWN)}}
    chosen = choose(looked, signals, weights, budget=budget, caps=caps, seed=params.route.seed)
    start, version = (predictor, _version(champion)) if champion else cold_start(params.route, run.layout)
    outgoing = _outgoing(run, chosen, signals, need, start, version)
    outgoing += suspect_reviews(run)
    outgoing += eval_reviews(run)

    report.metrics |= {"route/candidates": len(pool), "route/looked_at": len(looked.table)}
    report.metrics |= {"route/chosen": len(chosen), "route/sent_today_before": today.total()}
    queues = Counter(item.queue for item in outgoing)
    report.metrics |= {f"route/{queue}": queues[queue] for queue in QUEUES}
    shown = ("sample_id", "queue", "category", "score", "why")
    report.tables["routed"] = [{name: getattr(item, name) for name in shown} | dict(item.numbers) for item in outgoing]
    report.tables["need"] = [{"category": c, "need": round(n.weight, 3), "why": n.why} for c, n in need.items()]
    if outgoing:
        tasks = send(run, outgoing, now)
        report.facts |= {"tasks": str(tasks), "model": version}
    return report


# ── signals ──────────────────────────────────────────────────────────────────────────────────────


def _seen(table: pd.DataFrame, store: Store, predictor: Predictor, progress: Progress) -> dict[str, pd.DataFrame]:
    """Return the champion's uncertainty and difficulty of the photos in `table`."""
    rows: list[dict[str, float]] = []
    for start in range(0, len(table), LOOK_BATCH):
        chunk = table.iloc[start : start + LOOK_BATCH]
        photos = [load_rgb(fetch_blob(store, i), LOOK_SIDE) for i in chunk["sample_id"]]
        categories = [c if isinstance(c, str) else None for c in chunk["category"]]
        rows += look(photos, decoders_for(predictor, photos, categories), predictor)
        progress("uncertainty", len(rows), len(table))
    frame: pd.DataFrame = pd.DataFrame(rows, columns=[*UNCERTAINTY, "matte_difficulty"])
    return {"uncertainty": frame.loc[:, list(UNCERTAINTY)], "difficulty": frame.loc[:, ["matte_difficulty"]]}


def _quality(table: pd.DataFrame, catalog: Catalog) -> dict[str, pd.DataFrame]:
    """Return the quality of the photos, used without a model. A photo without features gets the lowest quality."""
    numbers = _numbers(catalog, photo_features.EXTRACTOR, list(table["sample_id"]))
    rows = [numbers.get(sample, {}) for sample in table["sample_id"]]
    light = [1 - row.get("dark_share", 1.0) - row.get("bright_share", 0.0) for row in rows]
    return {"quality": pd.DataFrame({"sharpness": [row.get("sharpness", 0.0) for row in rows], "light": light})}


def _numbers(catalog: Catalog, extractor: str, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the numbers that an extractor computed for photos, by sample id."""
    filters: list[Filter] = [("extractor", "=", extractor), ("sample_id", "in", list(ids))]
    rows = catalog.read("features", columns=["sample_id", "numbers"], filters=filters)
    return {sample: dict(numbers) for sample, numbers in zip(rows["sample_id"], rows["numbers"], strict=True)}


# ── texts and tasks ──────────────────────────────────────────────────────────────────────────────


def _outgoing(
    run: StorageRun,
    chosen: pd.DataFrame,
    signals: Mapping[str, pd.DataFrame],
    need: Mapping[str, Need],
    predictor: Predictor | None,
    version: str,
) -> list[Outgoing]:
    """Return the chosen photos as tasks with explanation, score and initial matte."""
    tags = _tags(run.catalog, list(chosen["sample_id"]))
    parts = [*signals, *(name for raw in signals.values() for name in raw), "diversity", "need", "feedback"]
    outgoing = []
    for row in chosen.to_dict("records"):
        category = row["category"] if isinstance(row["category"], str) else None
        # A guessed category is shown as a tag, so that people can correct it.
        words = [f"guessed {category}"] if category and not isinstance(row["stated"], str) else []
        outgoing.append(
            Outgoing(
                row["sample_id"],
                "train",
                fetch_blob(run.store, row["sample_id"]),
                explain(row, need.get(category or "")),
                float(row["score"]),
                row["stated"] if isinstance(row["stated"], str) else None,
                [*words, *tags.get(row["sample_id"], [])],
                # The champion's matte, drawn only when the task is written.
                _matte_of(predictor, category) if predictor else None,
                version,
                {name: float(row[name]) for name in parts},
                {"chosen_as": category or ""},
            )
        )
    return outgoing


def explain(row: Mapping[str, Any], need: Need | None) -> str:
    """Return one plain sentence with the reasons for choosing a photo."""
    name = row["category"] if isinstance(row["category"], str) else "photos of unknown category"
    words = []
    if row["feedback"] > 1:
        words.append("users complained about its matte")
    if need and need.why:
        words.append(f"{name} needs labels ({need.why})")
    # Ranks above 0.75 are worth a mention; a rank is half the photo's percentile plus 0.5.
    for part, reason in (
        ("uncertainty", "the model is less sure of it than of"),
        ("difficulty", "it looks harder than"),
    ):
        if row.get(part, 0) >= 0.75:
            words.append(f"{reason} {_share(row[part])} {name}")
    if row.get("quality", 0) >= 0.75:
        words.append("it is sharp and well lit")
    if row["diversity"] >= 0.5:
        words.append("it is unlike the photos labelled so far")
    return "Chosen because " + "; ".join(words or ["no better photo is left"]) + "."


def _share(rank: float) -> str:
    """Return a rank in [0.5, 1] as a share of photos, in words."""
    percent = round(100 * (2 * rank - 1))
    return "all other" if percent == 100 else f"{percent} % of"


def _matte_of(predictor: Predictor, category: str | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that predicts the initial matte of a photo."""

    def matte(rgb: np.ndarray) -> np.ndarray:
        alpha = predictor.predict([rgb], decoders_for(predictor, [rgb], [category]))[0]
        return np.rint(alpha * 255).astype(np.uint8)

    return matte


def _tags(catalog: Catalog, ids: list[str]) -> dict[str, list[str]]:
    """Return the tags of photos by sample id, from the most specific extractor that has any."""
    filters: list[Filter] = [("extractor", "in", list(VECTORS)), ("sample_id", "in", ids)]
    rows = catalog.read("features", columns=["sample_id", "extractor", "texts"], filters=filters)
    # Later rows replace earlier ones in the result, so the most specific extractor is sorted last.
    rows = rows.assign(rank=[-VECTORS.index(name) for name in rows["extractor"]]).sort_values("rank", kind="stable")
    rows = rows.loc[np.array([bool(dict(texts).get("tags")) for texts in rows["texts"]], bool)]
    words = [dict(texts).get("tags", "").split("; ") for texts in rows["texts"]]
    return {i: [word for word in tags if word] for i, tags in zip(rows["sample_id"], words, strict=True)}


def _version(champion: ModelPin | None) -> str:
    return f"{champion['version']}:{champion['digest'][:12]}" if champion else "none"


def _predictor(champion: ModelPin, store: Store, layout: Layout) -> Predictor:
    return TorchPredictor(fetch_blob(store, champion["digest"]), layout.settings.device)


def _snapshot_params(layout: Layout) -> SnapshotParams:
    """Return the params of the last snapshot, which define the eval photos; the defaults before the first snapshot."""
    return SnapshotParams.model_validate(read_snapshot(layout)["params"] if has_snapshot(layout) else {})
