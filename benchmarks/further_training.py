"""Train a workspace's candidate further on the same photos, and score it with and without its foreground scale.

    python benchmarks/further_training.py --workspace FOLDER --out FOLDER

The workspace holds a finished cycle and is not changed. The new models begin at its last one, with the steps of the
params. Prints one row per model for benchmarks/real_photos.md: scores on the evaluation photos of the cycle.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.records import CATEGORIES, Report
from mm_core.core.settings import Settings
from mm_core.eval.evidence import Key
from mm_core.eval.metrics import category_scores
from mm_core.eval.scoring import score_all
from mm_core.export.quantise import quantise
from mm_core.export.runtime import OnnxPredictor
from mm_core.ingest.snapshot import read_pool
from mm_core.model.files import load_model, save_model
from mm_core.model.predict import Predictor, TorchPredictor
from mm_core.storage.run import StorageRun
from mm_core.training.stage import train_stage


def copy_workspace(source: Path, target: Path) -> Layout:
    """Copy what training reads, and return the layout of the copy."""
    for name in ("cycle", "store"):
        shutil.copytree(source / name, target / name)
    return Layout(replace(Settings.from_env(target), store=str(target / "store"), device="cpu"))


def write_unscaled(model: Path, out: Path) -> Path:
    """Write a copy of a model with a foreground scale of 1."""
    net, meta = load_model(model)
    net.foreground_scale = 1.0
    save_model(out, net, dict(meta))
    return out


def train_further(run: StorageRun, start: Path) -> dict[Key, Predictor]:
    """Train `simple` and `hard` from `start`; return predictors: unscaled, scaled and int8."""
    layout = run.layout
    for stage in TRAIN_STAGES[:2]:
        report = train_stage(stage, run, Report(f"train-{stage}"), start=start)
        start = layout.model(stage)
        print(stage, "foreground scale", report.facts.get("foreground_scale"), flush=True)
    folder = layout.root / "int8"
    quantise(run, start, folder, Report("quantise"))
    plain = write_unscaled(start, layout.root / "unscaled.safetensors")
    return {
        ("unscaled", "float"): TorchPredictor(plain, "cpu"),
        ("scaled", "float"): TorchPredictor(start, "cpu"),
        ("scaled", "int8"): OnnxPredictor.of_folder(folder),
    }


def row_of(name: str, scores: pd.DataFrame) -> str:
    """Return a model's row of the table: macro MSE, Conn, BIoU and MaxF, then the MSE of each category."""
    means = category_scores(scores)
    macro = means.loc["macro"]
    first = [f"{macro['mse']:.4f}", f"{macro['conn']:.4f}", f"{macro['biou']:.3f}", f"{macro['maxf']:.3f}"]
    each = [f"{means.loc[category, 'mse']:.4f}" for category in CATEGORIES]
    return f"| {' | '.join([name, str(len(scores)), *first, *each])} |"


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder with a finished cycle; not changed")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the copy, the models and int8 files")
    parser.add_argument("--steps", type=int, nargs=2, help="steps of simple and hard; those of the params by default")
    args = parser.parse_args()
    params = Params()
    if args.steps:
        params = params.with_values(**{"train.simple.steps": args.steps[0], "train.hard.steps": args.steps[1]})
    run = StorageRun(params, copy_workspace(args.workspace, args.out))
    models = train_further(run, run.layout.model(TRAIN_STAGES[-1]))
    pool = read_pool(run.layout.snapshot, "eval")
    frame = pool.loc[pool["category"].isin(CATEGORIES), :]
    scores = score_all(frame, models, run.store, params.evaluate.max_side, quiet)
    for model, precision in models:
        rows = scores.loc[(scores["model"] == model) & (scores["precision"] == precision), :]
        print(row_of(f"{model}, {precision}", rows), flush=True)


if __name__ == "__main__":
    main()
