"""The daemon's own code on a real code location, its clock moved: Monday comes, assets go stale, people are told."""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus, PartitionBackfill
from dagster._core.remote_representation.external import RemoteRepository
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.utils import make_new_backfill_id
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.freshness import FreshnessDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import launch_scheduled_runs
from dagster._time import get_current_timestamp

from mm_core import stages
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES
from mm_core.core.settings import Settings, time_zone
from mm_core.pinned_inputs import Run
from mm_core.storage.run import catalog_of
from samplegen import write_drop
from tests.pipelines.conftest import TINY
from tests.pipelines.operated import wait
from tests.servers import Receiver

PROJECT = Path(__file__).resolve().parents[2]
SUNDAY = datetime(2026, 3, 1, 17, 30, tzinfo=UTC)
"""01:30 on Monday in Shanghai."""
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
LOG = logging.getLogger("test")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path], receiver: Receiver
) -> Iterator[WorkspaceProcessContext]:
    """What the daemon works with: infra's instance, workspace.yaml's code location as a process, an empty workspace."""
    root = tmp_path_factory.mktemp("daemon")
    (root / "home").mkdir()
    (root / "home" / "dagster.yaml").write_text((PROJECT / "infra" / "dagster.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MM_STORE", "MLFLOW_TRACKING_URI", "MM_INBOX", "MM_WEBHOOK_URL_FILE"):
            patch.delenv(name, raising=False)
        (root / "params.yaml").write_text(Params().with_values(**TINY).to_yaml())
        patch.setenv("MM_PARAMS", str(root / "params.yaml"))
        patch.setenv("MM_WORKSPACE", str(with_tables(root / "data")))
        patch.setenv("MM_TIME_ZONE", "Asia/Shanghai")
        patch.setenv("MM_TICK_SECONDS", "1")
        patch.setenv("MM_WEBHOOK_URL", receiver.url)
        patch.setenv("DAGSTER_HOME", str(root / "home"))
        patch.chdir(PROJECT)
        with (
            dg.DagsterInstance.from_config(str(root / "home")) as instance,
            create_test_daemon_workspace_context(
                WorkspaceFileTarget([str(PROJECT / "workspace.yaml")]), instance
            ) as made,
        ):
            yield made


def schedule_tick(daemon: WorkspaceProcessContext, now: datetime) -> list[dg.DagsterRun]:
    """What the scheduler does at a time; returns all runs of the schedule."""
    with freeze_time(now):
        assert not [error for error in launch_scheduled_runs(daemon, LOG, now, iteration_times={}) if error]
    return daemon.instance.get_runs(dg.RunsFilter(tags={"dagster/schedule_name": "weekly_retrain"}))


def told(daemon: WorkspaceProcessContext, now: datetime) -> str:
    """What the sensor `notifications` says of its tick at a time."""
    with freeze_time(now):
        assert not [error for error in execute_sensor_iteration(daemon, LOG, None, None) if error]
    (sensor,) = [sensor for sensor in repository(daemon).get_sensors() if sensor.name == "notifications"]
    (tick,) = daemon.instance.get_ticks(sensor.get_remote_origin_id(), sensor.selector_id, limit=1)
    return f"{tick.status.value} {tick.skip_reason}"


def repository(daemon: WorkspaceProcessContext) -> RemoteRepository:
    (location,) = daemon.create_request_context().code_locations
    (found,) = location.get_repositories().values()
    return found


def test_a_monday_starts_one_cycle(daemon: WorkspaceProcessContext) -> None:
    """At 03:00 of the zone, once, also where the scheduler was away then or looks again."""
    assert schedule_tick(daemon, SUNDAY) == []
    assert schedule_tick(daemon, SUNDAY + timedelta(minutes=89)) == []
    (cycle,) = schedule_tick(daemon, SUNDAY + timedelta(hours=5))
    assert cycle.job_name == "retrain" and cycle.status is dg.DagsterRunStatus.QUEUED
    assert schedule_tick(daemon, SUNDAY + timedelta(hours=6)) == [cycle]
    assert len(schedule_tick(daemon, SUNDAY + timedelta(days=7, hours=2))) == 2
    for run in daemon.instance.get_runs():
        daemon.instance.delete_run(run.run_id)


@pytest.mark.timeout(900)
def test_the_cycle_starts_and_its_failure_is_told_once(daemon: WorkspaceProcessContext, receiver: Receiver) -> None:
    """It fails, as there is no photo yet; the other side is down at first."""
    instance, now = daemon.instance, datetime.now(UTC)
    assert told(daemon, now) == "SKIPPED 0 messages sent"
    (cycle,) = schedule_tick(daemon, SUNDAY + timedelta(days=14, hours=2))
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as coordinator:
        list(coordinator.run_iteration(daemon))

    def ended() -> dg.DagsterRunStatus | None:
        run = instance.get_run_by_id(cycle.run_id)
        return run.status if run and run.status in ENDED else None

    assert wait(ended, "the cycle to end", 600) is dg.DagsterRunStatus.FAILURE
    receiver.takes = 0
    assert "0 messages sent; " in (said := told(daemon, now + timedelta(minutes=1))) and "HTTP 503" in said
    receiver.takes = 100
    assert told(daemon, now + timedelta(minutes=2)) == "SKIPPED 1 messages sent"
    assert told(daemon, now + timedelta(minutes=3)) == "SKIPPED 0 messages sent"
    (message,) = receiver.got
    assert message["run"] == cycle.run_id and "has no photos yet: `mm drop FOLDER" in message["reasons"][0]
    written = [path for path in Path(instance.root_directory).rglob("*") if path.is_file()]
    assert len(written) > 5 and not [path for path in written if b"sEcReT" in path.read_bytes()]


def test_what_nobody_made_for_two_weeks_is_stale_and_told(daemon: WorkspaceProcessContext, receiver: Receiver) -> None:
    receiver.got.clear()
    key, now = dg.AssetKey("evaluation"), datetime.now(UTC)
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization(key))

    def after(**time: float) -> str:
        with freeze_time(now + timedelta(**time)):
            list(FreshnessDaemon().run_iteration(daemon))
        return daemon.instance.get_freshness_state_records([key])[key].freshness_state.value

    assert [after(days=7), after(days=9), after(days=16)] == ["PASS", "WARN", "FAIL"]
    assert told(daemon, now + timedelta(days=16)) == "SKIPPED 1 messages sent"
    assert [message["text"].split(":")[0] for message in receiver.got] == ["evaluation is stale"]
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization(key))
    assert after(days=7) == "PASS"


def tables(workspace: Path) -> dict[str, tuple[int, list[dict[str, str]]]]:
    """Version and rows of each table of the catalog, without times and what follows from them, and without what the
    number of threads rounds (`measured`)."""
    catalog = catalog_of(Layout(Settings.from_env(workspace, str(workspace / "inbox"))))
    found = {}
    for table in ("batches", "samples", "labels", "features"):
        rows = catalog.read(table).map(lambda value: repr(value).replace(str(workspace), ""))
        left_out = {"files", "statement", "numbers", "vector"}
        kept = rows[[name for name in sorted(rows) if not name.endswith("_at") and name not in left_out]]
        found[table] = (catalog.version(table), kept.sort_values([*kept]).to_dict("records"))
    return found


def measured(workspace: Path) -> list[dict[str, float]]:
    """What the features of each photo measured, in order: equal to one another up to rounding."""
    catalog = catalog_of(Layout(Settings.from_env(workspace, str(workspace / "inbox"))))
    rows = catalog.read("features").sort_values(["sample_id", "extractor"])
    return [
        {name: value for name, value in (numbers or {}).items() if value is not None}
        | {f"vector/{place}": value for place, value in enumerate([] if vector is None else vector)}
        for numbers, vector in zip(rows["numbers"], rows["vector"], strict=True)
    ]


def backfill(daemon: WorkspaceProcessContext, partitions: list[str]) -> str:
    """What *Backfill* on the page of the job `arrivals` asks for, carried out; returns how it ended."""
    instance = daemon.instance
    asked = PartitionBackfill(
        backfill_id=make_new_backfill_id(),
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=get_current_timestamp(),
        partition_set_origin=repository(daemon).get_partition_set("arrivals_partition_set").get_remote_origin(),
        partition_names=partitions,
    )
    instance.add_backfill(asked)

    def ended() -> str | None:
        assert not [error for error in execute_backfill_iteration(daemon, LOG) if error]
        list(coordinator.run_iteration(daemon))
        found = instance.get_backfill(asked.backfill_id)
        return found.status.value if found and found.status in BULK_ACTION_TERMINAL_STATUSES else None

    with QueuedRunCoordinatorDaemon(interval_seconds=1) as coordinator:
        return wait(ended, "the backfill to end", 900)


@pytest.mark.timeout(1800)
def test_a_backfill_takes_batches_as_one_after_the_other_and_again_brings_nothing(
    daemon: WorkspaceProcessContext, tmp_path: Path
) -> None:
    data, names = Settings.from_env().workspace, ["pixel_labeled/a", "unlabeled/b"]
    one_by_one = Layout(Settings.from_env(tmp_path))
    for seed, (kind, batch) in enumerate(name.split("/") for name in names):
        for inbox in (data / "inbox", tmp_path / "inbox"):
            write_drop(inbox, kind, batch, dict.fromkeys(ALL_CATEGORIES, 1), seed=seed, size=64)
        for stage in (stages.ingest, stages.structure):
            stage(Run(Params().with_values(**TINY), one_by_one), batch=f"{kind}/{batch}")
    daemon.instance.add_dynamic_partitions("batches", names)
    assert backfill(daemon, names) == "COMPLETED_SUCCESS"
    made, wanted = tables(data), tables(tmp_path)
    assert {name: rows for name, (_, rows) in made.items()} == {name: rows for name, (_, rows) in wanted.items()}
    for one, other in zip(measured(data), measured(tmp_path), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert [len(rows) for _, rows in made.values()] > [1, 13, 6, 13]
    assert backfill(daemon, names[:1]) == "COMPLETED_SUCCESS"
    assert tables(data) == made, "not even a new version"


def test_a_zone_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_TIME_ZONE", "Asia/Sanghai")
    with pytest.raises(InputError, match="such as Asia/Shanghai"):
        time_zone()
    for odd in ("../../etc/passwd", "/etc/passwd", "Asia"):
        monkeypatch.setenv("MM_TIME_ZONE", odd)
        with pytest.raises(InputError):
            time_zone()
