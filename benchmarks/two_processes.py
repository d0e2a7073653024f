"""Do two commands that start together end as one after the other would? Every pair, in processes of their own.

    python benchmarks/two_processes.py --rounds 20
    python benchmarks/two_processes.py --rounds 2 --pair ingest retry --pair run forget

Each round starts from a copy of one tiny workspace. The end state (catalog, forgotten photos, champion and its history,
pools of a snapshot taken afterwards, whether that snapshot lacks a photo) must equal the one after `A; B` or the one
after `B; A`. Processes are forked from one that has loaded the libraries. Writes
benchmarks/two_processes.csv, and its table into benchmarks/two_processes.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ["MM_DEVICE"] = "cpu"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mm_core.model.torchvision_shim import ensure_torchvision  # noqa: E402

ensure_torchvision()
# Many of these imports are for the processes alone: a fork finds loaded what it would import again each time.
import cv2  # noqa: E402
import dagster as dg  # noqa: E402
import great_expectations.expectations.core  # noqa: E402
import great_expectations.render.view  # noqa: E402, F401
import mlflow.store.model_registry.sqlalchemy_store  # noqa: E402
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401
import open_clip  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import timm  # noqa: E402, F401
from csv_rows import read_rows, write_page_table, write_rows  # noqa: E402

from mm_core import stages  # noqa: E402
from mm_core.cli.app import app  # noqa: E402
from mm_core.core.errors import MattingError  # noqa: E402
from mm_core.core.layout import Layout  # noqa: E402
from mm_core.core.params import Params  # noqa: E402
from mm_core.core.progress import quiet  # noqa: E402
from mm_core.core.records import ALL_CATEGORIES, Report, digest_of, write_json  # noqa: E402
from mm_core.core.settings import Settings  # noqa: E402
from mm_core.export.registry import Registry  # noqa: E402
from mm_core.export.signature import make_keys  # noqa: E402
from mm_core.ingest.placement import POOLS  # noqa: E402
from mm_core.ingest.snapshot import place, read_pool  # noqa: E402
from mm_core.pinned_inputs import Run  # noqa: E402
from mm_core.services.backup import restore  # noqa: E402
from mm_core.storage.run import catalog_of  # noqa: E402
from pipelines.definitions import defs  # noqa: E402
from samplegen import write_drop  # noqa: E402

TINY: dict[str, Any] = {
    "structure.ocr": (),
    "model.encoder": "test_efficientnet",
    "model.pretrained": "",
    "split.min_hard": 0,
    "model.size": 64,
    "model.width": 8,
    "train.common.batch": 2,
    "train.common.precision": "fp32",
    "train.simple.steps": 1,
    "train.hard.steps": 1,
    "train.semi.steps": 0,
    "train.multimodal.steps": 0,
    "evaluate.max_side": 64,
    "evaluate.shadow_photos": 0,
    "gate.beat_blind": False,
    "gate.floors": {"mse": 1.0},
    "gate.quantised_mse": 100.0,
    "gate.min_images": 2,
    "gate.resamples": 200,
    "export.calibration_images": 2,
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run",),
    "ingest": ("ingest",),
    "retry": ("quarantine", "retry", "broken"),
    "accept": ("quarantine", "accept", "KEY", "--why", "looked at", "--by", "ana"),
    "forget": ("forget", "PHOTO", "--yes"),
    "rollback": ("rollback", "--reason", "halos"),
    "promote": ("promote",),
    "compact": ("catalog", "compact"),
    "backup": ("backup", "BACKUP", "--keep", "2"),
    "dagster": ("dagster",),
}


class Bench:
    """One base workspace and a place where copies of it are worked on."""

    def __init__(self, root: Path):
        root.mkdir(parents=True, exist_ok=True)
        self.base, self.work, self.backup = root / "base", root / "work", root / "backup"
        self.ended = root / "ended"
        """Workspaces after one command, which every pair with that command begins a serial order from."""
        self.params_file = root / "params.yaml"
        self.params = Params().with_values(**TINY)
        self.params_file.write_text(self.params.to_yaml())
        for name in ("MM_STORE", "MM_INBOX", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        if not (root / "key.pem").exists():
            make_keys(root / "key.pem")
        os.environ |= {
            "MM_WORKSPACE": str(self.work),
            "MM_PARAMS": str(self.params_file),
            "MM_SIGNING_KEY": str(root / "key.pem"),
        }
        self.words: dict[str, str] = {}

    @property
    def layout(self) -> Layout:
        return Layout(Settings.from_env())

    def prepare(self) -> None:
        """Make the base, and load here what its cycle has imported, so that no process imports it again."""
        if not self.base.is_dir():
            self.make_base()
        self.words = json.loads((self.work.parent / "words.json").read_text())
        for name in json.loads((self.work.parent / "modules.json").read_text()):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def make_base(self) -> None:
        """Two champions, a refused photo that was repaired, a suspect matte, and a drop that waits in the inbox."""
        inbox = self.work / "inbox"
        drop(inbox, "eval", 5, 1, "eval")
        drop(inbox, "train", 2, 50, "train")
        folder = drop(inbox, "broken", 1, 80, "train")
        photo, matte = sorted((folder / "images").iterdir())[0], sorted((folder / "alphas").iterdir())[-1]
        whole = photo.read_bytes()
        photo.write_bytes(whole[:200])
        pixels = cv2.imread(str(matte), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        cv2.imwrite(str(matte), 255 - pixels)
        self.in_process(lambda: self.make_champion("1"), "base, first cycle")
        self.in_process(lambda: self.make_champion("2"), "base, second cycle")
        photo.write_bytes(whole)
        drop(inbox, "late", 1, 120, "train")
        self.in_process(self.choose_words, "base")
        shutil.move(self.work, self.base)

    def make_champion(self, version: str) -> None:
        """Run a cycle, and promote its candidate also where the gate does not."""
        params = self.params.with_values(seed=int(version))
        stages.run_cycle(Run(params, self.layout))
        if (Registry(self.layout.settings).pin("champion") or {}).get("version") != version:
            stages.override(Run(params, self.layout), "candidate", reason="two champions", days=1)
        if Registry(self.layout.settings).versions() != [str(n + 1) for n in range(int(version))]:
            raise SystemExit(f"version {version} is no version of its own")
        write_json(self.work.parent / "modules.json", sorted(sys.modules))

    def choose_words(self) -> None:
        """What the commands' placeholders stand for. Not in the parent: delta-rs has threads, which no fork keeps."""
        rejects: Any = catalog_of(self.layout).read("rejects", filters=[("verdict", "=", "quarantine")])
        suspects = rejects.loc[rejects["reason"].str.startswith("suspect"), "key"]
        if suspects.empty or len(rejects) == len(suspects):
            raise SystemExit(f"no repaired row or no suspect matte: {rejects[['image', 'reason']].to_dict('records')}")
        trained = read_pool(self.layout.snapshot, "train_labeled")["sample_id"]
        words = {"KEY": suspects.iloc[0], "PHOTO": trained.iloc[0], "BACKUP": str(self.backup)}
        write_json(self.work.parent / "words.json", words)

    def in_process(self, work: Callable[[], Any], what: str) -> None:
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{what}: exit {process.exitcode}")

    def fresh(self, after: str = "") -> None:
        """Put workspace and backup into the state of the base, or into that after one command."""
        for folder in (self.work, self.backup):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.ended / after / "work" if after else self.base, self.work)
        if after and (kept := self.ended / after / "backup").is_dir():
            shutil.copytree(kept, self.backup)

    def run_first(self, command: str) -> float:
        """Run a command on the base, or take over what it left when it ran before; return the seconds that it took."""
        seconds_file = self.ended / command / "seconds"
        if seconds_file.is_file():
            self.fresh(after=command)
            return float(seconds_file.read_text())
        self.fresh()
        begun = time.perf_counter()
        self.finish([self.start(command)])
        seconds = time.perf_counter() - begun
        for folder in (self.work, self.backup):
            if folder.is_dir():
                shutil.copytree(folder, self.ended / command / folder.name, dirs_exist_ok=True)
        seconds_file.write_text(f"{seconds}")
        return seconds

    def start(self, command: str, delay: float = 0.0) -> multiprocessing.Process:
        process = multiprocessing.get_context("fork").Process(target=self.do, args=(command, delay))
        process.start()
        return process  # pyright: ignore[reportReturnType]

    def do(self, command: str, delay: float) -> None:
        """One command, as its own process; what it says goes to a log beside the workspace."""
        log = os.open(self.work.parent / f"{command}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        time.sleep(delay)
        if command == "dagster":
            return self.materialize()
        try:
            app([self.words.get(word, word) for word in COMMANDS[command]], standalone_mode=False)
        except MattingError as error:
            print(f"mm: {error}", flush=True)
            sys.exit(2)

    def materialize(self) -> None:
        """Every asset of a cycle, one after another, as Dagster's Materialize does without the coordinator."""
        chosen = dg.AssetSelection.groups("learning", "release")
        assets = [asset for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)]
        with dg.DagsterInstance.ephemeral() as instance:
            result = dg.materialize(
                assets, selection=chosen, instance=instance, resources=dict(defs.resources or {}), raise_on_error=False
            )
        sys.exit(0 if result.success else 2)

    def finish(self, processes: list[multiprocessing.Process]) -> list[int]:
        for process in processes:
            process.join()
        return [process.exitcode or 0 for process in processes]

    def state(self) -> dict[str, Any]:
        """What must be as after one of the serial orders, read in a process of its own."""
        place_ = self.work.parent / "state.json"
        self.in_process(lambda: write_json(place_, self.describe()), "state")
        return json.loads(place_.read_text())

    def describe(self) -> dict[str, Any]:
        layout = self.layout
        catalog = catalog_of(layout)

        def rows(table: str, *columns: str) -> list[list[str]]:
            return sorted([str(v) for v in row] for row in catalog.read(table, columns=list(columns)).to_numpy())

        registry = Registry(layout.settings)
        stages.pin_inputs(Run(self.params, layout), again=True)
        stages.snapshot(Run(self.params, layout))
        pools = {pool: sorted(read_pool(layout.snapshot, pool)["sample_id"]) for pool in POOLS}
        samples, labels = catalog.read("samples"), catalog.read("labels")
        placed = place(self.params.snapshot, samples, labels)
        unseen = set(placed.loc[placed["dropped"] == "", "sample_id"]) - {i for ids in pools.values() for i in ids}
        backups = 0
        if (self.backup / "backups").is_dir():
            backups = len(list((self.backup / "backups").iterdir()))
            other = Layout(Settings.from_env(self.work.parent / "restored"))
            restore(other.settings, str(self.backup), Report("restore"), progress=quiet)
            shutil.rmtree(other.root)
        return {
            "samples": rows("samples", "id", "kind", "batch", "category"),
            "labels": rows("labels", "sample_id", "alpha_sha256", "version"),
            "rejects": rows("rejects", "image", "verdict", "reason"),
            "reviews": rows("reviews", "sample_id", "reviewer"),
            "forgotten": rows("forgotten", "id"),
            "moves": [[m["kind"], m["from"], m["to"]] for m in registry.history()],
            "champion": (registry.pin("champion") or {}).get("digest"),
            "pools": pools,
            "lost": sorted(unseen),
            "backups": backups,
        }


def drop(inbox: Path, batch: str, each: int, seed: int, role: str) -> Path:
    counts: dict[str, int] = dict.fromkeys(ALL_CATEGORIES, each)
    return write_drop(inbox, "pixel_labeled", batch, counts, seed=seed, size=64, role=role, burst_share=0)


def compare(bench: Bench, first: str, second: str, rounds: int, draw: random.Random) -> dict[str, Any]:
    """Both serial orders, then the rounds; one row of the table."""
    serial: dict[str, dict[str, Any]] = {}
    seconds = 0.0
    for order in {(first, second), (second, first)}:
        seconds = max(seconds, bench.run_first(order[0]))
        begun = time.perf_counter()
        bench.finish([bench.start(order[1])])
        seconds = max(seconds, time.perf_counter() - begun)
        state = bench.state()
        serial[digest_of(state)] = state
        # What one order trained, the rounds find trained.
        shutil.copytree(bench.work / "checkpoints", bench.base / "checkpoints", dirs_exist_ok=True)
    same, lost, different, ends = 0, 0, [], set()
    for _ in range(rounds):
        bench.fresh()
        late = draw.choice([0.0, draw.uniform(0.0, seconds)])
        ends.add(" ".join(map(str, bench.finish([bench.start(first), bench.start(second, late)]))))
        state = bench.state()
        same += digest_of(state) in serial
        lost += bool(state["lost"])
        if digest_of(state) not in serial:
            write_json(bench.work.parent / f"{first}-{second}.different.json", {"state": state, "serial": serial})
            nearest = next(iter(serial.values()))
            different.append(",".join(sorted(name for name in state if state[name] != nearest[name])))
    return {
        "pair": f"{first} + {second}",
        "rounds": rounds,
        "as_serial": same,
        "lost_photos": lost,
        "orders_differ": len(serial) > 1,
        "exits": "; ".join(sorted(ends)),
        "different_in": "; ".join(sorted(set(different))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pair", nargs=2, action="append", choices=list(COMMANDS), help="default: every pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="Folder for the prepared workspace; a later call finds it there.")
    parser.add_argument("--minutes", type=float, default=1e9, help="No pair is begun after this time.")
    arguments = parser.parse_args()
    pairs = arguments.pair or list(combinations_with_replacement(COMMANDS, 2))
    begun, rows = time.monotonic(), read_table()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.base or Path(folder))
        bench.prepare()
        for first, second in pairs:
            name = f"{first} + {second}"
            if time.monotonic() - begun > 60 * arguments.minutes:
                break
            if rows.get(name, {}).get("rounds", 0) >= arguments.rounds:
                continue
            draw = random.Random(f"{arguments.seed} {name}")
            rows[name] = compare(bench, first, second, arguments.rounds, draw)
            print(json.dumps(rows[name]), flush=True)
            write_table(list(rows.values()))


def read_table() -> dict[str, dict[str, Any]]:
    """The rows of an earlier call by pair; their pairs are not run again unless more rounds are asked for."""
    return {row["pair"]: row | {"rounds": int(row["rounds"])} for row in read_rows(HERE / "two_processes.csv")}


def write_table(rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, and as the table of the page."""
    write_rows(HERE / "two_processes.csv", rows)
    lines = [
        "| pair | rounds | as one of the serial orders | rounds that lost a photo | differs in |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['pair']} | {row['rounds']} | {row['as_serial']} | {row['lost_photos']} | {row['different_in']} |"
        for row in rows
    ]
    write_page_table(HERE / "two_processes.md", lines)


if __name__ == "__main__":
    main()
