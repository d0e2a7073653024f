"""What Dagster shows of a refused drop, in process: failed checks, a red partition, one short message."""

import csv
from collections.abc import Iterator
from urllib.parse import unquote

import dagster as dg
import pytest
from dagster._core.storage.dagster_run import DagsterRun

from mm_core import stages
from pipelines.definitions import defs
from pipelines.defs.checks import ACCEPTED, ARRIVAL_ASSETS, PLANNED
from pipelines.defs.external_runs import made_elsewhere
from pipelines.defs.notify import notifications
from pipelines.partitions import batches
from pipelines.resources import Workspace
from pipelines.run_names import run_name
from tests.pipelines.conftest import Plant
from tests.servers import Receiver

INGESTED = dg.AssetKey("ingested_batch")
BROKEN, GOOD = "pixel_labeled/broken", "pixel_labeled/good"


@pytest.fixture(scope="module")
def history() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


def arrive(instance: dg.DagsterInstance, key: str) -> dg.ExecuteInProcessResult:
    """Run the job as the sensor requests it: both assets, and one planned check."""
    instance.add_dynamic_partitions("batches", [key])
    job = defs.resolve_job_def("arrivals")
    subset = job.get_subset(asset_selection={*ARRIVAL_ASSETS}, asset_check_selection={*PLANNED})
    return subset.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)


def break_photos(plant: Plant, key: str) -> None:
    with (plant.inbox / key / "manifest.csv").open() as manifest:
        for row in csv.DictReader(manifest):
            (plant.inbox / key / row["image"]).write_bytes(b"no photo")


@pytest.fixture(scope="module")
def refused(plant: Plant, history: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    plant.drop("pixel_labeled", "broken", 1, seed=1)
    break_photos(plant, BROKEN)
    return arrive(history, BROKEN)


@pytest.fixture(scope="module")
def taken(plant: Plant, history: dg.DagsterInstance, refused: dg.ExecuteInProcessResult) -> dg.ExecuteInProcessResult:
    plant.drop("pixel_labeled", "good", 1, seed=2)
    return arrive(history, GOOD)


def results(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """What the run's events say of checks, planned or not."""
    entries = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    checks = [entry.get_dagster_event().asset_check_evaluation_data for entry in entries]
    return {check.check_name: check for check in checks}


def shown(instance: dg.DagsterInstance, key: str) -> dict[str, str]:
    """Check → its last state for a batch, as Dagster's page of the asset shows it."""
    keys = [*defs.resolve_asset_graph().asset_check_keys]
    infos = instance.event_log_storage.get_asset_check_partition_info(keys)
    return {one.check_key.name: one.latest_execution_status.value for one in infos if one.partition_key == key}


def test_a_held_drop_is_a_failed_error_check_with_its_reason_and_a_red_partition(
    history: dg.DagsterInstance, refused: dg.ExecuteInProcessResult, taken: dg.ExecuteInProcessResult
) -> None:
    assert not refused.success and taken.success
    check = results(history, refused)[ACCEPTED]
    assert not check.passed and check.severity is dg.AssetCheckSeverity.ERROR
    assert "too many bad rows: 7 of 7" in str(check.description)
    (failure,) = refused.get_step_failure_events()
    assert str(check.description) in str(failure.step_failure_data.user_failure_data.description)
    states = history.get_status_by_partition(INGESTED, [BROKEN, GOOD], batches)
    assert states and {key: state.value for key, state in states.items() if state} == {
        BROKEN: "FAILED",
        GOOD: "MATERIALIZED",
    }


def test_the_next_good_drop_does_not_hide_the_broken_one(
    history: dg.DagsterInstance, refused: dg.ExecuteInProcessResult, taken: dg.ExecuteInProcessResult
) -> None:
    accepted = results(history, taken)[ACCEPTED]
    assert accepted.passed and accepted.partition == GOOD
    assert (shown(history, BROKEN)[ACCEPTED], shown(history, GOOD)[ACCEPTED]) == ("FAILED", "SUCCEEDED")


def test_a_rule_that_was_not_evaluated_has_no_result(
    plant: Plant, history: dg.DagsterInstance, refused: dg.ExecuteInProcessResult
) -> None:
    """Rules of other kinds, mixes and drift without enough photos, and rules behind an unreadable manifest."""
    broken = results(history, refused)
    assert "caption_there" not in broken and not broken["image_is_an_image"].passed
    # No photo of that drop could be decoded, so no rule about pixels was evaluated.
    assert not broken.keys() & {"image_decodes", "alpha_is_grey", "matte_area", "soft_edges", "size_mix"}
    # Dagster shows a planned check without a result as failed if its run fails: none is planned.
    states = shown(history, BROKEN)
    assert states == {name: "SUCCEEDED" if check.passed else "FAILED" for name, check in broken.items()}
    plant.drop("unlabeled", "w01", 1, seed=3)
    unlabelled = arrive(history, "unlabeled/w01")
    names = set(results(history, unlabelled))
    assert unlabelled.success and "image_decodes" in names
    assert not names & {"alpha_exists", "matte_area", "caption_there", "few_suspects", "size_mix", "drift"}
    assert set(shown(history, "unlabeled/w01")) == names
    folder = plant.drop("unlabeled", "columns", 1, seed=4)
    (folder / "manifest.csv").write_text("photo\nx.jpg\n")
    unread = arrive(history, "unlabeled/columns")
    assert set(shown(history, "unlabeled/columns")) == {ACCEPTED}
    assert "image" in str(results(history, unread)[ACCEPTED].description)


def test_people_get_one_short_message_with_counts_reason_and_links(
    plant: Plant, history: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_DAGSTER_URL", "http://dagster.example/")
    monkeypatch.setenv("MM_PAGES_URL", "http://pages.example")
    plant.drop("unlabeled", "bad", 1, seed=5)
    break_photos(plant, "unlabeled/bad")
    with Receiver() as server:
        monkeypatch.setenv("MM_WEBHOOK_URL", server.url)
        context = dg.build_sensor_context(instance=history, definitions=defs)
        notifications(context)
        result = arrive(history, "unlabeled/bad")
        notifications(dg.build_sensor_context(instance=history, cursor=context.cursor, definitions=defs))
        (message,) = server.got
    lines = message["text"].splitlines()
    assert lines[0] == "arrivals of unlabeled/bad: failed; 7 rows, 7 quarantined"
    assert lines[1].startswith("- ingested_batch: the drop is refused: too many bad rows")
    run, docs = lines[2:]
    assert run == f"Run: http://dagster.example/runs/{result.run_id}"
    page = unquote(docs.removeprefix("Data Docs: http://pages.example/"))
    assert page.startswith("data_docs/validations/unlabeled row rules/bad/") and (plant.layout.root / page).is_file()
    assert message["counts"] == {"rows": 7, "quarantined": 7}


def test_a_run_without_a_job_is_named_by_its_assets() -> None:
    keys = frozenset({dg.AssetKey("routed"), dg.AssetKey("label_studio_tasks")})
    run = DagsterRun(job_name="__ASSET_JOB", asset_selection=keys)
    assert run_name(run) == "label_studio_tasks, routed"
    assert run_name(DagsterRun(job_name="arrivals", tags={"dagster/partition": "unlabeled/w01"})) == (
        "arrivals of unlabeled/w01"
    )


def test_a_drop_that_another_command_held_gets_a_run_that_fails(plant: Plant, history: dg.DagsterInstance) -> None:
    plant.drop("unlabeled", "elsewhere", 1, seed=6)
    break_photos(plant, "unlabeled/elsewhere")
    stages.ingest(Workspace().run())

    def requests() -> list[dg.RunRequest]:
        told = made_elsewhere(dg.build_sensor_context(instance=history), workspace=Workspace())
        return list(told.run_requests or []) if isinstance(told, dg.SensorResult) else []

    (request,) = requests()
    assert request.partition_key == "unlabeled/elsewhere" and request.asset_check_keys
    assert not arrive(history, "unlabeled/elsewhere").success
    assert requests() == []
