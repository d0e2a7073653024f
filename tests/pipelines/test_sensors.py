"""The sensors, called as the daemon calls them: one drop one run, enough labels one cycle."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest

from mm_core import stages
from mm_core.core.records import Verdict, write_json
from mm_core.labeling.label_studio_format import inbox
from mm_core.labeling.webhook import hint
from mm_core.pinned_inputs import Run
from mm_core.storage.run import catalog_of
from pipelines.definitions import defs
from pipelines.defs import sensors
from pipelines.defs.sensors import MAX_TRIES, drifted_arrivals, finished_work, new_arrivals, new_labels
from pipelines.resources import RetrainPolicy, Workspace
from tests.pipelines.conftest import Plant


@pytest.fixture
def workspace() -> Workspace:
    return Workspace()


def arrivals_tick(
    workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    result = new_arrivals(dg.build_sensor_context(instance=instance, cursor=cursor), workspace=workspace)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def labels_tick(
    workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None, at_least: int
) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    result = new_labels(context, workspace=workspace, retrain_policy=RetrainPolicy(new_labels=at_least))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def said(result: dg.SensorResult | dg.SkipReason) -> str:
    """Why a tick asked for nothing."""
    assert isinstance(result, dg.SkipReason)
    return result.skip_message or ""


def test_a_drop_is_asked_for_once_and_again_when_its_manifest_changes(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    assert isinstance(arrivals_tick(workspace, instance, None), dg.SkipReason)
    folder = plant.drop("pixel_labeled", "w01", 1, seed=1)

    first = arrivals_tick(workspace, instance, None)
    assert isinstance(first, dg.SensorResult)
    (request,) = first.run_requests or []
    assert request.partition_key == "pixel_labeled/w01"
    # The list of runs shows the tag: a short one.
    assert request.run_key and request.run_key.startswith(request.tags["matting/request"])
    assert len(request.tags["matting/request"]) == 12
    (partitions,) = first.dynamic_partitions_requests or []
    assert partitions.partition_keys == ["pixel_labeled/w01"]
    assert isinstance(arrivals_tick(workspace, instance, first.cursor), dg.SkipReason)

    manifest = folder / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    changed = arrivals_tick(workspace, instance, first.cursor)
    assert isinstance(changed, dg.SensorResult)
    (again,) = changed.run_requests or []
    assert again.partition_key == request.partition_key and again.run_key != request.run_key


@pytest.fixture
def fresh() -> Iterator[dg.DagsterInstance]:
    """A history without any run."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def requests(result: dg.SensorResult | dg.SkipReason) -> list[dg.RunRequest]:
    return list(result.run_requests or []) if isinstance(result, dg.SensorResult) else []


def run_of(instance: dg.DagsterInstance, request: dg.RunRequest) -> dg.DagsterRun:
    job = defs.resolve_job_def("retrain")
    return instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED)


def test_a_drop_whose_run_was_lost_is_asked_for_again_but_not_for_ever(
    plant: Plant, workspace: Workspace, fresh: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code location that is away while its run starts: the run fails, and Dagster cannot start it again itself."""
    first = arrivals_tick(workspace, fresh, None)
    assert isinstance(first, dg.SensorResult)
    (request,) = requests(first)
    keys = [request.run_key]
    for _ in range(MAX_TRIES - 1):
        fresh.report_run_failed(run_of(fresh, request))
        assert not requests(arrivals_tick(workspace, fresh, first.cursor)), "Dagster may still start it again"
        with monkeypatch.context() as patch:
            patch.setattr(sensors, "SETTLED", 0.0)
            (again,) = requests(arrivals_tick(workspace, fresh, first.cursor))
        keys.append(again.run_key)
        assert (again.partition_key, again.tags) == (request.partition_key, request.tags)
    assert len(set(keys)) == MAX_TRIES, "each key is taken once"
    monkeypatch.setattr(sensors, "SETTLED", 0.0)
    fresh.report_run_failed(last := run_of(fresh, request))
    assert not requests(arrivals_tick(workspace, fresh, first.cursor)), "that is enough"
    fresh.delete_run(last.run_id)
    going = run_of(fresh, request)
    assert not requests(arrivals_tick(workspace, fresh, first.cursor)), "one is on its way"
    fresh.report_run_canceled(going)
    assert not requests(arrivals_tick(workspace, fresh, first.cursor)), "a person did not want it"


def test_what_the_catalog_holds_is_not_asked_for_even_without_a_cursor(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    stages.ingest(Run(workspace.params(), plant.layout))
    assert isinstance(arrivals_tick(workspace, instance, None), dg.SkipReason)


def test_a_cycle_starts_at_the_threshold_and_counts_from_there(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    known = len(catalog_of(plant.layout).read("labels"))
    assert known > 2
    assert f"{known} new labels" in said(labels_tick(workspace, instance, None, known + 1))
    asked = labels_tick(workspace, instance, None, known)
    assert isinstance(asked, dg.SensorResult) and len(asked.run_requests or []) == 1
    assert "0 new labels" in said(labels_tick(workspace, instance, asked.cursor, 1))


def test_a_cycle_that_was_lost_is_asked_for_again(
    plant: Plant, workspace: Workspace, fresh: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "SETTLED", 0.0)
    known = len(catalog_of(plant.layout).read("labels"))
    asked = labels_tick(workspace, fresh, None, known)
    assert isinstance(asked, dg.SensorResult)
    (request,) = requests(asked)
    fresh.report_run_failed(run_of(fresh, request))
    (again,) = requests(labels_tick(workspace, fresh, asked.cursor, 1))
    assert again.run_key != request.run_key and again.tags["matting/request"] == request.tags["matting/request"]
    run_of(fresh, again)
    assert "0 new labels" in said(labels_tick(workspace, fresh, asked.cursor, 1))


def test_labels_of_a_cycle_that_a_person_started_are_not_new(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    params = workspace.params()
    stages.pin_inputs(Run(params, plant.layout))
    stages.snapshot(Run(params, plant.layout))
    assert "0 new labels" in said(labels_tick(workspace, instance, None, 1))


def test_a_cycle_waits_for_arrivals_that_still_run(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    job = defs.resolve_job_def("arrivals")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "1 arrivals" in said(labels_tick(workspace, instance, None, 0))
    instance.report_run_failed(run)
    assert isinstance(labels_tick(workspace, instance, None, 0), dg.SensorResult)


def test_after_a_refusal_fewer_labels_are_enough(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    known = len(catalog_of(plant.layout).read("labels"))
    write_json(plant.layout.verdict, verdict("REJECT"))
    plant.layout.snapshot.rename(plant.layout.snapshot.with_name("aside"))
    context = dg.build_sensor_context(instance=instance, cursor="1")
    try:
        policy = RetrainPolicy(new_labels=known, new_labels_after_refusal=known - 1)
        asked = new_labels(context, workspace=workspace, retrain_policy=policy)
        assert isinstance(asked, dg.SensorResult)
        for no_refusal in ("INCONCLUSIVE", "PROMOTE"):
            write_json(plant.layout.verdict, verdict(no_refusal))
            context = dg.build_sensor_context(instance=instance, cursor="1")
            waits = new_labels(context, workspace=workspace, retrain_policy=policy)
            assert isinstance(waits, dg.SkipReason) and "after a refusal" not in said(waits)
    finally:
        plant.layout.snapshot.with_name("aside").rename(plant.layout.snapshot)
        plant.layout.verdict.unlink()


def verdict(decision: str) -> dict:
    return Verdict(
        decision=decision,  # type: ignore[arg-type]
        basis="paired",
        reasons=[],
        candidate="c",
        champion=None,
        anchor=None,
        snapshot="s",
        eval_digest="e",
        cells=[],
        created_at="2026-01-01T00:00:00+00:00",
    ).model_dump()


def drift_tick(workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None, at_least: int = 1):
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    return drifted_arrivals(context, workspace=workspace, retrain_policy=RetrainPolicy(drifted_batches=at_least))


def test_drifted_batches_start_a_cycle_once(plant: Plant, workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """One that the last cycle has seen already, and one that did not drift, start none."""
    for batch, words in {
        "pixel_labeled/w01": "drifted: brightness",
        "unlabeled/w02": "drifted: category",
        "unlabeled/w03": "no drift",
    }.items():
        write_json(plant.layout.drift / f"{batch}.json", {"said": words, "rows": []})
    assert "1 drifted batches" in said(drift_tick(workspace, instance, None, 2))
    asked = drift_tick(workspace, instance, None)
    assert isinstance(asked, dg.SensorResult)
    (request,) = asked.run_requests or []
    assert request.tags["matting/drifted"] == "1"
    assert "0 drifted batches" in said(drift_tick(workspace, instance, asked.cursor))


def work_tick(
    workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    result = finished_work(dg.build_sensor_context(instance=instance, cursor=cursor), workspace=workspace)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def test_an_export_in_the_inbox_is_collected_once(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    assert "no finished work" in said(work_tick(workspace, instance, None))
    inbox(plant.layout).mkdir(parents=True)
    (inbox(plant.layout) / "export.json").write_text("[]")
    asked = work_tick(workspace, instance, None)
    assert isinstance(asked, dg.SensorResult) and len(asked.run_requests or []) == 1
    assert "last checked" in said(work_tick(workspace, instance, asked.cursor))
    time.sleep(0.01)
    hint(plant.layout).touch()  # the server called
    assert "been requested" in said(work_tick(workspace, instance, asked.cursor))
    stages.collect(Run(workspace.params(), plant.layout))
    assert "no finished work" in said(work_tick(workspace, instance, asked.cursor))


def test_a_server_that_does_not_answer_is_said_and_asks_for_nothing(
    plant: Plant, workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm_core.labeling.label_studio_http.TRIES", 1)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    assert "LABEL_STUDIO_API_KEY" in said(work_tick(workspace, instance, None))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "key")
    assert "does not answer" in said(work_tick(workspace, instance, None))
