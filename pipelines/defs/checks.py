"""Asset checks: Great Expectations' results, drift, leaks and the verdict."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import dagster as dg
import pandas as pd

from mm_core.core.errors import MattingError
from mm_core.core.pins import read_snapshot
from mm_core.core.records import Report
from mm_core.ingest.expectations import RULES
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import assert_no_leak, read_pool
from mm_core.storage.run import catalog_of
from pipelines.metadata import of_report, picture, table
from pipelines.partitions import batches
from pipelines.resources import Workspace, plain_failures

ACCEPTED = "drop_accepted"
"""Check that a drop is in the catalog; its metadata holds the counts of the drop."""
ARRIVAL_ASSETS = (dg.AssetKey("ingested_batch"), dg.AssetKey("structured_samples"))
"""What a run of an arrival makes."""
PLANNED = (dg.AssetCheckKey(ARRIVAL_ASSETS[0], ACCEPTED),)
"""The checks that a run of an arrival plans; it records the others when they were evaluated.

A planned check without a result is shown as failed if its run fails, and a refused drop's run fails.
"""
CHECKED = {"row": "each row of the drop", "batch": "the whole drop"}
"""Scope of a rule → what it checks."""
COUNTS = ("rows", "accepted", "updated", "quarantined", "duplicates", "conflicts")


def partitioned_spec(name: str, asset: str, description: str, **metadata: str) -> dg.AssetCheckSpec:
    """Return a check with one result per batch, so that a later batch does not hide an earlier failure."""
    with warnings.catch_warnings():
        # Dagster 1.13 marks partitioned checks as a preview; `requirements.lock` pins that version.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, blocking=False, description=description, metadata=metadata, partitions_def=batches
        )


def arrival_specs(asset: str) -> Sequence[dg.AssetCheckSpec]:
    """Return the check of the whole drop and a check per rule.

    None blocks: rows that break a rule are already in quarantine, and the asset itself fails for a refused drop.
    """
    whole = partitioned_spec(
        ACCEPTED, asset, "The drop is in the catalog: it is not held, and at least one of its rows is known or new."
    )
    rules = [
        partitioned_spec(
            rule.name,
            asset,
            f"Great Expectations checks {CHECKED[rule.scope]}. The reason of a failure is “{rule.reason}”.",
            kinds=", ".join(rule.kinds),
            severity=rule.severity,
        )
        for rule in RULES
    ]
    return [whole, *rules]


def delivered(
    context: dg.AssetExecutionContext, asset: str, results: Iterable[dg.AssetCheckResult]
) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of the checks that the run planned, and record those of the others among its events.

    Args:
        context: The context of the step.
        asset: The name of the asset that the checks are about.
        results: Results of checks of the context's partition.
    """
    for result in results:
        key = dg.AssetCheckKey(dg.AssetKey(asset), str(result.check_name))
        if key in context.selected_asset_check_keys:
            yield result
            continue
        evaluation = dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=bool(result.passed),
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            partition=context.partition_key,
        )
        # Creating the event writes it to the run's events.
        dg.DagsterEvent.asset_check_evaluation(context.get_step_execution_context(), evaluation)


def expectation_results(report: Report) -> Iterator[dg.AssetCheckResult]:
    """Yield the ingest report's table `expectations` as check results: critical → ERROR, warning → WARN.

    A rule that was left out, or that was evaluated for no row, yields no result.
    """
    rows = {row["name"]: row for row in report.tables.get("expectations", [])}
    for rule in RULES:
        # Reports of earlier versions lack the number of measured rows.
        if (row := rows.get(rule.name)) is None or row.get("measured") == 0:
            continue
        description = f"{row['unexpected']} unexpected"
        # Reports of earlier versions lack this count.
        if unmeasured := row.get("unmeasured"):
            description += f", {unmeasured} of them not measured"
        yield dg.AssetCheckResult(
            check_name=rule.name,
            passed=bool(row["success"]),
            severity=dg.AssetCheckSeverity.ERROR if rule.severity == "critical" else dg.AssetCheckSeverity.WARN,
            description=description,
            metadata={name: cast("str | float", value) for name, value in row.items() if value is not None},
        )


def counts_of(row: Mapping[str, object]) -> dict[str, int]:
    """Return the counts of a ledger row. Rows of earlier versions lack some; these are 0."""
    values = {name: cast("float", row.get(name) or 0) for name in COUNTS}
    return {name: 0 if pd.isna(value) else int(value) for name, value in values.items()}


def is_refused(row: Mapping[str, object]) -> bool:
    """Return whether a drop is held, or none of its rows is in the catalog, according to its ledger row."""
    counts = counts_of(row)
    return row["state"] != "ingested" or counts["accepted"] + counts["updated"] + counts["duplicates"] == 0


def accepted_result(report: Report, docs: Mapping[str, dg.MetadataValue]) -> dg.AssetCheckResult:
    """Return the ingest report of one drop as the check ACCEPTED, with the drop's counts and the given links.

    It fails with ERROR if the drop is held, vanished during the run, or has only refused rows.
    """
    vanished = [row["reason"] for row in report.tables.get("vanished", [])]
    row = (report.tables.get("batches") or [{}])[0]
    counts, reason = counts_of(row), ""
    if vanished:
        reason = vanished[0]
    elif row.get("state") != "ingested":
        reason = str(row.get("reason") or "the drop is not in the ledger")
    elif is_refused(row):
        refused = Counter(line["reason"] for line in report.tables.get("rejects", []))
        most = "; ".join(f"{why} ({count})" for why, count in refused.most_common(3))
        reason = f"every row was refused: {most or 'the drop has no rows'}"
    return dg.AssetCheckResult(
        check_name=ACCEPTED,
        passed=not reason,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(reason) or ", ".join(f"{count} {name}" for name, count in counts.items() if count),
        metadata={**counts, **docs},
    )


def drift_spec(asset: str) -> dg.AssetCheckSpec:
    """Return the check on drift of a batch."""
    words = "The batch is similar to the catalog before it. A warning only: new kinds of photos are welcome."
    return partitioned_spec("drift", asset, words)


def drift_results(report: Report, batch: str) -> Iterator[dg.AssetCheckResult]:
    """Yield the structure report's result for `batch` (kind/batch), with table and plot.

    A batch with too few photos for a comparison was not evaluated and yields no result.
    """
    sentence = report.facts.get("drift", {}).get(batch, "")
    rows = [row for row in report.tables.get("drift", []) if row["batch"] == batch]
    if not rows:
        return
    # Table and plot of this batch only.
    title = f"drift {batch}"
    shown: dict[str, dg.MetadataValue] = {"drift": table(rows)}
    if title in report.pictures:
        shown[title] = picture(title, Path(report.pictures[title]))
    yield dg.AssetCheckResult(
        check_name="drift",
        passed=not sentence.startswith("drifted"),
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence,
        metadata=shown,
    )


def verdict_spec(asset: str) -> dg.AssetCheckSpec:
    """Return the check on the gate's verdict."""
    return dg.AssetCheckSpec(
        "promote",
        asset=asset,
        blocking=False,
        description="The verdict is PROMOTE. Otherwise only a warning: a refusal is a result.",
    )


def verdict_result(report: Report) -> dg.AssetCheckResult:
    """Return the gate's report as a check, passed only on PROMOTE, with the reasons and the table of comparisons."""
    decision = str(report.facts["decision"])
    return dg.AssetCheckResult(
        check_name="promote",
        passed=decision == "PROMOTE",
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join([decision, *report.fact("reasons", list)[:3]]),
        metadata=of_report(report),
    )


@dg.asset_check(
    asset="snapshot",
    blocking=True,
    description="No evaluation photo, one of its group or a near-duplicate is in a training pool. "
    "Otherwise training stops.",
)
def no_leak(workspace: Workspace) -> dg.AssetCheckResult:
    """Read the frozen files again, so that changes after they were written are found too."""
    params, layout = workspace.params(), workspace.layout()
    with plain_failures():
        frames = {pool: read_pool(layout.snapshot, pool) for pool in POOLS}
        # Compare with the catalog version that was frozen, not the newest.
        pinned = read_snapshot(layout)["catalog"]
        samples = catalog_of(layout).read(
            "samples", version=pinned["samples"], columns=["id", "group", "phash", "near"]
        )
    photos = {pool: len(frame) for pool, frame in frames.items()}
    try:
        assert_no_leak(frames, samples, params.snapshot.near_duplicate_bits)
    # The message names the photos.
    except MattingError as leak:
        return dg.AssetCheckResult(passed=False, description=str(leak), metadata=photos)
    return dg.AssetCheckResult(passed=True, description="no leak", metadata=photos)
