"""Delivers the outbox to a Label Studio server: each photo once, however often and wherever the push is killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.locks import exclusive
from mm_core.core.records import Report, write_json
from mm_core.labeling.collect import key_of
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import outbox

AT_ONCE = 20
"""Photos per request."""


def push_tasks(layout: Layout, server: Server, report: Report, *, progress: Callable[[str, int, int], None]) -> Report:
    """Uploads the pictures of every outbox batch that this server does not have, then imports its tasks.

    A task is looked up by its `data.key` (and its batch: a photo may be asked about again, months later) before it is
    imported, and an upload by its name before it is sent, so that a killed push leaves nothing twice and nothing
    unused once the next has run. Which batches have arrived is in
    `labels/delivered.json`, by the project's address; without that file everything is looked up again.
    """
    # Two pushes of one workspace would both find a photo missing.
    with exclusive(layout.labels / ".push.lock"):
        counts = {"batches": 0, "tasks": 0, "already_there": 0}
        delivered = _delivered(layout)
        done = set(delivered.get(server.link(), []))
        waiting = [path for path in sorted(outbox(layout).glob("*.json")) if path.stem not in done]
        for path in waiting:
            tasks = _read(path)
            uploads = server.uploads()
            for start in range(0, len(tasks), AT_ONCE):
                sent = _send(server, tasks[start : start + AT_ONCE], path.parent, uploads)
                counts["tasks"] += sent
                counts["already_there"] += len(tasks[start : start + AT_ONCE]) - sent
                progress(f"push {path.stem}", min(start + AT_ONCE, len(tasks)), len(tasks))
            _tidy(server, tasks)
            counts["batches"] += 1
            delivered[server.link()] = sorted({*delivered.get(server.link(), []), path.stem})
            write_json(layout.labels / "delivered.json", delivered)
    report.metrics |= {f"push/{name}": count for name, count in counts.items()}
    report.facts |= {"project": server.link()}
    return report


def undelivered(layout: Layout, server: Server | None) -> int:
    """Batches of the outbox that wait for a server."""
    done = set(_delivered(layout).get(server.link(), [])) if server else set()
    return sum(path.stem not in done for path in outbox(layout).glob("*.json"))


def remove_twins(server: Server, keys: Iterable[str]) -> int:
    """Of tasks alike keeps the ones that people have worked on, else the oldest; returns how many went."""
    removed = 0
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for tasks in server.tasks_of(keys).values():
        for task in tasks:
            alike.setdefault(identity(task), []).append(task)
    for tasks in alike.values():
        touched = [t for t in tasks if t["total_annotations"] or t["cancelled_annotations"] or t.get("drafts")]
        kept = touched or tasks[:1]
        for task in tasks:
            if task not in kept:
                server.remove_task(task["id"])
                removed += 1
    return removed


def identity(task: dict[str, Any]) -> tuple[str, str]:
    """What makes two tasks the same: photo and batch."""
    return key_of(task), str(task["data"].get("batch", ""))


def _send(
    server: Server, tasks: Sequence[dict[str, Any]], folder: Path, uploads: Mapping[str, list[dict[str, Any]]]
) -> int:
    """Imports those of a few tasks that are not there yet; returns how many. `uploads`: pictures that are there."""
    found = server.tasks_of(key_of(task) for task in tasks)
    there = {identity(task) for alike in found.values() for task in alike}
    new = [task for task in tasks if identity(task) not in there]
    if not new:
        return 0
    names = {key_of(task): f"{key_of(task)}.jpg" for task in new}
    missing = [task for task in new if names[key_of(task)] not in uploads]
    sent = server.upload({names[key_of(task)]: _picture(folder, task) for task in missing}) if missing else {}
    there_now = {**uploads, **sent}
    server.import_tasks([_with_image(task, there_now[names[key_of(task)]][0]["url"]) for task in new])
    return len(new)


def _with_image(task: dict[str, Any], url: str) -> dict[str, Any]:
    score = task["data"].get("score")
    predictions = [{**made, "score": score} if score is not None else made for made in task.get("predictions", [])]
    return {"data": {**task["data"], "image": url}, "predictions": predictions}


def _tidy(server: Server, tasks: Sequence[dict[str, Any]]) -> None:
    """Removes what requests left that were answered after their sender was killed: tasks twice, uploads unused."""
    keys = [key_of(task) for task in tasks]
    remove_twins(server, keys)
    uploads = server.uploads()
    used = {task["data"].get("image") for found in server.tasks_of(keys).values() for task in found}
    ours = [upload for key in keys for upload in uploads.get(f"{key}.jpg", [])]
    server.remove_uploads([upload["id"] for upload in ours if upload["url"] not in used])


def _picture(folder: Path, task: dict[str, Any]) -> bytes:
    """The picture that a task names as `…?d=<batch>/<file>`, in the outbox."""
    path = folder / str(task["data"].get("image", "")).rsplit("?d=", 1)[-1]
    if not path.is_file():
        raise InputError(f"{path} is missing, the picture of a task in the outbox: run `mm forget` on it or restore it")
    return path.read_bytes()


def _read(path: Path) -> list[dict[str, Any]]:
    tasks = json.loads(path.read_bytes())
    if not isinstance(tasks, list) or not all(key_of(task) for task in tasks):
        raise InputError(f"{path} is no list of tasks with `data.key`: move it out of the outbox")
    return tasks


def _delivered(layout: Layout) -> dict[str, list[str]]:
    path = layout.labels / "delivered.json"
    return json.loads(path.read_text()) if path.is_file() else {}
