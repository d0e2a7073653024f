"""Finished work becomes label versions in the catalog. From files and from a server alike, and safe to repeat."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.params import LabelParams
from mm_core.core.records import Report, digest_of, sha256_bytes
from mm_core.imaging.images import encode_alpha, load_rgb
from mm_core.ingest.row_decisions import read_history
from mm_core.ingest.snapshot import newest_labels
from mm_core.labeling.consensus import Answer, Outcome, settle
from mm_core.labeling.label_studio_format import Annotation, BadAnnotation, read_annotation
from mm_core.labeling.review import category_stays, sent, suspect_photos
from mm_core.labeling.trimap_matting import solve_unknown
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store, fetch_blob, put_blob

REFUSED = "refused_photo"
"""Extractor of the rows of `features` that say why a person refused a photo."""
COUNTS = (
    "annotations", "new_labels", "unchanged", "superseded", "cancelled", "refused",
    "withdrawn", "photos_refused", "disagreements", "solved",
)  # fmt: skip


THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Photos whose Unknown areas are solved at once: that runs outside of Python's lock and takes up to 1 GB each."""


@dataclass(frozen=True)
class Work:
    """What people did about one photo."""

    key: str
    """Sample id, as the task's `data.key` says: not to be believed."""
    annotations: Sequence[Any]
    task: str = ""
    """Address of the task on its server; its annotations are then all there are: what is missing was deleted."""
    batch: str = ""
    """Goes to the label's column of that name."""


@dataclass(frozen=True)
class Asked:
    """A photo that people were asked about, as the catalog has it."""

    row: Mapping[str, Any]
    """Its row of `samples`."""
    labels: Sequence[Mapping[str, Any]]
    """All its rows of `labels`."""
    current: Mapping[str, Any] | None
    """The one of them that counts."""
    prediction: str
    """Version of the model whose matte the task began with."""
    keeps_category: bool = False
    """The category that people choose is not taken over (`review.category_stays`)."""
    category_changes: int = 0
    """How often the category changed."""
    category_at: str | None = None
    """When the category was stated last, ISO 8601."""


@dataclass
class Taken:
    """What `take` did."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Annotations that could not be used: task, annotation, reason."""
    photos_refused: list[dict[str, Any]] = field(default_factory=list)
    """Photos that people do not want to paint: key, reason, annotator."""
    disagreements: list[dict[str, Any]] = field(default_factory=list)
    """Photos about which several people answered: key, people, mse, iou, settled, why."""

    def report(self, report: Report) -> None:
        """Counts as metrics `collect/…`, the rest as tables."""
        report.metrics |= {f"collect/{name}": count for name, count in self.counts.items()}
        report.tables |= {"refused": self.refused, "photos_refused": self.photos_refused}
        report.tables["disagreements"] = self.disagreements

    def add(self, other: Taken) -> None:
        """What `other` did comes behind what this did."""
        for name, count in other.counts.items():
            self.counts[name] += count
        self.refused += other.refused
        self.photos_refused += other.photos_refused
        self.disagreements += other.disagreements

    def refuse(self, work: Work, annotation: Any, reason: object) -> None:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        name = work.task or work.key or None
        self.refused.append({"task": _short(name), "annotation": _short(number), "reason": str(reason)})
        self.counts["refused"] += 1


def take(catalog: Catalog, store: Store, params: LabelParams, works: Sequence[Work], taken: Taken) -> list[Work]:
    """Checks, decodes, settles and commits; returns the works about which people disagree.

    What passes becomes a blob and the newest label version of its photo (origin label_studio), and the category that
    people chose becomes the photo's. Where a server's task has no answer any more (deleted, taken back as skipped, in
    dispute), the labels that came of it are withdrawn, and what counted before them counts again. Killed at any
    point, the same call again comes to the same end.
    """
    asked = _asked(catalog, store, {work.key for work in works if work.key})
    categories, corrections, labels, refusals, disputed = [], [], [], [], []
    known = [(work, asked[work.key]) for work in works if work.key in asked]
    answered = _answered(store, known)
    for work in works:
        photo = asked.get(work.key)
        if photo is None:
            # A server's task that nobody has touched may be somebody else's.
            for annotation in work.annotations or ([] if work.task else [None]):
                taken.counts["annotations"] += 1
                taken.refuse(work, annotation, f"data.key {work.key[:64]!r} is no photo that was sent to people")
            continue
        answers, complete, about = next(answered)
        taken.add(about)
        outcome = settle(answers, params)
        if outcome.people > 1:
            _note_disagreement(work, outcome, taken)
        if outcome.answer is None and outcome.people > 1:
            disputed.append(work)
        answer = outcome.answer
        if answer is not None and answer.alpha is not None:
            news = _label(store, photo, work, answer)
            if _is_news(photo, work, news):
                labels.append(news)
                taken.counts["new_labels"] += 1
            else:
                taken.counts["unchanged"] += 1
            if _is_newer_category(photo, answer):
                categories.append({**photo.row, "category": answer.category})
                corrections.append(_category_correction(photo, work, answer))
            continue
        if answer is not None:
            refusals.append(_refusal(work, answer))
            taken.photos_refused.append({"key": work.key, "reason": answer.rejected, "annotator": answer.annotator})
            taken.counts["photos_refused"] += 1
        if work.task and complete:
            why = f"the photo was refused: {answer.rejected}" if answer else outcome.why
            gone = _withdrawn(photo, work, why)
            labels += gone
            taken.counts["withdrawn"] += len(gone)
    # What counted before, then the category, then the label: killed in between, the work is done again.
    catalog.add("corrections", corrections)
    catalog.upsert("samples", categories, columns=("category",))
    # By upsert: a person may go back to an earlier matte, whose row then counts as the newest version again.
    catalog.upsert("labels", labels)
    catalog.upsert("features", refusals)
    return disputed


def _answered(store: Store, works: Sequence[tuple[Work, Asked]]) -> Iterator[tuple[list[Answer], bool, Taken]]:
    """`_answers` of each work in their order, worked out by threads."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(lambda about: _answers(store, *about), works)
    finally:
        pool.shutdown(cancel_futures=True)


def _answers(store: Store, work: Work, photo: Asked) -> tuple[list[Answer], bool, Taken]:
    """One answer per person, the last; whether all annotations could be read; and counts and refusals."""
    taken = Taken()
    newest: dict[str, Annotation] = {}
    complete = True
    width, height = int(photo.row["width"]), int(photo.row["height"])
    for annotation in work.annotations:
        taken.counts["annotations"] += 1
        if isinstance(annotation, dict) and annotation.get("was_cancelled") is True:
            taken.counts["cancelled"] += 1
            continue
        try:
            read = read_annotation(annotation, width, height)
        except BadAnnotation as error:
            complete = False
            taken.refuse(work, annotation, error)
            continue
        before = newest.get(read.annotator)
        taken.counts["superseded"] += before is not None
        if before is None or read.updated_at >= before.updated_at:
            newest[read.annotator] = read
    answers = []
    for read in newest.values():
        try:
            answers.append(_answer(store, photo, read, taken))
        except InputError as error:
            complete = False
            taken.refuse(work, None, f"{read.annotator}: {error}")
    return answers, complete, taken


def _answer(store: Store, photo: Asked, read: Annotation, taken: Taken) -> Answer:
    alpha = read.alpha
    if alpha is not None and read.unknown is not None and read.unknown.any():
        alpha = solve_unknown(load_rgb(fetch_blob(store, str(photo.row["id"]))), alpha, read.unknown)
        taken.counts["solved"] += 1
    return Answer(alpha, read.category, read.rejected, read.annotator, read.updated_at)


def _label(store: Store, photo: Asked, work: Work, answer: Answer) -> dict[str, Any]:
    """The row of a settled matte; its blob is in the store."""
    assert answer.alpha is not None
    sample = photo.row["id"]
    digest = put_blob(store, encode_alpha(answer.alpha.astype(np.float32) / 255))
    return {
        "id": sha256_bytes(f"{sample}{digest}".encode()),
        "sample_id": sample,
        "alpha_sha256": digest,
        "version": 1 + max((int(row["version"]) for row in photo.labels), default=0),
        "origin": "label_studio",
        "batch": work.batch,
        "annotator": answer.annotator,
        "binary": bool(np.isin(answer.alpha, (0, 255)).all()),
        "created_at": answer.updated_at,
        "task": work.task or None,
        "prediction": photo.prediction or None,
        "withdrawn_at": None,
        "withdrawn_why": None,
    }


def _is_news(photo: Asked, work: Work, label: Mapping[str, Any]) -> bool:
    """Whether a settled matte replaces the label that counts.

    Not where it is that matte. About its own earlier labels a task is right; any other label, of a person or of a drop,
    stays if it is younger, and so does a withdrawal of this very work (an old export does not bring back what was
    deleted). An answer that is read again is as old as it was.
    """
    current = photo.current
    if current is not None and current["alpha_sha256"] == label["alpha_sha256"]:
        return False
    if current is not None:
        if _of_task(current, work):
            return True
        if _moment(current["created_at"]) > _moment(label["created_at"]):
            return False
        if current["origin"] == "label_studio":
            return True
    before = [row for row in photo.labels if row["id"] == label["id"] and not _of_task(row, work)]
    return not any(_moment(row["created_at"]) >= _moment(label["created_at"]) for row in before)


def _is_newer_category(photo: Asked, answer: Answer) -> bool:
    """Whether the category that people chose replaces the photo's: it is another one, and was not stated before it."""
    if photo.keeps_category or photo.row["category"] == answer.category:
        return False
    current = photo.current
    by_person = current["created_at"] if current and current["origin"] == "label_studio" else None
    known = (photo.category_at or photo.row.get("accepted_at"), by_person)  # a person's matte came with a category
    return _moment(answer.updated_at) >= max(map(_moment, known))


def _category_correction(photo: Asked, work: Work, answer: Answer) -> dict[str, Any]:
    """The row of `corrections` of a category that people changed."""
    source = work.task or work.batch
    return {
        "key": digest_of([source, photo.row["id"], "category", photo.category_changes]),
        "arrival": source,
        "sample_id": photo.row["id"],
        "verdict": "update",
        "column": "category",
        "old": photo.row["category"],
        "new": answer.category,
        "origin": "label_studio",
        "kind": photo.row.get("kind"),
        "batch": work.batch,
        "row": None,
        "image": photo.row.get("name"),
        "stated_at": answer.updated_at,
    }


def _moment(text: str | None) -> datetime:
    """A time of the catalog; the distant past where none is known."""
    moment = datetime.fromisoformat(text) if text else datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _withdrawn(photo: Asked, work: Work, why: str) -> list[dict[str, Any]]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [row for row in photo.labels if _of_task(row, work) and not row["withdrawn_at"]]
    return [{**row, "withdrawn_at": now, "withdrawn_why": why} for row in rows]


def _of_task(label: Mapping[str, Any], work: Work) -> bool:
    return bool(work.task) and label["task"] == work.task


def _refusal(work: Work, answer: Answer) -> dict[str, Any]:
    return {
        "sample_id": work.key,
        "extractor": REFUSED,
        "version": "1",
        "numbers": {},
        "texts": {"reason": answer.rejected, "annotator": answer.annotator, "task": work.task},
        "computed_at": answer.updated_at,
    }


def _note_disagreement(work: Work, outcome: Outcome, taken: Taken) -> None:
    row: dict[str, Any] = {"key": work.key, "people": outcome.people, "settled": outcome.answer is not None}
    if outcome.apart:
        row |= {"mse": outcome.apart.mse, "iou": outcome.apart.iou}
    taken.disagreements.append(row | {"why": outcome.why})
    taken.counts["disagreements"] += outcome.answer is None


def merged(works: Sequence[Work]) -> list[Work]:
    """Works of one photo in one, in order of their first: an export may name a photo twice."""
    found: dict[str, Work] = {}
    rest = []
    for work in works:
        if not work.key:
            rest.append(work)
        elif before := found.get(work.key):
            found[work.key] = replace(before, annotations=[*before.annotations, *work.annotations])
        else:
            found[work.key] = work
    return [*found.values(), *rest]


def _asked(catalog: Catalog, store: Store, keys: Collection[str]) -> dict[str, Asked]:
    """Of the keys, those that are photos which were sent to people."""
    about = sent(catalog, keys)
    samples = _records(catalog.read("samples", filters=[("id", "in", sorted(about))]))
    held = suspect_photos(store, {key: about[key] for key in set(about) - {row["id"] for row in samples}})
    labels: Any = catalog.read("labels", filters=[("sample_id", "in", sorted(keys))])
    current = {row["sample_id"]: row for row in _records(newest_labels(labels))}
    all_of: dict[str, list[dict[str, Any]]] = {}
    for row in _records(labels):
        all_of.setdefault(row["sample_id"], []).append(row)

    history = read_history(catalog, sorted(keys))

    def asked(row: Mapping[str, Any]) -> Asked:
        key = row["id"]
        changes = history.get((key, "category"), [])
        return Asked(
            row,
            all_of.get(key, []),
            current.get(key),
            about[key].model,
            category_stays(about[key]),
            len(changes),
            max((change["stated_at"] for change in changes), key=_moment, default=None),
        )

    return {row["id"]: asked(row) for row in [*samples, *held]}


def _records(frame: Any) -> list[dict[str, Any]]:
    plain = frame.astype(object)
    return plain.where(plain.notna(), None).to_dict("records")


def _short(value: Any) -> str | None:
    return None if value is None else str(value)[:80]
