"""Training by Ray Train: the same loop as by `torchrun` (`process_group.py`); Ray places and restarts the processes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm_core.core import cluster
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.storage.store import open_store
from mm_core.training import process_group
from mm_core.training.stage import read_data, train_stage

RESTARTS = 3
"""Lost workers per stage until it counts as failed; the stage goes on from its own checkpoint each time."""


def train_stage_on_ray(
    stage: str,
    params: Params,
    layout: Layout,
    report: Report,
    *,
    start: Path | None,
    progress: Callable[[str, int, int], None],
) -> Report:
    """What `train_stage` does, by `MM_RAY_WORKERS` processes of the cluster (a GPU each, where it has as many).

    Every worker sees the workspace at the same path. Raises what `train_stage` raises.
    """
    workers = layout.settings.ray_workers
    # What every process would refuse is said at once: Ray would first try again.
    read_data(stage, layout)
    process_group.check_batch(params.train.common.batch, workers)
    cluster.join(layout.settings)
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    gpus = layout.settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= workers
    # What Ray itself notes about the run; weights and checkpoints are where every other run has them.
    notes = layout.root / "scratch" / f"ray-{stage}-{os.getpid()}-{time.time_ns()}"
    said = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "stage": stage,
            "params": params.model_dump_json(),
            "settings": layout.settings,
            "report": report.stage,
            "start": start,
            "said": said,
        },
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=ray.train.RunConfig(
            name=stage, storage_path=str(notes), failure_config=ray.train.FailureConfig(max_failures=RESTARTS)
        ),
    )
    listener = threading.Thread(target=_listen, args=(said, progress), daemon=True)
    listener.start()
    try:
        told = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
        raise next(filter(None, map(cluster.own_error, failures.values())), error) from None
    finally:
        said.put(None)
        listener.join(timeout=10)
        said.shutdown(force=True)
        shutil.rmtree(notes, ignore_errors=True)
    assert told is not None  # Ray passes on what process 0 returns
    done = Report(**json.loads(told["report"]))
    report.metrics |= done.metrics
    report.facts |= done.facts | {"engine": f"ray, {workers} workers"}
    report.cost["worker_cpu_seconds"] = round(told["cpu_seconds"], 2)
    return report


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One process of the training: its report, and the processor time of all of them."""
    import ray.train
    import torch.distributed as dist

    layout, first = Layout(config["settings"]), ray.train.get_context().get_world_rank() == 0
    last = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if first and (done == total or time.monotonic() - last > 1):
            last = time.monotonic()
            config["said"].put((what, done, total))

    report = Report(config["report"])
    train_stage(
        config["stage"],
        Params.model_validate_json(config["params"]),
        layout,
        open_store(layout.settings.store, layout.cache),
        report,
        start=config["start"],
        progress=progress,
    )
    seconds: list[Any] = [sum(os.times()[:4])] * ray.train.get_context().get_world_size()
    if dist.is_initialized():
        dist.all_gather_object(seconds, seconds[0])
    return {"report": json.dumps(asdict(report)), "cpu_seconds": sum(seconds)}


def _listen(said: Any, progress: Callable[[str, int, int], None]) -> None:
    while (news := said.get()) is not None:
        progress(*news)
