"""Versions and shapes that Dagster shows: computed code versions, data versions, rows and columns of one batch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from mm_core import stages
from mm_core.core.code_digest import code_digest
from mm_core.storage.run import catalog_of
from mm_core.storage.schemas import COLUMNS, SCHEMAS
from mm_core.structuring.split import COLUMNS as SPLIT_COLUMNS
from mm_core.structuring.split import SPLIT_SCHEMA
from pipelines import provenance
from pipelines.definitions import defs
from pipelines.provenance import parquet_rows
from pipelines.resources import Workspace
from tests.pipelines.conftest import Plant

KEY, OTHER = "unlabeled/w01", "unlabeled/w02"


@pytest.fixture(scope="module")
def history() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        made.add_dynamic_partitions("batches", [KEY, OTHER])
        yield made


def arrive(instance: dg.DagsterInstance, key: str) -> dict[str, dg.AssetMaterialization]:
    job = defs.resolve_job_def("arrivals")
    result = job.execute_in_process(instance=instance, partition_key=key)
    made = [event.materialization for event in result.get_asset_materialization_events()]
    return {one.asset_key.to_user_string(): one for one in made}


@pytest.fixture(scope="module")
def arrived(plant: Plant, history: dg.DagsterInstance) -> dict[str, dg.AssetMaterialization]:
    """One of two drops that wait for features; its run processes both."""
    plant.drop("unlabeled", "w01", 1, seed=1)
    plant.drop("unlabeled", "w02", 3, seed=2)
    stages.ingest(Workspace().run())
    return arrive(history, KEY)


def numbers(made: dg.AssetMaterialization) -> dict[str, object]:
    return {name: value.value for name, value in made.metadata.items()}


def test_metadata_of_a_partition_are_about_that_partition_only(arrived: dict[str, dg.AssetMaterialization]) -> None:
    shown = numbers(arrived["structured_samples"])
    assert (shown["images"], shown["structure/samples"], shown["structure/photos"]) == (7, 7, 7)
    assert shown["structure/processed"] == 28, "the run worked on the other batch too"
    assert set(shown["drift"]) == {KEY}  # type: ignore[call-overload]
    assert numbers(arrived["ingested_batch"])["images"] == 7
    for made in arrived.values():
        assert OTHER.partition("/")[2] not in repr(made.metadata)


def test_rows_and_columns_are_dagster_s_own_metadata(plant: Plant, arrived: dict[str, dg.AssetMaterialization]) -> None:
    assert numbers(arrived["ingested_batch"])["dagster/row_count"] == 7
    features = catalog_of(plant.layout).read("features")
    samples = catalog_of(plant.layout).read("samples")
    own = features["sample_id"].isin(samples[samples["batch"] == "w01"]["id"])
    assert numbers(arrived["structured_samples"])["dagster/row_count"] == own.sum() > 0
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    for asset, table in {
        "ingested_batch": "samples",
        "structured_samples": "features",
        "collected_labels": "labels",
    }.items():
        schema = specs[asset].metadata["dagster/column_schema"]
        assert [column.name for column in schema.columns] == SCHEMAS[table].names
        assert specs[asset].metadata["dagster/table_name"] == table
    for asset in ("snapshot", "evaluation"):
        assert specs[asset].metadata["dagster/column_schema"].columns


def test_every_column_of_a_table_is_described_in_the_catalog_s_own_words() -> None:
    specs = {spec.key.to_user_string(): spec.metadata for spec in defs.resolve_all_asset_specs()}
    schemas = {name: data["dagster/column_schema"] for name, data in specs.items() if "dagster/column_schema" in data}
    assert set(schemas) >= {"ingested_batch", "structured_samples", "collected_labels", "snapshot", "evaluation"}
    assert not [c.name for schema in schemas.values() for c in schema.columns if not c.description]
    described = {column.name: column.description for column in schemas["ingested_batch"].columns}
    assert described == {name: meaning for name, _, meaning in COLUMNS["samples"]}


def test_columns_of_written_files_are_described(tmp_path: Path) -> None:
    file = tmp_path / "simple.parquet"
    pq.write_table(SPLIT_SCHEMA.empty_table(), file)
    schema = parquet_rows([file], SPLIT_COLUMNS)["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchema)
    assert [column.name for column in schema.columns] == SPLIT_SCHEMA.names
    assert all(column.description for column in schema.columns)


def test_the_data_version_follows_the_content(
    history: dg.DagsterInstance, arrived: dict[str, dg.AssetMaterialization]
) -> None:
    again = arrive(history, KEY)
    for asset, made in arrived.items():
        assert made.tags and made.tags["dagster/data_version_is_user_provided"] == "true"
        assert made.tags["dagster/data_version"] == (again[asset].tags or {})["dagster/data_version"]
    other = arrive(history, OTHER)
    for asset, made in other.items():
        assert (made.tags or {})["dagster/data_version"] != (arrived[asset].tags or {})["dagster/data_version"]


def test_the_code_version_of_every_asset_is_the_computed_digest() -> None:
    specs = {spec.key.to_user_string(): spec.code_version for spec in defs.resolve_all_asset_specs()}
    assert all(specs.values()), specs
    assert specs["train_simple"] == code_digest("mm_core.training.stage")[: provenance.DIGITS]
    assert specs["ingested_batch"] == code_digest("mm_core.ingest.ingest")[: provenance.DIGITS]


def test_processes_of_a_run_inherit_code_versions_until_a_source_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        provenance.INHERITED, json.dumps({"sources": provenance._sources(), "mm_core.core.pins": "known"})
    )
    assert provenance.code_version("mm_core.core.pins") == "known"
    monkeypatch.setattr(provenance, "_sources", lambda: "changed")
    assert provenance.code_version("mm_core.core.pins") == code_digest("mm_core.core.pins")[: provenance.DIGITS]
    assert json.loads(os.environ[provenance.INHERITED])["sources"] == "changed"
