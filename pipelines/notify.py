"""Tells people what needs them, by one POST to a webhook: failed runs, checks that did not pass, what went stale.

The body is `{"text": …, …}`, which Slack, Mattermost and Teams' workflows take as it is.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Any

import dagster as dg

from mm_core.core.errors import InputError
from mm_core.core.settings import secret, tick_seconds

WEBHOOK = "MM_WEBHOOK_URL"
SECONDS = 10.0
"""That the other side may take to answer."""
MOST = 25
"""Messages of one tick; more wait for the next."""
KEPT = 200
"""Run ids in the cursor: a run's record may change once more after its end."""
LONGEST = 600
"""Characters of one reason."""


@dg.sensor(
    minimum_interval_seconds=tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts to {WEBHOOK} what needs a person. Without the variable it does nothing.",
)
def notifications(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Every message reaches the other side: the cursor moves past a run only when it has been told. Runs that ended
    before the first tick are not told.

    A tick that the other side does not take is skipped, not failed: Dagster keeps no cursor of a failed one, and what
    had been told in it would be told again and again.
    """
    url = secret(WEBHOOK)
    if not url:
        return dg.SkipReason(f"{WEBHOOK} is not set: nobody is told")
    seen: dict[str, Any] = json.loads(context.cursor or "{}") or {"since": time.time(), "told": [], "stale": []}
    sent, silent = 0, ""
    try:
        for record in _ended(context.instance, seen["since"], set(seen["told"])):
            message = about_run(context.instance, record.dagster_run)
            if message:
                post(url, message)
                sent += 1
            told = [*seen["told"], record.dagster_run.run_id][-KEPT:]
            seen |= {"since": record.update_timestamp.timestamp(), "told": told}
            if sent == MOST:
                break
        stale = _stale(context)
        for asset in sorted(stale - set(seen["stale"])):
            post(url, {"text": f"{asset} is stale: not made for longer than its freshness policy allows"})
            sent += 1
            seen["stale"] = sorted({*seen["stale"], asset})
        seen["stale"] = sorted(stale)
    except (dg.Failure, InputError) as error:
        silent = f"; {error}"
    context.update_cursor(json.dumps(seen))
    return dg.SkipReason(f"{sent} messages sent{silent}")


def about_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, Any] | None:
    """What a person should know of an ended run: `text`, `job`, `run`, `status`, `reasons`; None: nothing."""
    if run.status is dg.DagsterRunStatus.FAILURE:
        if run.tags.get("dagster/will_retry") == "true":
            return None
        reasons = [*_failures(instance, run.run_id)]
        head = f"{_what(run)} failed"
    else:
        reasons = [*_failed_checks(instance, run.run_id)]
        champion = [*_promotions(instance, run.run_id)]
        if not reasons and not champion:
            return None
        head = f"{_what(run)}: " + (", ".join(champion) or "checks did not pass")
    text = "\n".join([head, *(f"- {reason}" for reason in reasons)])
    return {"text": text, "job": run.job_name, "run": run.run_id, "status": run.status.value, "reasons": reasons}


def post(url: str, message: Mapping[str, Any]) -> None:
    """One POST of JSON; raises Failure, in whose text the URL (it is a secret) does not stand."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{WEBHOOK} must begin with https:// or http://")
    body = json.dumps(message).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except (OSError, ValueError, HTTPException) as error:
        why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        raise dg.Failure(f"{WEBHOOK} does not take messages: {why}; the next tick tries again") from None


def _ended(instance: dg.DagsterInstance, since: float, told: set[str]) -> Iterator[Any]:
    """Records of runs that ended at or after `since` (UNIX seconds), earliest first, without `told`."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    after = datetime.fromtimestamp(since, UTC) - timedelta(seconds=1)
    found = instance.get_run_records(dg.RunsFilter(statuses=ended, updated_after=after))
    for record in sorted(found, key=lambda record: record.update_timestamp):
        if record.update_timestamp.timestamp() >= since and record.dagster_run.run_id not in told:
            yield record


def _failures(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """A line for each failed step; of a run that died outside of its steps, the run's own."""
    steps = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for entry in steps:
        event = entry.get_dagster_event()
        data = event.step_failure_data
        told = data.user_failure_data.description if data.user_failure_data else None
        yield _short(f"{event.step_key}: {told or (data.error.message if data.error else event.message)}")
    if not steps:
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE):
            yield _short(entry.get_dagster_event().message or "the run's process ended")


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        check = entry.get_dagster_event().asset_check_evaluation_data
        if not check.passed:
            yield _short(f"{check.asset_key.to_user_string()}, {check.check_name}: {check.description or 'not passed'}")


def _promotions(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        made = entry.get_dagster_event().step_materialization_data.materialization
        if made.asset_key.path == ["promoted_model"]:
            version = made.metadata.get("version")
            yield f"version {version.value if version else '?'} is champion"


def _stale(context: dg.SensorEvaluationContext) -> set[str]:
    """Assets that Dagster's freshness daemon holds to be too old."""
    assert context.repository_def is not None
    keys = [node.key for node in context.repository_def.asset_graph.asset_nodes if node.freshness_policy]
    records = context.instance.get_freshness_state_records(keys)
    return {k.to_user_string() for k, record in records.items() if record.freshness_state.value == "FAIL"}


def _what(run: dg.DagsterRun) -> str:
    batch = run.tags.get("dagster/partition")
    return f"{run.job_name} of {batch}" if batch else run.job_name


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
