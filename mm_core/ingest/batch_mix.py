"""Compare the mix of a drop with earlier batches: classes of category, size and brightness.

The record of each batch in the store keeps the counts of that batch. The catalog's mix is the sum over the latest
batches of the kind. This reads a few small files, independent of the size of the catalog.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from mm_core.core.errors import BlobNotFound
from mm_core.core.records import ALL_CATEGORIES, parse_record
from mm_core.ingest.inbox import ReadyBatch
from mm_core.ingest.probe import Probe
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store

LATEST = 20
"""Number of the newest batches of a kind that represent the catalog."""
LEAST_ROWS = 20
"""Least number of rows in the drop and in the catalog for a comparison."""
DIVERGENCE = 0.25
"""Kullback-Leibler divergence, in nats, that counts as a shift; the share of chance is added to it."""

SIZES = ("under 0.05", "0.05 to 0.2", "0.2 to 0.8", "0.8 to 3.2", "3.2 to 12.8", "over 12.8")
"""Classes in megapixels; each upper limit is four times the previous one."""
TENTHS = tuple(f"{n / 10:.1f} to {(n + 1) / 10:.1f}" for n in range(10))
CLASSES: Mapping[str, tuple[str, ...]] = {
    "category": (*ALL_CATEGORIES, "none"),
    "size": SIZES,
    "brightness": TENTHS,
}

Mix = Mapping[str, Mapping[str, int]]
"""Measure → class → number of rows."""


def classes_of(probe: Probe) -> dict[str, str | None]:
    """Return measure → class of one row; the class is None if the measure is missing."""
    megapixels = (probe.width or 0) * (probe.height or 0) / 1e6
    # The base-4 logarithm matches the factor of four between the classes.
    size = SIZES[min(5, max(0, 1 + math.floor(math.log(megapixels / 0.05, 4))))] if megapixels else None
    tenth = None if probe.brightness is None else TENTHS[min(9, int(10 * probe.brightness))]
    category = (probe.category or "none") if probe.category in (None, "", *ALL_CATEGORIES) else None
    return {"category": category, "size": size, "brightness": tenth}


def mix_of(probes: Iterable[Probe]) -> dict[str, dict[str, int]]:
    """Count the rows of each class of each measure."""
    counts: dict[str, Counter[str]] = {measure: Counter() for measure in CLASSES}
    for probe in probes:
        for measure, name in classes_of(probe).items():
            if name is not None:
                counts[measure][name] += 1
    return {measure: dict(sorted(count.items())) for measure, count in counts.items()}


def catalog_mix(catalog: Catalog, store: Store, batch: ReadyBatch) -> Mix:
    """Return the summed mix of the latest ingested batches of the kind, without this batch."""
    filters = [("kind", "=", batch.kind), ("state", "=", "ingested"), ("key", "!=", batch.key)]
    ledger = catalog.read("batches", columns=["key", "ingested_at"], filters=filters)
    total: dict[str, Counter[str]] = {measure: Counter() for measure in CLASSES}
    # The key makes the order stable for batches with equal times.
    for key in ledger.sort_values(["ingested_at", "key"])["key"].tail(LATEST):
        try:
            # A missing record is skipped: the mix then represents fewer batches.
            where = f"{store.url}/{ReadyBatch.record_of(key)}"
            content = store.fetch(ReadyBatch.record_of(key)).read_bytes()
            record = parse_record(content, dict[str, Mix], where, "restore it from a backup, or delete it")
        except BlobNotFound:
            continue
        for measure, count in record.get("mix", {}).items():
            total[measure].update(count)
    return total


def expected(known: Mapping[str, int], measure: str, rows: int) -> tuple[list[float], float] | None:
    """Return the expected class shares of a measure and the divergence allowed for a drop.

    For n rows from the same mix, 2 n KL is approximately chi-squared with classes - 1 degrees of freedom. The allowance
    for chance is its mean plus three standard deviations.

    Args:
        known: Class → number of rows in the catalog.
        measure: A key of CLASSES.
        rows: Number of rows of the drop.

    Returns:
        The shares (none is 0, they sum to 1) and the largest divergence in nats; None with too few rows.
    """
    total = sum(known.values())
    if min(rows, total) < LEAST_ROWS:
        return None
    classes = CLASSES[measure]
    # Half a row per class keeps the divergence finite for a class without rows.
    shares = [(known.get(name, 0) + 0.5) / (total + 0.5 * len(classes)) for name in classes]
    free = len(classes) - 1
    # Mean k and standard deviation sqrt(2 k) of chi-squared, halved to convert 2 n KL to n KL.
    chance = (free + 3 * math.sqrt(2 * free)) / 2
    return shares, DIVERGENCE + chance * (1 / rows + 1 / total)
