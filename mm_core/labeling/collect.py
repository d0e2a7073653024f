"""Takes finished work back from files: Label Studio's JSON exports in, new label versions out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import LabelParams
from mm_core.core.records import sha256_file, write_json
from mm_core.labeling.apply_annotations import Taken, Work, merged, take
from mm_core.labeling.label_studio_format import collected, inbox
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store

MAX_BYTES = 1 << 30
"""Of one export; it is read whole."""
AT_ONCE = 64
"""Photos whose mattes are decoded before they are committed."""


def collect_labels(
    params: LabelParams,
    catalog: Catalog,
    store: Store,
    layout: Layout,
    taken: Taken,
    *,
    progress: Callable[[str, int, int], None],
) -> int:
    """Reads every `<workspace>/labels/inbox/*.json` (Label Studio's JSON export: a list of tasks); returns how many.

    Each annotation is checked by itself: what passes is taken (`finished.take`), what fails is in
    `taken.refused` with the reason, and in a file beside the export. A read file moves to
    `labels/collected/<sha256>-<name>`: nothing is lost, and the same content changes nothing. Killed at any point,
    the next run does the file again to the same end.
    """
    files = sorted(inbox(layout).glob("*.json"))
    for done, path in enumerate(files):
        before = len(taken.refused)
        try:
            batch = sha256_file(path)
            works = merged([*_works(_tasks(path), batch)])
            for start in range(0, len(works), AT_ONCE):
                take(catalog, store, params, works[start : start + AT_ONCE], taken)
        except InputError as error:
            taken.refused.append({"task": None, "annotation": None, "reason": str(error)})
            taken.counts["refused"] += 1
        refused = taken.refused[before:]
        taken.refused[before:] = [{"file": path.name, **row} for row in refused]
        _put_away(path, collected(layout), refused)
        progress("collect", done + 1, len(files))
    return len(files)


def _tasks(path: Path) -> list[Any]:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path.name}: {size} bytes, at most {MAX_BYTES} are read: export fewer tasks at a time")
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path.name} is not JSON ({reason}): export the project as JSON again") from None
    if not isinstance(tasks, list):
        raise InputError(f"{path.name} is no list of tasks: export the project as JSON, not JSON-MIN or another format")
    return tasks


def _works(tasks: list[Any], batch: str) -> Iterator[Work]:
    for task in tasks:
        annotations = task.get("annotations") if isinstance(task, dict) else None
        yield Work(key_of(task), annotations if isinstance(annotations, list) else [None], batch=batch)


def key_of(task: Any) -> str:
    """A task's `data.key`; empty where it has none that is text."""
    data = task.get("data") if isinstance(task, dict) else None
    key = data.get("key") if isinstance(data, dict) else None
    return key if isinstance(key, str) else ""


def _put_away(path: Path, folder: Path, refused: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{sha256_file(path)}-{path.name}"
    if refused:
        write_json(place.with_suffix(".refused.json"), refused)
    path.replace(place)
