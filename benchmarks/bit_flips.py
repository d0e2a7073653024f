"""Bits that flip in the files of a trained workspace: does `mm check` find each of them?

    python benchmarks/bit_flips.py [--files 100] [--seed 0] [--base FOLDER]

On the tiny workspace of `two_processes.py`: one random bit of one random file is flipped, `mm check` looks, the bit is
flipped back. Files are drawn from each kind in turn. Writes benchmarks/bit_flips.csv, and its table into
benchmarks/bit_flips.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from two_processes import Bench  # noqa: E402

from mm_core.core.layout import Layout  # noqa: E402
from mm_core.core.progress import quiet  # noqa: E402
from mm_core.core.records import Report  # noqa: E402
from mm_core.services.check import check  # noqa: E402

KINDS = {
    "photos and mattes": "store/blobs/**/*",
    "catalog, data": "store/catalog/*/*.parquet",
    "catalog, Delta log": "store/catalog/*/_delta_log/*",
    "catalog, seals": "store/catalog/*/_seals/*",
    "statements of drops": "store/ingest/**/*",
    "quarantine": "store/quarantine/**/*",
    "records of the gate": "store/gate/**/*",
    "checkpoints": "checkpoints/*/model.safetensors",
    "snapshot and split": "cycle/s*/*",
    "models of the cycle": "cycle/models/**/*",
    "int8 files of the cycle": "cycle/quantised/*",
    "evaluation": "cycle/eval*/**/*",
    "bundles": "bundle/*/*",
    "pins": "inputs.json",
    "sqlite": "**/*.db",
}


def files_of(root: Path) -> dict[str, list[Path]]:
    """The files of each kind that hold something."""
    found = {kind: sorted(root.glob(pattern)) for kind, pattern in KINDS.items()}
    return {kind: [path for path in paths if path.is_file() and path.stat().st_size] for kind, paths in found.items()}


def flip(path: Path, place: int) -> None:
    """Flip the bit of this number; the file's time stays, as where a disk rots."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(place // 8)
        (byte,) = stream.read(1)
        stream.seek(place // 8)
        stream.write(bytes([byte ^ (1 << place % 8)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def first_fault(layout: Layout) -> str:
    """Return the first fault that `mm check` reports; "" if it reports none."""
    faults = check(layout, Report("check"), progress=quiet)
    return f"{faults[0].kind}: {faults[0].fault}"[:120] if faults else ""


def try_flips(layout: Layout, count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Flip bits in `count` files, one at a time; returns a row each."""
    kinds = {kind: paths for kind, paths in files_of(layout.root).items() if paths}
    print(json.dumps({kind: len(paths) for kind, paths in kinds.items()}), flush=True)
    if first := first_fault(layout):
        raise SystemExit(f"the workspace has a fault before any bit flips: {first}")
    rows = []
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        path = draw.choice(kinds[kind])
        place = draw.randrange(8 * path.stat().st_size)
        flip(path, place)
        row = {
            "kind": kind,
            "file": path.relative_to(layout.root).as_posix(),
            "bit": place,
            "found": first_fault(layout),
        }
        flip(path, place)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="Folder of a workspace that two_processes.py prepared.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.base or Path(folder))
        bench.prepare()
        bench.fresh()
        write_table(try_flips(bench.layout, arguments.files, random.Random(arguments.seed)))


def write_table(rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, and by kind as the table of the page."""
    with (HERE / "bit_flips.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    flips = Counter(row["kind"] for row in rows)
    found = Counter(row["kind"] for row in rows if row["found"])
    lines = ["| files | bits flipped | found |", "|---|---|---|"]
    lines += [f"| {kind} | {count} | {found[kind]} |" for kind, count in flips.items()]
    lines += [f"| all | {flips.total()} | {found.total()} |"]
    page = HERE / "bit_flips.md"
    text, mark, _ = page.read_text().partition("<!-- table -->\n")
    page.write_text(text + mark + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
