"""Remove forgotten photos from the Label Studio server and from the files exchanged with it."""

from __future__ import annotations

import json
from collections.abc import Collection

from mm_core.core.layout import Layout
from mm_core.core.records import write_bytes
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import collected, inbox, outbox


def forget_on_server(server: Server, ids: Collection[str]) -> int:
    """Remove the photos' tasks with all annotations, and their uploaded pictures; return the number of tasks."""
    tasks_by_key = server.tasks_of(sorted(ids))
    for task in (task for tasks in tasks_by_key.values() for task in tasks):
        server.remove_task(task["id"])
    # An upload is found by its file name, which is the sample id.
    uploads = server.uploads()
    server.remove_uploads([upload["id"] for i in ids for upload in uploads.get(f"{i}.jpg", [])])
    return sum(map(len, tasks_by_key.values()))


def forget_tasks(layout: Layout, ids: Collection[str]) -> int:
    """Remove the photos' pictures and tasks from the outbox and their annotations from exports; return the number."""
    removed = 0
    for picture in outbox(layout).glob("*/*.jpg"):
        if picture.stem in ids:
            picture.unlink()
            removed += 1
    folders = (outbox(layout), inbox(layout), collected(layout))
    # Batches of killed runs have hidden names.
    for path in (path for folder in folders for pattern in ("*.json", ".*.pending") for path in folder.glob(pattern)):
        try:
            tasks = json.loads(path.read_bytes())
        except ValueError:
            continue  # not an export
        if not isinstance(tasks, list):
            continue
        # Rewrite the file only if it contains a forgotten photo.
        kept = [task for task in tasks if _key(task) not in ids]
        if len(kept) < len(tasks):
            write_bytes(path, json.dumps(kept, separators=(",", ":")).encode())
            removed += len(tasks) - len(kept)
    return removed


def _key(task: object) -> str:
    data = task.get("data") if isinstance(task, dict) else None
    return str(data.get("key")) if isinstance(data, dict) else ""
