"""Label ablation: compare training on routed photos with training on as many random ones, all else equal.

The table of `mm_core.labeling.value` cannot separate the effect of labels from other changes of a cycle. One difference
remains here: people painted the mattes of routed photos, while other labels were a part of their drops.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.params import Params
from mm_core.core.pins import read_snapshot
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, Report
from mm_core.eval.metrics import category_scores
from mm_core.eval.scoring import score_all
from mm_core.ingest.placement import SCHEMA
from mm_core.ingest.snapshot import read_pool, write_frames
from mm_core.labeling.value import sources
from mm_core.model.predict import TorchPredictor
from mm_core.storage.run import StorageRun
from mm_core.training.scratch import part_of, scratch_layout
from mm_core.training.stage import train_stage

ARMS = ("routed", "random")
SUPERVISED = TRAIN_STAGES[0]
FEWEST = 8
"""Least number of photos per arm in the comparison after a cycle; with fewer, chance dominates."""


def compare_labels(
    run: StorageRun, learned: Mapping[str, str], report: Report, *, start: Path | None, seeds: int, fewest: int = 1
) -> Report:
    """Train the first stage twice per seed, with the routed or the random photos, and compare the models' errors.

    Both arms start from `start` and contain the champion's training photos. The arms are drawn again for each seed
    (`draw_arms`), so that the spread includes the luck of the draw. Photos known to the champion have their present
    label in both arms; photos that have left the pool are in neither. All steps are made and the last weights are
    scored: nothing is selected by validation or evaluation photos, and no use of the evaluation set is counted. After
    a kill, the next call continues with the missing trainings. The cycle's files are not changed.

    Args:
        run: Params, workspace, storage and progress.
        learned: Sample id → digest of the matte that the champion was trained on; empty without a champion.
        report: Receives `tables["compare"]`: per category the photos of each arm, the MSE of both float models on the
            evaluation photos, `gain` (random minus routed, positive = routing helps) and `spread`, the standard
            deviation of the gain over seeds.
        start: Weights to start from, or None.
        seeds: Number of trainings per arm.
        fewest: Least number of photos per arm.

    Returns:
        The report.

    Raises:
        InputError: An arm has fewer than `fewest` photos, the evaluation set is empty, or the stage has no steps.
    """
    params, layout = run.params, run.layout
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: give 1 or more")
    if not params.train.simple.steps:
        raise InputError("train.simple.steps is 0: both arms would stay at their start; set it in params.yaml")
    pool = read_pool(layout.snapshot, "train_labeled")
    judges = read_pool(layout.snapshot, "eval")
    if judges.empty:
        raise InputError(f"{layout.snapshot / 'eval.parquet'} holds no photos: drop labelled photos with role `eval`")
    # New photos since the champion are divided into the arms; all others are common to both.
    is_known = pool["sample_id"].isin(list(learned))
    new = dict(pool.loc[~is_known, ["sample_id", "alpha_sha256"]].itertuples(index=False, name=None))
    source = sources(run.catalog, new, learned)
    # Fails early, before any training, if an arm is too small.
    draw_arms(source, params.seed, fewest)
    frozen = read_snapshot(layout)
    digest = frozen["digest"]
    base = scratch_layout(layout, f"compare-{digest[:12]}")
    for leftover in base.root.parent.glob("compare-*"):
        if leftover != base.root:  # left by a killed comparison on an older snapshot
            shutil.rmtree(leftover)
    photos = {arm: Counter() for arm in ARMS}
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for index in range(1, seeds + 1):
        # Each training has its own seed, as in seed_noise.py; both arms of a seed share it. The reported steps hold for
        # any number of photos.
        seeded = params.with_values(**{"seed": params.seed + 1009 * index, "train.simple.max_growth": 1})
        models: dict[tuple[str, str], TorchPredictor] = {}
        for arm, ids in draw_arms(source, seeded.seed).items():
            chosen = pool["sample_id"].isin(ids)
            photos[arm].update(pool.loc[chosen, "category"].fillna("unknown"))
            arm_layout = part_of(base, f"{index}-{arm}")
            # An empty validation pool: the last weights are scored, not the best ones.
            write_frames(arm_layout.snapshot, {"validation": pool.head(0)}, SCHEMA, {**frozen})
            write_frames(arm_layout.split, {SUPERVISED: pool.loc[is_known | chosen]}, SCHEMA)
            train_stage(SUPERVISED, run.with_layout(arm_layout, seeded), Report(arm), start=start)
            models[arm, "float"] = TorchPredictor(arm_layout.model(SUPERVISED), layout.settings.device)
        # Both models are scored on the same photos, so their difference is paired.
        rows = score_all(judges, models, run.store, params.evaluate.max_side, run.progress)
        for arm in ARMS:
            scores[arm].append(category_scores(rows.loc[rows["model"] == arm])["mse"].to_dict())
    shutil.rmtree(base.root)
    each = photos["routed"].total() // seeds
    report.tables["compare"] = _rows(photos, scores, judges["category"].value_counts().to_dict(), seeds)
    rows = [row for row in report.tables["compare"] if row["gain"] is not None]
    report.metrics |= {f"compare/{row['category']}/gain": row["gain"] for row in rows}
    # The numbers of available photos show how much the sampling left out.
    counted = Counter(source.values())
    report.facts |= {
        "snapshot": digest,
        "seeds": seeds,
        "steps": params.train.simple.steps,
        "base": int(np.count_nonzero(is_known)),
        "photos_per_arm": each,
        "available": {"routed": counted["routed"], "random": counted.total() - counted["routed"]},
    }
    return report


def affordable(params: Params) -> int:
    """Return the steps of one training in the comparison: all of them together use at most `label.compare_share`."""
    train, trainings = params.train, len(ARMS) * max(1, params.label.compare_seeds)
    # All stages count, because the share refers to the whole cycle.
    total = train.simple.steps + train.hard.steps + train.semi.steps + train.multimodal.steps
    return min(train.simple.steps, max(1, int(params.label.compare_share * total / trainings)))


def draw_arms(source: Mapping[str, str], seed: int, fewest: int = 1) -> dict[str, list[str]]:
    """Draw equally many routed and other new photos; the larger side is sampled at random.

    Args:
        source: New photo → origin of its label, from `labeling.value.sources`.
        seed: Seed of the sample.
        fewest: Least number of photos per arm.

    Returns:
        Sorted sample ids of each arm.

    Raises:
        InputError: One side has fewer than `fewest` photos.
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
            "the champion; drop photos with unselected mattes (kind pixel_labeled), then `mm snapshot`"
        )
    # Both arms have the size of the smaller side.
    count, rng = min(len(side) for side in sides.values()), np.random.default_rng(seed)
    if count < fewest:
        counts = " and ".join(f"{len(side)} {arm}" for arm, side in sides.items())
        raise InputError(f"{counts} new photos: below {fewest} on each side the comparison has no meaning")
    return {arm: sorted(map(str, rng.choice(side, count, replace=False))) for arm, side in sides.items()}


def _rows(
    photos: Mapping[str, Counter], scores: Mapping[str, list[dict[str, float]]], judges: Mapping[str, int], seeds: int
) -> list[Mapping[str, object]]:
    """Return a row per category, and `macro` for the mean of the six judged ones; photos are means over seeds."""
    rows = []
    for category in (*ALL_CATEGORIES, "unknown", "macro"):
        counts = {arm: c.total() if category == "macro" else c[category] for arm, c in photos.items()}
        row: dict[str, object] = {"category": category, **{arm: round(n / seeds, 1) for arm, n in counts.items()}}
        errors = {arm: np.array([of.get(category, np.nan) for of in scores[arm]]) for arm in ARMS}
        # A category without evaluation photos has NaN for its error.
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
