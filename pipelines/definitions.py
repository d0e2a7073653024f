"""All definitions that Dagster loads. `workspace.yaml` and `dg` refer to this module."""

import dagster as dg

from pipelines import care, checks, external_runs, jobs, notify, sensors
from pipelines.arrivals import collected_labels, ingested_batch, label_studio_tasks, routed, structured_samples
from pipelines.automation import automation
from pipelines.learning import (
    pinned_inputs,
    snapshot,
    split,
    train_hard,
    train_multimodal,
    train_semi,
    train_simple,
)
from pipelines.moments import moments
from pipelines.release import cycle_report, evaluation, exported_bundle, gate, promoted_model
from pipelines.resources import RetrainPolicy, Workspace

# Assets in the order of the flow.
defs = dg.Definitions(
    assets=[
        ingested_batch,
        structured_samples,
        routed,
        label_studio_tasks,
        collected_labels,
        pinned_inputs,
        snapshot,
        split,
        train_simple,
        train_hard,
        train_semi,
        train_multimodal,
        evaluation,
        gate,
        exported_bundle,
        promoted_model,
        cycle_report,
        moments,
    ],
    asset_checks=[checks.no_leak],
    jobs=[jobs.arrivals, jobs.route, jobs.collect, jobs.retrain, jobs.release, care.backup, care.compact],
    schedules=[jobs.weekly_retrain, care.nightly_backup, care.weekly_compaction],
    sensors=[
        automation,
        sensors.new_arrivals,
        sensors.finished_work,
        sensors.new_labels,
        sensors.drifted_arrivals,
        notify.notifications,
        external_runs.made_elsewhere,
    ],
    # Both read the environment unless their fields are configured.
    resources={"workspace": Workspace(), "retrain_policy": RetrainPolicy()},
    executor=jobs.one_process_a_step,
)
