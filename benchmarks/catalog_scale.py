"""Time and memory of the parts of a cycle that read the catalog, with 100,000 and with a million photos.

Two made-up catalogs, a third of the photos labelled, are read by each part in a process of its own: the snapshot, the
candidates for people, the counts of the report, and the sensors. The sensors also look at an inbox with one past drop
per hundred photos. `plain read` is the peer: the columns that the snapshot needs, read and sorted by id, without rules.

    python benchmarks/catalog_scale.py --work data/bench/catalog_scale --rows 100000 1000000

Writes benchmarks/catalog_scale.csv and benchmarks/catalog_scale.md.
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
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
RESULT = HERE / "catalog_scale.csv"
STEP, DROP, LABELLED = 100_000, 100, 0.33
LONG_AGO = 1_700_000_000.0
"""Time of the first look at the inbox."""
DAYS = 2 * 86_400.0
"""Seconds from the first look to the next ones: the drops arrived long ago."""
PARTS = {
    "plain read": "the peer: the snapshot's columns, sorted by id",
    "snapshot": "`mm snapshot`: pools, checks, digests and files",
    "candidates": "photos that may be sent to people",
    "report counts": "photos by category and kind, labels, newest batch",
    "label sensor": "labels now and in the last cycle",
    "arrivals sensor, first look": "every manifest hashed, every drop listed",
    "arrivals sensor, next looks": "two days later, the mean of ten looks 30 seconds apart",
}
"""Part → what it does."""


def write_catalog(root: Path, rows: int) -> None:
    """Write samples, labels and a ledger, as commits and compaction leave them, and the inbox of their drops."""
    from deltalake import write_deltalake

    from mm_core.ingest.inbox import arrived_batches
    from mm_core.storage.catalog import Catalog
    from mm_core.storage.schemas import SCHEMAS
    from mm_core.storage.store import LocalStore

    if (root / "done").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    catalog, random = Catalog(str(root / "store")), np.random.default_rng(0)

    def append(table: str, columns: dict[str, list[Any]]) -> None:
        schema, count = SCHEMAS[table], len(next(iter(columns.values())))
        arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
        catalog._open_or_create(table)
        write_deltalake(f"{catalog.url}/{table}", pa.table(arrays, schema=schema), mode="append")

    for start in range(0, rows, STEP):
        n = min(STEP, rows - start)
        ids = [random.bytes(32).hex() for _ in range(n)]
        labelled = random.random(n) < LABELLED
        kind = np.where(labelled, "pixel_labeled", np.where(random.random(n) < 0.2, "text_image", "unlabeled"))
        # Scenes of one to four photos; one photo in fifty resembles an earlier one.
        group = [f"scene{start + n}" for n in np.cumsum(random.random(n) < 0.4)]
        phash = [random.bytes(8).hex() for _ in range(n)]
        for place in np.flatnonzero(random.random(n) < 0.02)[1:]:
            phash[place] = phash[int(random.integers(place))]
        names = ["portrait", "multi_person", "pets", "accessories", "cards", "delicacy", "scenery"]
        numbers = range(start, start + n)
        append(
            "samples",
            {
                "id": ids, "group": group, "phash": phash, "kind": kind.tolist(), "width": [4000] * n,
                "category": random.choice(names, n, p=[0.4, 0.2, 0.1, 0.05, 0.05, 0.1, 0.1]).tolist(),
                "caption": ["a photo" if k == "text_image" else None for k in kind], "height": [3000] * n,
                "batch": [f"b{number // DROP:06}" for number in numbers], "name": [f"{n}.jpg" for n in numbers],
                "accepted_at": [f"2026-01-01T00:00:00.{number // DROP:06}" for number in numbers],
            },
        )  # fmt: skip
        mine = [i for i, has in zip(ids, labelled, strict=True) if has]
        gone = ["2026-02-01T00:00:00" if share < 0.03 else None for share in random.random(len(mine))]
        append(
            "labels",
            {
                "id": [f"label {i}" for i in mine], "sample_id": mine, "alpha_sha256": mine, "version": [1] * len(mine),
                "origin": ["drop"] * len(mine), "created_at": ["2026-01-01T00:00:00"] * len(mine), "withdrawn_at": gone,
            },
        )  # fmt: skip
    for table in ("samples", "labels"):
        catalog.compact(table)
        catalog.vacuum(table, days=0)
    drops = rows // DROP
    for number in range(drops):
        folder = root / "inbox" / "unlabeled" / f"b{number:06}"
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(b"photo")
        (folder / "manifest.csv").write_text(f"image\n0.jpg\n{number}\n")
    ledger: list[dict[str, Any]] = [
        {"key": one.key, "kind": one.kind, "batch": one.batch, "state": "ingested", "ingested_at": "2026-01-01"}
        for one in arrived_batches(LocalStore(root / "inbox"))
    ]
    catalog.add("batches", ledger)
    (root / "done").touch()


def part(name: str, root: Path) -> dict[str, float]:
    """Return seconds, processor seconds and peak memory in MB of one part, without its imports."""
    from mm_core.core.layout import Layout
    from mm_core.core.params import Params, SnapshotParams
    from mm_core.core.pins import PinnedInputs, read_snapshot
    from mm_core.core.records import Report
    from mm_core.core.settings import Settings
    from mm_core.eval import report as pages
    from mm_core.ingest.inbox_looks import look_again
    from mm_core.ingest.placement import LABEL_COLUMNS, SAMPLE_COLUMNS
    from mm_core.ingest.snapshot import build_snapshot
    from mm_core.labeling.candidates import candidates
    from mm_core.storage.catalog import Catalog
    from mm_core.storage.run import StorageRun
    from mm_core.storage.store import LocalStore

    catalog, params = Catalog(str(root / "store")), SnapshotParams()
    layout = Layout(Settings.from_env(root / "workspace"))
    run = StorageRun(Params(), layout)
    vars(run).update(catalog=catalog, inbox=LocalStore(root / "inbox"))
    pinned: PinnedInputs = {
        "catalog": {table: catalog.version(table) for table in ("samples", "labels", "features")},
        "champion": None,
        "anchor": None,
    }

    def plain_read() -> None:
        for table, columns in (("samples", SAMPLE_COLUMNS), ("labels", LABEL_COLUMNS)):
            rows = pa.Table.from_batches(list(catalog.scan(table, columns=columns)))
            assert rows.sort_by("id").num_rows

    def snapshot() -> None:
        build_snapshot(params, catalog, pinned, layout.snapshot, Report("snapshot"))

    def label_sensor() -> None:
        # What `labels_at` of the sensors does, for the newest version and for that of the last cycle.
        for version in (None, read_snapshot(layout)["catalog"]["labels"]):
            assert catalog.count("labels", version=version)

    def look(first: float, count: int) -> None:
        for number in range(count):
            assert look_again(run, first + 30 * number) == []

    works: dict[str, Callable[[], object]] = {
        "plain read": plain_read,
        "snapshot": snapshot,
        "candidates": lambda: candidates(catalog, params),
        "report counts": lambda: (pages._counts(catalog), pages._about(layout, catalog, None)),
        "label sensor": label_sensor,
        "arrivals sensor, first look": lambda: look(LONG_AGO, 1),
        "arrivals sensor, next looks": lambda: look(LONG_AGO + DAYS + 30, 10),
    }
    repeats = 10 if name == "arrivals sensor, next looks" else 1
    if repeats > 1:
        # A look after days compares every drop again; the sensor looks twice a minute.
        look(LONG_AGO + DAYS, 1)
    begun, busy = time.perf_counter(), time.process_time()
    works[name]()
    seconds, processor = time.perf_counter() - begun, time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds / repeats, "processor": processor / repeats, "memory": memory}


def processor() -> str:
    """Return the name of the processor, with what its vector units can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    flags = facts.get("flags", "").split()
    units = {"avx512_bf16": "AVX512-BF16", "avx512_vnni": "VNNI", "amx_tile": "AMX"}
    able = [name for flag, name in units.items() if flag in flags] or ["AVX2"] * ("avx2" in flags)
    return facts.get("model name", platform.machine()) + (f" with {' and '.join(able)}" if able else "")


def child(*given: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), *given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def write(found: dict[str, dict[int, dict[str, float]]], command: str) -> None:
    """Write the table of numbers, and the page that shows it."""
    with RESULT.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["part", "rows", "seconds", "processor", "memory_mb"])
        for name, by_rows in found.items():
            for rows, one in by_rows.items():
                numbers = [f"{one['seconds']:.3f}", f"{one['processor']:.3f}", f"{one['memory']:.0f}"]
                writer.writerow([name, rows, *numbers])
    few, many = next(iter(found.values()))
    lines = [
        "# What reading the catalog costs",
        "",
        "Parts of a cycle that read the catalog, with a third of the photos labelled. Each runs in its own process.",
        "",
        f"| part | {few:,} rows, CPU s | MB | {many:,} rows, CPU s | MB | ratio | against the plain read |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, what in PARTS.items():
        small, large = found[name][few], found[name][many]
        peer = found["plain read"][many]["processor"]
        ratios = (large["processor"] / max(small["processor"], 0.001), large["processor"] / peer)
        cells = [f"{one['processor']:.3f} | {one['memory']:.0f}" for one in (small, large)]
        lines.append(f"| {name}: {what} | {' | '.join(cells)} | {ratios[0]:.1f} | {ratios[1]:.2f} |")
    lines += [
        "",
        f"CPU s: processor time without imports; MB: peak of the process. One past drop per {DROP} photos.",
        "The catalog is made up and lies on a local disk. On S3 the arrivals sensor needs a short request per drop.",
        "",
        "Other programs on the machine raise processor seconds: compare the ratios.",
        "",
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}.",
        f"`{command}`",
        "",
    ]
    (HERE / "catalog_scale.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "catalog_scale")
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 1_000_000])
    parser.add_argument("--part", nargs=2)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(part(given.part[0], Path(given.part[1]))))
        return
    found = {name: dict[int, dict[str, float]]() for name in PARTS}
    for rows in given.rows:
        root = given.work / str(rows)
        write_catalog(root, rows)
        shutil.rmtree(root / "workspace", ignore_errors=True)
        for name in PARTS:
            found[name][rows] = child("--part", name, str(root))
            print(rows, name, found[name][rows], flush=True)
    write(found, f"python benchmarks/catalog_scale.py --rows {given.rows[0]} {given.rows[1]}")


if __name__ == "__main__":
    main()
