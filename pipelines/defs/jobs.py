"""Jobs that people, sensors and the schedule start."""

import dagster as dg

from mm_core.core.settings import time_zone
from pipelines.defs.arrivals import collected_labels, ingested_batch, label_studio_tasks, routed, structured_samples
from pipelines.defs.automation import PEOPLE
from pipelines.defs.release import cycle_report, exported_bundle, gate, promoted_model
from pipelines.pods import GPU, LABELLING, SIGNING, pod

CYCLE = {"matting/cycle": "one-at-a-time"}
"""Tag of runs that write the workspace's `cycle/`; `infra/dagster.yaml` allows one such run at a time."""

# These modules are slow to import, and the steps need them. `mm_core.stages` alone loads neither torch nor timm.
PRELOAD = ["dagster", "mm_core.stages", "mm_core.model.preloaded", "mlflow"]
one_process_a_step = dg.multiprocess_executor.configured(
    {"max_concurrent": 1, "start_method": {"forkserver": {"preload_modules": PRELOAD}}}
)
"""Executor for training. A killed or cancelled step does not affect the others, and steps of a cycle are sequential.

`pipelines` is not preloaded: each step imports it itself, and so ends with its parent process.
"""

arrivals = dg.define_asset_job(
    "arrivals",
    selection=dg.AssetSelection.assets(ingested_batch, structured_samples),
    executor_def=dg.in_process_executor,
    description="Ingest one batch and compute the features of its samples.",
)
route = dg.define_asset_job(
    "route",
    selection=dg.AssetSelection.assets(routed, label_studio_tasks),
    executor_def=dg.in_process_executor,
    tags=PEOPLE | pod(env_from=[LABELLING]),
    description="Choose photos for people and deliver them to Label Studio.",
)
collect = dg.define_asset_job(
    "collect",
    selection=dg.AssetSelection.assets(collected_labels),
    executor_def=dg.in_process_executor,
    tags=pod(env_from=[LABELLING]),
    description="Read people's finished labels.",
)
retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.groups("learning", "release"),
    executor_def=one_process_a_step,
    tags=CYCLE | pod(env_from=[SIGNING], resources=GPU),
    description="One cycle: snapshot, split, four training stages, evaluation, gate; bundle and promotion on a pass.",
)
release = dg.define_asset_job(
    "release",
    selection=dg.AssetSelection.assets(gate, exported_bundle, promoted_model, cycle_report),
    executor_def=dg.in_process_executor,
    tags=CYCLE | pod(env_from=[SIGNING]),
    description="Judge the recorded evaluation again, and ship if it passes.",
)

# The sensors start further cycles between the weekly ones.
weekly_retrain = dg.ScheduleDefinition(
    name="weekly_retrain",
    job=retrain,
    cron_schedule="0 3 * * 1",
    execution_timezone=time_zone(),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A cycle each Monday at 03:00 (`MM_TIME_ZONE`), if anything is new.",
)
