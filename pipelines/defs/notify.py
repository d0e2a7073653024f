"""Notify people by a POST to a webhook: failed runs, failed checks and stale assets.

The body is one short message, `{"text": …, …}`, which Slack, Mattermost and Teams workflows accept.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import TypedDict

import dagster as dg

from mm_core.core.errors import InputError
from mm_core.core.settings import dagster_url, secret, tick_seconds
from pipelines.defs.checks import ACCEPTED, COUNTS
from pipelines.run_names import run_name

WEBHOOK = "MM_WEBHOOK_URL"
SECONDS = 10.0
"""Timeout of the request in seconds."""
MOST = 25
"""Maximum number of messages per tick; the others follow in the next."""
KEPT = 200
"""Number of run ids in the cursor; a run's record may change once more after its end."""
LONGEST = 300
"""Maximum number of characters of one reason."""
SHOWN = 3
"""Maximum number of reasons in a message's text; `reasons` has all."""


@dg.sensor(
    minimum_interval_seconds=tick_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts to {WEBHOOK} what needs a person's attention. Without the variable it does nothing.",
)
def notifications(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Send a message per ended run that needs attention and per stale asset.

    The cursor moves past a run only after its message was sent, so no message is lost. Runs that ended before the first
    tick are ignored. If the receiver fails, the tick is skipped and not failed: Dagster drops the cursor of a failed
    tick, and the messages already sent would be repeated in every tick.
    """
    url = secret(WEBHOOK)
    if not url:
        return dg.SkipReason(f"{WEBHOOK} is not set: no messages are sent")
    # Without a cursor, start at the current time.
    seen: Seen = json.loads(context.cursor or "{}") or {"since": time.time(), "told": [], "stale": []}
    sent, failure = 0, ""
    try:
        for record in _ended(context.instance, seen["since"], set(seen["told"])):
            message = about_run(context.instance, record.dagster_run)
            if message:
                post(url, message)
                sent += 1
            told = [*seen["told"], record.dagster_run.run_id][-KEPT:]
            # Move the cursor after each message.
            seen["since"], seen["told"] = record.update_timestamp.timestamp(), told
            # The cursor is behind the last message, so the next tick continues there.
            if sent == MOST:
                break
        # An asset is reported once, and again only after it was fresh in between.
        stale = _stale(context)
        for asset in sorted(stale - set(seen["stale"])):
            post(url, {"text": f"{asset} is stale: not made for longer than its freshness policy allows"})
            sent += 1
            seen["stale"] = sorted({*seen["stale"], asset})
        seen["stale"] = sorted(stale)
    except (dg.Failure, InputError) as error:
        failure = f"; {error}"
    context.update_cursor(json.dumps(seen))
    return dg.SkipReason(f"{sent} messages sent{failure}")


class Seen(TypedDict):
    """The sensor's cursor."""

    since: float
    """UNIX seconds."""
    told: list[str]
    """Ids of the last reported runs."""
    stale: list[str]
    """Reported stale assets."""


class Message(TypedDict):
    """What is sent about a run."""

    text: str
    """A line with the counts of the drop, at most SHOWN reasons, and links to the run and the Data Docs."""
    job: str
    """The run's name for people."""
    run: str
    """Its id."""
    status: str
    reasons: list[str]
    """All reasons."""
    counts: dict[str, int]


def about_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Message | None:
    """Return a message about an ended run, or None if it needs none."""
    if run.status is dg.DagsterRunStatus.FAILURE:
        # A retry follows, and its result will be reported.
        if run.tags.get("dagster/will_retry") == "true":
            return None
        reasons, result = [*_failures(instance, run.run_id)], "failed"
    else:
        reasons = [*_failed_checks(instance, run.run_id)]
        champion = [*_promotions(instance, run.run_id)]
        # A successful run is reported only for failed checks or a new champion.
        if not reasons and not champion:
            return None
        result = ", ".join(champion) or "checks did not pass"
    counts, docs = _drop_facts(instance, run.run_id)
    numbers = "; " + ", ".join(f"{count} {name}" for name, count in counts.items()) if counts else ""
    more = [f"- and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    text = [f"{run_name(run)}: {result}{numbers}", *(f"- {reason}" for reason in reasons[:SHOWN]), *more]
    if base := dagster_url():
        text.append(f"Run: {base}/runs/{run.run_id}")
    if docs:
        text.append(f"Data Docs: {docs}")
    return {
        "text": "\n".join(text),
        "job": run_name(run),
        "run": run.run_id,
        "status": run.status.value,
        "reasons": reasons,
        "counts": counts,
    }


def post(url: str, message: Mapping[str, object]) -> None:
    """Send one POST of JSON; raise Failure with a text that does not contain the URL, which is a secret."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{WEBHOOK} must begin with https:// or http://")
    body = json.dumps(message).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except (OSError, ValueError, HTTPException) as error:
        # The exception's own text may contain the URL.
        why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        raise dg.Failure(f"{WEBHOOK} does not take messages: {why}; the next tick tries again") from None


def _ended(instance: dg.DagsterInstance, since: float, told: set[str]) -> Iterator[dg.RunRecord]:
    """Yield records of runs that ended at or after `since` (UNIX seconds), earliest first, without those in `told`."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    # Query one second more and compare exactly below.
    after = datetime.fromtimestamp(since, UTC) - timedelta(seconds=1)
    records = instance.get_run_records(dg.RunsFilter(statuses=ended, updated_after=after))
    for record in sorted(records, key=lambda record: record.update_timestamp):
        if record.update_timestamp.timestamp() >= since and record.dagster_run.run_id not in told:
            yield record


def _failures(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """Yield a line for each failed step, or one for the run if it failed outside its steps."""
    steps = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for entry in steps:
        event = entry.get_dagster_event()
        data = event.step_failure_data
        description = data.user_failure_data.description if data.user_failure_data else None
        yield _short(f"{event.step_key}: {description or (data.error.message if data.error else event.message)}")
    # A killed run has no failed step, but a run failure.
    if not steps:
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE):
            yield _short(entry.get_dagster_event().message or "the run's process ended")


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """Yield a line for each check that did not pass."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        check = entry.get_dagster_event().asset_check_evaluation_data
        if not check.passed:
            yield _short(f"{check.asset_key.to_user_string()}, {check.check_name}: {check.description or 'not passed'}")


def _promotions(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """Yield a line for a newly promoted champion."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        # A materialization of this asset means a new champion.
        made = entry.get_dagster_event().step_materialization_data.materialization
        if made.asset_key.path == ["promoted_model"]:
            version = made.metadata.get("version")
            yield f"version {version.value if version else '?'} is champion"


def _stale(context: dg.SensorEvaluationContext) -> set[str]:
    """Return the assets that Dagster's freshness daemon reports as too old."""
    assert context.repository_def is not None
    keys = [node.key for node in context.repository_def.asset_graph.asset_nodes if node.freshness_policy]
    records = context.instance.get_freshness_state_records(keys)
    return {k.to_user_string() for k, record in records.items() if record.freshness_state.value == "FAIL"}


def _drop_facts(instance: dg.DagsterInstance, run_id: str) -> tuple[dict[str, int], str]:
    """Return the counts of the drop that a run ingested, without zeros, and the address of its Data Docs."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        check = entry.get_dagster_event().asset_check_evaluation_data
        if check.check_name == ACCEPTED:
            counts = {name: int(str(check.metadata[name].value)) for name in COUNTS}
            docs = check.metadata.get("data docs")
            # Without a server the pages have a path, which is of no use in a message.
            link = (docs.value or "") if isinstance(docs, dg.UrlMetadataValue) else ""
            return {name: count for name, count in counts.items() if count}, link
    return {}, ""


def _short(text: str) -> str:
    """Return a text as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
