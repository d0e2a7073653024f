"""Compute the missing rows of the table `features`: each photo once per extractor and version, each label once.

The work runs on this machine's cores (`run_extractors.py`) or on a cluster's (`on_ray.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import pandas as pd

from mm_core.core.records import Report
from mm_core.ingest.placement import newest_labels
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.run import StorageRun
from mm_core.structuring import difficulty, photo_features
from mm_core.structuring.category_guess import guess_new
from mm_core.structuring.extractors import Extractor, chosen
from mm_core.structuring.on_ray import measured_on_ray
from mm_core.structuring.run_extractors import Done, Task, Unread, measured

CHUNK = 256
"""Maximum number of rows per commit; a kill loses at most the work of one commit."""
CHUNK_SECONDS = 20.0
"""Maximum time between commits in seconds."""


def structure_new(run: StorageRun, report: Report) -> tuple[str, str]:
    """Add the rows that are missing at the current extractors and versions, then the guesses of categories.

    Finished work is committed in chunks, so a killed run continues with the next one. The report gets:

    - `metrics`: counts (structure/photos, structure/labels, structure/unreadable, …);
    - `facts["left_out"]`: extractors that are not available, with reasons;
    - `tables["unreadable"]`: photos that could not be read; they are tried again next time;
    - `tables["difficulty"]`: mean difficulty per category of the newest labels that were processed.

    Returns:
        Extractor and version of the most informative vectors (`Chosen.vectors`).
    """
    catalog, rows = run.catalog, Counter()
    unreadable: list[Unread] = []
    finished = 0
    with ExitStack() as stack:
        tools = chosen(run.params, run.layout, stack)
        # Only samples with missing rows are read, so a finished catalog costs one query.
        ids = unfinished(catalog, tools.extractors)
        lacking: list[Filter] = [("sample_id", "in", ids)]
        samples = catalog.read("samples", columns=["id", "category", "name"], filters=[("id", "in", ids)])
        labels = newest_labels(catalog.read("labels", filters=lacking))
        have = catalog.read("features", columns=["sample_id", "extractor", "version"], filters=lacking)
        tasks = missing(samples, labels, have, tools.extractors)
        # Both engines yield results in the order of the tasks.
        if run.layout.settings.engine == "ray":
            work = measured_on_ray(run.params, run.layout, tasks, tools.extractors)
        else:
            work = measured(run.store, tasks, tools.extractors)
        for done in _in_chunks(work):
            catalog.upsert("features", done.rows)
            unreadable += done.failures
            rows.update(row["extractor"] for row in done.rows)
            # A sample may have several rows in one chunk.
            finished += len({entry["sample_id"] for entry in done.rows + done.failures})
            run.progress("structure", min(finished, len(tasks)), len(tasks))
    guess_new(run.params.structure, catalog, tools, report)
    report.metrics |= {
        "structure/samples": int(catalog.query("SELECT count(*) AS photos FROM samples").iloc[0, 0]),
        "structure/photos": rows.pop(photo_features.EXTRACTOR, 0),
        "structure/labels": rows.pop(difficulty.EXTRACTOR, 0),
        "structure/unreadable": len(unreadable),
        **{f"structure/{name}": count for name, count in rows.items()},
    }
    if tools.left_out:
        report.facts["left_out"] = tools.left_out
    report.tables["unreadable"] = unreadable
    report.tables["difficulty"] = difficulty_table(samples, labels, scores_of(catalog, lacking))
    return tools.vectors


def unfinished(catalog: Catalog, extractors: Sequence[Extractor]) -> list[str]:
    """Return the sorted ids of the samples that may lack a row of `features`.

    The query engine joins ids only, so a large catalog without missing rows costs little.
    """
    # An anti join keeps the left rows without a match on the right.
    rows = "LEFT ANTI JOIN (SELECT sample_id, version FROM features WHERE extractor = '{}') f"
    frames: list[pd.DataFrame] = [
        catalog.query(
            f"SELECT DISTINCT l.sample_id AS id FROM labels l {rows.format(difficulty.EXTRACTOR)} "
            f"ON f.sample_id = l.sample_id AND f.version = {difficulty.VERSION_SQL}"
        )
    ]
    # The category decides which extractors a photo needs.
    for extractor in extractors:
        lacking = catalog.query(
            f"SELECT s.id, s.category FROM samples s {rows.format(extractor.name)} "
            f"ON f.sample_id = s.id AND f.version = '{extractor.version}'"
        )
        if len(lacking):
            wanted = [extractor.wants(c if isinstance(c, str) else None) for c in lacking["category"]]
            frames.append(lacking.loc[wanted])
    return sorted({i for frame in frames if len(frame) for i in frame["id"]})


def missing(
    samples: pd.DataFrame, labels: pd.DataFrame, features: pd.DataFrame, extractors: Sequence[Extractor]
) -> list[Task]:
    """Return tasks in the order of sample ids. `labels` holds the newest label of each sample."""
    have = set(zip(features["sample_id"], features["extractor"], features["version"], strict=True))
    # A task names the extractors without a row, and the label if its difficulty is missing.
    alpha_of = dict(zip(labels["sample_id"], labels["alpha_sha256"], strict=True))
    tasks = []
    for sample_id, category, name in sorted(
        samples[["id", "category", "name"]].itertuples(index=False, name=None), key=lambda row: row[0]
    ):
        category, name = (value if isinstance(value, str) else None for value in (category, name))
        alpha = alpha_of.get(sample_id)
        # The version of a difficulty row contains the label's digest, so a new label is scored again.
        if alpha and (sample_id, difficulty.EXTRACTOR, difficulty.version_for(alpha)) in have:
            alpha = None
        lacks = frozenset(
            e.name for e in extractors if e.wants(category) and (sample_id, e.name, e.version) not in have
        )
        if lacks or alpha:
            tasks.append(Task(sample_id, lacks, alpha, name))
    return tasks


def scores_of(catalog: Catalog, filters: Sequence[Filter] = (), version: int | None = None) -> pd.DataFrame:
    """Return the rows of `features` with difficulty scores, the input of `difficulty_of`."""
    return catalog.read(
        "features",
        version=version,
        columns=["sample_id", "extractor", "version", "numbers"],
        filters=[("extractor", "=", difficulty.EXTRACTOR), *filters],
    )


def difficulty_of(labels: pd.DataFrame, features: pd.DataFrame) -> pd.Series:
    """Return difficulty scores by sample id; NaN if the current label has no score at the current version.

    `labels`: columns sample_id and alpha_sha256, one row per sample.
    """
    rows = features[features["extractor"] == difficulty.EXTRACTOR]
    scores = {
        (sample, version): dict(numbers)["score"]
        for sample, version, numbers in zip(rows["sample_id"], rows["version"], rows["numbers"], strict=True)
    }
    values = [
        scores.get((sample, difficulty.version_for(alpha)), float("nan"))
        for sample, alpha in zip(labels["sample_id"], labels["alpha_sha256"], strict=True)
    ]
    return pd.Series(values, index=pd.Index(labels["sample_id"], name="sample_id"), dtype="float64", name="difficulty")


def difficulty_table(samples: pd.DataFrame, labels: pd.DataFrame, features: pd.DataFrame) -> list[dict[str, object]]:
    """Return the number of labels and their mean difficulty per category."""
    scores = difficulty_of(labels, features).dropna().rename_axis("id").reset_index()
    joined = scores.merge(samples, on="id")
    joined["category"] = joined["category"].fillna("unknown")
    # Photos without a category are listed as `unknown`.
    means = joined.groupby("category")["difficulty"].agg(["size", "mean"])
    return [
        {"category": category, "labels": int(count), "difficulty": round(float(mean), 4)}
        for category, count, mean in zip(means.index, means["size"], means["mean"], strict=True)
    ]


def _in_chunks(work: Iterable[Done]) -> Iterator[Done]:
    """Merge results into chunks of at most CHUNK rows or CHUNK_SECONDS."""
    chunk = Done()
    since = time.monotonic()
    for done in work:
        chunk += done
        # Whichever limit is reached first ends the chunk.
        if len(chunk.rows) >= CHUNK or time.monotonic() - since > CHUNK_SECONDS:
            yield chunk
            chunk, since = Done(), time.monotonic()
    if chunk.rows or chunk.failures:
        yield chunk
