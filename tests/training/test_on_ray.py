"""Two Ray workers train to one process's result, also where one of them is lost on the way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from mm_core.core.errors import NothingToTrainOn
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.model.files import load_model
from mm_core.model.network import build_model
from mm_core.storage.run import StorageRun
from mm_core.training.on_ray import train_stage_on_ray
from mm_core.training.stage import train_stage


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[name].float() - b[name].float()).flatten() for name in a]).norm())


@pytest.fixture
def on_ray(workspace: Layout) -> Layout:
    return Layout(replace(workspace.settings, engine="ray"))


def weights(layout: Layout) -> dict[str, torch.Tensor]:
    return load_model(layout.model("hard"))[0].state_dict()


def kill_a_worker(layout: Layout) -> int:
    """SIGKILL to the process that trains: it holds the stage's lock. Its process id."""
    locks = {str(path) for path in layout.checkpoints.rglob("lock")}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(file.path in locks for file in process.open_files()):
                process.kill()
                return process.pid
    raise AssertionError("nobody holds the lock")


# On a busy machine each group of workers takes a minute and more to start.
@pytest.mark.timeout(900)
def test_two_workers_end_where_one_process_does_though_one_is_lost(
    workspace: Layout, on_ray: Layout, params: Params
) -> None:
    params = params.with_values(
        **{"train.common.precision": "fp32", "train.common.replay_share": 0.25, "train.hard.steps": 12}
    )
    seen: list[tuple[str, int, int]] = []
    killed: list[int] = []

    def progress(*step: Any) -> None:
        seen.append(step)
        if not killed and step[0] == "train hard" and 0 < step[1] < 12:
            killed.append(kill_a_worker(workspace))

    report = Report("train-hard")
    train_stage_on_ray("hard", StorageRun(params, on_ray, progress), report, start=None)
    together = weights(workspace)
    assert killed and not psutil.pid_exists(killed[0])
    assert report.facts["engine"] == "ray, 2 workers" and report.facts["steps"] == 12
    assert report.cost["worker_cpu_seconds"] > 0 and ("train hard", 12, 12) in seen
    for file in workspace.checkpoints.rglob("done.json"):
        file.unlink()
    train_stage("hard", StorageRun(params, workspace), Report("x"), start=None)
    untrained = build_model(params.model, params.seed).state_dict()
    assert distance(together, weights(workspace)) < 0.02 * distance(together, untrained)


def test_what_a_worker_refuses_is_told_as_here(workspace: Layout, on_ray: Layout, params: Params) -> None:
    for pool in ("simple", "hard"):
        path = workspace.split / f"{pool}.parquet"
        pd.read_parquet(path).iloc[:0].to_parquet(path)
    with pytest.raises(NothingToTrainOn, match="holds no labelled training sample"):
        train_stage_on_ray("hard", StorageRun(params, on_ray), Report("x"), start=None)
