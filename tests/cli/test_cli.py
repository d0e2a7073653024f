"""`mm` as a person or a script meets it: exit codes, one-line remedies, JSON."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mm_core import __version__, stages
from mm_core.cli.app import app, main
from mm_core.cli.help import EXAMPLES
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from mm_core.storage.catalog import Catalog
from samplegen import write_drop

PROJECT = Path(__file__).resolve().parents[2]


def mm(*arguments: str, workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process: a process of its own spends seconds on imports."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(PROJECT)
        patch.setattr(sys, "argv", ["mm", *arguments])
        for name, value in {"MM_WORKSPACE": str(workspace), **environment}.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(arguments, int(code or 0), out.getvalue(), err.getvalue())


def mm_process(*arguments: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does. What a package prints at its import is on its streams too."""
    command = [sys.executable, "-m", "mm_core", *arguments]
    environment = os.environ | {"MM_WORKSPACE": str(workspace)}
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, timeout=120)


def test_the_command_is_called_mm_also_as_a_module(tmp_path: Path) -> None:
    """The shell's completion belongs to this name: of `python -m mm_core` it was a broken script."""
    shown = mm_process("gate", "simulate", "--help", workspace=tmp_path).stdout
    assert "Usage: mm gate simulate" in shown and "python -m" not in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("snapshot",), "has no photos yet: `mm drop FOLDER"),
        (("train-hard",), "has no photos yet: `mm drop FOLDER"),
        (("train-simple",), "has no photos yet: `mm drop FOLDER"),
        (("gate", "show"), "has no photos yet: `mm drop FOLDER"),
        (("gate", "noise", "--seeds", "2"), "has no photos yet: `mm drop FOLDER"),
        (("gate", "crossfit"), "has no photos yet: `mm drop FOLDER"),
        (("label", "compare"), "has no photos yet: `mm drop FOLDER"),
        (("reproduce", "7"), "no version '7'"),
        (("export",), "has no photos yet: `mm drop FOLDER"),
        (("drop", "nowhere", "--kind", "pixel_labeled", "--batch", "b"), "nowhere"),
        (("evaluate", "--truth", "x.csv"), "--pred"),
        (("gate",), "has no photos yet: `mm drop FOLDER"),
        (("split",), "has no photos yet: `mm drop FOLDER"),
        (("evaluate",), "has no photos yet: `mm drop FOLDER"),
        (("pin-inputs",), "has no photos yet: `mm drop FOLDER"),
        (("run",), "has no photos yet: `mm drop FOLDER"),
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
    # Packages may warn at their import: `snapshot` loads the stages, `reproduce` MLflow, `predict` what reads photos.
    run = mm_process if arguments[0] in ("snapshot", "reproduce", "predict") else mm
    result = run(*arguments, workspace=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("mm: ") and result.stderr.count("\n") == 1
    assert named in result.stderr
    assert result.stdout == ""


def test_status_of_an_empty_workspace(tmp_path: Path) -> None:
    result = mm_process("status", "--json", workspace=tmp_path)
    assert result.returncode == 0, result.stderr
    status = json.loads(result.stdout)
    assert status["batches"] == [] and status["champion"] is None and status["verdict"] is None


def test_status_names_the_drops_that_wait_until_they_are_ingested(tmp_path: Path) -> None:
    write_drop(tmp_path / "inbox", "unlabeled", "w01", {"pets": 1}, seed=1, size=64)
    told = mm("status", workspace=tmp_path).stdout
    assert "waiting in the inbox: unlabeled/w01\n  next: `mm ingest`" in told
    run = Run(Params().with_values(**{"structure.ocr": ()}), Layout(Settings.from_env(tmp_path)))
    stages.ingest(run)
    assert "waiting" not in mm("status", workspace=tmp_path).stdout


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
    told = mm_process("--version", workspace=tmp_path).stdout.split()
    released = re.findall(r"^## \[(\d[\d.]*)\]", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    cited = re.search(r"^version: (\S+)$", (PROJECT / "CITATION.cff").read_text(), re.M)
    assert told == ["mm", __version__] and released[0] == __version__ and cited and cited[1] == __version__


def test_every_verb_has_a_panel() -> None:
    assert {info.rich_help_panel for info in (*app.registered_commands, *app.registered_groups)} == {
        f"{panel}: {next(iter(verbs.values()))}" for panel, verbs in EXAMPLES.items()
    }, "a verb is missing in mm_core/cli/help.py"
    group = get_command(app)
    assert group.list_commands(None)[:3] == ["drop", "ingest", "status"]  # type: ignore[attr-defined]


VERBS = {
    *("Accept", "Assemble", "Back", "Care", "Check", "Choose", "Decide", "Divide", "Estimate", "Evaluate", "Freeze"),
    *("Group", "Judge", "List", "Make", "Measure", "Merge", "Open", "Package", "Print", "Receive", "Remove", "Run"),
    *("Send", "Serve", "Show", "Take", "Train", "Try", "Write"),
}
"""First words of the help of commands; all are imperatives."""
FLAG_VERBS = {
    *("Accept", "Allow", "Choose", "Copy", "Install", "Print", "Record", "Remove", "Restore", "Show", "Start", "Write"),
}
"""First words of the help of flags, as in click's `--help  Show this message and exit.`; all are imperatives."""
NOUNS = {
    *("Address", "Batch", "COCO", "Category", "Declared", "Field", "File", "Folder", "Form", "Key", "Keys", "Kind"),
    *("Manifest", "Model", "Name", "New", "Number", "Photos", "Pool", "Port", "Reason", "Registry", "Runtime"),
    *("Sample", "Spread", "Time"),
}
"""First words of the help of values, as in click's `--count  Number of greetings.`; each begins a noun phrase."""


def commands(command: Any, path: str = "mm") -> Iterator[tuple[str, Any]]:
    """Every verb with its whole name, those of groups included."""
    for name, inner in getattr(command, "commands", {}).items():
        yield f"{path} {name}", inner
        yield from commands(inner, f"{path} {name}")


@pytest.mark.parametrize(("name", "command"), commands(get_command(app)))
def test_a_verb_says_in_one_short_imperative_line_what_to_do_with_it(name: str, command: Any) -> None:
    first = (command.help or "").splitlines()[0]
    assert len(first) <= 80 and first.endswith("."), name
    assert first.split()[0] in VERBS, f"{name}: {first}"
    example = command.epilog.removeprefix("Example: ")
    words = shlex.split(example)
    arguments = words[words.index("mm") + 1 :]
    assert " ".join(["mm", *arguments]).startswith(name), example
    # With --help a line is parsed and nothing is run: an option that is not there still fails.
    assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0, example


PARAMETERS = [
    pytest.param(parameter, id=f"{name} {parameter.name}")
    for name, command in (("mm", get_command(app)), *commands(get_command(app)))
    for parameter in command.params
]


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_the_help_of_an_option_is_one_short_sentence_in_the_form_of_click(parameter: Any) -> None:
    """A flag says what it does in the imperative. A value is named by a noun phrase, without its default."""
    text = parameter.help or ""
    assert text.split(" ", 1)[0].rstrip(":,") in (FLAG_VERBS if getattr(parameter, "is_flag", False) else NOUNS), text
    assert text.endswith(".") and len(text) <= 90 and ". " not in text.replace("…", ""), text
    # Typer prints the default; `show_default` names one that is computed.
    assert "default" not in text.lower(), text


def test_help_shows_the_groups_in_order_and_speaks_of_what_the_program_does() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    places = [shown.index(f"─ {panel}: mm ") for panel in ("Data", "Cycle", "Labels", "Release", "Use")]
    assert places == sorted(places) and "Care" in shown
    assert "thin door" not in shown and "better matting models" in shown


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("mm quar", "quarantine"), ("mm quarantine sh", "show"), ("mm drop photos --ki", "--kind")],
)
def test_the_shell_completes_verbs_and_options(typed: str, completed: str) -> None:
    script = Path(sys.executable).parent / "mm"
    words = {"_MM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run([script], capture_output=True, text=True, env=os.environ | words, cwd=PROJECT)
    assert done.stdout.split() == [completed]


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
