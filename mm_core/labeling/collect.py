"""Read finished work from files: Label Studio's JSON exports become label versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mm_core.core.errors import InputError
from mm_core.core.records import sha256_file, write_json
from mm_core.labeling.apply_annotations import Refused, Taken, Work, merged, take
from mm_core.labeling.label_studio_format import collected, inbox
from mm_core.storage.run import StorageRun

MAX_BYTES = 1 << 30
"""Maximum size of an export, which is read as a whole."""
AT_ONCE = 64
"""Photos decoded per commit."""


def collect_labels(run: StorageRun, taken: Taken) -> int:
    """Read every `<workspace>/labels/inbox/*.json` (Label Studio's JSON export: a list of tasks); return their number.

    Each annotation is checked separately. Valid ones are stored (`apply_annotations.take`). Invalid ones are listed
    with the reason in `taken.refused` and in a file next to the export. A read file moves to
    `labels/collected/<sha256>-<name>`. The same content changes nothing, and after a kill the next run repeats the
    file with the same result.
    """
    files = sorted(inbox(run.layout).glob("*.json"))
    for done, path in enumerate(files):
        before = len(taken.refused)
        try:
            # The digest of the file is the batch: the same export always has the same name.
            batch = sha256_file(path)
            works = merged([*_works(_tasks(path), batch)])
            for start in range(0, len(works), AT_ONCE):
                take(run, works[start : start + AT_ONCE], taken)
        except InputError as error:
            taken.refused.append({"task": None, "annotation": None, "reason": str(error)})
            taken.counts["refused"] += 1
        refused = taken.refused[before:]
        # Name the file in the refusals of this export.
        taken.refused[before:] = [Refused({"file": path.name, **row}) for row in refused]
        _put_away(path, collected(run.layout), refused)
        run.progress("collect", done + 1, len(files))
    return len(files)


def _tasks(path: Path) -> list[object]:
    """Return the tasks of an export; raise InputError if it is not a list of tasks."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path.name}: {size} bytes, at most {MAX_BYTES} are read: export fewer tasks at a time")
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        # A parser's message may span lines and quote the data; keep it short.
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path.name} is not JSON ({reason}): export the project as JSON again") from None
    if not isinstance(tasks, list):
        raise InputError(f"{path.name} is no list of tasks: export the project as JSON, not JSON-MIN or another format")
    return tasks


def _works(tasks: list[object], batch: str) -> Iterator[Work]:
    for task in tasks:
        annotations = task.get("annotations") if isinstance(task, dict) else None
        yield Work(key_of(task), annotations if isinstance(annotations, list) else [None], batch=batch)


def key_of(task: object) -> str:
    """Return a task's `data.key`; empty if it is missing or not text."""
    data = task.get("data") if isinstance(task, dict) else None
    key = data.get("key") if isinstance(data, dict) else None
    return key if isinstance(key, str) else ""


def _put_away(path: Path, folder: Path, refused: list[Refused]) -> None:
    """Move a read export to `folder` under its digest, with its refusals in a file next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{sha256_file(path)}-{path.name}"
    if refused:
        write_json(target.with_suffix(".refused.json"), refused)
    path.replace(target)
