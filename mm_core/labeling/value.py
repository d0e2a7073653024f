"""Report the effect of the labels added since the champion on each category.

The report shows no causes: a cycle changes more than labels (other photos, more steps), and a category may gain from
another's labels. Controlled comparisons are `mm_core.experiments.label_ablation` on the same labels and
benchmarks/label_efficiency.md on generated ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.pins import read_snapshot
from mm_core.core.records import ALL_CATEGORIES, Cell, Report, read_verdict
from mm_core.ingest.snapshot import read_pool
from mm_core.labeling.review import sent
from mm_core.storage.catalog import Catalog

SOURCES = ("routed", "suspect", "corrected", "dropped")
"""Origin of a new training label: a photo chosen for people; a quarantined matte that people reviewed; a new version
of a label that the champion was trained on; a drop."""


def value_of_labels(catalog: Catalog, layout: Layout, learned: Mapping[str, str], report: Report) -> Report:
    """Fill `report.tables["value_of_labels"]` with one row per category.

    A row has the number of labels by source that the champion was not trained on, and the MSE of champion and candidate
    with gain, its lower bound and the gate's result (None: not judged). `report.metrics` gets labels/<source>.

    Args:
        catalog: The catalog.
        layout: The workspace.
        learned: Sample id → digest of the matte that the champion was trained on; empty without a champion.
        report: Report that is filled and returned.
    """
    pool: pd.DataFrame = read_pool(layout.snapshot, "train_labeled")
    digests = dict(zip(pool["sample_id"], pool["alpha_sha256"], strict=True))
    # New: the photo or its matte was not in the champion's training data.
    new = {sample: alpha for sample, alpha in digests.items() if learned.get(sample) != alpha}
    category = dict(zip(pool["sample_id"], pool["category"].fillna("unknown"), strict=True))
    source = sources(catalog, new, learned)
    counted = Counter((category[sample], source[sample]) for sample in new)
    cells = _cells(layout)
    rows = []
    for name in (*ALL_CATEGORIES, "unknown"):
        counts = {origin: counted[name, origin] for origin in SOURCES}
        cell = cells.get(name)
        if any(counts.values()) or cell:
            rows.append({"category": name, **counts, **_change(cell)})
    report.tables["value_of_labels"] = rows
    totals = Counter(source.values())
    report.metrics |= {f"labels/{origin}": totals[origin] for origin in SOURCES}
    return report


def sources(catalog: Catalog, new: Mapping[str, str], learned: Mapping[str, str]) -> dict[str, str]:
    """Return the source, one of SOURCES, of each sample in `new` (id → digest of its matte)."""
    ids = sorted(new)
    # Labels whose newest version is a person's.
    labels = catalog.read("labels", columns=["sample_id", "alpha_sha256", "origin"], filters=[("sample_id", "in", ids)])
    people = {
        sample
        for sample, alpha, origin in labels.itertuples(index=False, name=None)
        if origin == "label_studio" and new[sample] == alpha
    }
    asked = sent(catalog, sorted(people))

    def source(sample: str) -> str:
        if sample not in people:
            return "dropped"
        if sample in learned:
            return "corrected"
        return "suspect" if sample in asked and asked[sample].queue == "suspect" else "routed"

    return {sample: source(sample) for sample in new}


def _cells(layout: Layout) -> dict[str, Cell]:
    """Return each category's MSE cell against the champion, or against the floor without one, for this snapshot."""
    if not has_file(layout.verdict):
        return {}
    verdict = read_verdict(layout.verdict)
    if verdict.snapshot != read_snapshot(layout)["digest"]:
        # A verdict on another snapshot would be about other labels.
        return {}
    wanted = (c for c in verdict.cells if c.metric == "mse" and c.against in ("champion", "floor"))
    return {c.category: c for c in wanted if c.role in ("superior", "non_inferior", "floor")}


def _change(cell: Cell | None) -> dict[str, float | str | None]:
    """Return a cell as columns of the table."""
    if cell is None:
        return {"mse_before": None, "mse_after": None, "gain": None, "bound": None, "result": None}
    # Without a champion there is no earlier error to compare with.
    if cell.against == "floor":
        return {"mse_before": None, "mse_after": cell.candidate, "gain": None, "bound": None, "result": cell.result}
    return {
        "mse_before": cell.reference,
        "mse_after": cell.candidate,
        "gain": cell.gain,
        "bound": cell.bound,
        "result": cell.result,
    }
