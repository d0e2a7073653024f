"""Routed photos against randomly chosen ones of the same number, everything else equal: what choosing is worth.

What the table of `mm_core.labeling.value` cannot tell apart: there, a cycle changed more than labels. One difference
besides the choice stays: people painted the routed photos, other labels came with their drops.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.pins import read_snapshot
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, Report
from mm_core.eval.evaluate import score_all
from mm_core.eval.metrics import category_scores
from mm_core.ingest.snapshot import SCHEMA, read_pool, write_frames
from mm_core.labeling.value import sources
from mm_core.model.predict import TorchPredictor
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store
from mm_core.training.scratch import part_of, scratch_layout
from mm_core.training.stage import train_stage

ARMS = ("routed", "random")
SUPERVISED = TRAIN_STAGES[0]
FEWEST = 8
"""Photos on each side that a cycle compares at least: of fewer, chance would speak."""


def compare_labels(
    params: Params,
    catalog: Catalog,
    layout: Layout,
    store: Store,
    learned: Mapping[str, str],
    report: Report,
    *,
    start: Path | None,
    seeds: int,
    fewest: int = 1,
    progress: Callable[[str, int, int], None],
) -> Report:
    """Trains the first stage twice per seed from `start`, on the photos that the champion learned from with one arm's,
    and fills `report.tables["compare"]`: per category the photos of each arm, the MSE of both float models on the eval
    photos, `gain` (random minus routed: above 0 choosing was worth it) and its standard deviation over seeds, `spread`.

    The arms are drawn anew for each seed (`draw_arms`), so that the spread holds the luck of the draw too. Photos that
    the champion knows carry today's label in both arms; those that have left the pool since are in none. All steps are
    made and the last weights judged: nothing is chosen by validation or eval photos, and no use of the eval set is
    counted. Killed, the next call goes on with the trainings that are not done; the cycle's files stay as they are.

    `learned`: sample id → digest of the matte that the champion was trained on; empty without a champion. Raises
    InputError where an arm has less than `fewest` photos, there are no eval photos, or params leave nothing to train.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: give 1 or more")
    if not params.train.simple.steps:
        raise InputError("train.simple.steps is 0: both arms would end where they start; set it in params.yaml")
    pool: Any = read_pool(layout.snapshot, "train_labeled")
    judges = read_pool(layout.snapshot, "eval")
    if judges.empty:
        raise InputError(f"{layout.snapshot / 'eval.parquet'} holds no photos: drop labelled photos with role `eval`")
    known = pool["sample_id"].isin(list(learned))
    new = dict(pool.loc[~known, ["sample_id", "alpha_sha256"]].itertuples(index=False, name=None))
    source = sources(catalog, new, learned)
    draw_arms(source, params.seed, fewest)
    digest = read_snapshot(layout)["digest"]
    base = scratch_layout(layout, f"compare-{digest[:12]}")
    for left in base.root.parent.glob("compare-*"):
        if left != base.root:  # of a killed comparison on a snapshot that is no more
            shutil.rmtree(left)
    photos = {arm: Counter() for arm in ARMS}
    scores: dict[str, list[dict[Any, float]]] = {arm: [] for arm in ARMS}
    for index in range(1, seeds + 1):
        # A seed of its own per training, as in noise.py; both arms of a seed share it.
        seeded = params.with_values(seed=params.seed + 1009 * index)
        models: dict[tuple[str, str], TorchPredictor] = {}
        for arm, ids in draw_arms(source, seeded.seed).items():
            chosen = pool["sample_id"].isin(ids)
            photos[arm].update(pool.loc[chosen, "category"].fillna("unknown"))
            own = part_of(base, f"{index}-{arm}")
            write_frames(own.snapshot, {"validation": pool.head(0)}, SCHEMA, {"digest": digest})
            write_frames(own.split, {SUPERVISED: pool[known | chosen]}, SCHEMA)
            train_stage(SUPERVISED, seeded, own, store, Report(arm), start=start, progress=progress)
            models[arm, "float"] = TorchPredictor(own.model(SUPERVISED), layout.settings.device)
        rows = score_all(judges, models, store, params.evaluate.max_side, progress)
        for arm in ARMS:
            scores[arm].append(category_scores(rows.loc[rows["model"] == arm])["mse"].to_dict())
    shutil.rmtree(base.root)
    each = photos["routed"].total() // seeds
    report.tables["compare"] = _rows(photos, scores, judges["category"].value_counts().to_dict(), seeds)
    rows = [row for row in report.tables["compare"] if row["gain"] is not None]
    report.metrics |= {f"compare/{row['category']}/gain": row["gain"] for row in rows}
    counted = Counter(source.values())
    report.facts |= {
        "snapshot": digest,
        "seeds": seeds,
        "steps": params.train.simple.steps,
        "base": int(known.sum()),
        "photos_per_arm": each,
        "available": {"routed": counted["routed"], "random": counted.total() - counted["routed"]},
    }
    return report


def affordable(params: Params) -> int:
    """Steps of one training of the comparison after a cycle: `label.compare_share` of the cycle's, shared out."""
    train, trainings = params.train, len(ARMS) * max(1, params.label.compare_seeds)
    total = train.simple.steps + train.hard.steps + train.semi.steps + train.multimodal.steps
    return min(train.simple.steps, max(1, int(params.label.compare_share * total / trainings)))


def draw_arms(source: Mapping[str, str], seed: int, fewest: int = 1) -> dict[str, list[str]]:
    """Sample ids of each arm, sorted: as many of the routed as of the others, at random by `seed` where there are more.

    `source`: of each new photo where its label comes from, as `labeling.value.sources` says. Raises InputError where
    one side has less than `fewest`.
    """
    sides = {
        "routed": sorted(sample for sample, origin in source.items() if origin == "routed"),
        "random": sorted(sample for sample, origin in source.items() if origin != "routed"),
    }
    if not sides["routed"]:
        raise InputError(
            f"no routed photo to compare: none of the {len(source)} training photos that are new since the champion "
            "was labelled on request; run `mm label push`, `mm label pull`, then `mm snapshot`"
        )
    if not sides["random"]:
        raise InputError(
            f"nothing to compare the {len(sides['routed'])} routed photos with: no other training photo is new since "
            "the champion; drop photos with mattes that nobody chose (kind pixel_labeled), then `mm snapshot`"
        )
    count, rng = min(len(side) for side in sides.values()), np.random.default_rng(seed)
    if count < fewest:
        found = " and ".join(f"{len(side)} {arm}" for arm, side in sides.items())
        raise InputError(f"{found} new photos: below {fewest} on each side a comparison would say nothing")
    return {arm: sorted(map(str, rng.choice(side, count, replace=False))) for arm, side in sides.items()}


def _rows(
    photos: Mapping[str, Counter], scores: Mapping[str, list[dict[Any, float]]], judges: Mapping[Any, int], seeds: int
) -> list[dict[str, Any]]:
    """A row per category and `macro`, the mean of the six that the gate judges; photos are means over seeds."""
    rows = []
    for category in (*ALL_CATEGORIES, "unknown", "macro"):
        counts = {arm: c.total() if category == "macro" else c[category] for arm, c in photos.items()}
        row: dict[str, Any] = {"category": category} | {arm: round(n / seeds, 1) for arm, n in counts.items()}
        errors = {arm: np.array([of.get(category, np.nan) for of in scores[arm]]) for arm in ARMS}
        judged = not np.isnan(errors["routed"]).any()
        if not judged and not any(counts.values()):
            continue
        gains = errors["random"] - errors["routed"]
        row["eval_photos"] = sum(judges.get(name, 0) for name in (CATEGORIES if category == "macro" else (category,)))
        row |= {f"mse_{arm}": float(errors[arm].mean()) if judged else None for arm in ARMS}
        row["gain"] = float(gains.mean()) if judged else None
        row["spread"] = float(gains.std(ddof=1)) if judged and seeds > 1 else None
        row |= {f"gain {i + 1}": float(gain) for i, gain in enumerate(gains) if judged and seeds > 1}
        rows.append(row)
    return rows
