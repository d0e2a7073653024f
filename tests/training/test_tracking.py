"""Tracking on a real sqlite database: what `mlflow ui` would show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report, write_json
from mm_core.storage.run import StorageRun
from mm_core.training.scratch import part_of, scratch_layout
from mm_core.training.stage import train_stage
from mm_core.training.tracking import Tracker
from tests.tiny import snapshot_facts

FACTS = snapshot_facts("a1" * 32)


@pytest.fixture
def cycle(layout: Layout) -> Layout:
    write_json(layout.snapshot / "snapshot.json", FACTS)
    return layout


def runs(layout: Layout) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=layout.settings.mlflow_uri)
    experiment = client.get_experiment_by_name("matting")
    assert experiment is not None
    return {run.data.tags["mm.stage"]: run for run in client.search_runs([experiment.experiment_id])}


def test_a_cycle_is_one_parent_with_a_child_per_stage(cycle: Layout) -> None:
    report = Report(
        "evaluate",
        metrics={"semi/portrait/mse": 0.031, "semi/pets/mse": 0.02, "hole": float("nan")},
        facts={"images": 12, "candidate": "c0ffee", "reasons": ["one", "two"]},
        tables={"cells": [{"category": "pets", "mse": 0.02}]},
        seconds=3.5,
    )
    picture = cycle.root / "mattes.png"
    picture.write_bytes(b"\x89PNG")
    report.pictures["Mattes"] = str(picture)
    Tracker(cycle.settings).log_report(cycle, report)
    # Another process, another stage.
    Tracker(cycle.settings).log_report(cycle, Report("gate", facts={"decision": "PROMOTE"}))
    found = runs(cycle)
    assert set(found) == {"cycle", "evaluate", "gate"}
    parent, child = found["cycle"], found["evaluate"]
    assert parent.data.tags["mm.snapshot"] == "a1" * 32
    assert {found[s].data.tags["mlflow.parentRunId"] for s in ("evaluate", "gate")} == {parent.info.run_id}
    assert child.data.metrics == {"semi/portrait/mse": 0.031, "semi/pets/mse": 0.02, "seconds": 3.5}
    assert parent.data.metrics["semi/portrait/mse"] == 0.031
    assert child.data.tags["mm.candidate"] == "c0ffee"
    assert json.loads(child.data.tags["mm.reasons"]) == ["one", "two"]
    assert child.info.status == "FINISHED"
    folder = Path(child.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(cycle.mlflow_artifacts)
    assert json.loads((folder / "tables" / "cells.json").read_text()) == report.tables["cells"]
    assert (folder / "pictures" / "mattes.png").is_file()


def test_a_stage_run_again_writes_to_its_run_and_a_new_snapshot_to_another(cycle: Layout) -> None:
    for value in (0.5, 0.4):
        Tracker(cycle.settings).log_report(cycle, Report("evaluate", metrics={"semi/pets/mse": value}))
    found = runs(cycle)
    assert len(found) == 2
    assert found["evaluate"].data.metrics["semi/pets/mse"] == 0.4
    write_json(cycle.snapshot / "snapshot.json", FACTS | {"digest": "b2" * 32})
    Tracker(cycle.settings).log_report(cycle, Report("evaluate"))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=cycle.settings.mlflow_uri)
    experiment = client.get_experiment_by_name("matting")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.`mm.stage` = 'cycle'")) == 2


def test_curves_params_and_data_of_a_training_stage(cycle: Layout) -> None:
    from mlflow import MlflowClient

    params = {"seed": 0, "train": {"simple": {"lr": 0.001, "steps": 20}}}
    with Tracker(cycle.settings).stage_run(cycle, "train-simple", params, {"data": "d1"}) as curve:
        for step in (10, 20):
            curve.log(step, {"simple/loss/bce": 1 / step})
    run = runs(cycle)["train-simple"]
    assert run.data.params == {"seed": "0", "train.simple.lr": "0.001", "train.simple.steps": "20"}
    assert run.data.tags["mm.data"] == "d1"
    history = MlflowClient(tracking_uri=cycle.settings.mlflow_uri).get_metric_history(
        run.info.run_id, "simple/loss/bce"
    )
    assert [(m.step, m.value) for m in history] == [(10, 0.1), (20, 0.05)]
    # Resumed with the same params: the same run. With others: a new one.
    with Tracker(cycle.settings).stage_run(cycle, "train-simple", params, {"data": "d1"}) as same:
        assert same.run == run.info.run_id
    with Tracker(cycle.settings).stage_run(cycle, "train-simple", params | {"seed": 1}, {"data": "d1"}) as other:
        assert other.run != run.info.run_id
    assert runs(cycle)["train-simple"].data.params["seed"] == "1"


def test_a_stage_that_fails_is_shown_as_failed(cycle: Layout) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Tracker(cycle.settings).stage_run(cycle, "train-simple", {}, {}) as curve,
    ):
        curve.log(1, {"simple/loss/bce": 0.5})
        raise KeyboardInterrupt
    run = runs(cycle)["train-simple"]
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"simple/loss/bce": 0.5}


def test_a_stage_that_trains_leaves_its_curves(workspace: Layout, params: Params) -> None:
    report = Report("train-simple")
    train_stage("simple", StorageRun(params, workspace), report, start=None)
    run = runs(workspace)["train-simple"]
    assert {"simple/loss/bce", "simple/lr", "simple/val/pets/mse"} <= set(run.data.metrics)
    assert run.data.params["train.simple.steps"] == "6"
    assert run.data.tags["mm.data"] == report.facts["data"]
    assert run.data.tags["mm.digest"] == report.facts["digest"]
    assert runs(workspace)["cycle"].data.metrics["simple/val_mse"] == report.metrics["simple/val_mse"]


def test_without_a_snapshot_it_says_what_to_run(layout: Layout) -> None:
    with pytest.raises(InputError, match="`mm run` ingests them"):
        Tracker(layout.settings).log_report(layout, Report("evaluate"))


def test_a_scratch_workspace_that_was_removed_is_used_again_by_the_same_process(layout: Layout) -> None:
    """A measurement that is repeated: MLflow keeps the connection to the file that is gone."""
    for _ in range(2):
        scratch = scratch_layout(layout, "noise-1")
        part = part_of(scratch, "1")
        write_json(part.snapshot / "snapshot.json", FACTS)
        Tracker(part.settings).log_report(part, Report("train-simple"))
        assert set(runs(scratch)) == {"cycle", "train-simple"}
        shutil.rmtree(scratch.root)
