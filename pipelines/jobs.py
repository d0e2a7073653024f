"""The runs that people, sensors and the schedule start."""

import dagster as dg

from mm_core.core.settings import time_zone
from pipelines.arrivals import collected_labels, ingested_batch, label_studio_tasks, routed, structured_samples
from pipelines.release import cycle_report, exported_bundle, gate, promoted_model

CYCLE = {"matting/cycle": "one-at-a-time"}
"""`infra/dagster.yaml` lets one run with this tag go at a time: they all write the workspace's `cycle/`."""

PRELOAD = ["dagster", "mm_core.stages", "mlflow"]
one_process_a_step = dg.multiprocess_executor.configured(
    {"max_concurrent": 1, "start_method": {"forkserver": {"preload_modules": PRELOAD}}}
)
"""For training: a killed or cancelled step takes nothing with it. Steps of a cycle follow each other anyway.

Preloaded is what the first step needs anyway. `pipelines` is not: each step imports it anew, and so gets its lifeline.
"""

arrivals = dg.define_asset_job(
    "arrivals",
    selection=dg.AssetSelection.assets(ingested_batch, structured_samples),
    executor_def=dg.in_process_executor,
    description="Ingests one batch and computes the features of its samples.",
)
route = dg.define_asset_job(
    "route",
    selection=dg.AssetSelection.assets(routed, label_studio_tasks),
    executor_def=dg.in_process_executor,
    tags=CYCLE,
    description="Chooses photos for people and delivers them to Label Studio.",
)
collect = dg.define_asset_job(
    "collect",
    selection=dg.AssetSelection.assets(collected_labels),
    executor_def=dg.in_process_executor,
    description="Takes people's finished labels back.",
)
retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.groups("learning", "release"),
    executor_def=one_process_a_step,
    tags=CYCLE,
    description="One cycle: snapshot, split, four training stages, evaluation, gate; bundle and promotion on a pass.",
)
release = dg.define_asset_job(
    "release",
    selection=dg.AssetSelection.assets(gate, exported_bundle, promoted_model, cycle_report),
    executor_def=dg.in_process_executor,
    tags=CYCLE,
    description="Judges the evaluation on record again, and ships if it passes.",
)

weekly_retrain = dg.ScheduleDefinition(
    name="weekly_retrain",
    job=retrain,
    cron_schedule="0 3 * * 1",
    execution_timezone=time_zone(),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A cycle each Monday at 03:00 (`MM_TIME_ZONE`), where anything is new.",
)
