"""What choosing photos costs: does it follow the look, or the catalog?

A run of `route` without a champion (the choice by features alone) on catalogs of some thousand and of a million
unlabelled photos with their features, made up; and what a champion's look at 1,000 photos of a megapixel adds, on
generated ones. Each run is a process of its own.

    python benchmarks/route_cost.py --work data/bench/route_cost --rows 20000 1000000 --photos 48

Writes benchmarks/route_cost.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

HERE = Path(__file__).parent
DIM, STEP, LABELLED = 162, 50_000, 0.02
STAMP = "2026-01-01T00:00:00+00:00"


def write_catalog(store: Path, rows: int) -> None:
    """Samples, some labels, and for each photo its quality and its vector, as commits and compaction leave them."""
    from deltalake import write_deltalake

    from mm_core.storage.catalog import Catalog
    from mm_core.storage.schemas import SCHEMAS

    if (store / "done").exists():
        return
    catalog, random = Catalog(str(store)), np.random.default_rng(0)
    for start in range(0, rows, STEP):
        n = min(STEP, rows - start)
        ids = [random.bytes(32).hex() for _ in range(n)]
        category = random.choice(["portrait", "delicacy", "pets", "cards"], n, p=[0.6, 0.25, 0.1, 0.05]).tolist()
        labelled = ids[: int(n * LABELLED)]
        made: dict[str, dict[str, Any]] = {
            "samples": {
                "id": ids, "group": ids, "category": category, "phash": [random.bytes(8).hex() for _ in ids],
                "kind": ["unlabeled"] * n, "width": [4000] * n, "height": [3000] * n, "accepted_at": [STAMP] * n,
            },
            "labels": {
                "id": labelled, "sample_id": labelled, "alpha_sha256": labelled, "version": [1] * len(labelled),
                "origin": ["label_studio"] * len(labelled), "created_at": [STAMP] * len(labelled),
            },
        }  # fmt: skip
        vectors = random.random((n, DIM), np.float32)
        features = {"sample_id": ids, "version": ["1"] * n, "computed_at": [STAMP] * n}
        quality = [[("sharpness", float(v[0])), ("dark_share", 0.0), ("bright_share", 0.0)] for v in vectors]
        both = [
            ("features", features | {"extractor": ["photo"] * n, "numbers": quality}),
            ("features", features | {"extractor": ["embedding"] * n, "vector": list(vectors)}),
        ]
        for table, columns in [*made.items(), *both]:
            schema, count = SCHEMAS[table], len(next(iter(columns.values())))
            arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
            catalog._open_or_create(table)
            write_deltalake(f"{catalog.url}/{table}", pa.table(arrays, schema=schema), mode="append")
    for table in ("samples", "labels", "features"):
        catalog.compact(table)
        catalog.vacuum(table, days=0)
    (store / "done").touch()


def measure(work: Path) -> dict[str, float]:
    """Seconds of each part of the choice, and the process's peak memory in MB."""
    from mm_core.core.params import RouteParams, SnapshotParams
    from mm_core.labeling.candidates import candidates, first_pass
    from mm_core.labeling.route import _quality
    from mm_core.labeling.selection import choose
    from mm_core.storage.catalog import Catalog

    catalog, params, found = Catalog(str(work)), RouteParams(), {}

    def timed(name: str, start: float, busy: float) -> None:
        found[name], found[f"{name} processor"] = time.perf_counter() - start, time.process_time() - busy

    start, busy = time.perf_counter(), time.process_time()
    free = candidates(catalog, SnapshotParams())
    timed("candidates", start, busy)
    start, busy = time.perf_counter(), time.process_time()
    looked = first_pass(params, catalog, free, {})
    timed("first pass", start, busy)
    start, busy = time.perf_counter(), time.process_time()
    chosen = choose(looked, _quality(looked.table, catalog), {}, budget=params.budget)
    timed("choice", start, busy)
    assert len(chosen) == params.budget and len(looked.table) == params.look
    return found | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_look(photos: int) -> dict[str, float]:
    """Seconds of the champion's look at so many generated photos of 1 megapixel, of default params."""
    import torch

    from mm_core.core.params import ModelParams
    from mm_core.imaging.images import load_rgb
    from mm_core.labeling.route import LOOK_BATCH, LOOK_SIDE
    from mm_core.labeling.signals import look
    from mm_core.model.files import save_model
    from mm_core.model.network import build_model
    from mm_core.model.predict import TorchPredictor
    from samplegen.render import generate

    torch.set_num_threads(1)
    import tempfile

    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "m.safetensors"
        save_model(weights, build_model(ModelParams(), 0), {"stage": "benchmark"})
        predictor = TorchPredictor(weights, "cpu")
        picture = Path(folder) / "p.jpg"
        Image.fromarray(generate("pets", 1, size=1152, aspect=4 / 3).image).save(picture, quality=92)
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(0, photos, LOOK_BATCH):
            look([load_rgb(picture, LOOK_SIDE) for _ in range(LOOK_BATCH)], ["saliency"] * LOOK_BATCH, predictor)
        return {"look": time.perf_counter() - start, "look processor": time.process_time() - busy}


def child(*given: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), *given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/bench/route_cost"))
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 1_000_000])
    parser.add_argument("--photos", type=int, default=48, help="that the champion looks at")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure or given.look:
        print(json.dumps(measure(given.measure) if given.measure else measure_look(given.photos)))
        return
    found = []
    for rows in given.rows:
        write_catalog(given.work.absolute() / f"catalog-{rows}", rows)
        found.append(child("--measure", str(given.work.absolute() / f"catalog-{rows}")))
    seen = child("--look", "--photos", str(given.photos))
    small, large = found
    lines = [
        "# What choosing photos costs",
        "",
        f"Processor seconds of one run of default params (24 of 480 looked at) on made-up catalogs of {given.rows[0]:,}"
        f" and {given.rows[1]:,} unlabelled photos with quality and a vector of {DIM}, {LABELLED:.0%} labelled."
        " Wall-clock seconds in brackets: other programs ran beside.",
        "",
        f"| part | {given.rows[0]:,} | {given.rows[1]:,} | ratio |",
        "|---|---|---|---|",
    ]
    for part in ("candidates", "first pass", "choice"):
        a, b = (f"{one[f'{part} processor']:.2f} ({one[part]:.1f})" for one in found)
        lines.append(f"| {part} | {a} | {b} | {large[f'{part} processor'] / small[f'{part} processor']:.1f} |")
    total = [sum(v for k, v in one.items() if k.endswith("processor")) for one in found]
    per = [1000 * t / rows for t, rows in zip(total, given.rows, strict=True)]
    memory = small["memory"], large["memory"]
    one = seen["look processor"] / given.photos
    lines += [
        "| peak memory, MB | {:.0f} | {:.0f} | {:.1f} |".format(*memory, memory[1] / memory[0]),
        "",
        f"Per 1,000 photos of the pool: {per[0]:.3f} and {per[1]:.3f} processor seconds. The champion's look (decode of"
        f" 1 megapixel, four views at the default model's size, difficulty), one thread, {given.photos} photos:"
        f" {1000 * one:.0f} processor seconds per 1,000 photos looked at, so {480 * one:.0f} per run; a look at the"
        f" whole of {given.rows[1]:,} would take {given.rows[1] * one / 3600:.0f} processor hours.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}.",
        f"`python benchmarks/route_cost.py --rows {given.rows[0]} {given.rows[1]} --photos {given.photos}`",
        "",
    ]
    (HERE / "route_cost.md").write_text("\n".join(lines))
    print(HERE / "route_cost.md")


if __name__ == "__main__":
    main()
