"""`mm` as a person or a script meets it: exit codes, one-line remedies, JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mm_core import __version__
from mm_core.cli.app import app
from mm_core.cli.help import EXAMPLES
from mm_core.storage.catalog import Catalog

PROJECT = Path(__file__).resolve().parents[2]


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
        (("train-hard",), "mm split"),
        (("gate", "show"), "mm gate"),
        (("gate", "noise", "--seeds", "2"), "mm ingest"),
        (("gate", "crossfit"), "mm ingest"),
        (("label", "compare"), "mm snapshot"),
        (("reproduce", "7"), "no version '7'"),
        (("export",), "mm gate"),
        (("drop", "nowhere", "--kind", "pixel_labeled", "--batch", "b"), "nowhere"),
        (("evaluate", "--truth", "x.csv"), "--pred"),
        (("gate",), "mm ingest"),
        (("drop", "README.md", "--kind", "unlabeled", "--batch", "b"), "README.md is a file: name the folder"),
        (("ingest", "--inbox", "NONEXISTENT"), "NONEXISTENT: no such folder"),
        (("quarantine", "show", "3f2a"), "no refused row has the key '3f2a'"),
        (("quarantine", "retry", "week"), "`mm status` lists the batches"),
        (("compare", "a.safetensors", "b.safetensors", "docs"), "--model a.safetensors: no such file"),
        (("lineage", "7"), "the registry is empty; `mm run`"),
        (("gallery", "NONEXISTENT"), "NONEXISTENT: no such folder"),
        (("moments", "NONEXISTENT"), "NONEXISTENT: no such folder"),
        (("verify", "NONEXISTENT"), "this workspace has none yet: `mm run`"),
        (("bench-bundle", "NONEXISTENT"), "this workspace has none yet: `mm run`"),
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
    heavy = ("torch", "mlflow", "great_expectations", "dagster", "onnxruntime", "open_clip", "scipy", "mm_core.stages")
    heavy += ("pandas", "numpy", "pyarrow", "deltalake", "pydantic", "tqdm", "yaml", "filelock")
    code = f"import sys, mm_core.cli.app; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_version_is_the_one_of_the_package_and_of_the_first_release(tmp_path: Path) -> None:
    told = mm("--version", workspace=tmp_path).stdout.split()
    released = re.findall(r"^## \[(\d[\d.]*)\]", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    cited = re.search(r"^version: (\S+)$", (PROJECT / "CITATION.cff").read_text(), re.M)
    assert told == ["mm", __version__] and released[0] == __version__ and cited and cited[1] == __version__


def test_every_verb_has_a_panel_and_an_example_that_its_options_allow() -> None:
    assert {info.rich_help_panel for info in (*app.registered_commands, *app.registered_groups)} == {
        f"{panel}: {next(iter(verbs.values()))}" for panel, verbs in EXAMPLES.items()
    }, "a verb is missing in mm_core/cli/help.py"
    group = get_command(app)
    for verbs in EXAMPLES.values():
        for verb, example in verbs.items():
            words = shlex.split(example)
            arguments = words[words.index("mm") + 1 :]
            assert arguments[0] == verb
            # With --help a line is parsed and nothing is run: an option that is not there still fails.
            result = CliRunner().invoke(app, [*arguments, "--help"])
            assert result.exit_code == 0, f"{example}: {result.output}"
    assert group.list_commands(None)[:3] == ["drop", "ingest", "status"]  # type: ignore[attr-defined]


def test_help_shows_the_groups_in_order_and_speaks_of_what_the_program_does() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    places = [shown.index(f"─ {panel}: mm ") for panel in ("Data", "Cycle", "Labels", "Release", "Use")]
    assert places == sorted(places) and "Care" in shown
    assert "thin door" not in shown and "better matting models" in shown


def test_the_shell_completes_verbs() -> None:
    script = Path(sys.executable).parent / "mm"
    words = {"_MM_COMPLETE": "complete_bash", "COMP_WORDS": "mm quar", "COMP_CWORD": "1"}
    done = subprocess.run([script], capture_output=True, text=True, env=os.environ | words, cwd=PROJECT)
    assert done.stdout.split() == ["quarantine"]


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
