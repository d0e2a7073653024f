"""Bits that flip in the files of a trained workspace: does `mm check` find each of them?

    python benchmarks/bit_flips.py [--files 100] [--seed 0] [--base FOLDER]

On the tiny workspace of `two_processes.py`: a round flips one random bit in one random file of each kind, `mm check`
looks once, and the bits are flipped back. A flip counts as found if a fault names its file; any other one is tried
again alone. Adds the rows of each round to benchmarks/bit_flips.csv, and writes the table of benchmarks/bit_flips.md.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from csv_rows import read_rows, write_page_table, write_rows  # noqa: E402
from trained_workspace import KINDS, TrainedWorkspace, flip  # noqa: E402

from mm_core.core.errors import MattingError  # noqa: E402
from mm_core.core.layout import Layout  # noqa: E402
from mm_core.core.progress import quiet  # noqa: E402
from mm_core.core.records import Report  # noqa: E402
from mm_core.services.check import Fault, check  # noqa: E402

TABLE = HERE / "bit_flips.csv"


def files_of(root: Path) -> dict[str, list[Path]]:
    """The files of each kind that hold something."""
    found = {kind: sorted(root.glob(pattern)) for kind, pattern in KINDS.items()}
    return {kind: [path for path in paths if path.is_file() and path.stat().st_size] for kind, paths in found.items()}


def find_faults(layout: Layout) -> list[Fault]:
    """Return the faults that `mm check` reports; none where it ends with an error, which is printed."""
    try:
        return check(layout, Report("check"), progress=quiet)
    except MattingError as error:
        print(f"mm check fails: {error}", flush=True)
        return []


def fault_of(path: Path, faults: list[Fault], root: Path) -> str:
    """Return the fault that names a file, its digest, or its folder if that is judged as a whole; "" if none does."""
    names = [str(path), *([path.stem] if len(path.stem) >= 64 else [])]
    for fault in faults:
        if fault.where == str(path.parent) or any(name in f"{fault.where} {fault.fault}" for name in names):
            return words_of(fault, root)
    return ""


def words_of(fault: Fault, root: Path) -> str:
    """Return a fault in at most 120 characters, with paths from the workspace on."""
    return f"{fault.kind}: {fault.fault}".replace(f"{root}/", "")[:120]


def try_round(layout: Layout, kinds: dict[str, list[Path]], draw: random.Random) -> list[dict[str, Any]]:
    """Flip a bit in one file of each kind and check once; returns a row for each flip.

    A flip whose file no fault names is tried again alone: one fault may hide another, for example in one table.
    """
    flips = {kind: draw.choice(paths) for kind, paths in kinds.items()}
    places = {path: draw.randrange(8 * path.stat().st_size) for path in flips.values()}
    for path, place in places.items():
        flip(path, place)
    faults = find_faults(layout)
    for path, place in places.items():
        flip(path, place)
    rows = []
    for kind, path in flips.items():
        row = {"kind": kind, "file": path.relative_to(layout.root).as_posix(), "bit": places[path]}
        row |= {"alone": False, "found": fault_of(path, faults, layout.root)}
        if not row["found"]:
            flip(path, places[path])
            alone = find_faults(layout)
            flip(path, places[path])
            row |= {"alone": True, "found": words_of(alone[0], layout.root) if alone else ""}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100, help="At least so many, those of earlier calls among them.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="Folder of a workspace that two_processes.py prepared.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained = TrainedWorkspace(arguments.base or Path(folder))
        trained.renew()
        layout, rows = trained.layout, list[dict[str, Any]](read_rows(TABLE))
        kinds = {kind: paths for kind, paths in files_of(layout.root).items() if paths}
        print(json.dumps({kind: len(paths) for kind, paths in kinds.items()}), flush=True)
        if faults := find_faults(layout):
            raise SystemExit(f"the workspace has a fault before any bit flips: {faults[0]}")
        while len(rows) < arguments.files:
            # A list of files of its own for each round, so that a later call goes on where an earlier one ended.
            rows += try_round(layout, kinds, random.Random(f"{arguments.seed} {len(rows)}"))
            write_table(rows)
        if faults := find_faults(layout):
            raise SystemExit(f"the workspace has a fault after the bits were flipped back: {faults[0]}")


def write_table(rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, and by kind as the table of the page."""
    write_rows(TABLE, rows)
    flips = Counter(row["kind"] for row in rows)
    found = Counter(row["kind"] for row in rows if row["found"])
    lines = ["| files | bits flipped | found |", "|---|---|---|"]
    lines += [f"| {kind} | {count} | {found[kind]} |" for kind, count in flips.items()]
    write_page_table(HERE / "bit_flips.md", [*lines, f"| all | {flips.total()} | {found.total()} |"])


if __name__ == "__main__":
    main()
