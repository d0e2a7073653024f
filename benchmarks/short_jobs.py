"""Time of short jobs: a command's start, a run with nothing new, a drop of ten photos, an evaluation of known models.

Processor seconds of whole processes, start-up included, compared with the imports of packages that they need. Byte code
is cached, as it is after an installation. `mm evaluate` of a second cycle runs three times: with no known score, with
those of the first cycle (champion and anchor), and with all of them (start-up, int8 files and pictures are left). What
the first two take beyond the third is the cost of scoring.

    python -m benchmarks.short_jobs --work FOLDER

Goes on where it was when killed. Writes benchmarks/short_jobs.csv and benchmarks/short_jobs.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from benchmarks.catalog_scale import processor
from benchmarks.cycle_cost import TINY
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES
from samplegen import write_drop

HERE = Path(__file__).parent
REPEAT = 3
PARAMS = Params().with_values(
    **TINY,
    **{"train.simple.steps": 4, "train.hard.steps": 4, "evaluate.shadow_photos": 0, "label.compare_seeds": 0},
)
"""A model of a few thousand parameters; the stages that are off by default stay off."""
IMPORTS = {"import typer": "typer", "import great_expectations": "great_expectations", "import mlflow": "mlflow"}
GOALS = {
    "mm --help": ("import typer", 3.0),
    "mm run, nothing new": ("", 2.0),
    "mm ingest, ten photos": ("import great_expectations", 2.0),
    "evaluation, second cycle": ("evaluation, nothing known", 0.0),
    "scoring, second cycle": ("scoring, nothing known", 0.6),
}
"""Job → the job or import that it is compared with, and the largest ratio (seconds, without a peer; 0: no goal)."""


def drop(workspace: Path, kind: str, batch: str, each: int, seed: int, size: int = 256) -> None:
    write_drop(workspace / "inbox", kind, batch, dict.fromkeys(ALL_CATEGORIES, each), seed=seed, size=size)


class Jobs:
    """The commands of one workspace, and what they cost."""

    def __init__(self, work: Path) -> None:
        self.workspace, self.state = work / "data", work / "found.json"
        self.workspace.mkdir(parents=True, exist_ok=True)
        (self.workspace / "params.yaml").write_text(PARAMS.to_yaml())
        dropped = ("MM_", "MLFLOW_", "DAGSTER_", "PYTHONDONTWRITEBYTECODE")
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith(dropped)}
        self.environment |= {
            "MM_WORKSPACE": str(self.workspace),
            "MM_PARAMS": str(self.workspace / "params.yaml"),
            "MM_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            # Byte code is written here, also for packages in a folder that cannot be written.
            "PYTHONPYCACHEPREFIX": str(work / "pycache"),
        }
        self.found: dict[str, float] = json.loads(self.state.read_text()) if self.state.is_file() else {}

    def run(self, *arguments: str) -> float:
        """Run Python; return its processor seconds."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def keep(self, name: str, seconds: float) -> None:
        self.found[name] = seconds
        self.state.write_text(json.dumps(self.found))
        print(f"{name:32} {seconds:7.2f}", flush=True)

    def best(self, name: str, *arguments: str) -> None:
        """Keep the least of some runs: the first one writes byte code, and others use the processor too."""
        if name not in self.found:
            self.keep(name, min(self.run(*arguments) for _ in range(REPEAT)))


def measure(work: Path) -> dict[str, float]:
    jobs = Jobs(work)
    mm = ("-m", "mm_core")
    for name, package in IMPORTS.items():
        jobs.best(name, "-c", f"import {package}")
    jobs.best("mm --help", *mm, "--help")
    if "first cycle" not in jobs.found:
        shutil.rmtree(jobs.workspace / "inbox", ignore_errors=True)
        for kind, each in (("pixel_labeled", 30), ("unlabeled", 1)):
            drop(jobs.workspace, kind, "first", each, seed=1)
        jobs.keep("first cycle", jobs.run(*mm, "run"))
        verdict = json.loads((jobs.workspace / "cycle" / "gate" / "verdict.json").read_text())
        assert verdict["decision"] == "PROMOTE", verdict["reasons"]
    jobs.best("mm run, nothing new", *mm, "run")
    jobs.best("mm ingest, nothing new", *mm, "ingest")
    if "mm ingest, ten photos" not in jobs.found:
        costs = []
        for number in range(REPEAT):
            counts = {c: 2 if n < 3 else 1 for n, c in enumerate(ALL_CATEGORIES)}
            write_drop(jobs.workspace / "inbox", "pixel_labeled", f"ten{number}", counts, seed=50 + number, size=256)
            costs.append(jobs.run(*mm, "ingest"))
        jobs.keep("mm ingest, ten photos", min(costs))
    scores, kept = jobs.workspace / "cache" / "scores", work / "scores of the first cycle"
    if "second cycle" not in jobs.found:
        if not kept.exists():
            shutil.copytree(scores, kept)
        jobs.keep("second cycle", jobs.run(*mm, "run"))

    def evaluation(known: Path | None) -> float:
        shutil.rmtree(scores, ignore_errors=True)
        if known:
            shutil.copytree(known, scores)
        return jobs.run(*mm, "evaluate")

    for name, known in (("evaluation, nothing known", None), ("evaluation, second cycle", kept)):
        if name not in jobs.found:
            jobs.keep(name, min(evaluation(known) for _ in range(REPEAT)))
    jobs.best("evaluation, all known", *mm, "evaluate")
    found = dict(jobs.found)
    for name, of in (
        ("scoring, nothing known", "evaluation, nothing known"),
        ("scoring, second cycle", "evaluation, second cycle"),
    ):
        found[name] = found[of] - found["evaluation, all known"]
    return found


def write(found: dict[str, float]) -> None:
    """Write the table of numbers, and the page that shows it."""
    with (HERE / "short_jobs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["job", "processor"])
        writer.writerows([name, f"{seconds:.2f}"] for name, seconds in found.items())
    lines = [
        "# What short jobs cost",
        "",
        f"Processor seconds of whole processes, the least of {REPEAT} runs, with cached byte code; a model of a few",
        "thousand parameters, generated photos of 256 px. An evaluation is of nine models and the blind matte.",
        "",
        "| job | CPU s | compared with | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in found.items():
        peer, goal = GOALS.get(name, ("", 0.0))
        ratio = f"{seconds / found[peer]:.2f}" if peer else ""
        shown = "" if not goal else f"≤ {goal:g}" if peer else f"≤ {goal:g} s"
        lines.append(f"| {name} | {seconds:.2f} | {peer} | {ratio} | {shown} |")
    lines += [
        "",
        "One machine that others used too: processor seconds rise with their load on shared caches.",
        "",
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}.",
        "`python -m benchmarks.short_jobs --work FOLDER`",
        "",
    ]
    (HERE / "short_jobs.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    write(measure(parser.parse_args().work.absolute()))


if __name__ == "__main__":
    main()
