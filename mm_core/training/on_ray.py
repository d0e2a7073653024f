"""Train by Ray Train: the loop of `torchrun` (`process_group.py`), with processes placed and restarted by Ray."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from torch import distributed as dist

from mm_core.core import cluster
from mm_core.core.deferred import Deferred
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import Progress
from mm_core.core.records import Report
from mm_core.storage.run import StorageRun
from mm_core.training import process_group
from mm_core.training.stage import train_stage
from mm_core.training.stage_data import read_data

if TYPE_CHECKING:
    import ray
    from ray import train as ray_train
    from ray.train import torch as ray_torch
    from ray.util import queue
    from ray.util.queue import Queue

    from mm_core.core.settings import Settings
else:
    ray = Deferred("ray")
    ray_train = Deferred("ray.train")
    ray_torch = Deferred("ray.train.torch")
    queue = Deferred("ray.util.queue")

RESTARTS = 3
"""Worker failures per stage that are tolerated; after each the stage resumes from its own checkpoint."""


def train_stage_on_ray(stage: str, run: StorageRun, report: Report, *, start: Path | None) -> Report:
    """Run `train_stage` in `MM_RAY_WORKERS` processes of the cluster, with a GPU each if the cluster has enough.

    Every worker must see the workspace at the same path. Arguments and errors are those of `train_stage`.
    """
    layout = run.layout
    workers = layout.settings.ray_workers
    # Check the inputs before Ray starts: Ray would retry an error that every process raises.
    read_data(stage, layout)
    process_group.check_batch(run.params.train.common.batch, workers)
    cluster.join(layout.settings)
    # Use GPUs only if every worker gets one.
    gpus = layout.settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= workers
    # Folder for Ray's own records of the run; weights and checkpoints are stored as in every other run.
    records = layout.root / "scratch" / f"ray-{stage}-{os.getpid()}-{time.time_ns()}"
    # Workers send their progress through this queue; None ends it.
    messages = queue.Queue(actor_options={"num_cpus": 0})
    trainer = ray_torch.TorchTrainer(
        _worker,
        train_loop_config={
            "job": _Job(stage, run.params.model_dump_json(), layout.settings, report.stage, start, messages),
        },
        scaling_config=ray_train.ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=ray_train.RunConfig(
            name=stage, storage_path=str(records), failure_config=ray_train.FailureConfig(max_failures=RESTARTS)
        ),
    )
    listener = threading.Thread(target=_listen, args=(messages, run.progress), daemon=True)
    listener.start()
    try:
        returned = trainer.fit().return_value
    except ray_train.TrainingFailedError as error:
        # Raise the error of the worker itself if it is one of this project's, not Ray's wrapper.
        failures = error.worker_failures if isinstance(error, ray_train.WorkerGroupError) else {}
        raise next(filter(None, map(cluster.own_error, failures.values())), error) from None
    finally:
        messages.put(None)
        listener.join(timeout=10)
        messages.shutdown(force=True)
        shutil.rmtree(records, ignore_errors=True)
    assert returned is not None  # Ray returns the value of process 0
    # Merge the report of process 0 into the caller's.
    done = Report(**json.loads(returned["report"]))
    report.metrics |= done.metrics
    report.facts |= done.facts | {"engine": f"ray, {workers} workers"}
    report.cost["worker_cpu_seconds"] = round(returned["cpu_seconds"], 2)
    return report


@dataclass(frozen=True)
class _Job:
    """The arguments of a worker, which Ray pickles."""

    stage: str
    params: str
    """JSON of the params."""
    settings: Settings
    report: str
    """Name of the report's stage."""
    start: Path | None
    messages: Queue


class WorkerResult(TypedDict):
    """What process 0 returns through Ray."""

    report: str
    """JSON of the report."""
    cpu_seconds: float
    """Of all processes."""


def _worker(config: dict[str, _Job]) -> WorkerResult:
    """Run one process of the training; return its report and the processor seconds of all processes."""
    job = config["job"]
    layout, first = Layout(job.settings), ray_train.get_context().get_world_rank() == 0
    last = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        # At most one message per second: each is a remote call.
        if first and (done == total or time.monotonic() - last > 1):
            last = time.monotonic()
            job.messages.put((what, done, total))

    report, params = Report(job.report), Params.model_validate_json(job.params)
    train_stage(job.stage, StorageRun(params, layout, progress), report, start=job.start)
    # Collect the processor time of every process.
    seconds: list[float] = [sum(os.times()[:4])] * ray_train.get_context().get_world_size()
    if dist.is_initialized():
        dist.all_gather_object(seconds, seconds[0])
    return {"report": json.dumps(asdict(report)), "cpu_seconds": sum(seconds)}


def _listen(messages: Queue, progress: Progress) -> None:
    """Pass messages of the workers on to `progress` until None arrives."""
    while (message := messages.get()) is not None:
        progress(*message)
