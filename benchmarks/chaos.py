"""What is left of a week in which everything is killed in turn?

    python benchmarks/chaos.py --work FOLDER --kills 30 --rounds 1

The installation of tests/pipelines/operated.py (PostgreSQL under Dagster and MLflow, S3 over HTTP, daemon, code
location) is given two drops and left alone until its cycle has ended. While it works, one of these is killed with
SIGKILL every few seconds and, where it is a server, started again: code location, daemon, a step while it trains,
MLflow, a run's worker, any step; or S3 answers nothing but faults for some seconds. Afterwards catalog, registry and
history are compared with those of an undisturbed installation. Each call adds at most `--rounds` rounds until all kills
are done; it goes on where the last one was. Writes benchmarks/chaos.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from faulty_proxy import FaultyProxy  # noqa: E402  # pyright: ignore[reportMissingImports]

from mm_core.core.params import Params  # noqa: E402
from mm_core.core.records import ALL_CATEGORIES, digest_of, write_json  # noqa: E402
from mm_core.core.settings import Settings  # noqa: E402
from mm_core.export.registry import Registry  # noqa: E402
from mm_core.storage.catalog import Catalog  # noqa: E402
from mm_core.training.tracking import EXPERIMENT  # noqa: E402
from samplegen import write_drop  # noqa: E402
from tests.pipelines.conftest import TINY  # noqa: E402
from tests.pipelines.operated import Operated, descendants, wait  # noqa: E402
from tests.servers import postgres_server  # noqa: E402

KINDS = ("code location", "S3 cut", "daemon", "training step", "mlflow", "run worker", "step")
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
SUCCEEDED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])
PATIENCE = 1500.0
"""Seconds that a round may take."""
ORPHANED_SECONDS = 5.0
"""How long a process may outlive the one that started it."""
# Stages that last some seconds, so that a kill finds them at work.
STEPS = {"train.simple.steps": 120, "train.hard.steps": 80, "train.semi.steps": 40, "train.multimodal.steps": 40}
STEPS |= {"train.multimodal.consistency": 1, "train.multimodal.contrastive": 0.1, "train.multimodal.captioned": 0.5}
VALUES = (
    TINY
    | STEPS
    | {"train.common.validate_every": 40, "gate.floors": {"mse": 1.0}, "gate.beat_blind": False, "gate.alpha": 0.4}
)


class Chaos(threading.Thread):
    """Kills what comes next in `KINDS` every few seconds until told to stop or out of kills."""

    def __init__(self, operated: Operated, proxy: FaultyProxy, kills: int, first: int, chance: random.Random):
        super().__init__(daemon=True)
        self.operated, self.proxy, self.left, self.next, self.chance = operated, proxy, kills, first, chance
        self.done, self.orphans, self.over = Counter[str](), list[str](), threading.Event()

    def run(self) -> None:
        pause = self.chance.uniform(8, 16)
        while self.left and not self.over.wait(pause):
            kind = KINDS[self.next % len(KINDS)]
            if self.strike(kind):
                self.done[kind] += 1
                self.left -= 1
                self.next += 1
                pause = self.chance.uniform(8, 16)
            else:
                pause = 0.3

    def strike(self, kind: str) -> bool:
        """Whether there was anything to kill."""
        if kind == "S3 cut":
            self.proxy.share = 1.0
            time.sleep(self.chance.uniform(2, 6))
            self.proxy.share = 0.0
            return True
        if kind in ("daemon", "mlflow"):
            self.operated.kill(kind)
            time.sleep(self.chance.uniform(0, 4))
            self.operated.start(kind)
            return True
        if kind == "code location":
            self.operated.kill("code", alone=True)
            self.count_orphans()
            self.operated.start("code")
            return True
        pids = self.workers()
        if kind != "run worker":
            pids = [child for pid in pids for child in descendants(pid) if not mirrors(child)]
        if kind == "training step":
            pids = [pid for pid in pids if trains(pid)]
        if not pids:
            return False
        time.sleep(self.chance.uniform(0, 1.5))
        try:
            psutil.Process(self.chance.choice(pids)).kill()
        except psutil.NoSuchProcess:
            return False
        self.count_orphans()
        return True

    def count_orphans(self) -> None:
        end = time.monotonic() + ORPHANED_SECONDS
        while (left := orphans(self.operated)) and time.monotonic() < end:
            time.sleep(0.2)
        self.orphans += left

    def workers(self) -> list[int]:
        """Processes of runs: what the code location started."""
        code = self.operated.processes.get("code")
        return [child.pid for child in psutil.Process(code.pid).children()] if code and code.poll() is None else []


def trains(pid: int) -> bool:
    """Whether the process holds the lock of a training under way."""
    try:
        return any("/checkpoints/" in file.path for file in psutil.Process(pid).open_files())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def one_round(work: Path, kills: int, first: int, seed: int) -> dict[str, Any]:
    """An installation from its drops to the end of its cycle, killed `kills` times on the way."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
    root = work / f"round{seed}"
    shutil.rmtree(root, ignore_errors=True)
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    try:
        with postgres_server() as postgres, FaultyProxy(f"http://{host}:{port}", 0.0, silence=3) as proxy:
            operated = Operated(root, postgres, proxy.address)
            (root / "params.yaml").write_text(Params().with_values(**VALUES).to_yaml())
            chaos = Chaos(operated, proxy, kills, first, random.Random(seed))
            try:
                for name in ("mlflow", "code"):
                    operated.start(name)
                    operated.answers(name, 300)
                operated.start("daemon")
                return watch(operated, proxy, chaos)
            finally:
                chaos.over.set()
                operated.stop()
    finally:
        s3.stop()


def watch(operated: Operated, proxy: FaultyProxy, chaos: Chaos) -> dict[str, Any]:
    start, inbox = time.monotonic(), operated.root / "made"
    for batch, each, role, seed in (("eval", 3, "eval", 1), ("w01", 4, "train", 2)):
        counts: dict[str, int] = dict.fromkeys(ALL_CATEGORIES, each)
        drop = write_drop(inbox, "pixel_labeled", batch, counts, seed=seed, size=64, role=role)
        operated.upload(drop, inbox)
    chaos.start()
    with operated.instance() as instance:

        def settled() -> bool:
            runs = instance.get_runs()
            cycles = [run for run in runs if run.job_name == "retrain"]
            quiet = all(run.status in ENDED for run in runs)
            good = any(run.status is dg.DagsterRunStatus.SUCCESS for run in cycles)
            return quiet and (good or len(cycles) > 6) and not chaos.proxy.share

        wait(settled, "a cycle to succeed", PATIENCE, operated)
        chaos.over.set()
        chaos.join(60)
        wait(settled, "quiet", PATIENCE, operated)
        free = lambda: not instance.event_log_storage.get_concurrency_info("training").claimed_slots  # noqa: E731
        try:
            wait(free, "the pool", 120, operated)
            stuck = 0
        except TimeoutError:
            stuck = len(instance.event_log_storage.get_concurrency_info("training").claimed_slots)
        chaos.count_orphans()
        runs = Counter(f"{run.job_name} {run.status.value}" for run in instance.get_runs())
        history = made_of(instance)
    return state(operated) | {
        "history": history,
        "seconds": round(time.monotonic() - start, 1),
        "kills": dict(chaos.done),
        "runs": dict(runs),
        "stuck pool slots": stuck,
        "orphans": sorted({*chaos.orphans}),
        "requests to S3 spoiled": sum(proxy.faults.values()),
    }


def made_of(instance: dg.DagsterInstance) -> list[str]:
    """What was made, by asset and partition, and the runs that succeeded."""
    made = [
        f"success of {run.job_name} {run.tags.get('dagster/partition', '')}" for run in instance.get_runs(SUCCEEDED)
    ]
    for key in instance.all_asset_keys():
        name, parts = key.to_user_string(), instance.get_materialized_partitions(key)
        made += [f"{name} {part}" for part in parts]
        made += [name] if not parts and instance.get_latest_materialization_event(key) else []
    return sorted({*made})


def tracked(settings: Settings) -> list[str]:
    """MLflow's runs: stage and how it ended."""
    from mlflow import MlflowClient

    client = MlflowClient(settings.mlflow_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    return sorted(f"{run.data.tags['mm.stage']} {run.info.status}" for run in runs)


def state(operated: Operated) -> dict[str, Any]:
    """What must be equal: digests of the catalog's rows, and what the registry says."""
    before = dict(os.environ)
    os.environ.update({n: v for n, v in operated.environment.items() if n.startswith(("AWS_", "MM_", "MLFLOW_"))})
    try:
        settings = Settings.from_env()
        catalog, registry = Catalog(settings.store), Registry(settings)
        rows = {
            "samples": sorted(catalog.read("samples")["id"]),
            "labels": sorted(catalog.read("labels")["id"]),
            "features": sorted(map(tuple, catalog.read("features")[["sample_id", "extractor", "version"]].to_numpy())),
            "batches": sorted(map(tuple, catalog.read("batches")[["kind", "batch", "state", "accepted"]].to_numpy())),
        }
        pin = registry.pin("champion") or {}
        return {
            "catalog": digest_of([rows, {name: len(found) for name, found in rows.items()}]),
            "champion": pin.get("digest"),
            "registry": [len(registry.versions()), [move["kind"] for move in registry.history()]],
            "tracking": tracked(settings),
        }
    finally:
        os.environ.clear()
        os.environ.update(before)


def mirrors(pid: int) -> bool:
    """Whether the process copies a step's output, or watches the one that does: Dagster's, beside every step."""
    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return words[:2] == ["tail", "-F"] or any(word.endswith("watch_orphans.py") for word in words)


def orphans(operated: Operated) -> list[str]:
    """Processes of this installation that none of its servers started: what a killed run left behind."""
    mine = {p.pid for p in operated.processes.values()}
    mine |= {child for pid in list(mine) for child in descendants(pid)}
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAGSTER_HOME") == str(operated.home) and process.pid not in mine:
                found.append(f"{process.pid} {' '.join(process.cmdline())[-120:]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


EQUAL = ("catalog", "champion", "registry", "tracking", "history")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Folder for the installations; kept.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--per-round", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    record = options.work / "chaos.json"
    options.work.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = json.loads(record.read_text()) if record.exists() else []
    for _ in range(options.rounds):
        done = sum(sum(row["kills"].values()) for row in found)
        kills = min(options.per_round, options.kills - done) if found else 0
        if found and not kills:
            break
        found.append(one_round(options.work, kills, done, len(found)))
        write_json(record, found)
        report(found)


def report(found: list[dict[str, Any]]) -> None:
    calm, rounds = found[0], found[1:]
    kills = sum((Counter(row["kills"]) for row in rounds), Counter[str]())
    differ = [[what for what in EQUAL if row[what] != calm[what]] for row in rounds]
    what = ", ".join(f"{n} {kind}" for kind, n in kills.items())
    slots, left = sum(row["stuck pool slots"] for row in rounds), sum(len(row["orphans"]) for row in rounds)
    lines = [
        "# Everything killed in turn",
        "",
        f"`python benchmarks/chaos.py`, {platform.machine()}, {os.cpu_count()} cores that others used too.",
        f"Undisturbed, the installation took {calm['seconds']:.0f} s from the drops to the end of the cycle.",
        "",
        f"{sum(kills.values())} kills in {len(rounds)} rounds ({what}).",
        "Equal to the undisturbed installation in catalog (digest of its rows), champion (digest of its weights),",
        "registry (versions and moves), MLflow's runs (stage and end) and Dagster's history (assets and partitions",
        f"made, runs that succeeded): in {differ.count([])} of {len(rounds)} rounds.",
        f"Stuck pool slots: {slots}. Outlived who started them by {ORPHANED_SECONDS:.0f} s: {left} processes.",
        "",
        "| round | kills | seconds, ratio | S3 requests spoiled | runs | differs in |",
        "|---|---|---|---|---|---|",
    ]
    for number, (row, others) in enumerate(zip(rounds, differ, strict=True), 1):
        runs = ", ".join(f"{count} {name}" for name, count in sorted(row["runs"].items()))
        took = f"{row['seconds']:.0f}, {row['seconds'] / calm['seconds']:.1f}"
        spoiled, words = row["requests to S3 spoiled"], ", ".join(others) or "nothing"
        lines.append(f"| {number} | {sum(row['kills'].values())} | {took} | {spoiled} | {runs} | {words} |")
    (HERE / "chaos.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
