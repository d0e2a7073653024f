"""Describe the structured samples of one batch, so that a report about the batch holds no numbers of others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mm_core.core.records import Report, digest_of, parse_record
from mm_core.ingest.placement import newest_labels
from mm_core.storage.catalog import Catalog, Filter
from mm_core.structuring import difficulty, photo_features
from mm_core.structuring.drift import Comparison
from mm_core.structuring.structure import difficulty_table, scores_of


def report_of_batch(catalog: Catalog, drift: Path, batch: str) -> Report:
    """Return the report about a batch that was structured before, from the catalog and its comparison.

    Args:
        catalog: The catalog.
        drift: Folder of the comparisons, which has one of this batch.
        batch: The batch as kind/batch.
    """
    report, file = Report("structure"), drift / f"{batch}.json"
    comparison = parse_record(file.read_bytes(), Comparison, file, "delete it; `mm ingest` compares again", ("said",))
    report.facts["drift"] = {batch: comparison["said"]}
    report.tables["drift"] = [{"batch": batch, **row} for row in comparison["rows"]]
    picture = drift / f"{batch}.png"
    if picture.is_file():
        report.pictures[f"drift {batch}"] = str(picture)
    describe_batch(catalog, batch, report)
    # The number of photos of that run is not recorded.
    del report.metrics["structure/processed"]
    return report


def describe_batch(catalog: Catalog, batch: str, report: Report) -> None:
    """Replace the report's counts and tables, which are about all batches of a run, by those of one batch.

    Args:
        catalog: The catalog after the run.
        batch: The batch as kind/batch.
        report: A report of `structure_new` and `drift_of_new`. `structure/processed` keeps the number of photos of the
            whole run, `facts["features"]` is the digest of the batch's rows of `features`.
    """
    kind, _, name = batch.partition("/")
    own: list[Filter] = [("kind", "=", kind), ("batch", "=", name)]
    samples = catalog.read("samples", columns=["id", "category"], filters=own)
    ids = list(samples["id"])
    of_batch: list[Filter] = [("sample_id", "in", ids)]
    rows = catalog.read("features", columns=["sample_id", "extractor", "version"], filters=of_batch)
    labels = newest_labels(catalog.read("labels", filters=of_batch))
    # One row per sample and extractor: a row of an older version is not counted again.
    by_extractor = Counter(rows.drop_duplicates(["sample_id", "extractor"])["extractor"])
    unreadable = [row for row in report.tables.get("unreadable", []) if row["sample_id"] in set(ids)]
    # The reports of a run cover all batches; keep what is about this one.
    drift = {key: words for key, words in report.facts.get("drift", {}).items() if key == batch}
    processed = report.metrics.get("structure/photos", 0)
    report.metrics = {
        "structure/samples": len(ids),
        "structure/photos": by_extractor.pop(photo_features.EXTRACTOR, 0),
        "structure/labels": by_extractor.pop(difficulty.EXTRACTOR, 0),
        "structure/unreadable": len(unreadable),
        "structure/rows": len(rows),
        "structure/processed": processed,
        **{f"structure/{extractor}": count for extractor, count in by_extractor.items()},
    }
    report.facts |= {"drift": drift, "features": digest_of(sorted(map(list, rows.itertuples(index=False))))}
    scores = scores_of(catalog, of_batch)
    report.tables["unreadable"] = unreadable
    report.tables["difficulty"] = difficulty_table(samples, labels, scores)
    report.tables["drift"] = [row for row in report.tables.get("drift", []) if row["batch"] == batch]
    report.pictures = {title: png for title, png in report.pictures.items() if title == f"drift {batch}"}
