"""Deliver the outbox to a Label Studio server: each photo once, even if a push is killed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.locks import exclusive
from mm_core.core.progress import Progress
from mm_core.core.records import Report, parse_record, write_json
from mm_core.labeling.collect import key_of
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import outbox
from mm_core.labeling.label_studio_types import NewTask, Prediction, Task, Upload

AT_ONCE = 20
"""Photos per request."""


def push_tasks(layout: Layout, server: Server, report: Report, *, progress: Progress) -> Report:
    """Upload the pictures of every outbox batch that this server does not have, then import its tasks.

    A task is looked up by its `data.key` and batch before it is imported, because a photo may be sent again months
    later. An upload is looked up by its name before it is sent. After a killed push the next one therefore leaves no
    duplicates and no unused uploads. `labels/delivered.json` lists the delivered batches by the project's address;
    without that file everything is looked up again.
    """
    # Two pushes at the same time would both find a photo missing.
    with exclusive(layout.labels / ".push.lock"):
        counts = {"batches": 0, "tasks": 0, "already_there": 0}
        delivered = _delivered(layout)
        done = set(delivered.get(server.link(), []))
        # Oldest batch first; file names start with the date.
        waiting = [path for path in sorted(outbox(layout).glob("*.json")) if path.stem not in done]
        for path in waiting:
            tasks = _read(path)
            uploads = server.uploads()
            for start in range(0, len(tasks), AT_ONCE):
                # Small requests: a failure costs little, and the address of a look-up stays short.
                imported = _send(server, tasks[start : start + AT_ONCE], path.parent, uploads)
                counts["tasks"] += imported
                counts["already_there"] += len(tasks[start : start + AT_ONCE]) - imported
                progress(f"push {path.stem}", min(start + AT_ONCE, len(tasks)), len(tasks))
            # Mark the batch as delivered only after its duplicates are gone.
            _tidy(server, tasks)
            counts["batches"] += 1
            delivered[server.link()] = sorted({*delivered.get(server.link(), []), path.stem})
            write_json(layout.labels / "delivered.json", delivered)
    report.metrics |= {f"push/{name}": count for name, count in counts.items()}
    report.facts |= {"project": server.link()}
    return report


def undelivered(layout: Layout, server: Server | None) -> int:
    """Return the number of outbox batches that the server does not have."""
    done = set(_delivered(layout).get(server.link(), [])) if server else set()
    return sum(path.stem not in done for path in outbox(layout).glob("*.json"))


def remove_twins(server: Server, keys: Iterable[str]) -> int:
    """Remove duplicate tasks, keeping those that people have worked on, or the oldest; return the number removed."""
    removed = 0
    groups: dict[tuple[str, str], list[Task]] = {}
    for tasks in server.tasks_of(keys).values():
        for task in tasks:
            groups.setdefault(identity(task), []).append(task)
    for tasks in groups.values():
        # Never delete a person's work, drafts included.
        touched = [t for t in tasks if t["total_annotations"] or t["cancelled_annotations"] or t.get("drafts")]
        kept = touched or tasks[:1]
        for task in tasks:
            if task not in kept:
                server.remove_task(task["id"])
                removed += 1
    return removed


def identity(task: Task | NewTask) -> tuple[str, str]:
    """Return what identifies a task: photo and batch."""
    return key_of(task), str(task["data"].get("batch", ""))


def _send(server: Server, tasks: Sequence[NewTask], folder: Path, uploads: Mapping[str, list[Upload]]) -> int:
    """Import the tasks that the server lacks; return their number. `uploads`: pictures on the server by name."""
    tasks_by_key = server.tasks_of(key_of(task) for task in tasks)
    there = {identity(task) for same_key in tasks_by_key.values() for task in same_key}
    new = [task for task in tasks if identity(task) not in there]
    if not new:
        return 0
    names = {key_of(task): f"{key_of(task)}.jpg" for task in new}
    missing = [task for task in new if names[key_of(task)] not in uploads]
    uploaded = server.upload({names[key_of(task)]: _picture(folder, task) for task in missing}) if missing else {}
    pictures = {**uploads, **uploaded}
    server.import_tasks([_with_image(task, pictures[names[key_of(task)]][0]["url"]) for task in new])
    return len(new)


def _with_image(task: NewTask, url: str) -> NewTask:
    """Return the task with the address of its uploaded picture, and its score copied to the predictions."""
    score = task["data"].get("score")
    predictions = [
        cast(Prediction, {**made, "score": score}) if score is not None else made
        for made in task.get("predictions", [])
    ]
    return NewTask({"data": {**task["data"], "image": url}, "predictions": predictions})


def _tidy(server: Server, tasks: Sequence[NewTask]) -> None:
    """Remove duplicate tasks and unused uploads, left by requests that were executed after their sender was killed."""
    keys = [key_of(task) for task in tasks]
    remove_twins(server, keys)
    uploads = server.uploads()
    used = {task["data"].get("image") for same_key in server.tasks_of(keys).values() for task in same_key}
    ours = [upload for key in keys for upload in uploads.get(f"{key}.jpg", [])]
    server.remove_uploads([upload["id"] for upload in ours if upload["url"] not in used])


def _picture(folder: Path, task: NewTask) -> bytes:
    """Return the picture in the outbox that a task refers to as `…?d=<batch>/<file>`."""
    path = folder / str(task["data"].get("image", "")).rsplit("?d=", 1)[-1]
    if not path.is_file():
        raise InputError(f"{path} is missing, the picture of a task in the outbox: run `mm forget` on it or restore it")
    return path.read_bytes()


def _read(path: Path) -> list[NewTask]:
    """Return the tasks of an outbox file; raise InputError if it is not a list of tasks."""
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        tasks = None
    if not isinstance(tasks, list) or not all(key_of(task) for task in tasks):
        raise InputError(f"{path} is not a list of tasks with `data.key`: move it out of the outbox")
    return tasks


def _delivered(layout: Layout) -> dict[str, list[str]]:
    path = layout.labels / "delivered.json"
    if not path.is_file():
        return {}
    remedy = "delete it; tasks that Label Studio has are then found there by their key"
    return parse_record(path.read_bytes(), dict[str, list[str]], path, remedy)
