"""Does the drift check see a drifted batch, and leave one of the same kind in peace? Generated samples.

Per seed: a catalog, and batches of each drift of `samplegen` (0 = the same distribution).

    python benchmarks/drift.py

Writes benchmarks/drift.md.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mm_core.core.params import DriftParams
from mm_core.core.records import ALL_CATEGORIES
from mm_core.structuring.aesthetic import aesthetic
from mm_core.structuring.composition import composition
from mm_core.structuring.drift import Side, compare
from mm_core.structuring.embedding import embedding
from mm_core.structuring.photo_features import quality
from samplegen import generate

HERE = Path(__file__).parent


def side(
    rng: np.random.Generator, each: int, size: int, drift: float, categories: Sequence[str] = ALL_CATEGORIES
) -> Side:
    """`each` photos per category, a quarter of them hard, as `write_drop` makes them."""
    numbers, vectors, names = [], [], []
    for category in categories:
        for _ in range(each):
            mode = "hard" if rng.random() < 0.25 else "easy"
            rgb = generate(category, int(rng.integers(2**40)), size=size, mode=mode, drift=drift).image
            measured = quality(rgb) | composition(rgb)
            numbers.append(
                measured | {"aesthetic": aesthetic(measured), "megapixels": rgb.shape[0] * rgb.shape[1] / 1e6}
            )
            vectors.append(embedding(rgb))
            names.append(category)
    return Side(pd.DataFrame(numbers), pd.Series(names), np.stack(vectors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=100, help="first seed; the defaults were set on 0 to 19")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--catalog", type=int, default=15, help="photos per category before the batch")
    parser.add_argument("--each", type=int, default=6, help="photos per category in the batch")
    args = parser.parse_args()
    params = DriftParams()
    cases: dict[str, tuple[float, tuple[str, ...], int]] = {
        f"drift {d:g}": (d, ALL_CATEGORIES, args.each) for d in (0.0, 0.25, 0.5, 1.0)
    }
    cases["one category only"] = (0.0, ("cards",), 7 * args.each)
    found = {name: [] for name in cases}
    for seed in range(args.first, args.first + args.seeds):
        rng = np.random.default_rng(seed)
        there = side(rng, args.catalog, args.size, 0.0)
        for name, (drift, categories, each) in cases.items():
            found[name].append(compare(params, side(rng, each, args.size, drift, categories), there, seed))
    lines = [
        "# Drift check: detections and false alarms (generated samples)",
        "",
        f"Runner: `benchmarks/drift.py`. {args.seeds} seeds from {args.first}; catalog of"
        f" {7 * args.catalog} photos, batches of"
        f" {7 * args.each}, {args.size} px; one photo per scene; alpha {params.alpha}, effects {params.effect} and"
        f" {params.embedding_effect} (vectors). Classical vectors. {platform.machine()}, {os.cpu_count()} cores."
        " Warnings of `drift 0` are"
        " false alarms. The effect of vectors that matters was set on seeds 0 to 19, which are not shown here.",
        "",
        "| batch | warned | median effect of vectors | by | statistics that were significant but too small |",
        "|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        warned = sum(any(row["drifted"] for row in rows) for rows in runs)
        vectors = np.median([row["effect"] for rows in runs for row in rows if row["what"] == "vectors"])
        by = pd.Series([row["what"] for rows in runs for row in rows if row["drifted"]]).value_counts()
        small = sum(row["p"] < params.alpha and not row["drifted"] for rows in runs for row in rows)
        named = ", ".join(f"{what} {count}" for what, count in by.items()) or "-"
        lines.append(f"| {name} | {warned} of {len(runs)} | {vectors:.3f} | {named} | {small} |")
    (HERE / "drift.md").write_text("\n".join(lines) + "\n")
    print(HERE / "drift.md")


if __name__ == "__main__":
    main()
