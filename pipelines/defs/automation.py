"""When Dagster sends photos to people by itself: after structuring, after a promotion, and at the start of a day.

The budgets of a run, of a day and of a category are those of `params.yaml`, `route`. A run after the day's budget is
spent sends nothing.
"""

import dagster as dg

from mm_core.core.settings import tick_seconds
from pipelines.pods import LABELLING, pod

PEOPLE = {"matting/people": "one-at-a-time"}
"""Tag of runs that write the outbox; `infra/dagster.yaml` allows one such run at a time."""
NEW_DAY = "5 0 * * *"
"""Cron of the first routing of a day; the daily budget counts from midnight UTC."""

When = dg.AutomationCondition

# `since_last_handled` keeps an event until a run was requested, for example while other arrivals are in progress.
route_when = (
    (
        When.any_deps_updated()
        | When.asset_matches("promoted_model", When.newly_updated()).with_label("a model was promoted")
        | When.cron_tick_passed(NEW_DAY, "UTC").with_label("a new day's budget")
    ).since_last_handled()
    & ~When.any_deps_in_progress()
    & ~When.in_progress()
).with_label("photos may be waiting for people")
"""Condition of `routed`. One run follows after a group of drops, because it waits for those in progress."""

push_when = (
    When.any_deps_updated().since_last_handled() & ~When.any_deps_in_progress() & ~When.in_progress()
).with_label("tasks are in the outbox")
"""Condition of `label_studio_tasks`; it runs together with `routed`."""

automation = dg.AutomationConditionSensorDefinition(
    "photos_to_people",
    target=dg.AssetSelection.assets("routed", "label_studio_tasks"),
    run_tags=PEOPLE | pod(env_from=[LABELLING]),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=tick_seconds(),
    description="Routes photos and delivers them to Label Studio after structuring, after a promotion, and each day.",
)
