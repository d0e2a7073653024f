"""What starts runs by itself: a drop, finished work of people, enough new labels (fewer after a REJECT), drift."""

import json
import time
from collections.abc import Mapping

import dagster as dg

from mm_core import stages
from mm_core.core.errors import MattingError
from mm_core.core.layout import Layout
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.core.records import digest_of
from mm_core.core.settings import tick_seconds
from mm_core.ingest.ingest import ready_batches
from mm_core.labeling.webhook import hinted_at
from mm_core.structuring.drift import drifted_batches
from pipelines.jobs import arrivals, collect, retrain
from pipelines.partitions import batches, partition_of
from pipelines.resources import RetrainPolicy, Workspace

MAX_REQUESTS = 50
"""Runs asked for in one tick; a larger backlog goes on in the next."""
LOOK_EVERY = 120
"""Seconds between two questions to the Label Studio server, where it does not call."""
REQUEST = "matting/request"
"""Tag of a run that a sensor asked for: what for."""
MAX_TRIES = 3
"""Runs that are asked for one thing, where those before were lost."""
SETTLED = 60.0
"""Seconds after which a failed run that Dagster starts again itself has been started again."""
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.sensor(
    job=arrivals,
    minimum_interval_seconds=tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="One run for each ready drop of the inbox that the catalog's ledger does not hold yet.",
)
def new_arrivals(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """A run key is made of kind, batch and manifest digest: a changed manifest or file runs again, a seen one only
    where its run was lost.

    The cursor is the list of keys that were asked for and are still ready, so it stays as short as the inbox's queue.
    """
    layout = workspace.layout()
    ready = list(ready_batches(stages.inbox_of(layout), stages.catalog_of(layout), stages.store_of(layout)))
    asked = set(json.loads(context.cursor or "[]")) & {batch.request for batch in ready}
    tries = {batch.request: lost(context.instance, batch.request) for batch in ready if batch.request in asked}
    new = [batch for batch in ready if batch.request not in asked or tries[batch.request]][:MAX_REQUESTS]
    if not new:
        context.update_cursor(json.dumps(sorted(asked)))
        return dg.SkipReason(f"nothing new in {layout.settings.inbox}")
    return dg.SensorResult(
        run_requests=[
            asked_for(
                batch.request,
                tries.get(batch.request, 0),
                partition=partition_of(batch.kind, batch.batch),
                tags={"matting/kind": batch.kind, "matting/batch": batch.batch},
            )
            for batch in new
        ],
        dynamic_partitions_requests=[batches.build_add_request([partition_of(b.kind, b.batch) for b in new])],
        cursor=json.dumps(sorted(asked | {batch.request for batch in new})),
    )


@dg.sensor(
    job=collect,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A pull when work was handed in: exports in the inbox, or changes on the Label Studio server.",
)
def finished_work(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """Asks the server every LOOK_EVERY seconds, and at once when it called (`mm label webhook`): a lost call costs
    minutes, not a label. The cursor is when it was asked, and what was then seen, which is asked for once."""
    layout = workspace.layout()
    looked, before = json.loads(context.cursor or "[0, null]")
    now = time.time()
    if now - looked < LOOK_EVERY and hinted_at(layout) < looked:
        return dg.SkipReason(f"looked {now - looked:.0f} s ago")
    try:
        seen = stages.finished_work(layout)
    except MattingError as error:
        return dg.SkipReason(str(error))
    tries = lost(context.instance, f"work-{seen}")
    if seen is None or (seen == before and not tries):
        context.update_cursor(json.dumps([now, before]))
        return dg.SkipReason("what is new has been asked for" if seen else "nothing new from people")
    return dg.SensorResult(run_requests=[asked_for(f"work-{seen}", tries)], cursor=json.dumps([now, seen]))


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=2 * tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A cycle once enough label versions have come that no cycle has learned from.",
)
def new_labels(
    context: dg.SensorEvaluationContext, workspace: Workspace, retrain_policy: RetrainPolicy
) -> dg.SensorResult | dg.SkipReason:
    """Counts distinct labels against the last request (cursor) and what the last cycle, however started, could see.

    Where the gate rejected that cycle's model, fewer are enough: what people have corrected since may turn it. An
    INCONCLUSIVE verdict is no rejection: it asks for eval photos, and a few more training labels would not settle it.
    """
    layout = workspace.layout()
    if waiting := arrivals_on_their_way(context.instance):
        return waiting
    if context.cursor and (tries := lost(context.instance, f"labels-{context.cursor}")):
        return dg.SensorResult(run_requests=[asked_for(f"labels-{context.cursor}", tries)], cursor=context.cursor)
    known = labels_at(layout, None)
    learned = max(int(context.cursor or 0), labels_of_last_cycle(layout))
    refused = layout.verdict.is_file() and stages.recorded_verdict(layout).decision == "REJECT"
    enough = retrain_policy.new_labels_after_refusal if refused else retrain_policy.new_labels
    if known - learned < enough:
        why = " after a refusal" if refused else ""
        return dg.SkipReason(f"{known - learned} new labels; a cycle starts at {enough}{why}")
    request = asked_for(f"labels-{known}", tags={"matting/new_labels": str(known - learned)})
    return dg.SensorResult(run_requests=[request], cursor=str(known))


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=2 * tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A cycle once batches have come that do not look like the catalog before them.",
)
def drifted_arrivals(
    context: dg.SensorEvaluationContext, workspace: Workspace, retrain_policy: RetrainPolicy
) -> dg.SensorResult | dg.SkipReason:
    """Counts drifted batches that the last cycle, however started, could not see; the cursor lists those asked for."""
    layout = workspace.layout()
    if waiting := arrivals_on_their_way(context.instance):
        return waiting
    asked = set(json.loads(context.cursor or "[]"))
    last = f"drift-{digest_of(sorted(asked))[:16]}"
    if asked and (tries := lost(context.instance, last)):
        return dg.SensorResult(run_requests=[asked_for(last, tries)], cursor=context.cursor)
    new = set(drifted_batches(layout.drift)) - asked
    new -= batches_of_last_cycle(layout) if new else set()
    if len(new) < retrain_policy.drifted_batches:
        return dg.SkipReason(f"{len(new)} drifted batches; a cycle starts at {retrain_policy.drifted_batches}")
    asked |= new
    request = asked_for(f"drift-{digest_of(sorted(asked))[:16]}", tags={"matting/drifted": str(len(new))})
    return dg.SensorResult(run_requests=[request], cursor=json.dumps(sorted(asked)))


def asked_for(
    request: str, tries: int = 0, *, tags: Mapping[str, str] | None = None, partition: str = ""
) -> dg.RunRequest:
    """A run for a request after `tries` runs that were lost: Dagster takes each run key once."""
    key = f"{request}-{tries}" if tries else request
    return dg.RunRequest(run_key=key, partition_key=partition or None, tags={REQUEST: request, **(tags or {})})


def lost(instance: dg.DagsterInstance, request: str) -> int:
    """How many runs were started for a request, where all of them failed for good and another try is due; else 0.

    Dagster starts a run whose worker died again, but not where the code location was away in just that moment. A run
    that a person has cancelled is not lost.
    """
    records = instance.get_run_records(dg.RunsFilter(tags={REQUEST: request}))
    ended = [record.end_time or record.update_timestamp.timestamp() for record in records]
    failed = all(record.dagster_run.status is dg.DagsterRunStatus.FAILURE for record in records)
    if not records or not failed or time.time() - max(ended) < SETTLED:
        return 0
    tries = sum(record.dagster_run.parent_run_id is None for record in records)
    return tries if tries < MAX_TRIES else 0


def arrivals_on_their_way(instance: dg.DagsterInstance) -> dg.SkipReason | None:
    """Why to wait: a cycle that starts between two drops of one day would learn from half of them."""
    busy = instance.get_runs_count(dg.RunsFilter(job_name=arrivals.name, statuses=UNFINISHED))
    return dg.SkipReason(f"{busy} arrivals are still on their way into the catalog") if busy else None


def batches_of_last_cycle(layout: Layout) -> set[str]:
    """Batches, as kind/batch, that the last snapshot could see; none before the first."""
    if not has_snapshot(layout):
        return set()
    version = read_snapshot(layout)["catalog"]["samples"]
    seen = stages.catalog_of(layout).read("samples", version=version, columns=["kind", "batch"]).drop_duplicates()
    return {partition_of(kind, batch) for kind, batch in zip(seen["kind"], seen["batch"], strict=True)}


def labels_at(layout: Layout, version: int | None) -> int:
    """Distinct labels in one version of the catalog's table (None: now)."""
    return len(set(stages.catalog_of(layout).read("labels", version=version, columns=["id"])["id"]))


def labels_of_last_cycle(layout: Layout) -> int:
    """Distinct labels that the last snapshot could see; 0 before the first."""
    if not has_snapshot(layout):
        return 0
    return labels_at(layout, read_snapshot(layout)["catalog"]["labels"])
