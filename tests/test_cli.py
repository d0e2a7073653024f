"""`mm` as a person or a script meets it: exit codes, one-line remedies, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_core.catalog import Catalog

PROJECT = Path(__file__).resolve().parent.parent


def mm(*arguments: str, workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mm_core", *arguments],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=os.environ | {"MM_WORKSPACE": str(workspace)} | environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("snapshot",), "mm ingest"),
        (("train-hard",), "mm ingest"),
        (("gate", "show"), "mm gate"),
        (("gate", "noise", "--seeds", "2"), "mm ingest"),
        (("label", "compare"), "mm snapshot"),
        (("reproduce", "7"), "no version '7'"),
        (("export",), "mm gate"),
        (("drop", "nowhere", "--kind", "pixel_labeled", "--batch", "b"), "nowhere"),
        (("evaluate", "--truth", "x.csv"), "--pred"),
        (("predict", "nothing.jpg", "-o", "out", "--category", "dinosaur"), "dinosaur"),
    ],
)
def test_bad_input_exits_with_2_and_one_line_that_names_the_remedy(
    tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    result = mm(*arguments, workspace=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("mm: ") and result.stderr.count("\n") == 1
    assert named in result.stderr
    assert result.stdout == ""


def test_status_of_an_empty_workspace(tmp_path: Path) -> None:
    result = mm("status", "--json", workspace=tmp_path)
    assert result.returncode == 0, result.stderr
    status = json.loads(result.stdout)
    assert status["batches"] == [] and status["champion"] is None and status["verdict"] is None


def test_ingest_of_an_unknown_inbox_scheme_is_refused(tmp_path: Path) -> None:
    result = mm("ingest", "--inbox", "ftp://somewhere/in", workspace=tmp_path)
    assert result.returncode == 2 and "s3://bucket/prefix" in result.stderr


def test_a_mistake_in_params_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {simple: {stepps: 1}}\n")
    result = mm("snapshot", workspace=tmp_path, MM_PARAMS=str(path))
    assert result.returncode == 2 and "train.simple.stepps" in result.stderr


def test_start_up_loads_neither_torch_nor_mlflow() -> None:
    heavy = "('torch', 'mlflow', 'great_expectations', 'dagster', 'onnxruntime', 'open_clip')"
    code = f"import sys, mm_core.cli; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_forget_shows_and_asks_and_removes_only_with_yes(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path / "data" / "store"))
    rows = [{"id": digit * 64, "kind": "unlabeled", "batch": "week", "name": f"{digit}.jpg"} for digit in "ab"]
    catalog.add("samples", rows)
    workspace = tmp_path / "data"
    shown = mm("forget", "aaaaaa", "--dry-run", "--json", workspace=workspace)
    assert shown.returncode == 0 and json.loads(shown.stdout)["tables"]["goes"][0]["name"] == "a.jpg"
    asked = mm("forget", "week", workspace=workspace)
    assert asked.returncode == 2 and "2 photos would go for good: add --yes" in asked.stderr
    assert "a.jpg" in asked.stderr and "b.jpg" in asked.stderr
    assert len(catalog.read("samples")) == 2
    gone = mm("forget", "aaaaaa", "--yes", workspace=workspace)
    assert gone.returncode == 0, gone.stderr
    assert list(catalog.read("samples")["name"]) == ["b.jpg"]
