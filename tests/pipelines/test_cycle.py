"""The flow for real, in process: arrivals, a cycle that the gate refuses, the same model released after all."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.locks import user_name
from mm_core.core.pins import read_snapshot
from mm_core.export.registry import Registry
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.pinned_inputs import recorded_verdict
from mm_core.storage.run import catalog_of
from pipelines.definitions import defs
from pipelines.defs.checks import no_leak
from pipelines.defs.external_runs import made_elsewhere
from pipelines.defs.moments import moments
from pipelines.resources import Workspace
from samplegen.gallery import PlantedEvent, write_gallery
from tests.pipelines.conftest import Plant

FEW_GROUPS = 0.4
"""An error level that two scenes per category can show something at; the gate's own tests cover the sane ones."""
CYCLE_STEPS = {
    "pinned_inputs",
    "snapshot",
    "split",
    *(f"train_{stage}" for stage in TRAIN_STAGES),
    "evaluation",
    "gate",
    "label_comparison",
    "cycle_report",
}


def run(job: str, instance: dg.DagsterInstance, **options) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, **options)


def materialised(result: dg.ExecuteInProcessResult) -> set[str]:
    events = result.get_asset_materialization_events()
    return {event.asset_key.to_user_string() for event in events if event.asset_key}


def skipped(result: dg.ExecuteInProcessResult) -> set[str]:
    return {str(event.step_key) for event in result.all_events if event.is_step_skipped}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


@pytest.fixture(scope="module")
def arrived(plant: Plant, instance: dg.DagsterInstance) -> list[dg.ExecuteInProcessResult]:
    """Four drops, each ingested and structured by a run of its own."""
    plant.write_params(**{"drift.min_photos": 10})
    plant.drop("pixel_labeled", "eval", 3, seed=1, role="eval")
    plant.drop("pixel_labeled", "w01", 4, seed=2, role="train")
    plant.drop("unlabeled", "w01", 1, seed=3)
    plant.drop("text_image", "w01", 1, seed=4)
    keys = ["pixel_labeled/eval", "pixel_labeled/w01", "unlabeled/w01", "text_image/w01"]
    instance.add_dynamic_partitions("batches", keys)
    return [run("arrivals", instance, partition_key=key) for key in keys]


@pytest.fixture(scope="module")
def refused(plant: Plant, instance: dg.DagsterInstance, arrived: list) -> dg.ExecuteInProcessResult:
    """A cycle whose floors no model reaches."""
    plant.write_params(**{"gate.floors": {"mse": 1e-6}, "gate.alpha": FEW_GROUPS})
    return run("retrain", instance)


def test_each_batch_is_a_partition_with_its_checks(plant: Plant, arrived: list[dg.ExecuteInProcessResult]) -> None:
    assert all(result.success for result in arrived)
    assert [materialised(result) for result in arrived] == [{"ingested_batch", "structured_samples"}] * 4
    assert all(checks(result)["image_decodes"].passed for result in arrived)
    assert "drift" not in checks(arrived[0]) | checks(arrived[2]), "too few photos: no comparison, no result"
    shown = [checks(result)["drift"] for result in arrived if "drift" in checks(result)]
    assert shown and all(check.severity is dg.AssetCheckSeverity.WARN for check in shown)
    assert "drift" in shown[0].metadata and "drift pixel_labeled/w01" in shown[0].metadata
    samples = catalog_of(plant.layout).read("samples")
    assert dict(samples["kind"].value_counts()) == {"pixel_labeled": 49, "unlabeled": 7, "text_image": 7}
    assert set(catalog_of(plant.layout).read("features")["sample_id"]) == set(samples["id"])


def test_a_refusal_is_a_success_with_skipped_steps(plant: Plant, refused: dg.ExecuteInProcessResult) -> None:
    assert refused.success
    assert materialised(refused) == CYCLE_STEPS - {"gate"}
    assert skipped(refused) == {"exported_bundle", "promoted_model"}
    verdict = checks(refused)["promote"]
    assert not verdict.passed and verdict.severity is dg.AssetCheckSeverity.WARN
    assert "cells" in verdict.metadata
    assert checks(refused)["no_leak"].passed
    assert recorded_verdict(plant.layout).decision in ("REJECT", "INCONCLUSIVE")


def test_mlflow_names_the_job_that_started_a_cycle(plant: Plant, refused: dg.ExecuteInProcessResult) -> None:
    """Nobody typed `mm snapshot`."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=plant.layout.settings.mlflow_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'matting'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) > len(TRAIN_STAGES)
    assert {run.data.tags["mlflow.source.name"] for run in runs} == {"dagster retrain"}
    assert {run.data.tags["mlflow.user"] for run in runs} == {user_name()}


def test_each_asset_of_a_cycle_has_the_version_of_its_content(plant: Plant, refused: dg.ExecuteInProcessResult) -> None:
    made = {
        event.asset_key.to_user_string(): event.materialization for event in refused.get_asset_materialization_events()
    }
    own = {name for name, one in made.items() if (one.tags or {}).get("dagster/data_version_is_user_provided")}
    assert own == set(made) - {"cycle_report", "label_comparison"}, "a page has no version"
    rows = sum(len(read_pool(plant.layout.snapshot, pool)) for pool in POOLS)
    assert made["snapshot"].metadata["dagster/row_count"].value == rows
    assert (made["snapshot"].tags or {})["dagster/data_version"] == read_snapshot(plant.layout)["digest"][:16]


def test_training_says_how_far_it_is(refused: dg.ExecuteInProcessResult) -> None:
    observed = [event for event in refused.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    about = {event.asset_key.to_user_string() for event in observed if event.asset_key}
    assert {f"train_{stage}" for stage in TRAIN_STAGES} <= about


def test_the_same_cycle_again_trains_nothing(instance: dg.DagsterInstance, refused: dg.ExecuteInProcessResult) -> None:
    again = defs.resolve_job_def("retrain").execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey(f"train_{stage}") for stage in TRAIN_STAGES]
    )
    for event in again.get_asset_materialization_events():
        assert "reused" in event.materialization.metadata, event.asset_key


def test_a_cycle_with_nothing_new_is_a_success_of_skipped_steps(
    plant: Plant, instance: dg.DagsterInstance, refused: dg.ExecuteInProcessResult
) -> None:
    nothing = run("retrain", instance)
    assert nothing.success and materialised(nothing) == set()
    assert skipped(nothing) >= CYCLE_STEPS - {"pinned_inputs"}
    (said,) = [event for event in nothing.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    assert "nothing new" in (said.event_specific_data.asset_observation.description or "")


def test_a_person_may_ask_for_the_cycle_again(
    plant: Plant, instance: dg.DagsterInstance, refused: dg.ExecuteInProcessResult
) -> None:
    config = {"ops": {"pinned_inputs": {"config": {"again": True}}}}
    again = run("retrain", instance, run_config=config, asset_selection=[dg.AssetKey("pinned_inputs")])
    assert materialised(again) == {"pinned_inputs"}


@pytest.mark.parametrize("asset", ["exported_bundle", "promoted_model"])
def test_asked_alone_nothing_leaves_that_the_gate_refused(
    asset: str, instance: dg.DagsterInstance, refused: dg.ExecuteInProcessResult
) -> None:
    alone = defs.resolve_job_def("release").execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey(asset)], raise_on_error=False
    )
    (failure,) = alone.get_step_failure_events()
    assert not alone.success and not materialised(alone)
    said = failure.step_failure_data.user_failure_data
    assert said and (said.description or "").startswith("the gate said ")


def test_a_leak_in_the_frozen_files_stops_training(plant: Plant, refused: dg.ExecuteInProcessResult) -> None:
    frozen = plant.layout.snapshot / "train_labeled.parquet"
    before = frozen.read_bytes()
    frozen.write_bytes((plant.layout.snapshot / "eval.parquet").read_bytes())
    leak = no_leak(workspace=Workspace())
    frozen.write_bytes(before)
    assert isinstance(leak, dg.AssetCheckResult)
    assert (
        not leak.passed and leak.severity is dg.AssetCheckSeverity.ERROR and "train_labeled" in (leak.description or "")
    )
    (spec,) = no_leak.check_specs
    assert spec.blocking


@pytest.fixture(scope="module")
def released(plant: Plant, instance: dg.DagsterInstance, refused: dg.ExecuteInProcessResult):
    """The refused model, past a gate with other floors: it is champion now."""
    plant.write_params(**{"gate.floors": {"mse": 1.0}, "gate.alpha": FEW_GROUPS})
    return run("release", instance)


def test_the_same_model_is_released_once_the_gate_lets_it_pass(
    plant: Plant, released: dg.ExecuteInProcessResult
) -> None:
    assert released.success and checks(released)["promote"].passed
    assert materialised(released) == {"gate", "exported_bundle", "promoted_model", "cycle_report"}
    order = [event.step_key for event in released.all_events if event.is_step_success]
    assert order[-1] == "cycle_report"
    exported = json.loads((plant.layout.cycle_bundle / "export.json").read_text())
    assert exported


def name_of(made: dg.AssetMaterialization) -> str:
    return made.asset_key.to_user_string()


def pictures(made: dg.AssetMaterialization) -> set[str]:
    return {name for name, value in made.metadata.items() if isinstance(value, dg.MarkdownMetadataValue)}


def materializations(instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
    """Every materialization that the instance has, the oldest first."""
    made = []
    for key in instance.all_asset_keys():
        records = instance.fetch_materializations(key, limit=100).records
        made += [record.asset_materialization for record in reversed(records)]
    return made


def told(instance: dg.DagsterInstance) -> list[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """What a tick of `made_elsewhere` says; the instance has heard it."""
    result = made_elsewhere(dg.build_sensor_context(instance=instance), workspace=Workspace())
    events = [e for e in getattr(result, "asset_events", []) if not isinstance(e, dg.AssetObservation)]
    for event in events:
        instance.report_runless_asset_event(event)
    return events


def test_what_was_made_by_another_door_is_told_once(
    plant: Plant, instance: dg.DagsterInstance, released: dg.ExecuteInProcessResult
) -> None:
    """Another history than that of the runs sees them as someone else's work; theirs has nothing to hear."""
    assert told(instance) == []
    with dg.DagsterInstance.ephemeral() as other:
        events = told(other)
        made = [event for event in events if isinstance(event, dg.AssetMaterialization)]
        assert {m.asset_key.to_user_string() for m in made} >= CYCLE_STEPS | {"exported_bundle", "promoted_model"}
        arrived = {m.partition: m.metadata["ingest/accepted"].value for m in made if name_of(m) == "ingested_batch"}
        assert arrived == {"pixel_labeled/eval": 21, "pixel_labeled/w01": 28, "unlabeled/w01": 7, "text_image/w01": 7}
        own = {(name_of(m), m.partition): m for m in materializations(instance)}
        for event in made:
            expected = own.get((name_of(event), event.partition))
            if expected is None or name_of(event) in ("cycle_report", "label_comparison"):
                continue
            assert event.tags and event.tags["dagster/data_version"] == (expected.tags or {})["dagster/data_version"]
            assert pictures(event) == pictures(expected), name_of(event)
            for key in ("dagster/row_count", "dagster/column_schema"):
                assert event.metadata.get(key) == expected.metadata.get(key), (name_of(event), key)
        (verdict,) = [event for event in events if isinstance(event, dg.AssetCheckEvaluation)]
        assert verdict.passed and verdict.check_name == "promote"
        assert told(other) == []
        job = defs.resolve_job_def("retrain")
        other.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        plant.layout.stage_report("gate").touch()
        assert told(other) == [], "a run tells itself what it makes"


def test_the_champion_makes_moments_of_the_gallery(
    plant: Plant, instance: dg.DagsterInstance, released: dg.ExecuteInProcessResult
) -> None:
    noon = datetime(2026, 5, 2, 12)
    events = [
        PlantedEvent(noon, 2, (48.2, 16.37), ("portrait", "pets"), 4),
        PlantedEvent(noon + timedelta(days=2), 2, (47.07, 15.44), ("scenery", "delicacy"), 3),
    ]
    write_gallery(plant.layout.settings.gallery, events, size=96, bursts=0)
    made = dg.materialize([moments], instance=instance, resources={"workspace": Workspace()}, selection=[moments])
    (event,) = made.get_asset_materialization_events()
    shown = event.materialization.metadata
    told = json.loads(Path(str(shown["moments.json"].value)).read_text())["moments"]
    assert [len(moment["photos"]) for moment in told] == [4, 3]
    assert shown["moments/photos"].value == 7 and shown["moments/looked_at"].value == 7
    assert shown["model"].value == Registry(plant.layout.settings).pin("champion")["version"]
    pieces = [piece for moment in told for piece in moment["pieces"]]
    assert shown["moments/pieces"].value == len(pieces), "none, where four steps of training taught no subject"
    assert all((plant.layout.moments / piece["file"]).is_file() for piece in pieces)
    pictures = [name for name, value in shown.items() if isinstance(value, dg.MarkdownMetadataValue)]
    assert set(pictures) == {moment["title"] for moment in told if moment["pieces"]}

    again = dg.materialize([moments], instance=instance, resources={"workspace": Workspace()}, selection=[moments])
    (event,) = again.get_asset_materialization_events()
    numbers = {name: event.materialization.metadata[f"moments/{name}"].value for name in ("looked_at", "made", "kept")}
    assert numbers == {"looked_at": 0, "made": 0, "kept": 2}


def test_people_are_asked_and_their_answers_fetched(
    plant: Plant, instance: dg.DagsterInstance, refused: dg.ExecuteInProcessResult
) -> None:
    routed = run("route", instance)
    assert routed.success and materialised(routed) == {"routed", "label_studio_tasks"}
    collected = run("collect", instance)
    assert collected.success and materialised(collected) == {"collected_labels"}
