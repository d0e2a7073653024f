"""Parameters of one run from the launchpad: checked like params.yaml, used by the run, recorded with it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._config import Shape

from mm_core.core.errors import ParamsError
from mm_core.core.params import Params
from mm_core.core.params_file import dotted_names, merge_values
from pipelines.definitions import defs
from pipelines.defs.checks import ACCEPTED
from pipelines.resources import PARAMS_TAG
from pipelines.run_params import RunParams, dotted
from tests.pipelines.conftest import Plant

KEY = "unlabeled/small"


@pytest.fixture(scope="module")
def history() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        made.add_dynamic_partitions("batches", [KEY])
        yield made


def arrive(instance: dg.DagsterInstance, overrides: dict[str, Any]) -> dg.ExecuteInProcessResult:
    config = {"resources": {"workspace": {"config": {"overrides": overrides}}}}
    job = defs.resolve_job_def("arrivals")
    return job.execute_in_process(
        instance=instance, partition_key=KEY, run_config=config, raise_on_error=False, tags={"by": "a person"}
    )


def reason(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = result.get_step_failure_events()
    return str(failure.step_failure_data.user_failure_data.description)


def test_values_out_of_bounds_fail_in_one_line_that_names_the_field(plant: Plant, history: dg.DagsterInstance) -> None:
    plant.drop("unlabeled", "small", 1, seed=1)
    wrong = arrive(history, {"ingest": {"max_reject_share": 2.0}})
    assert reason(wrong).startswith("workspace.overrides of this run: ingest.max_reject_share: Input should be less")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [({"ingest": {"min_sid": 65}}, 'unexpected config entry "min_sid"'), ({"ingest": {"min_side": "x"}}, "min_side")],
)
def test_unknown_names_and_wrong_types_are_refused_before_the_run_starts(
    overrides: dict[str, Any], words: str, plant: Plant, history: dg.DagsterInstance
) -> None:
    before = history.get_runs_count()
    with pytest.raises(dg.DagsterInvalidConfigError, match=words):
        arrive(history, overrides)
    assert history.get_runs_count() == before


def test_a_run_uses_its_own_values_and_records_them(plant: Plant, history: dg.DagsterInstance) -> None:
    """The photos have 64 pixels: this run refuses them, and the run after it with the file's values takes them."""
    mine = arrive(history, {"ingest": {"min_side": 65}})
    assert "too small" in reason(mine)
    run = history.get_run_by_id(mine.run_id)
    assert run is not None and run.tags[PARAMS_TAG] == "ingest.min_side=65"
    assert run.run_config["resources"]["workspace"]["config"]["overrides"] == {"ingest": {"min_side": 65}}
    (plant.inbox / KEY / "manifest.csv").open("a").write("\n")
    plain = arrive(history, {})
    (accepted,) = [check for check in plain.get_asset_check_evaluations() if check.check_name == ACCEPTED]
    assert plain.success and accepted.passed
    run = history.get_run_by_id(plain.run_id)
    assert run is not None and PARAMS_TAG not in run.tags


def test_merged_values_leave_the_others_and_replace_a_dict_value_as_a_whole() -> None:
    params = merge_values(Params(), {"train": {"simple": {"steps": 7}}, "gate": {"floors": {"mse": 0.5}}}, "here")
    assert params == Params().with_values(**{"train.simple.steps": 7, "gate.floors": {"mse": 0.5}})
    with pytest.raises(ParamsError, match="^here: train.simple.stps: .*did you mean train.simple.steps"):
        merge_values(Params(), {"train": {"simple": {"stps": 7}}}, "here")


def test_every_parameter_is_in_the_launchpad_with_its_documentation() -> None:
    def names(shape: Shape, prefix: str = "") -> Iterator[str]:
        for name, field in shape.fields.items():
            assert field.description, prefix + name
            yield prefix + name
            inner = getattr(field.config_type, "inner_type", None)
            if isinstance(inner, Shape):
                yield from names(inner, f"{prefix}{name}.")

    shape = RunParams.to_config_schema().config_type
    assert isinstance(shape, Shape)
    assert set(names(shape)) == set(dotted_names(Params))
    assert list(dotted({"a": {"b": 1}, "c": [2]})) == ["a.b=1", "c=[2]"]


def test_every_config_field_of_ops_and_resources_has_a_description() -> None:
    def undocumented(schema: Any, path: str) -> Iterator[str]:
        fields = getattr(getattr(schema, "config_type", schema), "fields", {})
        for name, field in fields.items():
            if not field.description:
                yield f"{path}.{name}"

    repository = defs.get_repository_def()
    missing: list[str] = []
    for job in repository.get_all_jobs():
        for node in job.nodes:
            missing += undocumented(node.definition.config_schema, node.name)
    for name, resource in repository.get_top_level_resources().items():
        missing += undocumented(resource.config_schema, name)
    assert not missing
