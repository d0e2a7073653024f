"""Test whether a batch differs from the catalog that it joins. Drift is reported and never blocks a batch.

| quantity                | statistic                                           | effect in [0, 1]                     |
|-------------------------|-----------------------------------------------------|--------------------------------------|
| each number of FEATURES | Kolmogorov-Smirnov (scipy)                          | the statistic                        |
| mix of categories       | total variation, permutation test                   | the statistic                        |
| vectors                 | energy distance (Székely & Rizzo 2013), permutation | over twice the mean distance between |

A batch has drifted if a statistic is significant after Holm's correction AND its effect exceeds a threshold. With many
photos every difference is significant, with few none is. One photo per scene is compared, because the frames of a burst
are not independent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from mm_core.core.deferred import Deferred
from mm_core.core.folders import has_file
from mm_core.core.params import DriftParams
from mm_core.core.records import Report, parse_record, write_json
from mm_core.storage.catalog import Catalog
from mm_core.structuring import photo_features
from mm_core.structuring.category_guess import vectors_of

if TYPE_CHECKING:
    from matplotlib import figure as figures
    from scipy import stats
else:
    figures = Deferred("matplotlib.figure")
    stats = Deferred("scipy.stats")

FEATURES = (
    "brightness", "contrast", "sharpness", "noise", "colourfulness", "thirds", "balance", "simplicity", "aesthetic",
    "megapixels",
)  # fmt: skip
MOST = 500
"""Maximum number of photos per side, so that cost and memory do not grow with the catalog."""
PERMUTATIONS = 1999
DRIFTED = "drifted"
"""First word of the sentence about a batch that drifted."""
CATCH_UP = 20
"""Maximum number of batches compared in one run, newest first, which limits the first run on an old catalog."""


@dataclass(frozen=True)
class Side:
    """Photos of a batch, or of the catalog before it; one per scene."""

    numbers: pd.DataFrame
    """One column per feature."""
    categories: pd.Series
    """Categories of the photos that have one."""
    vectors: np.ndarray
    """float32 (N, dim)."""


def drift_of_new(
    params: DriftParams, catalog: Catalog, source: tuple[str, str], out: Path, report: Report, asked: str | None = None
) -> None:
    """Compare each ingested batch without a comparison in the folder `out`, and repeat the comparison of `asked`.

    Writes `<kind>/<batch>.json` and `.png` to `out`, and fills `report.tables["drift"]`, `report.pictures` and
    `report.facts["drift"]` (one sentence per batch).

    Args:
        params: Thresholds.
        catalog: The catalog.
        source: Extractor and version of the vectors.
        out: Folder of the comparisons.
        report: Report that is filled.
        asked: A batch as kind/batch, or None.
    """
    ledger = catalog.read("batches", columns=["kind", "batch", "state", "ingested_at"])
    ledger = ledger.loc[ledger["state"] == "ingested"].sort_values(by="ingested_at", ascending=False)
    names = dict.fromkeys(f"{kind}/{batch}" for kind, batch in zip(ledger["kind"], ledger["batch"], strict=True))
    todo = [name for name in names if name == asked or not has_file(out / f"{name}.json")][:CATCH_UP]
    if not todo:
        return
    samples = catalog.read("samples", columns=["id", "kind", "batch", "category", "group", "accepted_at"])
    sentences: dict[str, str] = {}
    drift: list[dict[str, object]] = []
    for name in reversed(todo):
        kind, _, batch = name.partition("/")
        # The catalog before the batch: photos accepted no later than its first one.
        own = (samples["kind"] == kind) & (samples["batch"] == batch)
        before = ~own & (samples["accepted_at"] <= samples.loc[own, "accepted_at"].min())
        here, there = (_side(catalog, source, samples.loc[rows]) for rows in (own, before))
        # The smaller side limits the power of the tests.
        photos = min(len(here.numbers), len(there.numbers))
        rows = compare(params, here, there) if photos >= params.min_photos else []
        drifted = [row["what"] for row in rows if row["drifted"]]
        sentence = f"too few: {len(here.numbers)} scenes, {len(there.numbers)} before, {params.min_photos} needed"
        if rows:
            sentence = f"{DRIFTED}: {', '.join(drifted)}" if drifted else "no drift"
            picture = out / f"{name}.png"
            plot(rows, here, there, picture)
            report.pictures[f"drift {name}"] = str(picture)
        sentences[name] = sentence
        drift += [{"batch": name, **row} for row in rows]
        write_json(out / f"{name}.json", Comparison(said=sentence, rows=rows))
    report.facts["drift"], report.tables["drift"] = sentences, drift


def drifted_batches(out: Path) -> list[str]:
    """Return the batches (kind/batch) that drifted according to the comparisons in the folder `out`, sorted."""
    kinds = [entry for entry in os.scandir(out) if entry.is_dir()] if out.is_dir() else []
    files = [file for kind in kinds for file in os.scandir(kind) if file.name.endswith(".json")]
    drifted = (Path(file.path) for file in files if _has_drifted(file.path, file.stat().st_mtime_ns))
    return sorted(path.relative_to(out).with_suffix("").as_posix() for path in drifted)


@lru_cache(maxsize=1 << 17)
def _has_drifted(path: str, _changed_at: int) -> bool:
    """Return whether a comparison found drift; a sensor reads each file once, although it asks every minute."""
    content, remedy = Path(path).read_bytes(), "delete it; `mm ingest` compares again"
    return str(parse_record(content, dict[str, object], path, remedy, ("said",))["said"]).startswith(DRIFTED)


class Comparison(TypedDict):
    """The comparison of a batch as its file holds it."""

    said: str
    """One sentence."""
    rows: list[DriftRow]


class DriftRow(TypedDict):
    """The comparison of a batch with the catalog before it, by one statistic."""

    what: str
    """A feature, `category` or `vectors`."""
    statistic: str
    effect: float
    matters: float
    """The threshold of the effect."""
    p: float
    """Holm-adjusted."""
    drifted: bool


def compare(params: DriftParams, here: Side, there: Side, seed: int = 0) -> list[DriftRow]:
    """Compare two sides of at least two photos each by every statistic.

    Returns:
        One row per statistic. The largest effect relative to its threshold is first.
    """
    rng = np.random.default_rng(seed)
    rows: list[DriftRow] = []

    def add(what: str, statistic: str, effect: float, matters: float, p: float) -> None:
        rows.append(
            {
                "what": what,
                "statistic": statistic,
                "effect": float(effect),
                "matters": matters,
                "p": float(p),
                "drifted": False,
            }
        )

    for name in FEATURES:
        batch, before = (side.numbers[name].dropna().to_numpy(float) for side in (here, there))
        if min(len(batch), len(before)) >= 2:
            result: Any = stats.ks_2samp(batch, before)
            add(name, "Kolmogorov-Smirnov", result.statistic, params.effect, result.pvalue)
    if min(len(here.categories), len(there.categories)) >= params.min_photos:
        add("category", "total variation", *_mix(here.categories, there.categories, params.effect, rng))
    if min(len(here.vectors), len(there.vectors)) >= 2:
        effect, p = energy(here.vectors, there.vectors, rng)
        add("vectors", "energy distance", effect, params.embedding_effect, p)
    # Drift needs both a significant and a large difference.
    for row, p in zip(rows, _holm([row["p"] for row in rows]), strict=True):
        row["p"], row["drifted"] = p, bool(p < params.alpha and row["effect"] >= row["matters"])
    return sorted(rows, key=lambda row: row["effect"] / max(row["matters"], 1e-9), reverse=True)


def energy(here: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the energy distance of (n, dim) and (m, dim) and its p-value by permutation.

    The distance is divided by twice the mean distance between the two sets: [0, 1]. The unbiased estimate is cut at 0.
    """
    both = np.concatenate([here, there]).astype(np.float64)
    n, m = len(here), len(there)
    # Row 0 is the true assignment of photos to sides, the others are random permutations of it.
    distance = cdist(both, both).astype(np.float32)
    labels = np.zeros((PERMUTATIONS + 1, n + m), np.float32)
    labels[:, :n] = 1
    labels[1:] = rng.permuted(labels[1:], axis=1)
    # Sums of distances within and across the sides, for all permutations by one matrix product.
    reach = labels @ distance
    inside = np.einsum("ij,ij->i", reach, labels, dtype=np.float64)
    across = reach.sum(1, dtype=np.float64) - inside
    outside = float(distance.sum(dtype=np.float64)) - inside - 2 * across
    mean_across = across / (n * m)
    # Unbiased estimate: distances of a photo to itself are left out of the means.
    values = (2 * mean_across - inside / (n * (n - 1)) - outside / (m * (m - 1))) / np.maximum(2 * mean_across, 1e-12)
    return float(np.clip(values[0], 0, 1)), _p(values)


def plot(rows: Sequence[DriftRow], here: Side, there: Side, path: Path) -> None:
    """Write a PNG with effects relative to thresholds, vectors on two main axes, and the feature that changed most."""
    figure = figures.Figure(figsize=(12, 4))
    # To compute the margins (`layout="constrained"`) takes as long as to draw.
    figure.subplots_adjust(left=0.1, right=0.99, bottom=0.09, top=0.91, wspace=0.16)
    bars, cloud, histogram = figure.subplots(1, 3)
    ratios = [row["effect"] / max(row["matters"], 1e-9) for row in rows]
    colours = ["tab:red" if row["drifted"] else "tab:gray" for row in rows]
    bars.barh([row["what"] for row in rows][::-1], ratios[::-1], color=colours[::-1])
    bars.axvline(1, color="black", linewidth=1)
    bars.set(title="effect / threshold (red: drifted)")
    # Principal components of both sides together.
    both = np.concatenate([there.vectors, here.vectors])
    centred = both - both.mean(0)
    # The first two principal axes.
    at = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    split = len(there.vectors)
    cloud.scatter(*at[:split].T, s=8, color="tab:blue", alpha=0.5, label=f"catalog before ({split})")
    cloud.scatter(*at[split:].T, s=8, color="tab:orange", alpha=0.7, label=f"batch ({len(at) - split})")
    cloud.legend()
    cloud.set(title="vectors, two main axes")
    name = next(row["what"] for row in rows if row["what"] in FEATURES)
    values = [side.numbers[name].dropna() for side in (there, here)]
    # Common bin edges for both sides.
    edges = np.histogram_bin_edges(np.concatenate(values), 20)
    for side_values, colour in zip(values, ("tab:blue", "tab:orange"), strict=True):
        histogram.hist(side_values, edges, density=True, alpha=0.5, color=colour)
    histogram.set(title=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _side(catalog: Catalog, source: tuple[str, str], samples: pd.DataFrame) -> Side:
    """Read the features of at most MOST scenes."""
    scene = samples["group"].where(samples["group"].astype(bool), samples["id"])
    # Ids are digests, so the smallest ones are a random sample that is the same in every run.
    chosen = samples.assign(scene=scene).sort_values(by="id").drop_duplicates("scene").head(MOST)
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
    return Side(numbers, pd.Series(chosen["category"]).dropna(), vectors_of(catalog, source, list(chosen["id"]))[1])


def _mix(here: pd.Series, there: pd.Series, matters: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the total variation of the category shares, its threshold and its p-value by permutation."""
    codes, names = pd.factorize(pd.concat([here, there]))
    # Row 0 is the true order, the others are permutations.
    orders = np.stack([codes, *(rng.permutation(codes) for _ in range(PERMUTATIONS))])
    n = len(here)
    shares = [
        np.stack([(side == code).mean(1) for code in range(len(names))]) for side in (orders[:, :n], orders[:, n:])
    ]
    distances = 0.5 * np.abs(shares[0] - shares[1]).sum(0)
    return float(distances[0]), matters, _p(distances)


def _p(values: np.ndarray) -> float:
    """Return the p-value of the first value among all, itself included; differences by rounding count as equal."""
    return float((values >= values[0] - 1e-9).mean())


def _holm(values: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values in the order of the input."""
    order = np.argsort(values)
    # Multiply the sorted p-values by the number of remaining tests, and keep them monotone.
    raised = np.array(values)[order] * np.arange(len(values), 0, -1)
    # Back to the order of the input.
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(raised))
    return adjusted.tolist()
