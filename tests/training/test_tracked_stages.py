"""Runs of a cycle look alive in MLflow: open while the work is in progress, and closed by whatever way it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from mm_core.core.errors import ReleaseRefused
from mm_core.core.layout import Layout
from mm_core.core.locks import cycle_lock
from mm_core.core.params import Params
from mm_core.core.pins import SnapshotFacts
from mm_core.core.records import Report, write_json
from mm_core.core.revision import code_revision
from mm_core.core.settings import Settings
from mm_core.training.open_runs import open_runs_file
from mm_core.training.run_facts import cycle_name
from mm_core.training.tracked_stages import tracked
from mm_core.training.tracking import Tracker
from tests.tiny import snapshot_facts

COUNTS = {"train_labeled": {"pets": 3, "portrait": 2}, "eval": {"pets": 2}}
FACTS = snapshot_facts("a1" * 32, counts=COUNTS)


@pytest.fixture
def cycle(layout: Layout) -> Layout:
    write_json(layout.snapshot / "snapshot.json", FACTS)
    return layout


@contextmanager
def stage(layout: Layout, verb: str, params: Params | None = None) -> Iterator[Any]:
    """What `in_the_cycle` does around a stage."""
    with cycle_lock(layout, verb) as outermost, tracked(params or Params(), layout, verb, outermost=outermost) as log:
        yield log


def runs(layout: Layout) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=layout.settings.mlflow_uri)
    experiment = client.get_experiment_by_name("matting")
    assert experiment is not None
    return {run.data.tags["mm.stage"]: run for run in client.search_runs([experiment.experiment_id])}


def test_the_run_of_a_cycle_is_named_by_its_time_and_photos(cycle: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_TIME_ZONE", "Asia/Shanghai")
    facts = cast("SnapshotFacts", FACTS | {"counts": FACTS["counts"] | {"train_unlabeled": {"pets": 9}}})
    begin = int(datetime(2026, 11, 29, 20, 5, tzinfo=UTC).timestamp() * 1000)
    assert cycle_name(facts, begin) == "2026-11-30 04:05, 5 labelled, 9 unlabelled, 2 to judge"
    with stage(cycle, "evaluate") as log:
        log(Report("evaluate"))
    made = runs(cycle)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d, 5 labelled, 2 to judge", made["cycle"].info.run_name)
    assert made["evaluate"].info.run_name == "evaluate"


def test_a_run_with_the_name_of_an_earlier_version_is_continued(cycle: Layout) -> None:
    with stage(cycle, "evaluate") as log:
        log(Report("evaluate"))
    old = runs(cycle)["cycle"].info.run_id
    MlflowClient(tracking_uri=cycle.settings.mlflow_uri).update_run(old, name=f"cycle {'a1' * 6}")
    with stage(cycle, "gate") as log:
        log(Report("gate"))
    made = runs(cycle)
    assert set(made) == {"cycle", "evaluate", "gate"} and made["cycle"].info.run_id == old


def test_runs_are_open_while_a_cycle_runs_and_tell_what_it_is(cycle: Layout) -> None:
    before = int(time.time() * 1000)
    with stage(cycle, "run"):
        with stage(cycle, "evaluate") as log:
            during = runs(cycle)
            log(Report("evaluate", metrics={"multimodal/pets/mse": 0.02}, seconds=2.0))
        between = runs(cycle)
        with stage(cycle, "gate") as log:
            log(Report("gate"))
    assert {name: run.info.status for name, run in during.items()} == {"cycle": "RUNNING", "evaluate": "RUNNING"}
    assert {name: run.info.status for name, run in between.items()} == {"cycle": "RUNNING", "evaluate": "FINISHED"}
    after = runs(cycle)
    assert {name: run.info.status for name, run in after.items()} == dict.fromkeys(
        ["cycle", "evaluate", "gate"], "FINISHED"
    )
    run = after["cycle"]
    # The lock's time has whole seconds.
    assert before - 1000 <= run.info.start_time <= during["evaluate"].info.start_time
    assert run.info.end_time >= after["gate"].info.end_time
    assert {after[name].data.tags["mlflow.parentRunId"] for name in ("evaluate", "gate")} == {run.info.run_id}
    params = Params()
    assert run.data.params["train.simple.steps"] == str(params.train.simple.steps)
    assert run.data.params["gate.alpha"] == str(params.gate.alpha) and "label.people" not in run.data.params
    tags = run.data.tags
    assert tags["mlflow.source.name"] == "mm run" and tags["mlflow.source.type"] == "LOCAL" and tags["mlflow.user"]
    assert code_revision().startswith(tags["mlflow.source.git.commit"]) and len(tags["mlflow.source.git.commit"]) == 40
    inputs = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    assert {name: entry.dataset.digest for name, entry in inputs.items()} == {
        "snapshot": FACTS["digest"][:36],
        "eval": FACTS["eval_digest"][:36],
    }
    assert '"num_rows": 5' in inputs["snapshot"].dataset.profile
    assert [tag.value for tag in inputs["snapshot"].tags] == ["training"]
    assert [entry.dataset.name for entry in after["evaluate"].inputs.dataset_inputs] == ["eval"]
    assert not open_runs_file(cycle).exists()


def test_the_run_of_a_stage_without_a_live_run_has_the_stages_duration(cycle: Layout) -> None:
    with stage(cycle, "snapshot") as log:
        log(Report("snapshot", seconds=30.0))
    info = runs(cycle)["snapshot"].info
    assert 29_000 < info.end_time - info.start_time < 60_000


def test_a_failure_ends_cycle_and_stage_as_failed_with_its_reason(cycle: Layout) -> None:
    with pytest.raises(ZeroDivisionError), stage(cycle, "run"), stage(cycle, "evaluate"):
        raise ZeroDivisionError("no photo")
    ended = runs(cycle)
    assert {run.info.status for run in ended.values()} == {"FAILED"}
    assert ended["cycle"].data.tags["mm.error"] == "ZeroDivisionError: no photo"
    # Run again with success, the same runs are shown as such.
    with stage(cycle, "evaluate") as log:
        log(Report("evaluate"))
    assert {run.info.run_id for run in runs(cycle).values()} == {run.info.run_id for run in ended.values()}
    assert {run.info.status for run in runs(cycle).values()} == {"FINISHED"}


def test_a_refused_release_is_an_answer_of_the_cycle_and_no_failure(cycle: Layout) -> None:
    with pytest.raises(ReleaseRefused), stage(cycle, "export"):
        raise ReleaseRefused("the gate said REJECT")
    ended = runs(cycle)
    assert (ended["cycle"].info.status, ended["export"].info.status) == ("FINISHED", "FAILED")
    assert "REJECT" in ended["export"].data.tags["mm.error"]


KILL = """
import os, signal, sys
from mm_core.core.layout import Layout
from mm_core.core.locks import cycle_lock
from mm_core.core.params import Params
from mm_core.core.pins import SnapshotFacts
from mm_core.core.settings import Settings
from mm_core.training.tracked_stages import tracked
from mm_core.training.tracking import Tracker

layout = Layout(Settings.from_env(sys.argv[1]))
with cycle_lock(layout, "run") as first, tracked(Params(), layout, "run", outermost=first):
    with tracked(Params(), layout, "train-simple", outermost=False):
        with Tracker(layout.settings).stage_run(layout, "train-simple", {}, {}):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_cycle_ends_as_killed_at_the_next_start(cycle: Layout) -> None:
    done = subprocess.run([sys.executable, "-c", KILL, cycle.root], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {name: run.info.status for name, run in runs(cycle).items()} == dict.fromkeys(
        ["cycle", "train-simple"], "RUNNING"
    )
    # Another time than that of this process shows where the end comes from.
    sign = time.time() + 100
    os.utime(open_runs_file(cycle), (sign, sign))
    with stage(cycle, "compact"):
        ended = runs(cycle)
    assert {run.info.status for run in ended.values()} == {"KILLED"}
    assert ended["train-simple"].info.end_time == pytest.approx(sign * 1000, abs=1)
    assert not open_runs_file(cycle).exists()
    # A new cycle on the same snapshot opens them again.
    with stage(cycle, "evaluate"):
        assert runs(cycle)["cycle"].info.status == "RUNNING"
        assert runs(cycle)["cycle"].info.run_id == ended["cycle"].info.run_id


def test_a_kill_before_the_run_is_known_leaves_nothing_running(cycle: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    with cycle_lock(cycle, "run"):
        # What a kill between the creation of the run and the note of its id leaves.
        monkeypatch.setattr("mm_core.training.tracking.Tracker.close_runs", lambda *_, **__: None)
        with tracked(Params(), cycle, "evaluate", outermost=True):
            opened = open_runs_file(cycle).read_text()
    monkeypatch.undo()
    run = runs(cycle)["cycle"].info.run_id
    assert run in opened
    open_runs_file(cycle).write_text(opened.replace(run, ""))
    Tracker(cycle.settings).close_runs(cycle, "KILLED")
    assert {run.info.status for run in runs(cycle).values()} == {"KILLED"}


def test_other_params_on_the_same_snapshot_are_another_run_that_begins_with_the_earlier_metrics(cycle: Layout) -> None:
    with stage(cycle, "evaluate") as log:
        log(Report("evaluate", metrics={"multimodal/pets/mse": 0.02}).write(cycle.stage_report("evaluate")))
    first = runs(cycle)["cycle"].info.run_id
    other = Params().with_values(**{"gate.alpha": 0.1})
    with stage(cycle, "gate", other) as log:
        log(Report("gate", metrics={"gate/promote": 1.0}))
    client = MlflowClient(tracking_uri=cycle.settings.mlflow_uri)
    second = client.get_run(runs(cycle)["gate"].data.tags["mlflow.parentRunId"])
    assert second.info.run_id != first and second.data.params["gate.alpha"] == "0.1"
    assert second.data.metrics == {"multimodal/pets/mse": 0.02, "gate/promote": 1.0}


def test_the_experiment_opens_on_its_runs_also_if_it_is_older(cycle: Layout) -> None:
    client = MlflowClient(tracking_uri=cycle.settings.mlflow_uri)
    client.create_experiment("matting", tags={"mlflow.note.content": "written by a person"})
    Tracker(cycle.settings).log_report(cycle, Report("evaluate"))
    experiment = client.get_experiment_by_name("matting")
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.note.content"] == "written by a person"


def test_system_metrics_are_logged_on_request(cycle: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage(cycle, "evaluate") as log:
        log(Report("evaluate"))
    assert not [name for name in runs(cycle)["evaluate"].data.metrics if name.startswith("system/")]
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with Tracker(cycle.settings).stage_run(cycle, "train-simple", {}, {}):
        while not runs(cycle)["train-simple"].data.metrics:
            time.sleep(0.05)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(
        runs(cycle)["train-simple"].data.metrics
    )


def test_an_unreachable_server_hides_no_result_and_the_next_start_ends_the_runs(
    cycle: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Settings(cycle.root, "", "", "http://127.0.0.1:9", tmp_path / "p", "cpu")
    write_json(open_runs_file(cycle), {"session": "s", "snapshot": "a1" * 32, "run": "r"})
    Tracker(away).close_runs(cycle, "FINISHED")
    assert "MLflow cannot be reached" in caplog.text and open_runs_file(cycle).exists()
