"""What a drop is made of, against what the catalog took before: categories, sizes and brightness in classes.

Each batch's record in the store keeps its own counts, so that the catalog's share of a class is the sum over the
latest batches of the kind: a few small files, however many samples the catalog holds.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mm_core.core.errors import BlobNotFound
from mm_core.core.records import ALL_CATEGORIES
from mm_core.ingest.inbox import ReadyBatch
from mm_core.ingest.probe import Probe
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store

LATEST = 20
"""Batches of the same kind, the newest first, that stand for the catalog."""
LEAST_ROWS = 20
"""Where drop or catalog has fewer rows of a measure, nothing is said of a shift."""
DIVERGENCE = 0.25
"""Kullback-Leibler divergence, in nats, that is a shift; what chance gives to so few rows is added."""

SIZES = ("under 0.05", "0.05 to 0.2", "0.2 to 0.8", "0.8 to 3.2", "3.2 to 12.8", "over 12.8")
"""Megapixels: each class is up to four times the one before."""
TENTHS = tuple(f"{n / 10:.1f} to {(n + 1) / 10:.1f}" for n in range(10))
CLASSES: Mapping[str, tuple[str, ...]] = {
    "category": (*ALL_CATEGORIES, "none"),
    "size": SIZES,
    "brightness": TENTHS,
}

Mix = Mapping[str, Mapping[str, int]]
"""Measure → class → rows."""


def classes_of(probe: Probe) -> dict[str, str | None]:
    """The class of a row by measure; None where it was not measured."""
    megapixels = (probe.width or 0) * (probe.height or 0) / 1e6
    size = SIZES[min(5, max(0, 1 + math.floor(math.log(megapixels / 0.05, 4))))] if megapixels else None
    tenth = None if probe.brightness is None else TENTHS[min(9, int(10 * probe.brightness))]
    category = (probe.category or "none") if probe.category in (None, "", *ALL_CATEGORIES) else None
    return {"category": category, "size": size, "brightness": tenth}


def mix_of(probes: Iterable[Probe]) -> dict[str, dict[str, int]]:
    """Rows by measure and class."""
    counts: dict[str, Counter[str]] = {measure: Counter() for measure in CLASSES}
    for probe in probes:
        for measure, name in classes_of(probe).items():
            if name is not None:
                counts[measure][name] += 1
    return {measure: dict(sorted(count.items())) for measure, count in counts.items()}


def catalog_mix(catalog: Catalog, store: Store, batch: ReadyBatch) -> Mix:
    """The sum over the latest ingested batches of the kind, this one left out."""
    filters = [("kind", "=", batch.kind), ("state", "=", "ingested"), ("key", "!=", batch.key)]
    ledger = catalog.read("batches", columns=["key", "ingested_at"], filters=filters)
    total: dict[str, Counter[str]] = {measure: Counter() for measure in CLASSES}
    for key in ledger.sort_values(["ingested_at", "key"])["key"].tail(LATEST):
        try:
            record: dict[str, Any] = json.loads(store.fetch(ReadyBatch.record_of(key)).read_text())
        except BlobNotFound:
            continue
        for measure, count in record.get("mix", {}).items():
            total[measure].update(count)
    return total


def expected(known: Mapping[str, int], measure: str, rows: int) -> tuple[list[float], float] | None:
    """Share of each class of a measure as known, never 0, and the divergence allowed to a drop of that many rows.

    Of n rows of the same mix 2 n KL is about chi-squared with classes - 1 degrees of freedom; its mean plus three
    standard deviations is what chance is granted. None where there are too few rows on either side.
    """
    total = sum(known.values())
    if min(rows, total) < LEAST_ROWS:
        return None
    classes = CLASSES[measure]
    shares = [(known.get(name, 0) + 0.5) / (total + 0.5 * len(classes)) for name in classes]
    free = len(classes) - 1
    chance = (free + 3 * math.sqrt(2 * free)) / 2
    return shares, DIVERGENCE + chance * (1 / rows + 1 / total)
