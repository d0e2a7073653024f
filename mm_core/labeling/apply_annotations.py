"""Store finished annotations as label versions in the catalog, from files or a server. Repeating it changes nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NotRequired, TypedDict, cast

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.records import Report, digest_of, sha256_bytes
from mm_core.imaging.images import encode_alpha, load_rgb
from mm_core.ingest.placement import newest_labels
from mm_core.ingest.row_decisions import read_history
from mm_core.labeling.consensus import Answer, Outcome, settle
from mm_core.labeling.label_studio_format import Annotation, BadAnnotation, read_annotation
from mm_core.labeling.review import category_stays, sent, suspect_photos
from mm_core.labeling.trimap_matting import solve_unknown
from mm_core.storage.catalog import Catalog
from mm_core.storage.rows import CorrectionRow, FeatureRow, LabelRow, SampleRow, records
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, fetch_blob, put_blob

REFUSED = "refused_photo"
"""Extractor name of the rows of `features` with a person's reason for refusing a photo."""
COUNTS = (
    "annotations", "new_labels", "unchanged", "superseded", "cancelled", "refused",
    "withdrawn", "photos_refused", "disagreements", "solved",
)  # fmt: skip


THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Photos with Unknown areas solved in parallel; solving releases Python's lock and takes up to 1 GB per photo."""


class Refused(TypedDict):
    """An annotation that could not be used."""

    file: NotRequired[str]
    task: str | None
    annotation: str | None
    reason: str


class RefusedPhoto(TypedDict):
    """A photo that a person refused."""

    key: str
    reason: str
    annotator: str


class DisagreementRow(TypedDict):
    """The answers of several people about one photo."""

    key: str
    people: int
    settled: bool
    mse: NotRequired[float]
    iou: NotRequired[float]
    why: str


@dataclass(frozen=True)
class Work:
    """All annotations of one photo."""

    key: str
    """Sample id from the task's `data.key`; not verified."""
    annotations: Sequence[object]
    """Not checked yet, as the file or the server has them."""
    task: str = ""
    """Address of the task on its server. Its annotations are then complete: a missing one was deleted."""
    batch: str = ""
    """Value for the label's column `batch`."""


@dataclass(frozen=True)
class Asked:
    """A photo that was sent to people, with its rows in the catalog."""

    row: SampleRow
    """Row of `samples`."""
    labels: Sequence[LabelRow]
    """All rows of `labels`."""
    current: LabelRow | None
    """The label in force."""
    prediction: str
    """Version of the model that predicted the task's initial matte."""
    keeps_category: bool = False
    """The category that people choose is ignored (`review.category_stays`)."""
    category_changes: int = 0
    """Number of changes of the category."""
    category_at: str | None = None
    """Time of the category's last statement, ISO 8601."""


@dataclass
class Taken:
    """Result of `take`."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    refused: list[Refused] = field(default_factory=list)
    """Annotations that could not be used: task, annotation, reason."""
    photos_refused: list[RefusedPhoto] = field(default_factory=list)
    """Photos that people refused: key, reason, annotator."""
    disagreements: list[DisagreementRow] = field(default_factory=list)
    """Photos with several people's answers: key, people, mse, iou, settled, why."""

    def report(self, report: Report) -> None:
        """Add the counts as metrics `collect/…` and the lists as tables."""
        report.metrics |= {f"collect/{name}": count for name, count in self.counts.items()}
        report.tables |= {"refused": self.refused, "photos_refused": self.photos_refused}
        report.tables["disagreements"] = self.disagreements

    def add(self, other: Taken) -> None:
        """Append the result of another call."""
        for name, count in other.counts.items():
            self.counts[name] += count
        self.refused += other.refused
        self.photos_refused += other.photos_refused
        self.disagreements += other.disagreements

    def refuse(self, work: Work, annotation: object, reason: object) -> None:
        """Record an annotation that could not be used."""
        number = annotation.get("id") if isinstance(annotation, dict) else None
        name = work.task or work.key or None
        self.refused.append({"task": _short(name), "annotation": _short(number), "reason": str(reason)})
        self.counts["refused"] += 1


def take(run: StorageRun, works: Sequence[Work], taken: Taken) -> list[Work]:
    """Check, decode, combine and store annotations; return the works on which people disagree.

    A combined matte becomes a blob and the newest label version of its photo (origin label_studio), and the category
    that people chose becomes the photo's. If a server's task has no answer any more (deleted, changed to a skip, in
    dispute), its labels are withdrawn, and the label before them is in force again. After a kill the same call gives
    the same result.

    Args:
        run: Params, workspace, storage and progress.
        works: Annotations by photo, each photo once.
        taken: Counts and refusals are added to it.
    """
    catalog = run.catalog
    asked = _asked(catalog, run.store, {work.key for work in works if work.key})
    categories, corrections, labels, refusals, disputed = [], [], [], [], []
    pairs = [(work, asked[work.key]) for work in works if work.key in asked]
    answered = _answered(run.store, pairs)
    for work in works:
        photo = asked.get(work.key)
        if photo is None:
            # An untouched task on the server may have another origin, so it is not reported.
            for annotation in work.annotations or ([] if work.task else [None]):
                taken.counts["annotations"] += 1
                taken.refuse(work, annotation, f"data.key {work.key[:64]!r} is not a photo that was sent to people")
            continue
        answers, complete, result = next(answered)
        taken.add(result)
        outcome = settle(answers, run.params.label)
        if outcome.people > 1:
            _note_disagreement(work, outcome, taken)
        # The caller asks another person about a dispute.
        if outcome.answer is None and outcome.people > 1:
            disputed.append(work)
        answer = outcome.answer
        # A matte: store it if it is news, and take over the category.
        if answer is not None and answer.alpha is not None:
            label = _label(run.store, photo, work, answer)
            if _is_news(photo, work, label):
                labels.append(label)
                taken.counts["new_labels"] += 1
            else:
                taken.counts["unchanged"] += 1
            if _is_newer_category(photo, answer):
                categories.append({**photo.row, "category": answer.category})
                corrections.append(_category_correction(photo, work, answer))
            continue
        if answer is not None:
            # A refusal: no matte, but a reason.
            refusals.append(_refusal(work, answer))
            taken.photos_refused.append({"key": work.key, "reason": answer.rejected, "annotator": answer.annotator})
            taken.counts["photos_refused"] += 1
        # No matte any more: withdraw this task's labels, unless an unreadable annotation may hold one.
        if work.task and complete:
            why = f"the photo was refused: {answer.rejected}" if answer else outcome.why
            withdrawn = _withdrawn(photo, work, why)
            labels += withdrawn
            taken.counts["withdrawn"] += len(withdrawn)
    # The order matters for a kill in between: without the label the work is repeated, and the correction has a fixed
    # key.
    catalog.add("corrections", corrections)
    catalog.upsert("samples", categories, columns=("category",))
    # Upsert: a person may return to an earlier matte, whose row then becomes the newest version again.
    catalog.upsert("labels", labels)
    catalog.upsert("features", refusals)
    return disputed


def _answered(store: Store, works: Sequence[tuple[Work, Asked]]) -> Iterator[tuple[list[Answer], bool, Taken]]:
    """Yield `_answers` of each work in order, computed by threads."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(lambda pair: _answers(store, *pair), works)
    finally:
        pool.shutdown(cancel_futures=True)


def _answers(store: Store, work: Work, photo: Asked) -> tuple[list[Answer], bool, Taken]:
    """Return the last answer of each person, whether all annotations were readable, and counts and refusals."""
    taken = Taken()
    newest: dict[str, Annotation] = {}
    complete = True
    width, height = int(photo.row["width"]), int(photo.row["height"])
    for annotation in work.annotations:
        taken.counts["annotations"] += 1
        # A skip is an annotation with this flag.
        if isinstance(annotation, dict) and annotation.get("was_cancelled") is True:
            taken.counts["cancelled"] += 1
            continue
        try:
            read = read_annotation(annotation, width, height)
        except BadAnnotation as error:
            complete = False
            taken.refuse(work, annotation, error)
            continue
        # Keep the newest annotation of each person.
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
    """Return an annotation as an answer, with its Unknown areas solved."""
    alpha = read.alpha
    if alpha is not None and read.unknown is not None and read.unknown.any():
        alpha = solve_unknown(load_rgb(fetch_blob(store, str(photo.row["id"]))), alpha, read.unknown)
        taken.counts["solved"] += 1
    return Answer(alpha, read.category, read.rejected, read.annotator, read.updated_at)


def _label(store: Store, photo: Asked, work: Work, answer: Answer) -> LabelRow:
    """Store the matte's blob and return its row of `labels`."""
    assert answer.alpha is not None
    sample = photo.row["id"]
    # Equal mattes have equal blobs, so that a repeated call changes nothing.
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


def _is_news(photo: Asked, work: Work, label: LabelRow) -> bool:
    """Return whether a combined matte replaces the label in force.

    It does not if both are the same matte. A task may always replace its own earlier labels. Any other label, of a
    person or of a drop, stays if it is newer. A withdrawal of this work stays too, so an old export does not restore a
    deleted label. Reading an answer again does not change its time.
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
    # The same matte may have a row: it was read before, by an export or a task, and a drop has come since.
    before = [row for row in photo.labels if row["id"] == label["id"] and not _is_withdrawn_by(row, work)]
    return not any(_moment(row["created_at"]) >= _moment(label["created_at"]) for row in before)


def _is_newer_category(photo: Asked, answer: Answer) -> bool:
    """Return whether the category that people chose replaces the photo's: it differs and is not older."""
    if photo.keeps_category or photo.row["category"] == answer.category:
        return False
    current = photo.current
    # The newest of all statements of the category so far counts.
    by_person = current["created_at"] if current and current["origin"] == "label_studio" else None
    # A person's matte was submitted together with a category.
    known_times = (photo.category_at or photo.row.get("accepted_at"), by_person)
    return _moment(answer.updated_at) >= max(map(_moment, known_times))


def _category_correction(photo: Asked, work: Work, answer: Answer) -> CorrectionRow:
    """Return the row of `corrections` for a category that people changed."""
    source = work.task or work.batch
    return {
        # The key is fixed, so that a repeated run writes the same row.
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
    """Parse a time of the catalog; a missing one becomes the earliest possible time."""
    moment = datetime.fromisoformat(text) if text else datetime.min
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _withdrawn(photo: Asked, work: Work, why: str) -> list[LabelRow]:
    """Return this task's labels as withdrawn rows."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [row for row in photo.labels if _of_task(row, work) and not row["withdrawn_at"]]
    return [LabelRow({**row, "withdrawn_at": now, "withdrawn_why": why}) for row in rows]


def _is_withdrawn_by(label: LabelRow, work: Work) -> bool:
    return _of_task(label, work) and bool(label["withdrawn_at"])


def _of_task(label: LabelRow, work: Work) -> bool:
    return bool(work.task) and label.get("task") == work.task


def _refusal(work: Work, answer: Answer) -> FeatureRow:
    """Return the row of `features` for a refused photo."""
    return {
        "sample_id": work.key,
        "extractor": REFUSED,
        "version": "1",
        "numbers": {},
        "texts": {"reason": answer.rejected, "annotator": answer.annotator, "task": work.task},
        "computed_at": answer.updated_at,
    }


def _note_disagreement(work: Work, outcome: Outcome, taken: Taken) -> None:
    """Record the answers of several people about one photo."""
    row = {"key": work.key, "people": outcome.people, "settled": outcome.answer is not None}
    apart = {"mse": outcome.apart.mse, "iou": outcome.apart.iou} if outcome.apart else {}
    taken.disagreements.append(cast(DisagreementRow, {**row, **apart, "why": outcome.why}))
    taken.counts["disagreements"] += outcome.answer is None


def merged(works: Sequence[Work]) -> list[Work]:
    """Merge the works of each photo, in order of their first occurrence: an export may contain a photo twice."""
    by_key: dict[str, Work] = {}
    without_key = []
    for work in works:
        if not work.key:
            without_key.append(work)
        elif before := by_key.get(work.key):
            by_key[work.key] = replace(before, annotations=[*before.annotations, *work.annotations])
        else:
            by_key[work.key] = work
    return [*by_key.values(), *without_key]


def _asked(catalog: Catalog, store: Store, keys: Collection[str]) -> dict[str, Asked]:
    """Return the photos among the keys that were sent to people."""
    tasks = sent(catalog, keys)
    samples = records(catalog.read("samples", filters=[("id", "in", sorted(tasks))]), SampleRow)
    # Photos in quarantine have no row in `samples` yet.
    quarantined = suspect_photos(store, {key: tasks[key] for key in set(tasks) - {row["id"] for row in samples}})
    labels = catalog.read("labels", filters=[("sample_id", "in", sorted(keys))])
    current = {row["sample_id"]: row for row in records(newest_labels(labels), LabelRow)}
    labels_of: dict[str, list[LabelRow]] = {}
    for row in records(labels, LabelRow):
        labels_of.setdefault(row["sample_id"], []).append(row)

    history = read_history(catalog, sorted(keys))

    def asked(row: SampleRow) -> Asked:
        key = row["id"]
        changes = history.get((key, "category"), [])
        return Asked(
            row,
            labels_of.get(key, []),
            current.get(key),
            tasks[key].model,
            category_stays(tasks[key]),
            len(changes),
            max((change["stated_at"] for change in changes), key=_moment, default=None),
        )

    return {row["id"]: asked(row) for row in [*samples, *quarantined]}


def _short(value: object) -> str | None:
    return None if value is None else str(value)[:80]
