"""Facts about a run of a cycle: who and what started it, its params, the results before it. Without MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.locks import command_of, cycle_entry, user_name
from mm_core.core.pins import SnapshotFacts
from mm_core.core.records import Report
from mm_core.core.revision import code_revision
from mm_core.core.settings import time_zone

POOL_WORDS = {
    "train_labeled": "labelled",
    "train_unlabeled": "unlabelled",
    "train_text_image": "with text",
    "eval": "to judge",
}
"""Pools that the name of a cycle's run counts, and their names in it."""
STAGE_ORDER = ("snapshot", "split", *(f"train-{stage}" for stage in TRAIN_STAGES), "evaluate", "gate", "export")
"""Stages of a cycle that leave a report in the workspace, in order."""


def origin_tags(layout: Layout) -> dict[str, str]:
    """Return MLflow's tags for who and what started a run, and the commit of the code."""
    entry, revision = cycle_entry(layout), code_revision()
    tags = {
        "mlflow.user": str(entry.get("who", user_name())).partition("@")[0],
        "mlflow.source.name": command_of(entry) or "mm",
        "mlflow.source.type": "LOCAL",
        "mm.code_revision": revision,
    }
    if commit := re.match(r"[0-9a-f]{40}(?![0-9a-f])", revision):
        tags |= {
            "mlflow.source.git.commit": commit.group(),
            "mlflow.source.git.dirty": str(revision[40:] != "").lower(),
        }
    return tags


def lock_time(layout: Layout) -> int | None:
    """Return when the holder took the cycle lock, in milliseconds since 1970; None if it is not recorded."""
    since = cycle_entry(layout).get("since")
    return int(datetime.fromisoformat(since).timestamp() * 1000) if since else None


def cycle_name(facts: SnapshotFacts, begin: int | None) -> str:
    """Return the name of a cycle's run for people: when it began, and how many photos it learns from and judges by.

    Args:
        facts: The facts of the cycle's snapshot.
        begin: When the cycle began, in milliseconds since 1970; None: now.
    """
    when = datetime.fromtimestamp(begin / 1000 if begin else time.time(), ZoneInfo(time_zone()))
    photos = {pool: sum(counts.values()) for pool, counts in facts.get("counts", {}).items()}
    # Pools of early snapshots may be missing, and empty ones say nothing.
    words = [f"{photos[pool]} {word}" for pool, word in POOL_WORDS.items() if photos.get(pool)]
    return ", ".join([f"{when:%Y-%m-%d %H:%M}", *words])


def metrics_before(layout: Layout, stage: str) -> dict[str, float]:
    """Return the metrics of the stages before `stage`, from the reports of the workspace's cycle."""
    earlier = STAGE_ORDER[: STAGE_ORDER.index(stage)] if stage in STAGE_ORDER else STAGE_ORDER
    reports = [layout.stage_report(name) for name in earlier]
    metrics = [Report.read(path).metrics for path in reports if has_file(path)]
    return {name: float(value) for row in metrics for name, value in row.items() if value == value}


def flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested values with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
