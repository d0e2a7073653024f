"""Feed the real photos week by week, run a cycle after each, and score every candidate on the last evaluation photos.

    python benchmarks/weekly_cycles.py --photos ../shared/data --out FOLDER

The first cycle has the drops of `inbox`, each later one those of a week of `inbox_large`. Prints a line per cycle, then
a row per candidate for benchmarks/real_photos.md. A later call continues after the last finished cycle.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

from further_training import row_of

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.records import CATEGORIES
from mm_core.core.settings import Settings
from mm_core.eval.evidence import Key
from mm_core.eval.scoring import score_all
from mm_core.export.runtime import OnnxPredictor
from mm_core.ingest.snapshot import read_pool
from mm_core.model.predict import Predictor, TorchPredictor
from mm_core.storage.run import StorageRun


def list_cycles(photos: Path) -> list[list[Path]]:
    """Return the drops of each cycle, as folders `<kind>/<date>`: all of `inbox`, then a week of `inbox_large` each."""
    weeks: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for drop in sorted((photos / "inbox_large").glob("*/*")):
        weeks[date.fromisoformat(drop.name).isocalendar()[:2]].append(drop)
    return [sorted((photos / "inbox").glob("*/*")), *(weeks[week] for week in sorted(weeks))]


def run_cycle(layout: Layout, drops: list[Path], kept: Path) -> None:
    """Copy drops to the inbox, run `mm run`, and keep the models and int8 files of the cycle."""
    for drop in drops:
        shutil.copytree(drop, Path(layout.settings.inbox) / drop.parent.name / drop.name, dirs_exist_ok=True)
    places = {"MM_WORKSPACE": layout.root, "MM_INBOX": layout.settings.inbox, "MM_PARAMS": layout.root / "params.yaml"}
    environment = os.environ | {name: str(value) for name, value in places.items()}
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mm_core", "run", "--json"], env=environment, check=True, capture_output=True)
    minutes = (time.perf_counter() - begun) / 60
    learnt = len(read_pool(layout.snapshot, "train_labeled"))
    print(f"{kept.name}: {len(drops)} drops, {learnt} photos to learn from, {minutes:.1f} min", flush=True)
    for folder in ("models", "quantised"):
        shutil.copytree(layout.root / "cycle" / folder, kept / folder, dirs_exist_ok=True)
    (kept / "done").touch()


def main() -> None:
    """Run the cycles and score the candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with `inbox` and `inbox_large`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the workspace and the kept models")
    parser.add_argument("--steps", type=int, nargs=2, help="steps of simple and hard; those of the params by default")
    parser.add_argument("--seed", type=int, default=Params().seed)
    parser.add_argument("--cycles", type=int, default=4, help="number of cycles")
    args = parser.parse_args()
    root = args.out.absolute() / "workspace"
    layout = Layout(Settings.from_env(root, str(root / "inbox")))
    params = Params(seed=args.seed)
    if args.steps:
        params = params.with_values(**{"train.simple.steps": args.steps[0], "train.hard.steps": args.steps[1]})
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(params.to_yaml())
    models: dict[Key, Predictor] = {}
    for number, drops in enumerate(list_cycles(args.photos)[: args.cycles], start=1):
        kept = args.out / f"cycle {number}"
        if not (kept / "done").exists():
            run_cycle(layout, drops, kept)
        models[f"cycle {number}", "float"] = TorchPredictor(kept / "models" / TRAIN_STAGES[-1] / "model.safetensors")
        models[f"cycle {number}", "int8"] = OnnxPredictor.of_folder(kept / "quantised")
    pool = read_pool(layout.snapshot, "eval")
    frame = pool.loc[pool["category"].isin(CATEGORIES), :]
    scores = score_all(frame, models, StorageRun(params, layout).store, params.evaluate.max_side, quiet)
    for model, precision in models:
        rows = scores.loc[(scores["model"] == model) & (scores["precision"] == precision), :]
        print(row_of(f"{model}, {precision}", rows), flush=True)


if __name__ == "__main__":
    main()
