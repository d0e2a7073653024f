"""Assets of each arrival: ingest and structure a batch, send hard photos to people and read their answers."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from mm_core import operations, stages
from pipelines.defs.automation import push_when, route_when
from pipelines.defs.checks import (
    accepted_result,
    arrival_specs,
    delivered,
    drift_results,
    drift_spec,
    expectation_results,
)
from pipelines.metadata import data_docs, of_report
from pipelines.partitions import batches
from pipelines.provenance import catalog_table, code_version, data_version, row_count
from pipelines.resources import Workspace, plain_failures

Event = dg.AssetCheckResult | dg.MaterializeResult
OWNERS = ["team:matting"]
WEEKLY = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=8), fail_window=timedelta(days=15))
"""Data should arrive and be judged each week; after two weeks without, `notifications` reports it."""
STORE_OUTAGE = dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL)
"""Retries for assets that need the store or the Label Studio server."""


# Both assets of a batch have optional outputs (`can_subset`): a check of a rule that was not evaluated has no result.
@dg.multi_asset(
    name="ingested_batch",
    specs=[
        dg.AssetSpec(
            "ingested_batch",
            description="One drop of the inbox in the catalog: each row is accepted, quarantined with a reason, or a "
            "duplicate. Repeating it changes nothing; a changed manifest adds its new rows. A held or wholly refused "
            "drop fails with its reason.",
            group_name="arrivals",
            partitions_def=batches,
            kinds={"greatexpectations", "deltalake"},
            owners=OWNERS,
            tags={"room": "data"},
            freshness_policy=WEEKLY,
            metadata=catalog_table("samples"),
            code_version=code_version("mm_core.ingest.ingest"),
            skippable=True,
        )
    ],
    check_specs=arrival_specs("ingested_batch"),
    can_subset=True,
    retry_policy=STORE_OUTAGE,
)
def ingested_batch(
    context: dg.AssetExecutionContext, workspace: Workspace
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Ingest this partition's drop only. The results of its rules are recorded for a refused drop too."""
    layout = workspace.layout()
    with plain_failures():
        report = stages.ingest(workspace.run(context), batch=context.partition_key)
    docs = data_docs(layout, context.partition_key)
    accepted = accepted_result(report, docs)
    yield from delivered(context, "ingested_batch", [*expectation_results(report), accepted])
    if not accepted.passed:
        # Without a materialization the partition is shown as failed.
        raise dg.Failure(f"the drop is refused: {accepted.description}", metadata=docs, allow_retries=False)
    # The state of the evaluation set is about the whole catalog, not about this batch.
    report.facts.pop("eval", None)
    report.tables.pop("eval", None)
    (row,) = report.tables["batches"]
    yield dg.MaterializeResult(
        metadata=docs | of_report(report) | row_count(float(str(row["accepted"]))),
        data_version=data_version(row["arrival"] or row["key"]),
    )


@dg.multi_asset(
    name="structured_samples",
    specs=[
        dg.AssetSpec(
            "structured_samples",
            description="Features of the batch's samples: quality, place, time, difficulty. Samples of other batches "
            "that have none yet are processed in the same run.",
            deps=[ingested_batch],
            group_name="arrivals",
            partitions_def=batches,
            kinds={"opencv", "deltalake"},
            owners=OWNERS,
            tags={"room": "structuring"},
            metadata=catalog_table("features"),
            code_version=code_version("mm_core.structuring.structure", "mm_core.structuring.drift"),
            skippable=True,
        )
    ],
    check_specs=[drift_spec("structured_samples")],
    can_subset=True,
    retry_policy=STORE_OUTAGE,
)
def structured_samples(
    context: dg.AssetExecutionContext, workspace: Workspace
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Compute missing features, and compare the batch with the earlier catalog."""
    batch = context.partition_key
    with plain_failures():
        report = stages.structure(workspace.run(context), batch=batch)
    yield from delivered(context, "structured_samples", drift_results(report, batch))
    yield dg.MaterializeResult(
        metadata=of_report(report) | row_count(report.metrics["structure/rows"]),
        data_version=data_version(report.facts["features"]),
    )


@dg.asset(
    group_name="arrivals",
    deps=[structured_samples],
    automation_condition=route_when,
    code_version=code_version("mm_core.labeling.route"),
    kinds={"labelstudio", "deltalake"},
    owners=OWNERS,
    tags={"room": "labeling"},
)
def routed(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Hard photos that people should label, as Label Studio tasks with the champion's matte as initial matte."""
    with plain_failures():
        report = stages.route(workspace.run(context))
    sent = [row["sample_id"] for row in report.tables["routed"]]
    return dg.MaterializeResult(metadata=of_report(report) | row_count(len(sent)), data_version=data_version(*sent))


@dg.asset(
    group_name="arrivals",
    deps=[routed],
    automation_condition=push_when,
    code_version=code_version("mm_core.labeling.push"),
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
    metadata=catalog_table("labels"),
    code_version=code_version("mm_core.labeling.collect", "mm_core.labeling.pull"),
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
        version = run.catalog.version("labels")
    return dg.MaterializeResult(
        metadata=project(status) | of_report(report), data_version=dg.DataVersion(f"labels-{version}")
    )


def project(about: operations.LabellingStatus) -> dict[str, dg.MetadataValue]:
    """Return the result of `operations.labelling` as metadata, with a link to the project and its oldest open task."""
    shown: dict[str, dg.MetadataValue] = {"batches waiting": dg.MetadataValue.int(about["batches_waiting"])}
    # Without a server only the outbox is known.
    if about["server"]:
        shown["project"] = dg.MetadataValue.url(about.get("project", ""))
        shown |= {f"{name} tasks": dg.MetadataValue.int(about.get(name, 0)) for name in ("open", "finished", "skipped")}
    if (days := about.get("oldest_open_days")) is not None:
        shown["oldest open task, days"] = dg.MetadataValue.float(days)
    return shown
