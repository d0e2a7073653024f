"""The `mm` command, `dvc.yaml` and `stages.py` tell the same flow."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from typer.main import get_command

from mm_core import stages
from mm_core.cli.app import app

PROJECT = Path(__file__).resolve().parent.parent
CYCLE = [
    "pin-inputs",
    "snapshot",
    "split",
    "train-simple",
    "train-hard",
    "train-semi",
    "train-multimodal",
    "evaluate",
    "gate",
    "label-compare",
    "export",
]


def test_dvc_runs_the_cycle_by_mm_verbs_of_the_same_name() -> None:
    dvc = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
    assert list(dvc["stages"]) == CYCLE
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    for name, stage in dvc["stages"].items():
        assert stage["cmd"].replace("label ", "label-").split()[:2] == ["mm", name]
        assert stage["cmd"].split()[1] in verbs


def test_every_stage_function_has_a_verb() -> None:
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    for name in [*CYCLE, "promote", "ingest"]:
        assert name.removesuffix("-compare") in verbs
        assert callable(getattr(stages, name.replace("-", "_")))


def test_the_readme_names_only_verbs_that_exist() -> None:
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    fenced = "\n".join(re.findall(r"```(?:sh|text)\n(.*?)```", (PROJECT / "README.md").read_text(), re.S))
    used = set(re.findall(r"^mm ([a-z-]+)", fenced, re.M))
    assert used and used <= verbs


def test_the_commit_hooks_are_the_commands_of_make_check() -> None:
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (PROJECT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    commands = [line.split("$(BIN)/")[-1].strip() for line in recipe.splitlines()[1:]]
    assert sorted(commands) == sorted(hook["entry"].split(".venv/bin/")[-1].rstrip("'") for hook in hooks)
    assert all(hook["language"] == "system" for hook in hooks)
