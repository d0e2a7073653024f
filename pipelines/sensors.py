"""What starts runs by itself: a drop in the inbox, enough new labels."""

import json

import dagster as dg

from mm_core import stages
from mm_core.layout import Layout
from pipelines.jobs import arrivals, retrain
from pipelines.partitions import batches, partition_of
from pipelines.resources import RetrainPolicy, Workspace

MAX_REQUESTS = 50
"""Runs asked for in one tick; a larger backlog goes on in the next."""
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.sensor(
    job=arrivals,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="One run for each ready drop of the inbox that the catalog's ledger does not hold yet.",
)
def new_arrivals(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """A run key is made of kind, batch and manifest digest: a changed manifest runs again, a seen one never.

    The cursor is the list of keys that were asked for and are still ready, so it stays as short as the inbox's queue.
    """
    from mm_core.data.ingest import ready_batches

    layout = workspace.layout()
    ready = list(ready_batches(stages.inbox_of(layout), stages.catalog_of(layout)))
    asked = set(json.loads(context.cursor or "[]")) & {batch.key for batch in ready}
    new = [batch for batch in ready if batch.key not in asked][:MAX_REQUESTS]
    if not new:
        context.update_cursor(json.dumps(sorted(asked)))
        return dg.SkipReason(f"nothing new in {layout.settings.inbox}")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=batch.key,
                partition_key=partition_of(batch.kind, batch.batch),
                tags={"matting/kind": batch.kind, "matting/batch": batch.batch},
            )
            for batch in new
        ],
        dynamic_partitions_requests=[batches.build_add_request([partition_of(b.kind, b.batch) for b in new])],
        cursor=json.dumps(sorted(asked | {batch.key for batch in new})),
    )


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A cycle once enough label versions have come that no cycle has learned from.",
)
def new_labels(
    context: dg.SensorEvaluationContext, workspace: Workspace, retrain_policy: RetrainPolicy
) -> dg.SensorResult | dg.SkipReason:
    """Counts distinct labels against the last request (cursor) and what the last cycle, however started, could see.

    Waits while arrivals run: a cycle that starts between two drops of one day would learn from half of them.
    """
    layout = workspace.layout()
    busy = context.instance.get_runs_count(dg.RunsFilter(job_name=arrivals.name, statuses=UNFINISHED))
    if busy:
        return dg.SkipReason(f"{busy} arrivals are still on their way into the catalog")
    known = labels_at(layout, None)
    learned = max(int(context.cursor or 0), labels_of_last_cycle(layout))
    if known - learned < retrain_policy.new_labels:
        return dg.SkipReason(f"{known - learned} new labels; a cycle starts at {retrain_policy.new_labels}")
    request = dg.RunRequest(run_key=f"labels-{known}", tags={"matting/new_labels": str(known - learned)})
    return dg.SensorResult(run_requests=[request], cursor=str(known))


def labels_at(layout: Layout, version: int | None) -> int:
    """Distinct labels in one version of the catalog's table (None: now)."""
    return len(set(stages.catalog_of(layout).read("labels", version=version, columns=["id"])["id"]))


def labels_of_last_cycle(layout: Layout) -> int:
    """Distinct labels that the last snapshot could see; 0 before the first."""
    frozen = layout.snapshot / "snapshot.json"
    if not frozen.is_file():
        return 0
    return labels_at(layout, json.loads(frozen.read_text())["catalog"]["labels"])
