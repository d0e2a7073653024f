"""What is checked and shown beside the assets: Great Expectations' results, leaks, the verdict."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pandas as pd

from mm_core.records import Report
from pipelines.metadata import of_report, table
from pipelines.resources import Workspace, plain_failures

TRAINING_POOLS = ("train_labeled", "validation", "train_unlabeled", "train_text_image")


def expectation_specs(asset: str) -> Sequence[dg.AssetCheckSpec]:
    return []


def expectation_results(report: Report, asset: str) -> Sequence[dg.AssetCheckResult]:
    return []


def verdict_spec(asset: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        "promote", asset=asset, blocking=False, description="The verdict is PROMOTE. A warning: a refusal is a result."
    )


def verdict_result(report: Report) -> dg.AssetCheckResult:
    """The gate's report as a check: passed only on PROMOTE, with the reasons and the table of comparisons."""
    decision = str(report.facts["decision"])
    reasons = report.facts["reasons"]
    return dg.AssetCheckResult(
        check_name="promote",
        passed=decision == "PROMOTE",
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join([decision, *reasons[:3]]),
        metadata=of_report(report),
    )


@dg.asset_check(
    asset="snapshot",
    blocking=True,
    description="No photo, matte or group of the evaluation set is in a training pool. An error: training stops.",
)
def no_leak(workspace: Workspace) -> dg.AssetCheckResult:
    with plain_failures():
        leaks = leaks_of(workspace.layout().snapshot)
    return dg.AssetCheckResult(
        passed=not leaks,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{len(leaks)} leaks" if leaks else "no leak",
        metadata={"leaks": table(leaks)} if leaks else {},
    )


def leaks_of(folder: Path) -> list[dict[str, str]]:
    """What the frozen evaluation set shares with a training pool, read from the parquet files themselves.

    Returns a row `{pool, shares, value}` for each shared photo, matte or group.
    """
    columns = ["sample_id", "alpha_sha256", "group"]
    held_out = pd.read_parquet(folder / "eval.parquet", columns=columns)
    leaks = []
    for pool in TRAINING_POOLS:
        frame = pd.read_parquet(folder / f"{pool}.parquet", columns=columns)
        for column in columns:
            shared = set(frame[column].dropna()) & set(held_out[column].dropna()) - {""}
            leaks += [{"pool": pool, "shares": column, "value": value} for value in sorted(shared)]
    return leaks
