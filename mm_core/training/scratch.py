"""Train the four stages outside the cycle, in a separate workspace, to measure or to rebuild a model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import Report
from mm_core.core.settings import SQLITE
from mm_core.storage.run import StorageRun
from mm_core.training.stage import train_stage


def scratch_layout(layout: Layout, name: str) -> Layout:
    """Return a workspace below `layout`'s on the same store, with its own MLflow database."""
    root = layout.root / "scratch" / name
    # MLflow keeps its database file open while the process runs, so each call uses a new file name.
    runs = root / "mlflow" / f"{uuid4().hex}.db"
    return Layout(replace(layout.settings, workspace=root, mlflow_uri=f"{SQLITE}{runs}"))


def part_of(scratch: Layout, name: str) -> Layout:
    """Return a workspace within a scratch one; both write to the same MLflow database."""
    return Layout(replace(scratch.settings, workspace=scratch.root / name))


def copy_data(source: Layout, target: Layout) -> None:
    """Copy the frozen snapshot and the split of one workspace to another."""
    for here, there in ((source.snapshot, target.snapshot), (source.split, target.split)):
        shutil.copytree(here, there, dirs_exist_ok=True)


def train_all(run: StorageRun, start: Path | None) -> Path:
    """Train all stages in order and return the path of the last model; `start` None starts from scratch."""
    for stage in TRAIN_STAGES:
        # Each stage starts from the model of the previous one.
        train_stage(stage, run, Report(f"train-{stage}"), start=start)
        start = run.layout.model(stage)
    assert start is not None
    return start
