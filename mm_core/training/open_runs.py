"""The file that names the MLflow runs of the work in progress.

A killed process leaves its runs RUNNING. The next process that takes the cycle lock finds this file and ends these runs
as KILLED. The file's modification time is the last sign of life of the work, and becomes their end.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mm_core.core.layout import Layout
from mm_core.core.records import write_json


@dataclass(frozen=True)
class OpenRuns:
    """The runs that one holder of the cycle lock has opened."""

    session: str
    """Tag `mm.session` of these runs."""
    snapshot: str
    """Digest of the snapshot that the cycle's run is about."""
    run: str = ""
    """Id of the cycle's run; empty until it exists."""


def open_runs_file(layout: Layout) -> Path:
    """Return the path of the file; it exists while runs are open."""
    return layout.root / "mlflow" / "open_runs.json"


def read_open_runs(layout: Layout) -> OpenRuns | None:
    """Return the runs in progress, or None."""
    try:
        return OpenRuns(**json.loads(open_runs_file(layout).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # a damaged file names no run; the next stage writes a new one
        return None


def write_open_runs(layout: Layout, opened: OpenRuns) -> None:
    """Record the runs in progress."""
    write_json(open_runs_file(layout), asdict(opened))


def give_sign_of_life(layout: Layout) -> None:
    """Set the file's modification time to now, if there is one."""
    with suppress(FileNotFoundError):
        os.utime(open_runs_file(layout))


def last_sign_of_life(layout: Layout) -> int:
    """Return the file's modification time in milliseconds since 1970."""
    return int(open_runs_file(layout).stat().st_mtime * 1000)


def forget_open_runs(layout: Layout) -> None:
    """Remove the file."""
    open_runs_file(layout).unlink(missing_ok=True)
