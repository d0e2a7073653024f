"""Asset checks: Great Expectations' results, drift, leaks and the verdict."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import dagster as dg

from mm_core.core.errors import MattingError
from mm_core.core.pins import read_snapshot
from mm_core.core.records import Report
from mm_core.ingest.expectations import RULES, ExpectationResult
from mm_core.ingest.snapshot import POOLS, assert_no_leak, read_pool
from mm_core.storage.run import catalog_of
from pipelines.metadata import of_report, picture, table
from pipelines.resources import Workspace, plain_failures


def expectation_specs(asset: str) -> Sequence[dg.AssetCheckSpec]:
    """Return a check per rule for drops. None blocks, because rows that break a rule are already in quarantine."""
    return [
        dg.AssetCheckSpec(
            rule.name,
            asset=asset,
            blocking=False,
            description=f"Great Expectations, each {rule.scope}: otherwise “{rule.reason}”.",
            metadata={"kinds": ", ".join(rule.kinds), "severity": rule.severity},
        )
        for rule in RULES
    ]


def expectation_results(report: Report) -> Iterator[dg.AssetCheckResult]:
    """Yield the ingest report's table `expectations` as check results: critical → ERROR, warning → WARN.

    A rule that does not apply to this kind of drop passes, with a note.
    """
    results: list[ExpectationResult] = report.rows("expectations")
    rows = {row["name"]: row for row in results}
    for rule in RULES:
        row = rows.get(rule.name)
        yield dg.AssetCheckResult(
            check_name=rule.name,
            # Without a row the rule did not apply.
            passed=row is None or bool(row["success"]),
            severity=dg.AssetCheckSeverity.ERROR if rule.severity == "critical" else dg.AssetCheckSeverity.WARN,
            description=f"{row['unexpected']} unexpected" if row else "the rule does not apply to this run",
            metadata=cast(dict[str, str | float], {n: v for n, v in (row or {}).items() if v is not None}),
        )


def drift_spec(asset: str) -> dg.AssetCheckSpec:
    """Return the check on drift of a batch."""
    return dg.AssetCheckSpec(
        "drift",
        asset=asset,
        blocking=False,
        description="The batch is similar to the catalog before it. A warning only: new kinds of photos are welcome.",
    )


def drift_result(report: Report, batch: str) -> dg.AssetCheckResult:
    """Return the structure report's result for `batch` (kind/batch), with table and plot; too few photos pass."""
    sentences = report.fact("drift", dict) if "drift" in report.facts else {}
    sentence = str(sentences.get(batch, "not in the catalog"))
    rows = [row for row in report.tables.get("drift", []) if row["batch"] == batch]
    # Table and plot of this batch only.
    title = f"drift {batch}"
    shown = {"drift": table(rows)} if rows else {}
    # The plot exists only if the sides were compared.
    shown |= {title: picture(title, Path(report.pictures[title]))} if title in report.pictures else {}
    return dg.AssetCheckResult(
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
