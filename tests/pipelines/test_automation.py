"""When photos go to people without anybody starting it: Dagster's own evaluation of the conditions."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest

from pipelines.definitions import defs
from pipelines.defs.automation import automation

ROUTE = {"routed", "label_studio_tasks"}
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


class Daemon:
    """Evaluates the conditions as the daemon does, with the cursor of the tick before."""

    def __init__(self, instance: dg.DagsterInstance):
        self.instance, self.cursor = instance, None

    def tick(self, at: datetime = NOON) -> set[str]:
        result = dg.evaluate_automation_conditions(defs, self.instance, evaluation_time=at, cursor=self.cursor)
        self.cursor = result.cursor
        keys = (dg.AssetKey(name) for name in ROUTE)
        return {key.to_user_string() for key in keys if result.get_num_requested(key)}

    def made(self, asset: str, partition: str | None = None) -> None:
        if partition:
            self.instance.add_dynamic_partitions("batches", [partition])
        self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with dg.DagsterInstance.ephemeral() as instance:
        made = Daemon(instance)
        made.made("structured_samples", "unlabeled/w00")
        assert made.tick() == set(), "what happened before the first tick starts nothing"
        yield made


def test_after_structuring_photos_are_routed_and_pushed_in_one_run(daemon: Daemon) -> None:
    daemon.made("structured_samples", "unlabeled/w01")
    daemon.made("structured_samples", "unlabeled/w02")
    assert daemon.tick() == ROUTE
    assert daemon.tick() == set()


def test_after_a_promotion_photos_are_routed(daemon: Daemon) -> None:
    daemon.made("promoted_model")
    assert daemon.tick() == ROUTE
    assert daemon.tick() == set()


def test_other_assets_start_nothing(daemon: Daemon) -> None:
    for asset in ("gate", "evaluation", "collected_labels"):
        daemon.made(asset)
    assert daemon.tick() == set()


def test_a_new_day_has_a_new_budget(daemon: Daemon) -> None:
    assert daemon.tick(NOON.replace(hour=23)) == set()
    assert daemon.tick(NOON.replace(day=5, hour=0, minute=6)) == ROUTE
    assert daemon.tick(NOON.replace(day=5, hour=9)) == set()


def test_routing_waits_for_the_arrivals_that_still_run(daemon: Daemon) -> None:
    daemon.instance.add_dynamic_partitions("batches", ["unlabeled/w03"])
    daemon.made("structured_samples", "unlabeled/w01")
    job = defs.resolve_job_def("arrivals")
    run = daemon.instance.create_run_for_job(
        job, tags={"dagster/partition": "unlabeled/w03"}, status=dg.DagsterRunStatus.STARTED
    )
    assert daemon.tick() == set()
    daemon.instance.report_run_canceled(run)
    assert daemon.tick() == ROUTE


def test_the_daemon_evaluates_them_and_one_such_run_works_at_a_time() -> None:
    (sensor,) = [s for s in defs.sensors or () if isinstance(s, dg.AutomationConditionSensorDefinition)]
    assert sensor is automation and sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert "matting/people" in automation.run_tags and "matting/people" in defs.resolve_job_def("route").tags
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in automation.asset_selection.resolve(graph)} == ROUTE
