"""Does a batch look like the catalog that it joins? Two-sample tests, each with the size of the effect; never a block.

| what                    | statistic                                           | effect in [0, 1]                     |
|-------------------------|-----------------------------------------------------|--------------------------------------|
| each number of FEATURES | Kolmogorov-Smirnov (scipy)                          | the statistic itself                 |
| mix of categories       | total variation, permutation test                   | the statistic itself                 |
| vectors                 | energy distance (Székely & Rizzo 2013), permutation | over twice the mean distance between |

A batch has drifted where, after Holm's correction over its statistics, one is significant AND its effect matters: with
many photos everything is significant, with few nothing is. One photo per scene is compared, as frames of a burst are
no independent witnesses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mm_core.core.params import DriftParams
from mm_core.core.records import Report, write_json
from mm_core.storage.catalog import Catalog
from mm_core.structuring import photo_features
from mm_core.structuring.category_guess import vectors_of

FEATURES = (
    "brightness", "contrast", "sharpness", "noise", "colourfulness", "thirds", "balance", "simplicity", "aesthetic",
    "megapixels",
)  # fmt: skip
MOST = 500
"""Photos of either side that are compared at most: cost and memory do not grow with the catalog."""
PERMUTATIONS = 1999
DRIFTED = "drifted"
"""How the sentence about a batch that drifted begins."""
CATCH_UP = 20
"""Batches compared in one run at most, the newest first: an old catalog without any comparison is not gone through."""


@dataclass(frozen=True)
class Side:
    """Photos of a batch, or of the catalog before it; one per scene."""

    numbers: pd.DataFrame
    """A column per feature."""
    categories: pd.Series
    """Known ones only."""
    vectors: np.ndarray
    """(N, dim)."""


def drift_of_new(
    params: DriftParams, catalog: Catalog, source: tuple[str, str], out: Path, report: Report, asked: str | None = None
) -> None:
    """Compares each ingested batch that has no comparison in the folder `out` yet, and `asked` (kind/batch) anew.

    `source`: extractor and version of the vectors. Leaves `<kind>/<batch>.json` and `.png` in `out`,
    `report.tables["drift"]`, the plots in `report.pictures`, and `report.facts["drift"]`: per batch one sentence.
    """
    ledger: Any = catalog.read("batches", columns=["kind", "batch", "state", "ingested_at"])
    ledger = ledger[ledger["state"] == "ingested"].sort_values(by="ingested_at", ascending=False)
    names = dict.fromkeys(f"{kind}/{batch}" for kind, batch in zip(ledger["kind"], ledger["batch"], strict=True))
    todo = [name for name in names if name == asked or not (out / f"{name}.json").exists()][:CATCH_UP]
    if not todo:
        return
    samples = catalog.read("samples", columns=["id", "kind", "batch", "category", "group", "accepted_at"])
    for name in reversed(todo):
        kind, _, batch = name.partition("/")
        own = (samples["kind"] == kind) & (samples["batch"] == batch)
        before = ~own & (samples["accepted_at"] <= samples.loc[own, "accepted_at"].min())
        here, there = (_side(catalog, source, samples.loc[rows]) for rows in (own, before))
        photos = min(len(here.numbers), len(there.numbers))
        rows = compare(params, here, there) if photos >= params.min_photos else []
        drifted = [row["what"] for row in rows if row["drifted"]]
        said = f"too few: {len(here.numbers)} scenes, {len(there.numbers)} before, {params.min_photos} needed"
        if rows:
            said = f"{DRIFTED}: {', '.join(drifted)}" if drifted else "no drift"
            picture = out / f"{name}.png"
            plot(rows, here, there, picture)
            report.pictures[f"drift {name}"] = str(picture)
        report.facts.setdefault("drift", {})[name] = said
        report.tables.setdefault("drift", []).extend({"batch": name} | row for row in rows)
        write_json(out / f"{name}.json", {"said": said, "rows": rows})


def drifted_batches(out: Path) -> list[str]:
    """The batches (kind/batch) whose comparison in the folder `out` says that they drifted, sorted."""
    found = (path.relative_to(out).with_suffix("").as_posix() for path in out.glob("*/*.json"))
    return sorted(name for name in found if json.loads((out / f"{name}.json").read_text())["said"].startswith(DRIFTED))


def compare(params: DriftParams, here: Side, there: Side, seed: int = 0) -> list[dict[str, Any]]:
    """One row per statistic, largest effect in units of what matters first: what, statistic, effect, matters, p
    (Holm-adjusted) and drifted. Both sides need at least two photos.
    """
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []

    def add(what: str, statistic: str, effect: float, matters: float, p: float) -> None:
        rows.append({"what": what, "statistic": statistic, "effect": float(effect), "matters": matters, "p": float(p)})

    for name in FEATURES:
        one, other = (side.numbers[name].dropna().to_numpy(float) for side in (here, there))
        if min(len(one), len(other)) >= 2:
            found: Any = ks_2samp(one, other)
            add(name, "Kolmogorov-Smirnov", found.statistic, params.effect, found.pvalue)
    if min(len(here.categories), len(there.categories)) >= params.min_photos:
        add("category", "total variation", *_mix(here.categories, there.categories, params.effect, rng))
    if min(len(here.vectors), len(there.vectors)) >= 2:
        effect, p = energy(here.vectors, there.vectors, rng)
        add("vectors", "energy distance", effect, params.embedding_effect, p)
    for row, p in zip(rows, _holm([row["p"] for row in rows]), strict=True):
        row["p"], row["drifted"] = p, bool(p < params.alpha and row["effect"] >= row["matters"])
    return sorted(rows, key=lambda row: row["effect"] / max(row["matters"], 1e-9), reverse=True)


def energy(here: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Energy distance of (n, dim) and (m, dim) over twice their mean distance, in [0, 1] (the unbiased estimate, cut at
    0), and the p-value by permutation.
    """
    from scipy.spatial.distance import cdist

    both = np.concatenate([here, there]).astype(np.float64)
    n, m = len(here), len(there)
    distance = cdist(both, both).astype(np.float32)
    labels = np.zeros((PERMUTATIONS + 1, n + m), np.float32)
    labels[:, :n] = 1
    labels[1:] = rng.permuted(labels[1:], axis=1)
    reach = labels @ distance
    inside = np.einsum("ij,ij->i", reach, labels, dtype=np.float64)
    across = reach.sum(1, dtype=np.float64) - inside
    outside = float(distance.sum(dtype=np.float64)) - inside - 2 * across
    mean_across = across / (n * m)
    values = (2 * mean_across - inside / (n * (n - 1)) - outside / (m * (m - 1))) / np.maximum(2 * mean_across, 1e-12)
    return float(np.clip(values[0], 0, 1)), _p(values)


def plot(rows: Sequence[dict[str, Any]], here: Side, there: Side, path: Path) -> None:
    """A PNG: the effects beside what matters, the vectors on their two main axes, the number that moved most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    bars, cloud, histogram = figure.subplots(1, 3)
    ratios = [row["effect"] / max(row["matters"], 1e-9) for row in rows]
    colours = ["tab:red" if row["drifted"] else "tab:gray" for row in rows]
    bars.barh([row["what"] for row in rows][::-1], ratios[::-1], color=colours[::-1])
    bars.axvline(1, color="black", linewidth=1)
    bars.set(title="effect / what matters (red: drifted)")
    both = np.concatenate([there.vectors, here.vectors])
    centred = both - both.mean(0)
    at = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    split = len(there.vectors)
    cloud.scatter(*at[:split].T, s=8, color="tab:blue", alpha=0.5, label=f"catalog before ({split})")
    cloud.scatter(*at[split:].T, s=8, color="tab:orange", alpha=0.7, label=f"batch ({len(at) - split})")
    cloud.legend()
    cloud.set(title="vectors, two main axes")
    name = next(row["what"] for row in rows if row["what"] in FEATURES)
    values = [side.numbers[name].dropna() for side in (there, here)]
    edges = np.histogram_bin_edges(np.concatenate(values), 20)
    for part, colour in zip(values, ("tab:blue", "tab:orange"), strict=True):
        histogram.hist(part, edges, density=True, alpha=0.5, color=colour)
    histogram.set(title=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _side(catalog: Catalog, source: tuple[str, str], samples: pd.DataFrame) -> Side:
    scene = samples["group"].where(samples["group"].astype(bool), samples["id"])
    # Ids are digests: the smallest are a fair sample, the same whoever draws it.
    chosen: Any = samples.assign(scene=scene).sort_values(by="id").drop_duplicates("scene").head(MOST)
    rows = catalog.read(
        "features",
        columns=["numbers"],
        filters=[
            ("extractor", "=", photo_features.EXTRACTOR),
            ("version", "=", photo_features.VERSION),
            ("sample_id", "in", list(chosen["id"])),
        ],
    )
    numbers = pd.DataFrame(list(rows["numbers"]), columns=list(FEATURES), dtype=float)
    return Side(numbers, chosen["category"].dropna(), vectors_of(catalog, source, list(chosen["id"]))[1])


def _mix(here: pd.Series, there: pd.Series, matters: float, rng: np.random.Generator) -> tuple[float, float, float]:
    codes, names = pd.factorize(pd.concat([here, there]))
    orders = np.stack([codes, *(rng.permutation(codes) for _ in range(PERMUTATIONS))])
    n = len(here)
    shares = [
        np.stack([(part == code).mean(1) for code in range(len(names))]) for part in (orders[:, :n], orders[:, n:])
    ]
    distances = 0.5 * np.abs(shares[0] - shares[1]).sum(0)
    return float(distances[0]), matters, _p(distances)


def _p(values: np.ndarray) -> float:
    """Of the first value among all, itself included; what differs by rounding counts as equal."""
    return float((values >= values[0] - 1e-9).mean())


def _holm(values: Sequence[float]) -> list[float]:
    order = np.argsort(values)
    raised = np.array(values)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(raised))
    return adjusted.tolist()
