"""Does each stage of the hierarchical strategy earn its place? Matting Moments, Table 1, on generated samples.

Three arms, the same optimiser steps in each, the same first two stages, several seeds:

* Pixel_Sup: simple, hard, then supervised on simple and hard to the end;
* +Semi_Sup: simple, hard, then cross-consistency with unlabelled photos to the end;
* +Mlt_Sup:  simple, hard, cross-consistency, then text-image consistency and contrast to the end.

    python benchmarks/stage_order.py --work data/bench --seeds 3

Writes benchmarks/stage_order.md and benchmarks/stage_order.csv.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mm_core import stages
from mm_core.data.samplegen import write_drop
from mm_core.eval.evaluate import evaluate_models
from mm_core.eval.metrics import category_scores
from mm_core.layout import Layout
from mm_core.model.predict import TorchPredictor
from mm_core.params import Params
from mm_core.records import ALL_CATEGORIES, CATEGORIES, Report
from mm_core.settings import Settings
from mm_core.training.train import train_stage

ARMS = ("Pixel_Sup", "+Semi_Sup", "+Mlt_Sup")
METRICS = ("mse", "biou", "maxf", "conn")
HERE = Path(__file__).parent


def prepare(root: Path, params: Params, labelled: int, extra: int, held_out: int) -> Layout:
    """Generated drops, ingested and frozen once for all arms and seeds."""
    layout = Layout(Settings.from_env(root))
    if layout.split.exists():
        return layout
    inbox = Path(layout.settings.inbox)
    for kind, batch, count, seed, role in (
        ("pixel_labeled", "eval", held_out, 9000, "eval"),
        ("pixel_labeled", "train", labelled, 1000, "train"),
        ("unlabeled", "plain", extra, 2000, ""),
        ("text_image", "captions", extra, 3000, ""),
    ):
        if not (inbox / kind / batch / "manifest.csv").exists():
            write_drop(inbox, kind, batch, dict.fromkeys(ALL_CATEGORIES, count), seed=seed, role=role)
    stages.ingest(params, layout)
    stages.structure(params, layout)
    stages.pin_inputs(params, layout)
    stages.snapshot(params, layout)
    stages.split(params, layout)
    return layout


def arm_layout(base: Layout, name: str) -> Layout:
    """A workspace of its own for one run, on the base's store, snapshot and decoded photos."""
    settings = base.settings
    root = base.root / "runs" / name
    layout = Layout(Settings(root, settings.inbox, settings.store, settings.mlflow_uri, settings.params_file, "cpu"))
    for source, target in ((base.snapshot, layout.snapshot), (base.split, layout.split)):
        if not target.exists():
            shutil.copytree(source, target)
    if not layout.cache.exists():
        layout.root.mkdir(parents=True, exist_ok=True)
        base.cache.mkdir(parents=True, exist_ok=True)
        layout.cache.symlink_to(base.cache, target_is_directory=True)
    return layout


def run_seed(base: Layout, params: Params, seed: int) -> dict[str, Path]:
    """The final weights of each arm for one seed."""
    params = params.with_values(seed=seed)
    train = params.train
    store = stages.store_of(base)
    semi, rest = train.semi.steps, train.multimodal.steps

    def step(stage: str, layout: Layout, start: Path | None, **changed: Any) -> Path:
        def show(what: str, done: int, total: int) -> None:
            print(f"\rseed {seed} {layout.root.name} {what} {done}/{total}   ", end="", file=sys.stderr)

        train_stage(stage, params.with_values(**changed), layout, store, Report(stage), start=start, progress=show)
        return layout.model(stage)

    common = arm_layout(base, f"common-{seed}")
    hard = step("hard", common, step("simple", common, None))
    pixel, plus_semi, plus_mlt = (arm_layout(base, f"{name}-{seed}") for name in ("pixel", "semi", "mlt"))
    share = 1 - params.split.hard_share
    return {
        "Pixel_Sup": step(
            "hard", pixel, hard,
            **{"train.hard.steps": semi + rest, "train.hard.lr": train.semi.lr, "train.common.replay_share": share},
        ),
        "+Semi_Sup": step("semi", plus_semi, hard, **{"train.semi.steps": semi + rest}),
        "+Mlt_Sup": step("multimodal", plus_mlt, step("semi", plus_mlt, hard)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/bench/stage_order"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--labelled", type=int, default=30, help="labelled photos per category")
    parser.add_argument("--extra", type=int, default=100, help="unlabelled photos, and photos with text, per category")
    parser.add_argument("--held-out", type=int, default=40, help="evaluation photos per category")
    parser.add_argument("--steps", type=int, nargs=4, default=(200, 100, 150, 150), help="simple hard semi multimodal")
    parser.add_argument("--set", nargs="*", default=[], help="further parameters, name=value")
    args = parser.parse_args()

    # A handful of validation photos would choose checkpoints by chance.
    values: dict[str, Any] = {"model.size": args.size, "clip.steps": 200, "snapshot.validation_share": 0.4}
    values |= {f"train.{s}.steps": n for s, n in zip(("simple", "hard", "semi", "multimodal"), args.steps, strict=True)}
    values |= {name: float(value) for name, value in (item.split("=") for item in args.set)}
    params = Params().with_values(**values)
    base = prepare(args.work, params, args.labelled, args.extra, args.held_out)
    rows = []
    for seed in range(args.seeds):
        models = {(arm, "float"): TorchPredictor(path, "cpu") for arm, path in run_seed(base, params, seed).items()}
        layout = arm_layout(base, f"mlt-{seed}")
        evaluate_models(
            params.evaluate, models, layout, stages.store_of(base), Report("evaluate"), progress=stages.quiet
        )
        per_image = pd.read_parquet(layout.per_image)
        for arm in ARMS:
            scores = category_scores(per_image.query("model == @arm"))
            rows += [
                {
                    "seed": seed,
                    "arm": arm,
                    "category": category,
                    **scores.loc[category, list(METRICS)],
                }
                for category in (*CATEGORIES, "macro", "weighted")
            ]
        write(pd.DataFrame(rows), args, params)
    print(f"\n{HERE / 'stage_order.md'}")


def change(before: np.ndarray, after: np.ndarray) -> str:
    """Mean relative change over seeds, and in how many of them the value fell."""
    ratio = after / before - 1
    return f"{100 * ratio.mean():+.1f} % ({int((ratio < 0).sum())} of {len(ratio)} lower)"


def write(table: pd.DataFrame, args: argparse.Namespace, params: Params) -> None:
    table.to_csv(HERE / "stage_order.csv", index=False, float_format="%.6g")
    lines = [
        "# Stage order: Pixel_Sup, +Semi_Sup, +Mlt_Sup at equal optimiser steps (generated samples)",
        "",
        f"Runner: `benchmarks/stage_order.py`. {table['seed'].nunique()} seeds; {args.labelled} labelled photos per"
        f" category ({params.snapshot.validation_share:.0%} of them for validation), {args.extra} unlabelled"
        f" and {args.extra} with text; {args.held_out} held out."
        f" {params.model.encoder} at {args.size} px, batch {params.train.common.batch}, steps of the four stages"
        f" {'/'.join(map(str, args.steps))}; Pixel_Sup and +Semi_Sup train on for the steps of the stages they lack."
        f" {platform.machine()}, {os.cpu_count()} cores. Mean ± standard deviation over seeds.",
        "",
        "| category | metric | " + " | ".join(ARMS) + " | +Semi vs Pixel | +Mlt vs Pixel | +Mlt vs +Semi |",
        "|---|---|" + "---|" * 6,
    ]
    for category in (*CATEGORIES, "macro", "weighted"):
        rows = table.query("category == @category").sort_values(by="seed")
        for metric in METRICS:
            by_arm = {arm: rows.loc[rows["arm"] == arm, metric].to_numpy(float) for arm in ARMS}
            shown = [
                f"{values.mean():.4f} ± {values.std(ddof=min(1, len(values) - 1)):.4f}" for values in by_arm.values()
            ]
            changes = [
                change(by_arm[a], by_arm[b]) for a, b in ((ARMS[0], ARMS[1]), (ARMS[0], ARMS[2]), (ARMS[1], ARMS[2]))
            ]
            lines.append(f"| {category} | {metric} | " + " | ".join(shown + changes) + " |")
    (HERE / "stage_order.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
