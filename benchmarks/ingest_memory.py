"""Does the memory of ingest follow the rows of a drop?

Drops of 2,000 to 200,000 rows, the most that a manifest may have, go into an empty catalog, each in a process of
its own. Rows are measured in microseconds here: made-up hashes stand for decoded photos and no blob is copied, since
pictures pass one by one and these are about what stays. All else is as it runs: manifest, Great Expectations and its
pages, the search for copies, verdicts, commits.

    python -m benchmarks.ingest_memory --work data/memory

Writes benchmarks/ingest_memory.md.
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
from datetime import date
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROWS = (2_000, 20_000, 60_000, 200_000)


def measure(work: Path) -> None:
    """One run in this process."""
    from mm_core import stages
    from mm_core.core.layout import Layout
    from mm_core.core.params import Params
    from mm_core.core.settings import Settings
    from mm_core.imaging.near_duplicates import LANDMARKS
    from mm_core.ingest import commit
    from mm_core.ingest.manifest import ManifestRow
    from mm_core.ingest.probe import Probe, Prober
    from mm_core.pinned_inputs import Run

    def made_up(self: Prober, row: ManifestRow) -> Probe:
        random = np.random.default_rng(row.row)
        probe = Probe(row.row, row.image, row.category, None, 0)
        probe.image_inside = probe.image_found = probe.image_recognised = probe.image_decodes = True
        probe.image_bytes, probe.pixels, probe.width, probe.height = 2_000_000, 12_192_768, 4032, 3024
        probe.short_side, probe.format, probe.brightness = 3024, "JPEG", 0.5
        probe.sha256, probe.phash = random.bytes(32).hex(), random.bytes(8).hex()
        probe.landmarks = random.bytes(8 * LANDMARKS).hex()
        return probe

    Prober.__call__ = made_up
    commit.put_blob = lambda store, source, digest: digest
    began, busy = time.perf_counter(), time.process_time()
    report = stages.ingest(Run(Params(), Layout(Settings.from_env(work))))
    print(
        json.dumps(
            {
                "accepted": report.metrics["ingest/accepted"],
                "seconds": time.perf_counter() - began,
                "processor": time.process_time() - busy,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def run(work: Path, rows: int) -> dict[str, float]:
    shutil.rmtree(work, ignore_errors=True)
    drop = work / "inbox" / "unlabeled" / "large"
    drop.mkdir(parents=True)
    (drop / "x.jpg").touch()
    names = [f"{number // 1000:03d}/IMG_{number:06d}.jpg,pets\n" for number in range(rows)]
    for folder in {name.partition("/")[0] for name in names}:
        (drop / folder).mkdir()
    for name in names:
        (drop / name.partition(",")[0]).touch()
    (drop / "manifest.csv").write_text("image,category\n" + "".join(names))
    environment = os.environ | {"MM_INBOX": str(work / "inbox"), "MM_STORE": str(work / "store")}
    command = [sys.executable, "-m", "benchmarks.ingest_memory", "--measure", str(work)]
    told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/memory"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        return measure(given.measure)
    work = given.work.absolute()
    lines = [
        "# Memory of ingest against the rows of a drop",
        "",
        "Runner: `benchmarks/ingest_memory.py`. Made-up hashes instead of decoded photos; all else as it runs.",
        "",
        "| rows | accepted | peak memory, MB | against the smallest | KB a row above it | ms of processor a row |",
        "|---|---|---|---|---|---|",
    ]
    base: dict[str, float] | None = None
    for rows in ROWS:
        found = run(work, rows)
        base = base or found
        above, factor = found["memory"] - base["memory"], found["memory"] / base["memory"]
        a_row = f"{1024 * above / (rows - ROWS[0]):.2f}" if rows > ROWS[0] else ""
        lines.append(
            f"| {rows:,} | {found['accepted']:,} | {found['memory']:.0f} | {factor:.2f} | {a_row} "
            f"| {1000 * found['processor'] / rows:.2f} |"
        )
        end = ["", f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}."]
        (HERE / "ingest_memory.md").write_text("\n".join(lines + end) + "\n")
        print(rows, found, flush=True)
    shutil.rmtree(work)
    print(HERE / "ingest_memory.md")


if __name__ == "__main__":
    main()
