"""Takes finished work back: Label Studio exports in, new label versions out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.catalog import Catalog, Filter
from mm_core.data.images import encode_alpha
from mm_core.data.snapshot import newest_labels
from mm_core.errors import InputError
from mm_core.labeling.label_studio import Annotation, BadAnnotation, collected, inbox, read_annotation, updated_at
from mm_core.labeling.route import ROUTED
from mm_core.layout import Layout
from mm_core.records import Report, sha256_bytes, sha256_file, write_json
from mm_core.store import Store, put_blob

COUNTS = ("files", "annotations", "new_labels", "unchanged", "superseded", "cancelled", "refused")


@dataclass(frozen=True)
class Asked:
    """A photo that people were asked about, as the catalog has it."""

    row: Mapping[str, Any]
    """Its row of `samples`."""
    label: Mapping[str, Any] | None
    """Its newest row of `labels`."""


@dataclass(frozen=True)
class Finished:
    """An annotation whose matte is in the store."""

    alpha_sha256: str
    binary: bool
    category: str
    annotator: str
    updated_at: str


def collect_labels(
    catalog: Catalog, store: Store, layout: Layout, report: Report, *, progress: Callable[[str, int, int], None]
) -> Report:
    """Reads every `<workspace>/labels/inbox/*.json` (Label Studio's JSON export: a list of tasks).

    Each annotation is checked by itself: what passes becomes a blob and the newest label version of its photo (origin
    label_studio), a category that the person chose becomes the photo's; what fails is in `report.tables["refused"]`
    with the reason, and in a file beside the export. Of several annotations of a photo the one changed last counts.
    A read file moves to `labels/collected/<sha256>-<name>`: nothing is lost, and the same content changes nothing.
    Killed at any point, the next run does the file again to the same end.
    """
    files = sorted(inbox(layout).glob("*.json"))
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    report.tables["refused"] = []
    for done, path in enumerate(files):
        refused = _collect_file(catalog, store, path, counts)
        counts["files"] += 1
        counts["refused"] += len(refused)
        report.tables["refused"] += [{"file": path.name, **row} for row in refused]
        _put_away(path, collected(layout), refused)
        progress("collect", done + 1, len(files))
    report.metrics |= {f"collect/{name}": count for name, count in counts.items()}
    return report


def _collect_file(catalog: Catalog, store: Store, path: Path, counts: dict[str, int]) -> list[dict[str, Any]]:
    """Commits what a file holds; returns what was refused, each with its reason."""
    try:
        tasks = _tasks(path)
    except InputError as error:
        return [{"task": None, "annotation": None, "reason": str(error)}]
    refused: list[dict[str, Any]] = []
    newest: dict[str, Finished] = {}
    asked = _asked(catalog, {key for task in tasks if (key := _key(task))})
    for task, annotation in _annotations(tasks):
        counts["annotations"] += 1
        key = _key(task)
        try:
            if isinstance(annotation, dict) and annotation.get("was_cancelled") is True:
                counts["cancelled"] += 1
                continue
            if key not in asked:
                raise BadAnnotation(f"data.key {str(key)[:64]!r} is no photo that was sent to people")
            if isinstance(annotation, dict) and key in newest and updated_at(annotation) < newest[key].updated_at:
                counts["superseded"] += 1
                continue
            photo = asked[key].row
            read = read_annotation(annotation, int(photo["width"]), int(photo["height"]))
            counts["superseded"] += key in newest
            newest[key] = _stored(store, read)
        except BadAnnotation as error:
            number = annotation.get("id") if isinstance(annotation, dict) else None
            name = task.get("id") if isinstance(task, dict) else None
            refused.append({"task": _short(name), "annotation": _short(number), "reason": str(error)})
    batch = sha256_file(path)
    news = {key: work for key, work in newest.items() if _is_news(asked[key].label, work)}
    # The category first: killed in between, the label is still missing and the file is done again.
    catalog.upsert(
        "samples",
        [
            {**asked[key].row, "category": work.category}
            for key, work in news.items()
            if asked[key].row["category"] != work.category
        ],
    )
    # By upsert: a person may go back to an earlier matte, whose row then counts as the newest version again.
    catalog.upsert("labels", [_label(asked[key], work, batch) for key, work in news.items()])
    counts["new_labels"] += len(news)
    counts["unchanged"] += len(newest) - len(news)
    return refused


def _stored(store: Store, read: Annotation) -> Finished:
    """The matte goes to the store at once, so that a large export does not fill the memory."""
    alpha = put_blob(store, encode_alpha(read.alpha.astype(np.float32) / 255))
    return Finished(alpha, bool(np.isin(read.alpha, (0, 255)).all()), read.category, read.annotator, read.updated_at)


def _is_news(before: Mapping[str, Any] | None, work: Finished) -> bool:
    """Whether finished work replaces the newest label: not where that is this matte, or later work of a person."""
    if before is None:
        return True
    stale = before["origin"] == "label_studio" and before["created_at"] > work.updated_at
    return not stale and before["alpha_sha256"] != work.alpha_sha256


def _label(asked: Asked, work: Finished, batch: str) -> dict[str, Any]:
    sample_id = asked.row["id"]
    return {
        "id": sha256_bytes(f"{sample_id}{work.alpha_sha256}".encode()),
        "sample_id": sample_id,
        "alpha_sha256": work.alpha_sha256,
        "version": 1 if asked.label is None else int(asked.label["version"]) + 1,
        "origin": "label_studio",
        "batch": batch,
        "annotator": work.annotator,
        "binary": work.binary,
        "created_at": work.updated_at,
    }


def _tasks(path: Path) -> list[Any]:
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path.name} is not JSON ({reason}): export the project as JSON again") from None
    if not isinstance(tasks, list):
        raise InputError(f"{path.name} is no list of tasks: export the project as JSON, not JSON-MIN or another format")
    return tasks


def _annotations(tasks: list[Any]) -> Iterator[tuple[Any, Any]]:
    for task in tasks:
        annotations = task.get("annotations") if isinstance(task, dict) else None
        if isinstance(annotations, list):
            yield from ((task, annotation) for annotation in annotations)
        else:
            yield task, None


def _key(task: Any) -> str:
    data = task.get("data") if isinstance(task, dict) else None
    key = data.get("key") if isinstance(data, dict) else None
    return key if isinstance(key, str) else ""


def _asked(catalog: Catalog, keys: set[str]) -> dict[str, Asked]:
    """Of the keys, those that are photos which were routed to people."""
    of_these: list[Filter] = [("sample_id", "in", sorted(keys))]
    routed: list[Filter] = [("extractor", "=", ROUTED), *of_these]
    sent = set(catalog.read("features", columns=["sample_id"], filters=routed)["sample_id"])
    samples: Any = catalog.read("samples", filters=[("id", "in", sorted(sent))]).astype(object)
    labels: Any = newest_labels(catalog.read("labels", filters=of_these))
    label_of = {row["sample_id"]: row for row in labels.to_dict("records")}
    rows = samples.where(samples.notna(), None).to_dict("records")
    return {row["id"]: Asked(row, label_of.get(row["id"])) for row in rows}


def _put_away(path: Path, folder: Path, refused: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{sha256_file(path)}-{path.name}"
    if refused:
        write_json(place.with_suffix(".refused.json"), refused)
    path.replace(place)


def _short(value: Any) -> str | None:
    return None if value is None else str(value)[:40]
