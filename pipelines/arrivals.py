"""Assets of each arrival: ingest and structure a batch, send hard photos to people and read their answers."""

from datetime import timedelta

import dagster as dg

from mm_core import operations, stages
from mm_core.operations import LabellingStatus
from pipelines.checks import drift_result, drift_spec, expectation_results, expectation_specs
from pipelines.metadata import of_report, page
from pipelines.partitions import batches
from pipelines.resources import Workspace, plain_failures

OWNERS = ["team:matting"]
WEEKLY = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=8), fail_window=timedelta(days=15))
"""Data should arrive and be judged each week; after two weeks without, `notifications` reports it."""
STORE_OUTAGE = dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL)
"""Retries for assets that need the store or the Label Studio server."""


@dg.asset(
    group_name="arrivals",
    partitions_def=batches,
    check_specs=expectation_specs("ingested_batch"),
    kinds={"greatexpectations", "deltalake"},
    owners=OWNERS,
    tags={"room": "data"},
    retry_policy=STORE_OUTAGE,
    freshness_policy=WEEKLY,
)
def ingested_batch(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """One drop of the inbox in the catalog: each row is accepted, quarantined with a reason, or a duplicate.

    Repeating it changes nothing; a changed manifest adds its new rows.
    """
    layout = workspace.layout()
    with plain_failures():
        # Ingest this partition's drop only.
        report = stages.ingest(workspace.run(context), batch=context.partition_key)
    return dg.MaterializeResult(
        metadata={"data docs": page(layout, layout.data_docs / "index.html")} | of_report(report),
        check_results=[*expectation_results(report)],
    )


@dg.asset(
    group_name="arrivals",
    partitions_def=batches,
    deps=[ingested_batch],
    check_specs=[drift_spec("structured_samples")],
    kinds={"opencv", "deltalake"},
    owners=OWNERS,
    tags={"room": "structuring"},
    retry_policy=STORE_OUTAGE,
)
def structured_samples(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Features of the batch's samples: quality, place, time, difficulty. Processes all samples that have none yet."""
    batch = context.partition_key
    with plain_failures():
        report = stages.structure(workspace.run(context), batch=batch)
    return dg.MaterializeResult(metadata=of_report(report), check_results=[drift_result(report, batch)])


@dg.asset(
    group_name="arrivals",
    deps=[structured_samples],
    kinds={"labelstudio", "deltalake"},
    owners=OWNERS,
    tags={"room": "labeling"},
)
def routed(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Hard photos that people should label, as Label Studio tasks with the champion's matte as initial matte."""
    with plain_failures():
        report = stages.route(workspace.run(context))
    return dg.MaterializeResult(metadata=of_report(report))


@dg.asset(
    group_name="arrivals",
    deps=[routed],
    kinds={"labelstudio"},
    owners=OWNERS,
    tags={"room": "labeling"},
    retry_policy=STORE_OUTAGE,
)
def label_studio_tasks(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Routed photos on the Label Studio server, each once; without a server they stay in the outbox."""
    with plain_failures():
        run = workspace.run(context)
        report = stages.push(run)
        status = operations.labelling(run)
    return dg.MaterializeResult(metadata=project(status) | of_report(report))


@dg.asset(
    group_name="arrivals",
    deps=[label_studio_tasks],
    kinds={"labelstudio", "deltalake"},
    owners=OWNERS,
    tags={"room": "labeling"},
    retry_policy=STORE_OUTAGE,
)
def collected_labels(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Finished Label Studio work as new label versions in the catalog, with their difficulty.

    Unfinished tasks are left for the next run.
    """
    with plain_failures():
        run = workspace.run(context)
        report = stages.collect(run)
        # New labels need a difficulty before the next split.
        stages.structure(run)
        status = operations.labelling(run)
    return dg.MaterializeResult(metadata=project(status) | of_report(report))


def project(about: LabellingStatus) -> dict[str, dg.MetadataValue]:
    """Return the result of `operations.labelling` as metadata, with a link to the project and its oldest open task."""
    shown: dict[str, dg.MetadataValue] = {"batches waiting": dg.MetadataValue.int(about["batches_waiting"])}
    # Without a server only the outbox is known.
    if about["server"]:
        shown["project"] = dg.MetadataValue.url(about.get("project", ""))
        shown |= {f"{name} tasks": dg.MetadataValue.int(about.get(name, 0)) for name in ("open", "finished", "skipped")}
    if (days := about.get("oldest_open_days")) is not None:
        shown["oldest open task, days"] = dg.MetadataValue.float(days)
    return shown
