"""What the labels that came since the champion did to each category.

Read with care: a cycle changes more than labels (other photos, more steps), and a category may gain from another's
labels. What choosing is worth is measured where everything else is held equal: `mm_core.experiments.label_ablation` on
these very labels, benchmarks/label_efficiency.md on generated ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mm_core.core.layout import Layout
from mm_core.core.pins import read_snapshot
from mm_core.core.records import ALL_CATEGORIES, Cell, Report, Verdict
from mm_core.ingest.snapshot import read_pool
from mm_core.labeling.review import sent
from mm_core.storage.catalog import Catalog

SOURCES = ("routed", "suspect", "corrected", "dropped")
"""Where a new training label comes from: a photo that was chosen for people; a held matte that people reviewed; a label
the champion learned otherwise; a drop."""


def value_of_labels(catalog: Catalog, layout: Layout, learned: Mapping[str, str], report: Report) -> Report:
    """Fills `report.tables["value_of_labels"]`: per category the labels by source that the champion had not learned
    from, and the MSE of champion and candidate with gain, its lower bound and the gate's result (None: not judged).

    `learned`: sample id → digest of the matte that the champion was trained on; empty without a champion.
    `report.metrics`: labels/<source>.
    """
    pool: Any = read_pool(layout.snapshot, "train_labeled")
    about = dict(zip(pool["sample_id"], pool["alpha_sha256"], strict=True))
    new = {sample: alpha for sample, alpha in about.items() if learned.get(sample) != alpha}
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
    """Of each sample of `new` (id → digest of its matte), which of SOURCES the label comes from."""
    ids = sorted(new)
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
    """MSE of each category against the champion, or the floor where there is none; of a verdict on this snapshot."""
    if not layout.verdict.is_file():
        return {}
    verdict = Verdict.model_validate_json(layout.verdict.read_text())
    if verdict.snapshot != read_snapshot(layout)["digest"]:
        return {}
    wanted = (c for c in verdict.cells if c.metric == "mse" and c.against in ("champion", "floor"))
    return {c.category: c for c in wanted if c.role in ("superior", "non_inferior", "floor")}


def _change(cell: Cell | None) -> dict[str, Any]:
    if cell is None:
        return {"mse_before": None, "mse_after": None, "gain": None, "bound": None, "result": None}
    if cell.against == "floor":
        return {"mse_before": None, "mse_after": cell.candidate, "gain": None, "bound": None, "result": cell.result}
    return {
        "mse_before": cell.reference,
        "mse_after": cell.candidate,
        "gain": cell.gain,
        "bound": cell.bound,
        "result": cell.result,
    }
