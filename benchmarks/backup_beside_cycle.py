"""Backups that are taken while a cycle trains: is each whole, and does work go on from it elsewhere?

    python benchmarks/backup_beside_cycle.py [--rounds 20] [--seed 0] [--base FOLDER] [--minutes M]

On copies of the tiny workspace of `two_processes.py`: `mm run` takes a waiting drop through a cycle, `mm backup` starts
at a random moment of it, and the backup is restored into an empty folder. There `mm check` looks, and `mm run` goes on.
Adds a row a round to benchmarks/backup_beside_cycle.csv, and writes the table of benchmarks/backup_beside_cycle.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from csv_rows import read_rows, write_page_table, write_rows  # noqa: E402
from two_processes import Bench  # noqa: E402

from mm_core.core.layout import Layout  # noqa: E402
from mm_core.core.progress import quiet  # noqa: E402
from mm_core.core.records import Report, write_json  # noqa: E402
from mm_core.core.settings import Settings  # noqa: E402
from mm_core.ingest.placement import POOLS  # noqa: E402
from mm_core.ingest.snapshot import place, read_pool  # noqa: E402
from mm_core.services.backup import restore  # noqa: E402
from mm_core.services.check import check  # noqa: E402
from mm_core.storage.run import catalog_of  # noqa: E402

TABLE, PAGE = HERE / "backup_beside_cycle.csv", HERE / "backup_beside_cycle.md"


def restore_and_check(bench: Bench, place_: Path) -> None:
    """Restore the newest backup into the folder that MM_WORKSPACE names, and write what is wrong with it."""
    layout = Layout(Settings.from_env())
    report = restore(layout.settings, str(bench.backup), Report("restore"), progress=quiet)
    faults = check(layout, Report("check"), progress=quiet)
    left_out = [row["file"] for row in report.tables.get("left_out", [])]
    write_json(place_, {"faults": [f"{fault.kind} {fault.where}: {fault.fault}" for fault in faults] + left_out})


def lost_photos(bench: Bench, place_: Path) -> None:
    """Write which photos that belong into a pool are in none of the snapshot that lies there."""
    layout = Layout(Settings.from_env())
    catalog = catalog_of(layout)
    placed = place(bench.params.snapshot, catalog.read("samples"), catalog.read("labels"))
    seen = {i for pool in POOLS for i in read_pool(layout.snapshot, pool)["sample_id"]}
    write_json(place_, {"lost": sorted(set(placed.loc[placed["dropped"] == "", "sample_id"]) - seen)})


def one_round(bench: Bench, late: float, root: Path) -> dict[str, Any]:
    """Run one cycle and one backup at the same time, restore the backup, and return a row of the table."""
    bench.fresh()
    shutil.rmtree(bench.work / "checkpoints")  # the cycle has to train
    begun = time.perf_counter()
    processes = [bench.start("run"), bench.start("backup", late)]
    exits = bench.finish(processes[:1])
    cycle = time.perf_counter() - begun
    exits += bench.finish(processes[1:])
    row: dict[str, Any] = {"started_after": round(late, 1), "cycle": round(cycle, 1)}
    row["exits"] = " ".join(map(str, exits))
    other, answer = root / "other", root / "answer.json"
    os.environ["MM_WORKSPACE"] = str(other)
    try:
        bench.in_process(lambda: restore_and_check(bench, answer), "restore")
        row["faults"] = "; ".join(json.loads(answer.read_text())["faults"])
        # The inbox is its producers': it stays where it is.
        shutil.copytree(bench.work / "inbox", other / "inbox")
        row["goes_on"] = bench.finish([bench.start("run")]) == [0]
        bench.in_process(lambda: lost_photos(bench, answer), "lost photos")
        row["lost_photos"] = len(json.loads(answer.read_text())["lost"])
    finally:
        os.environ["MM_WORKSPACE"] = str(bench.work)
        shutil.rmtree(other, ignore_errors=True)
    return row | {"seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="Rounds in all, those of earlier calls among them.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="Folder for the prepared workspace; a later call finds it there.")
    parser.add_argument("--minutes", type=float, default=1e9, help="No round is begun after this time.")
    arguments = parser.parse_args()
    rows = list[dict[str, Any]](read_rows(TABLE))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.base or Path(folder))
        bench.prepare()
        while len(rows) < arguments.rounds and time.monotonic() - begun < 60 * arguments.minutes:
            draw = random.Random(f"{arguments.seed} {len(rows)}")
            # The backup starts at any time of the cycle, as long as the last one was.
            late = draw.uniform(0, float(rows[-1]["cycle"]) if rows else 15)
            rows.append({"round": len(rows) + 1} | one_round(bench, late, bench.work.parent))
            print(json.dumps(rows[-1]), flush=True)
            write_table(rows)


def write_table(rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, and as the table of the page."""
    write_rows(TABLE, rows)
    lines = ["| round | backup after (s) | cycle (s) | faults of the restored copy | `mm run` goes on | photos lost |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {row['round']} | {row['started_after']} | {row['cycle']} | {row['faults'] or 'none'} | {row['goes_on']} "
        f"| {row['lost_photos']} |"
        for row in rows
    ]
    write_page_table(PAGE, lines)


if __name__ == "__main__":
    main()
