"""Does the cost of ingest follow the new photos, or the catalog?

The same 1,000 generated photos go into an empty catalog and into one of 1,000,000 rows of samples and of labels (made
up, in files as commits and compaction leave them). Each run is a process of its own on a fresh store. The counts of
`mm status` are measured on what ingest left.

    python benchmarks/ingest_scale.py --work data/scale --photos 1000 --rows 1000000

Writes benchmarks/ingest_scale.md.
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
from statistics import median

import cv2
import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
SIDE = 640, 480
PARTS = ("ingest", "status")


def write_photos(inbox: Path, count: int) -> None:
    """An unlabelled drop of photos that do not resemble each other, the size of a small camera preview."""
    folder = inbox / "unlabeled" / "new"
    if (folder / "manifest.csv").exists():
        return
    folder.mkdir(parents=True)
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), SIDE, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.add(coarse, random.integers(0, 12, coarse.shape, np.uint8)))
    names = "\n".join(f"{number}.jpg,pets" for number in range(count))
    (folder / "manifest.csv").write_text(f"image,category\n{names}\n")


def hexes(random: np.random.Generator, count: int, size: int) -> pa.Array:
    """Made-up digests of `size` bytes."""
    text, width = random.bytes(count * size).hex(), 2 * size
    return pa.array([text[i : i + width] for i in range(0, len(text), width)])


def write_catalog(store: Path, rows: int) -> None:
    """Samples and labels, a commit per 50,000, with compaction as a catalog does it."""
    from deltalake import write_deltalake

    from mm_core.imaging.near_duplicates import LANDMARKS
    from mm_core.storage.catalog import Catalog
    from mm_core.storage.schemas import SCHEMAS

    if (store / "done").exists():
        return
    catalog, random, step = Catalog(str(store)), np.random.default_rng(0), 50_000
    for start in range(0, rows, step):
        n = min(step, rows - start)
        ids, alphas, batch = hexes(random, n, 32), hexes(random, n, 32), f"b{start:07d}"
        same = {
            "kind": "pixel_labeled", "batch": batch, "category": "pets", "role": "train", "width": 640, "height": 480,
            "format": "JPEG", "accepted_at": "2026-01-01T00:00:00+00:00", "version": 1, "origin": "drop",
            "binary": False, "created_at": "2026-01-01T00:00:00+00:00", "computed_at": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        names = pa.array([f"images/{number}.jpg" for number in range(start, start + n)])
        marks = random.bytes(n * LANDMARKS * 8)
        landmarks = pa.array([marks[i : i + LANDMARKS * 8] for i in range(0, len(marks), LANDMARKS * 8)])
        own = {
            "samples": {"id": ids, "group": ids, "phash": hexes(random, n, 8), "landmarks": landmarks, "name": names},
            "labels": {"id": hexes(random, n, 32), "sample_id": ids, "alpha_sha256": alphas},
        }
        for table, given in own.items():
            columns = []
            for field in SCHEMAS[table]:
                column = given.get(field.name)
                columns.append(pa.array([same.get(field.name)] * n, field.type) if column is None else column)
            catalog._open_or_create(table)
            write_deltalake(f"{catalog.url}/{table}", pa.table(columns, schema=SCHEMAS[table]), mode="append")
    for table in ("samples", "labels"):
        catalog.compact(table)
        catalog.vacuum(table, days=0)
    (store / "done").touch()


def measure(work: Path) -> None:
    """One run in this process: seconds of each part, and the process's peak memory in MB."""
    from mm_core import stages
    from mm_core.cli.app import _labelled
    from mm_core.cli.quarantine import counted
    from mm_core.core.layout import Layout
    from mm_core.core.params import Params
    from mm_core.core.settings import Settings
    from mm_core.pinned_inputs import Run
    from mm_core.storage.run import catalog_of

    layout = Layout(Settings.from_env(work))
    params = Params()
    catalog = catalog_of(layout)
    found: dict[str, float] = {}

    def status() -> None:
        counted(catalog, "samples", "category", "kind")
        _labelled(catalog)

    for name, part in (("ingest", lambda: stages.ingest(Run(params, layout))), ("status", status)):
        start, busy = time.perf_counter(), time.process_time()
        part()
        found[name], found[f"{name} processor"] = time.perf_counter() - start, time.process_time() - busy
        found[f"{name} memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def run(work: Path, inbox: Path, store: Path | None) -> dict[str, float]:
    """A run in a process of its own, on a copy of `store` or an empty one."""
    place = work / "run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if store is not None:
        shutil.copytree(store, place / "store")
    environment = os.environ | {"MM_INBOX": str(inbox), "MM_STORE": str(place / "store")}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(place), "--measure"]
    return json.loads(
        subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/scale"))
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work.absolute()
    if given.measure:
        return measure(work)
    inbox, store = work / f"inbox-{given.photos}", work / f"catalog-{given.rows}"
    write_photos(inbox, given.photos)
    write_catalog(store, given.rows)
    runs: dict[str, list[dict[str, float]]] = {"empty": [], "large": []}
    for _ in range(given.rounds):  # in turn, so that what else the machine does falls on both
        runs["empty"].append(run(work, inbox, None))
        runs["large"].append(run(work, inbox, store))
    middle = {which: {key: median(r[key] for r in found) for key in found[0]} for which, found in runs.items()}
    lines = [
        "# Ingest into a large catalog",
        "",
        f"{given.photos} generated photos of {SIDE[0]}×{SIDE[1]} into an empty catalog and into one of {given.rows:,}",
        f"samples and as many labels. Runs: {given.rounds} each, in turn, each its own process; shown: the median;",
        "memory is the process's peak up to the end of that part. The ratio of processor time depends less",
        "on what else the machine does.",
        "",
        f"| part | empty, s | {given.rows:,} rows, s | ratio | of processor time | peak memory empty, MB "
        f"| {given.rows:,} rows, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        a, b = middle["empty"], middle["large"]
        memory = f"{a[f'{part} memory']:.0f} | {b[f'{part} memory']:.0f}"
        busy = b[f"{part} processor"] / a[f"{part} processor"]
        lines.append(f"| {part} | {a[part]:.2f} | {b[part]:.2f} | {b[part] / a[part]:.2f} | {busy:.2f} | {memory} |")
    each = ", ".join(f"{a['ingest']:.1f}/{b['ingest']:.1f}" for a, b in zip(runs["empty"], runs["large"], strict=True))
    lines += [
        "",
        f"Ingest run by run (empty/large, s): {each}.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}.",
        f"`python benchmarks/ingest_scale.py --photos {given.photos} --rows {given.rows} --rounds {given.rounds}`",
        "",
    ]
    (HERE / "ingest_scale.md").write_text("\n".join(lines))
    print(HERE / "ingest_scale.md")


if __name__ == "__main__":
    main()
