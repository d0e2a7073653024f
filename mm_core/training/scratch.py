"""Training outside of the cycle: the same four stages in a workspace of their own, to measure or to rebuild."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.storage.store import Store
from mm_core.training.stage import train_stage


def scratch_layout(layout: Layout, name: str) -> Layout:
    """An own workspace below `layout`'s on the same store; nothing of it reaches the MLflow of the cycles."""
    root = layout.root / "scratch" / name
    # MLflow holds its file open as long as the process lives: a second call needs another than the removed one.
    runs = root / "mlflow" / f"{uuid4().hex}.db"
    return Layout(replace(layout.settings, workspace=root, mlflow_uri=f"sqlite:///{runs}"))


def part_of(scratch: Layout, name: str) -> Layout:
    """A workspace within a scratch one; both write to the same MLflow."""
    return Layout(replace(scratch.settings, workspace=scratch.root / name))


def copy_data(source: Layout, target: Layout) -> None:
    """The frozen snapshot and split of one workspace, as another's."""
    for here, there in ((source.snapshot, target.snapshot), (source.split, target.split)):
        shutil.copytree(here, there, dirs_exist_ok=True)


def train_all(
    params: Params, layout: Layout, store: Store, start: Path | None, progress: Callable[[str, int, int], None]
) -> Path:
    """All stages in order, from `start` (None: from scratch); returns the last one's weights."""
    for stage in TRAIN_STAGES:
        train_stage(stage, params, layout, store, Report(f"train-{stage}"), start=start, progress=progress)
        start = layout.model(stage)
    assert start is not None
    return start
