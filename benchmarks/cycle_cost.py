"""What does a cycle cost where 0, 1, 10 or 100 % of the photos are new?

    python benchmarks/cycle_cost.py --work FOLDER

A workspace of generated photos has had its first cycle. Copies of it get new drops of a share of its size, then `mm
run` as a person calls it, start-up of the process included. Peer: one cycle from nothing on as many photos as the base
has. Goes on where it was when killed. Writes benchmarks/cycle_cost.md.

    setsid -w sh -c 'echo -15 > /proc/self/autogroup; python benchmarks/cycle_cost.py --work FOLDER --share 0'

measures the cycles with nothing new alone: they are to end in 10 s by the clock, which a machine that others use shows
only to who goes first (Linux shares its cores out between sessions before it looks at the niceness of processes).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, write_json
from samplegen import write_drop

HERE = Path(__file__).parent
SHARES = (0, 1, 10, 100)
REPEAT = 3
"""Of the runs with nothing new; the median by the clock counts."""
EACH = 12
"""Photos of each category in the base."""
TINY: dict[str, Any] = {
    "structure.ocr": (),
    "model.encoder": "test_efficientnet",
    "model.pretrained": "",
    "model.size": 64,
    "model.width": 8,
    "gate.floors": {"mse": 1.0, "maxf": 0.0},
    "gate.quantised_mse": 5.0,
    "gate.min_images": 2,
    "gate.beat_blind": False,
}
"""A model of a few thousand parameters, and a gate that promotes it."""
PARAMS = Params().with_values(
    **TINY,
    **{
        "train.simple.steps": 20,
        "train.hard.steps": 10,
        "train.semi.steps": 6,
        "train.multimodal.steps": 6,
        "train.multimodal.consistency": 1.0,
        "train.multimodal.contrastive": 0.1,
        "train.multimodal.captioned": 0.5,
        "clip.steps": 12,
        "evaluate.shadow_photos": 8,
    },
)
PARTS = {
    "arrivals": ("ingest", "structure"),
    "data": ("pin_inputs", "snapshot", "split"),
    "training": ("train-simple", "train-hard", "train-semi", "train-multimodal"),
    "judging": ("evaluate", "gate", "export", "promote", "report"),
}


def drop(inbox: Path, batch: str, photos: int, seed: int) -> None:
    """`photos` photos: three quarters labelled, the rest unlabelled and captioned, over all categories in turn."""
    counts = {"pixel_labeled": photos - 2 * (photos // 8), "unlabeled": photos // 8, "text_image": photos // 8}
    for kind, total in counts.items():
        each = {c: total // 7 + (n < total % 7) for n, c in enumerate(ALL_CATEGORIES)}
        if total:
            write_drop(inbox, kind, batch, {c: n for c, n in each.items() if n}, seed=seed, size=96, burst_share=0)


def run(workspace: Path) -> dict[str, Any]:
    """`mm run` on a workspace: wall-clock seconds in all and per part, and whether anything was trained."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MM_", "MLFLOW_"))}
    environment |= {"MM_WORKSPACE": str(workspace), "MM_PARAMS": str(workspace / "params.yaml"), "MM_DEVICE": "cpu"}
    program = [sys.executable, "-m", "mm_core", "run", "--json"]
    done, cost = timed(program, environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    reports = json.loads(done.stdout)
    parts = {part: sum(reports[s]["seconds"] for s in names if s in reports) for part, names in PARTS.items()}
    stages = [reports[name] for name in PARTS["training"] if name in reports]
    trained = sum("reused" not in report["facts"] for report in stages)
    return {**cost, **parts, "stages_trained": trained}


def timed(program: list[str], environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """Runs it; wall-clock seconds, and the processor's of it and of all that it started."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    session = Path("/proc/self/autogroup")
    first = int(session.read_text().rpartition(" ")[2]) if session.exists() else 0
    about = {"nice": first or os.nice(0), "load": os.getloadavg()[0]}
    return done, {"seconds": time.perf_counter() - start, "cpu_seconds": cpu, **about}


def run_dagster(workspace: Path) -> dict[str, Any]:
    """The job `retrain` on the same workspace; the process that runs it included."""
    home = workspace / "dagster"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((HERE.parent / "infra" / "dagster.yaml").read_text())
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MM_", "MLFLOW_"))}
    environment |= {"MM_WORKSPACE": str(workspace), "MM_PARAMS": str(workspace / "params.yaml"), "MM_DEVICE": "cpu"}
    environment |= {"DAGSTER_HOME": str(home), "DO_NOT_TRACK": "1"}
    program = [sys.executable, "-m", "dagster", "job", "execute", "-m", "pipelines.definitions", "-j", "retrain"]
    done, cost = timed(program, environment)
    if done.returncode or "RUN_SUCCESS" not in done.stderr:
        raise SystemExit(done.stderr)
    trained = sum(f"train_{stage} - STEP_START" in done.stderr for stage in TRAIN_STAGES)
    return {**cost, "stages_trained": trained}


def repeated(measure: Callable[[Path], dict[str, Any]], workspace: Path) -> dict[str, Any]:
    """The run in the middle by the clock, with the times of all."""
    rows = sorted((measure(workspace) for _ in range(REPEAT)), key=lambda row: row["seconds"])
    return rows[REPEAT // 2] | {"all": [row["seconds"] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="Folder for the workspaces; kept.")
    parser.add_argument("--share", type=int, action="append", choices=SHARES, help="Only this; measured anew.")
    options = parser.parse_args()
    work: Path = options.work
    record = work / "cycle_cost.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    base = work / "base"
    if "from nothing" not in found:
        shutil.rmtree(base, ignore_errors=True)
        drop(base / "inbox", "w01", 7 * EACH, 1)
        (base / "params.yaml").write_text(PARAMS.to_yaml())
        found["from nothing"] = run(base)
        write_json(record, found)
    for share in options.share or SHARES:
        name = f"{share} % new"
        copy = work / f"share{share}"
        if name in found and not options.share:
            continue
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
        if share:
            drop(copy / "inbox", "w02", max(7 * EACH * share // 100, 1), 1000 + share)
            found[name] = run(copy)
        else:
            found[name] = repeated(run, copy)
            found["0 % new, Dagster's retrain"] = repeated(run_dagster, copy)
        write_json(record, found)
        report(found)


def report(found: dict[str, dict[str, Any]]) -> None:
    peer = found["from nothing"]["cpu_seconds"]
    lines = [
        "# What a cycle costs where little is new",
        "",
        f"`python benchmarks/cycle_cost.py`, {platform.machine()}, {os.cpu_count()} cores that others used too;",
        f"{7 * EACH} generated photos of 96 px in the base, a model of a few thousand parameters, 42 training steps:",
        "steps are params, so training costs the same however much is new. `CPU s` is the processor's time of the",
        "whole command, its start-up included; `ratio` is of that, against the cycle from nothing of the same run.",
        "Seconds by the clock depend on the load (how many processes wanted to run) and on the niceness. `CPU s` of",
        "Dagster's row lacks its step's process, which is nobody's child. 0 %: three runs, the middle one counts.",
        "",
        "| new photos | CPU s | ratio | wall s | load, nice | arrivals | freezing | training | judging | trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(found.items(), key=lambda item: int(item[0].split()[0]) if item[0][0].isdigit() else -1):
        parts = [f"{row[part]:.1f}" if part in row else "" for part in PARTS]
        wall = ", ".join(f"{seconds:.1f}" for seconds in row.get("all", [row["seconds"]]))
        cells = [f"{row['cpu_seconds']:.1f}", f"{row['cpu_seconds'] / peer:.2f}", wall]
        cells += [f"{row['load']:.0f}, {row['nice']}", *parts]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['stages_trained']} of 4 |")
    (HERE / "cycle_cost.md").write_text("\n".join(lines) + "\n")
    print(HERE / "cycle_cost.md")


if __name__ == "__main__":
    main()
