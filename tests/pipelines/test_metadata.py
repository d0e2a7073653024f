"""A report as Dagster shows it: all of it where it is small, a bounded part with a remark where it is large."""

import base64
import io
import json
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from mm_core.core.errors import InputError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.records import CATEGORIES, Report
from mm_core.core.settings import Settings
from mm_core.ingest.expectations import RULES
from pipelines.defs.arrivals import project
from pipelines.defs.checks import expectation_results
from pipelines.metadata import MAX_NUMBERS, MAX_ROWS, PICTURE_SIDE, images_of, of_report, page, table
from pipelines.resources import plain_failures


def test_facts_numbers_and_paths_keep_their_type(tmp_path: Path) -> None:
    report = Report("x", metrics={"mse": 0.25, "nan": float("nan")}, seconds=1.5)
    report.facts = {"digest": "abc", "rows": 3, "held": False, "pin": {"version": None}}
    shown = of_report(report, paths={"file": tmp_path})
    assert shown["seconds"] == dg.MetadataValue.float(1.5)
    assert shown["mse"] == dg.MetadataValue.float(0.25)
    assert shown["nan"] == dg.MetadataValue.text("nan")
    assert shown["digest"] == dg.MetadataValue.text("abc")
    assert shown["rows"] == dg.MetadataValue.int(3)
    assert shown["held"] == dg.MetadataValue.bool(False)
    assert shown["pin"] == dg.MetadataValue.json({"version": None})
    assert shown["file"] == dg.MetadataValue.path(tmp_path)


def test_what_a_run_cost_is_shown() -> None:
    """Nothing, where the model lay there already: its report repeats the numbers of the first time."""
    numbers = {"hard/images_per_s": 12.5, "hard/train_seconds": 8.0}
    trained = Report("train-hard", metrics=numbers, seconds=9.0, cost={"cpu_seconds": 15.5})
    shown = of_report(trained)
    assert shown["images"] == dg.MetadataValue.int(100) and shown["cpu_seconds"] == dg.MetadataValue.float(15.5)
    trained.facts["reused"] = "trained before"
    assert images_of(trained) == 0
    ingested = Report("ingest", metrics={"ingest/accepted": 5, "ingest/quarantined": 2, "ingest/duplicates": 1})
    assert images_of(ingested) == 8
    assert images_of(Report("gate")) is None and "images" not in of_report(Report("gate"))


def test_a_table_types_its_columns_and_keeps_gaps() -> None:
    shown = table([{"name": "a", "mse": 0.1, "n": 1}, {"name": "b", "mse": None, "n": 2, "why": ["x"]}])
    types = {column.name: column.type for column in shown.schema.columns}
    assert types == {"name": "string", "mse": "float", "n": "int", "why": "string"}
    assert [dict(record.data) for record in shown.records] == [
        {"name": "a", "mse": 0.1, "n": 1, "why": None},
        {"name": "b", "mse": None, "n": 2, "why": '["x"]'},
    ]


def test_what_is_left_out_is_said() -> None:
    report = Report("x", metrics={f"m{i}": float(i) for i in range(MAX_NUMBERS + 5)})
    report.tables["photos"] = [{"id": i} for i in range(MAX_ROWS + 7)]
    shown = of_report(report)
    assert shown["left out here"] == dg.MetadataValue.json({"numbers": 5, "rows of photos": 7})
    photos = shown["photos"]
    assert isinstance(photos, dg.TableMetadataValue) and len(photos.records) == MAX_ROWS


def test_the_worst_pictures_are_shown_first_and_digests_are_short(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "p.png")
    titles = [f"{name}, {rank}" for name in CATEGORIES for rank in ("best", "worst")]
    report = Report("x", pictures=dict.fromkeys(titles, str(tmp_path / "p.png")))
    shown = [name for name, value in of_report(report).items() if isinstance(value, dg.MarkdownMetadataValue)]
    assert shown == [f"{name}, worst" for name in CATEGORIES]
    assert [dict(record.data) for record in table([{"key": "ab" * 32, "n": 1}]).records] == [{"key": "ab" * 6, "n": 1}]


def test_a_picture_is_inline_and_small(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((500, 2000, 3), np.uint8)).save(tmp_path / "p.png")
    shown = of_report(Report("x", pictures={"worst": str(tmp_path / "p.png")}))["worst"]
    assert isinstance(shown, dg.MarkdownMetadataValue) and shown.md_str
    data = base64.b64decode(shown.md_str.split("base64,")[1].rstrip(")"))
    assert Image.open(io.BytesIO(data)).size == (PICTURE_SIDE, PICTURE_SIDE // 4)


def test_a_page_is_a_link_where_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM_PAGES_URL", raising=False)
    layout = Layout(Settings.from_env(tmp_path))
    file = layout.data_docs / "a b.html"
    assert page(layout, file) == dg.MetadataValue.path(file)
    monkeypatch.setenv("MM_PAGES_URL", "http://127.0.0.1:3002/")
    layout = Layout(Settings.from_env(tmp_path))
    assert page(layout, file) == dg.MetadataValue.url("http://127.0.0.1:3002/data_docs/a%20b.html")


def test_what_dagster_shows_survives_json() -> None:
    """The UI reads metadata as JSON, which knows no NaN."""
    report = Report("x", metrics={"a": float("inf")}, tables={"t": [{"v": float("nan")}, {"v": 1.0}]})
    result = dg.MaterializeResult(metadata=of_report(report))
    values = [value for value in (result.metadata or {}).values() if isinstance(value, dg.TableMetadataValue)]
    json.dumps([dict(record.data) for shown in values for record in shown.records], allow_nan=False)


def test_expectations_become_checks_of_their_severity() -> None:
    report = Report("ingest")
    report.tables["expectations"] = [
        {"name": "few_bad_rows", "severity": "critical", "success": False, "unexpected": 1, "observed": 0.9},
        {"name": "image_decodes", "severity": "warning", "success": False, "unexpected": 3, "observed": None},
        # Of a drop without a readable photo.
        {"name": "image_pixels", "severity": "warning", "success": False, "unexpected": 3, "measured": 0},
    ]
    results = {result.check_name: result for result in expectation_results(report)}
    assert set(results) == {"few_bad_rows", "image_decodes"} < {rule.name for rule in RULES}, (
        "the others were not evaluated"
    )
    assert {name for name, result in results.items() if not result.passed} == {"few_bad_rows", "image_decodes"}
    assert results["few_bad_rows"].severity is dg.AssetCheckSeverity.ERROR
    assert results["image_decodes"].severity is dg.AssetCheckSeverity.WARN
    assert results["image_decodes"].description == "3 unexpected"


@pytest.mark.parametrize(("error", "again"), [(InputError("no manifest"), False), (StoreError("timeout"), True)])
def test_errors_on_purpose_become_one_line_and_only_outages_are_tried_again(error: Exception, again: bool) -> None:
    with pytest.raises(dg.Failure) as caught, plain_failures():
        raise error
    assert caught.value.description == str(error)
    assert caught.value.allow_retries is again


def test_a_labelling_project_is_linked_with_its_counts_and_the_age_of_its_oldest_task() -> None:
    about = {"server": "http://l", "project": "http://l/projects/1/data", "batches_waiting": 2, "open": 3}
    about |= {"finished": 4, "skipped": 1, "oldest_open_days": 2.5}
    shown = project(about)
    assert shown["project"] == dg.MetadataValue.url("http://l/projects/1/data")
    assert {name: value.value for name, value in shown.items() if name != "project"} == {
        "batches waiting": 2,
        "open tasks": 3,
        "finished tasks": 4,
        "skipped tasks": 1,
        "oldest open task, days": 2.5,
    }
    assert set(project({"server": None, "batches_waiting": 2})) == {"batches waiting"}
