"""Sensors that start runs: on a drop, finished labels, enough new labels (fewer after a REJECT), or drift."""

import json
import time
from collections.abc import Mapping

import dagster as dg

from mm_core import operations
from mm_core.core.errors import MattingError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.core.records import digest_of
from mm_core.core.settings import tick_seconds
from mm_core.ingest.inbox_looks import look_again
from mm_core.labeling.webhook import hinted_at
from mm_core.pinned_inputs import recorded_verdict
from mm_core.storage.run import StorageRun, catalog_of
from mm_core.structuring.drift import drifted_batches
from pipelines.defs.checks import ARRIVAL_ASSETS, PLANNED
from pipelines.defs.jobs import arrivals, collect, retrain
from pipelines.partitions import batches, partition_of
from pipelines.resources import RetrainPolicy, Workspace

MAX_REQUESTS = 50
"""Maximum number of runs requested per tick; a larger backlog continues in the next."""
LOOK_EVERY = 120
"""Seconds between two requests to the Label Studio server, unless its webhook called."""
REQUEST = "matting/request"
"""Tag of a run that a sensor requested; its value is the reason, a digest by its first digits."""
SHOWN_DIGITS = 12
"""Digits of a digest in the list of runs; each of the 64 would be shown."""
MAX_TRIES = 3
"""Maximum number of runs per request if the earlier ones were lost."""
SETTLED = 60.0
"""Seconds after which Dagster has restarted a failed run itself, if it does so at all."""
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
    description="One run for each ready drop of the inbox that is not in the catalog's ledger yet.",
)
def new_arrivals(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """Request a run per ready batch.

    The run key consists of kind, batch and manifest digest. A changed manifest or file therefore runs again; an
    unchanged batch runs again only if its run was lost. The cursor lists the requested keys that are still ready, so
    it stays as short as the inbox's queue.
    """
    layout = workspace.layout()
    # Which drops are ready does not depend on the params.
    ready = look_again(StorageRun(Params(), layout))
    requested = set(json.loads(context.cursor or "[]")) & {batch.request for batch in ready}
    tries = {batch.request: lost(context.instance, batch.request) for batch in ready if batch.request in requested}
    new = [batch for batch in ready if batch.request not in requested or tries[batch.request]][:MAX_REQUESTS]
    if not new:
        context.update_cursor(json.dumps(sorted(requested)))
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
        # A partition must exist before a run can use it.
        dynamic_partitions_requests=[batches.build_add_request([partition_of(b.kind, b.batch) for b in new])],
        cursor=json.dumps(sorted(requested | {batch.request for batch in new})),
    )


@dg.sensor(
    job=collect,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reads labels when work was submitted: exports in the inbox, or changes on the Label Studio server.",
)
def finished_work(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    """Request a run if there is finished work.

    The server is queried every LOOK_EVERY seconds, and immediately after its webhook called (`mm label webhook`). A
    lost call therefore costs minutes and no label. The cursor holds the time of the last query and its result, which is
    requested once.
    """
    layout = workspace.layout()
    # The cursor is [time of the last query, its result].
    looked, before = json.loads(context.cursor or "[0, null]")
    now = time.time()
    if now - looked < LOOK_EVERY and hinted_at(layout) < looked:
        return dg.SkipReason(f"last checked {now - looked:.0f} s ago")
    try:
        seen = operations.finished_work(layout)
    except MattingError as error:
        return dg.SkipReason(str(error))
    tries = lost(context.instance, f"work-{seen}")
    # Nothing new, or requested before and not lost.
    if seen is None or (seen == before and not tries):
        context.update_cursor(json.dumps([now, before]))
        return dg.SkipReason("all finished work has been requested" if seen else "no finished work")
    return dg.SensorResult(run_requests=[asked_for(f"work-{seen}", tries)], cursor=json.dumps([now, seen]))


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=2 * tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A cycle once enough label versions exist that no cycle has used.",
)
def new_labels(
    context: dg.SensorEvaluationContext, workspace: Workspace, retrain_policy: RetrainPolicy
) -> dg.SensorResult | dg.SkipReason:
    """Request a cycle if there are enough new labels.

    Distinct labels are counted against the last request (cursor) and against the labels of the last cycle, however it
    was started. If the gate rejected that cycle's model, fewer are enough, because people may have corrected its errors
    since. An INCONCLUSIVE verdict is not a rejection: it needs eval photos, and a few more training labels would not
    settle it.
    """
    layout = workspace.layout()
    if waiting := arrivals_on_their_way(context.instance):
        return waiting
    # Repeat a lost request before counting again.
    if context.cursor and (tries := lost(context.instance, f"labels-{context.cursor}")):
        return dg.SensorResult(run_requests=[asked_for(f"labels-{context.cursor}", tries)], cursor=context.cursor)
    total = labels_at(layout, None)
    # A cycle started by hand counts too.
    learned = max(int(context.cursor or 0), labels_of_last_cycle(layout))
    # Only a REJECT counts as a refusal.
    refused = layout.verdict.is_file() and recorded_verdict(layout).decision == "REJECT"
    enough = retrain_policy.new_labels_after_refusal if refused else retrain_policy.new_labels
    if total - learned < enough:
        why = " after a refusal" if refused else ""
        return dg.SkipReason(f"{total - learned} new labels; a cycle starts at {enough}{why}")
    request = asked_for(f"labels-{total}", tags={"matting/new_labels": str(total - learned)})
    return dg.SensorResult(run_requests=[request], cursor=str(total))


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=2 * tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A cycle once batches have arrived that differ from the catalog before them.",
)
def drifted_arrivals(
    context: dg.SensorEvaluationContext, workspace: Workspace, retrain_policy: RetrainPolicy
) -> dg.SensorResult | dg.SkipReason:
    """Request a cycle for drifted batches that the last cycle did not include; the cursor lists the requested ones."""
    layout = workspace.layout()
    if waiting := arrivals_on_their_way(context.instance):
        return waiting
    requested = set(json.loads(context.cursor or "[]"))
    last = f"drift-{digest_of(sorted(requested))[:16]}"
    if requested and (tries := lost(context.instance, last)):
        return dg.SensorResult(run_requests=[asked_for(last, tries)], cursor=context.cursor)
    new = set(drifted_batches(layout.drift)) - requested
    # The catalog is read only if there is a candidate.
    new -= batches_of_last_cycle(layout) if new else set()
    if len(new) < retrain_policy.drifted_batches:
        return dg.SkipReason(f"{len(new)} drifted batches; a cycle starts at {retrain_policy.drifted_batches}")
    requested |= new
    request = asked_for(f"drift-{digest_of(sorted(requested))[:16]}", tags={"matting/drifted": str(len(new))})
    return dg.SensorResult(run_requests=[request], cursor=json.dumps(sorted(requested)))


def asked_for(
    request: str,
    tries: int = 0,
    *,
    tags: Mapping[str, str] | None = None,
    partition: str = "",
) -> dg.RunRequest:
    """Return a run for a request after `tries` lost runs; the run key differs, since Dagster accepts each key once.

    With a partition it is a run of that arrival.
    """
    # The first run has the plain request as key.
    key = f"{request}-{tries}" if tries else request
    return dg.RunRequest(
        run_key=key,
        partition_key=partition or None,
        tags={REQUEST: _tag_of(request), **(tags or {})},
        asset_selection=list(ARRIVAL_ASSETS) if partition else None,
        asset_check_keys=list(PLANNED) if partition else None,
    )


def lost(instance: dg.DagsterInstance, request: str) -> int:
    """Return the number of runs started for a request if all of them failed and another try is due; otherwise 0.

    Dagster restarts a run whose worker died, except if the code location was unavailable at that moment. A run that a
    person cancelled is not lost.
    """
    records = instance.get_run_records(dg.RunsFilter(tags={REQUEST: _tag_of(request)}))
    ended = [record.end_time or record.update_timestamp.timestamp() for record in records]
    failed = all(record.dagster_run.status is dg.DagsterRunStatus.FAILURE for record in records)
    if not records or not failed or time.time() - max(ended) < SETTLED:
        return 0
    # Restarts by Dagster have a parent run and do not count as tries of their own.
    tries = sum(record.dagster_run.parent_run_id is None for record in records)
    return tries if tries < MAX_TRIES else 0


def _tag_of(request: str) -> str:
    """Return the value of the tag REQUEST: a sha256 digest is shortened, other requests are short already."""
    return request[:SHOWN_DIGITS] if len(request) == 64 else request


def arrivals_on_their_way(instance: dg.DagsterInstance) -> dg.SkipReason | None:
    """Return a reason to wait while arrivals run: a cycle between two drops of one day would miss half of them."""
    # Count runs in every state before their end.
    busy = instance.get_runs_count(dg.RunsFilter(job_name=arrivals.name, statuses=UNFINISHED))
    return dg.SkipReason(f"{busy} arrivals are still on their way into the catalog") if busy else None


def batches_of_last_cycle(layout: Layout) -> set[str]:
    """Return the batches, as kind/batch, in the last snapshot; empty before the first."""
    if not has_snapshot(layout):
        return set()
    # Batches in the catalog version that the snapshot froze.
    versions = read_snapshot(layout)["catalog"]
    seen = catalog_of(layout).query("SELECT DISTINCT kind, batch FROM samples", versions)
    return {partition_of(row["kind"], row["batch"]) for row in seen.to_dict("records")}


def labels_at(layout: Layout, version: int | None) -> int:
    """Return the number of labels in a version of the catalog's table (None: the newest).

    Ids are the table's key, so each row is a distinct label, and the commit log has the number of rows.
    """
    return catalog_of(layout).count("labels", version=version)


def labels_of_last_cycle(layout: Layout) -> int:
    """Return the number of distinct labels in the last snapshot; 0 before the first."""
    if not has_snapshot(layout):
        return 0
    return labels_at(layout, read_snapshot(layout)["catalog"]["labels"])
