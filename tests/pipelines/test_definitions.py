"""Everything loads, quickly, and the graph is that of the architecture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipelines.definitions import defs

PROJECT = Path(__file__).resolve().parents[2]
DEPS = {
    "ingested_batch": set(),
    "structured_samples": {"ingested_batch"},
    "routed": {"structured_samples"},
    "label_studio_tasks": {"routed"},
    "collected_labels": {"label_studio_tasks"},
    "pinned_inputs": {"structured_samples", "collected_labels"},
    "snapshot": {"pinned_inputs"},
    "split": {"snapshot"},
    "train_simple": {"split"},
    "train_hard": {"split", "train_simple"},
    "train_semi": {"train_hard"},
    "train_multimodal": {"train_semi"},
    "evaluation": {"snapshot", "train_multimodal"},
    "gate": {"evaluation"},
    "exported_bundle": {"gate"},
    "promoted_model": {"exported_bundle"},
    "label_comparison": {"evaluation"},
    "cycle_report": {"evaluation", "label_comparison"},
    "moments": {"promoted_model"},
}
GROUPS = {
    "arrivals": {"ingested_batch", "structured_samples", "routed", "label_studio_tasks", "collected_labels"},
    "learning": {
        "pinned_inputs",
        "snapshot",
        "split",
        "train_simple",
        "train_hard",
        "train_semi",
        "train_multimodal",
    },
    "release": {"evaluation", "gate", "exported_bundle", "promoted_model", "label_comparison", "cycle_report"},
    "moments": {"moments"},
}


def names(keys) -> set[str]:
    return {key.to_user_string() for key in keys}


def test_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)


def test_the_graph_is_that_of_the_architecture() -> None:
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string(): names(graph.get(key).parent_keys) for key in graph.get_all_asset_keys()} == DEPS
    assert {
        group: {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).group_name == group}
        for group in GROUPS
    } == GROUPS


def test_every_asset_says_what_it_is_and_whose() -> None:
    for spec in defs.resolve_all_asset_specs():
        assert spec.description and spec.owners and spec.kinds and spec.tags["room"], spec.key


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("snapshot+", {"snapshot", "split", "evaluation"}),
        ("group:release", GROUPS["release"]),
        ("gate+*", {"gate", "exported_bundle", "promoted_model", "moments"}),
        ('kind:"onnx"', {"evaluation", "exported_bundle"}),
        ('tag:"room"="training"', {"train_simple", "train_hard", "train_semi", "train_multimodal"}),
        ('key:"train_*" and not key:"train_s*"', {"train_hard", "train_multimodal"}),
        ('roots(group:"learning")', {"pinned_inputs"}),
        ('1+key:"gate"+1', {"evaluation", "gate", "exported_bundle"}),
        ('owner:"team:matting" and group:"moments"', {"moments"}),
    ],
)
def test_string_selections_resolve(selection: str, expected: set[str]) -> None:
    assert names(dg.AssetSelection.from_string(selection).resolve(defs.resolve_asset_graph())) == expected


def test_only_arrivals_are_partitioned_and_only_what_trains_is_pooled() -> None:
    graph = defs.resolve_asset_graph()
    keys = graph.get_all_asset_keys()
    assert names(k for k in keys if graph.get(k).is_partitioned) == {"ingested_batch", "structured_samples"}
    pooled = {k.to_user_string() for k in keys if graph.get(k).pools}
    training = {"train_simple", "train_hard", "train_semi", "train_multimodal"}
    assert pooled == training | {"label_comparison"}, "which trains on routed and random labels"


def test_jobs_run_the_parts_of_the_flow() -> None:
    selected = {
        job: names(defs.resolve_job_def(job).asset_layer.executable_asset_keys) for job in ("arrivals", "retrain")
    }
    assert selected["arrivals"] == {"ingested_batch", "structured_samples"}
    assert selected["retrain"] == GROUPS["learning"] | GROUPS["release"]


def test_loading_imports_nothing_heavy() -> None:
    # deltalake (0.06 s of processor) and onnxruntime (0.2 s) are light and may be imported.
    heavy = ("torch", "mlflow", "great_expectations", "timm", "open_clip", "label_studio_sdk")
    code = f"import sys, pipelines.definitions; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert out.stdout.strip() == "[]"


def test_workspace_and_dg_point_to_the_same_definitions() -> None:
    import tomllib

    (entry,) = yaml.safe_load((PROJECT / "workspace.yaml").read_text())["load_from"]
    dg_tool = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["dg"]
    assert entry["python_module"]["module_name"] == dg_tool["project"]["code_location_target_module"]


def test_dg_finds_every_definition_in_its_own_layout(tmp_path: Path) -> None:
    """As `dg scaffold` lays a project out: definitions lie in `defs/` and are loaded without being listed."""
    assert (PROJECT / "pipelines" / "defs" / "arrivals.py").is_file()
    command = [Path(sys.executable).parent / "dg", "list", "defs", "--json"]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    listed = json.loads(done.stdout)
    assert {asset["asset_key"] for asset in listed["assets"]} == set(DEPS)
    assert {job["name"] for job in listed["jobs"]} >= {"arrivals", "retrain", "backup", "compact"}


def test_the_instance_file_is_valid_and_sends_nothing_home(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((PROJECT / "infra" / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled and instance.run_retries_enabled
        assert instance.global_op_concurrency_default_limit == 1
        runs = instance.get_concurrency_config().run_queue_config
        assert runs is not None and runs.max_concurrent_runs == 2, "each run may use a core"
