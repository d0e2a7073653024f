"""Names of runs for people: in messages, and as the source of runs in MLflow."""

import dagster as dg


def run_name(run: dg.DagsterRun) -> str:
    """Return a name of a run for people: its job, or the assets of a run without one, and its batch."""
    name = run.job_name
    # Runs that Dagster's automation or a person starts from assets have an internal job name.
    if name.startswith("__"):
        assets = sorted(key.to_user_string() for key in run.asset_selection or ())
        checks = sorted(key.to_user_string() for key in run.asset_check_selection or ())
        name = ", ".join(assets or checks) or "assets"
    batch = run.tags.get("dagster/partition")
    return f"{name} of {batch}" if batch else name
