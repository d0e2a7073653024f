"""Scheduled care of an installation, in process: a backup that can be restored, a compacted catalog."""

from pathlib import Path

import dagster as dg
import pytest

from mm_core import stages
from pipelines.definitions import defs
from pipelines.defs.care import nightly_backup
from pipelines.resources import Workspace
from tests.pipelines.conftest import Plant


def run(job: str, **config) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(
        instance=dg.DagsterInstance.ephemeral(), run_config=config, raise_on_error=False
    )


def test_the_backup_is_written_each_night_where_there_is_a_place(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MM_BACKUP_TO", raising=False)
    assert isinstance(nightly_backup(dg.build_schedule_context()), dg.SkipReason)
    (failure,) = run("backup").get_step_failure_events()
    assert "MM_BACKUP_TO" in str(failure.step_failure_data.user_failure_data.description)
    plant.drop("unlabeled", "w01", 1, seed=1)
    stages.ingest(Workspace().run())
    monkeypatch.setenv("MM_BACKUP_TO", str(tmp_path / "backups"))
    assert isinstance(nightly_backup(dg.build_schedule_context()), dg.RunRequest)
    written = run("backup")
    (output,) = [event for event in written.all_events if event.is_successful_output]
    shown = output.step_output_data.metadata
    assert written.success and shown["files"].value > 7
    assert (tmp_path / "backups" / "backups" / f"{shown['backup'].value}.json").is_file()


def test_the_catalog_is_compacted(plant: Plant) -> None:
    for week in range(2, 4):
        plant.drop("unlabeled", f"w{week}", 1, seed=week)
        stages.ingest(Workspace().run())
    done = run("compact")
    (output,) = [event for event in done.all_events if event.is_successful_output]
    assert done.success and output.step_output_data.metadata["compact/samples/merged"].value > 0


def test_both_are_scheduled_and_running() -> None:
    schedules = {schedule.name: schedule for schedule in defs.schedules or ()}
    assert {"weekly_retrain", "nightly_backup", "weekly_compaction"} == set(schedules)
    for schedule in schedules.values():
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING  # type: ignore[union-attr]
