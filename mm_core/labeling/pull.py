"""Read finished work from a Label Studio server: the changes since the last pull, each once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypedDict

from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.params import LabelParams
from mm_core.core.records import parse_record, write_json
from mm_core.labeling.apply_annotations import Taken, Work, take
from mm_core.labeling.collect import key_of
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_types import Task
from mm_core.labeling.push import identity, remove_twins
from mm_core.storage.run import StorageRun

OVERLAP = timedelta(minutes=2)
"""Period that is read again each time, because a change may become visible after a later one."""
AT_ONCE = 32
"""Photos decoded per commit."""
REQUESTS = 4
"""Parallel requests."""


@dataclass
class Cursor:
    """Position up to which a project has been read."""

    path: Path
    link: str
    since: str | None
    """Every change up to this time has been read."""
    seen: dict[str, str]
    """Task number → time of change, for tasks read after `since` minus the overlap."""

    @staticmethod
    def read(layout: Layout, link: str) -> Cursor:
        """Return the stored position of the project at `link`; the beginning if there is none."""
        path = layout.labels / "pulled.json"
        stored = _positions(path).get(link, {})
        return Cursor(path, link, stored.get("since"), stored.get("seen", {}))

    def write(self) -> None:
        """Store the position; those of other projects stay."""
        write_json(self.path, _positions(self.path) | {self.link: {"since": self.since, "seen": self.seen}})


class _Position(TypedDict, total=False):
    """The stored fields of a `Cursor`."""

    since: str | None
    seen: dict[str, str]


def _positions(path: Path) -> dict[str, _Position]:
    """Return the stored positions by link of the project."""
    remedy = "delete it; all tasks are then read again, which changes nothing"
    return parse_record(path.read_bytes(), dict[str, _Position], path, remedy) if has_file(path) else {}


def pull_labels(run: StorageRun, server: Server, taken: Taken) -> int:
    """Read every task that changed since the last pull, a few at a time; return their number.

    The result of a task is computed from all its current annotations. Edits, deletions and repeated submissions
    therefore need no history, and reading a task again changes nothing. `labels/pulled.json` is written after the
    catalog, so after a kill a few tasks are read again. If people disagree, the task is sent to another person.
    """
    cursor = Cursor.read(run.layout, server.link())
    newest = server.newest_change()
    changed = [t for t in server.changed_since(_less(cursor.since)) if cursor.seen.get(str(t["id"])) != t["updated_at"]]
    changed = _without_twins(server, changed)
    # Commit in chunks, and move the cursor after each commit.
    for start in range(0, len(changed), AT_ONCE):
        chunk = changed[start : start + AT_ONCE]
        with ThreadPoolExecutor(REQUESTS) as pool:
            works = list(pool.map(lambda task: _work(server, task), chunk))
        # Photos on which people disagree get another answer.
        disputed = {work.task for work in take(run, works, taken)}
        for task, work in zip(chunk, works, strict=True):
            if work.task in disputed:
                _ask_again(server, task, work, run.params.label, taken)
            taken.counts["cancelled"] += task["cancelled_annotations"]
            cursor.seen[str(task["id"])] = task["updated_at"]
        cursor.write()
        run.progress("pull", min(start + AT_ONCE, len(changed)), len(changed))
    # `newest` was read before the listing, so later changes are read next time.
    cursor.since = newest or cursor.since
    kept = _less(cursor.since) or ""
    cursor.seen = {task: when for task, when in cursor.seen.items() if when > kept}
    cursor.write()
    return len(changed)


def news(layout: Layout, server: Server) -> str | None:
    """Return the time of a change on the server that no pull has read, or None. Costs one small request."""
    newest, since = server.newest_change(), Cursor.read(layout, server.link()).since
    return newest if newest and (since is None or newest > since) else None


def _work(server: Server, task: Task) -> Work:
    """Fetch the annotations of a task."""
    annotations = server.annotations(task["id"]) if task["total_annotations"] else []
    return Work(key_of(task), annotations, server.link(task["id"]), f"task {task['id']}")


def _ask_again(server: Server, task: Task, work: Work, params: LabelParams, taken: Taken) -> None:
    """Request another answer for a disputed task, up to `params.most_people` answers."""
    row = next(row for row in reversed(taken.disagreements) if row["key"] == work.key)
    # Too many answers already: an expert must decide.
    if row["people"] >= params.most_people:
        taken.refuse(work, None, f"{row['people']} people: {row['why']}: let an expert delete what is wrong")
    elif task["overlap"] <= row["people"] or task["is_labeled"]:
        server.ask_again(task, row["people"] + 1, row["why"])


def _without_twins(server: Server, tasks: list[Task]) -> list[Task]:
    """Remove duplicate tasks and return the remaining ones.

    A killed push may leave a duplicate if the server executed its request afterwards; the untouched task is removed.
    """
    # Tasks without a key were not created by a push.
    counted = Counter(identity(task) for task in tasks if key_of(task))
    twice = {key for (key, _), count in counted.items() if count > 1}
    if not twice:
        return tasks
    remove_twins(server, twice)
    left = {task["id"] for same_key in server.tasks_of(twice).values() for task in same_key}
    return [task for task in tasks if key_of(task) not in twice or task["id"] in left]


def _less(since: str | None) -> str | None:
    """Return `since` minus the overlap in the server's format, in which times sort as text."""
    if since is None:
        return None
    moment = datetime.fromisoformat(since) - OVERLAP
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
