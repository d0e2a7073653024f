"""What becomes of each row of a drop: accepted, an update, quarantined, a conflict, or a duplicate of what is known.

Deciding is a pure function of the rows, their probes and the catalog as read at one version, so that a
worker whose catalog moved in the meantime decides again, and one that was killed decides the same.

- The same bytes again are an update where the row says something new of them (`changes`): a matte becomes the newest
  label version, every other column of the manifest replaces what the catalog holds. Otherwise they are a duplicate.
- A photo that the drop lists twice with different words is a conflict: none of its rows is used until they agree.
- The same picture saved again (re-encoded, resized, brightened) is a near-duplicate, unless both rows declare the
  same `group`: a burst is kept whole, and the group keeps it on one side of train and eval.
- The same photo edited (cropped, framed, written on) or of the same burst is accepted, for it may teach something;
  it joins the group of the earlier one, and `near` names every earlier photo that it shows again.
- A photo that `mm forget` took out stays out.
- A row that brought a sample itself (an earlier, interrupted or partial run) is accepted again, to no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.core.records import sha256_bytes
from mm_core.imaging.hash_index import Candidates, Hashed, find_candidates
from mm_core.imaging.near_duplicates import same_picture, same_scene
from mm_core.ingest.changes import Change, History, Repeated, changes_of, label_in_use
from mm_core.ingest.erasure import FORGOTTEN, forgotten_among
from mm_core.ingest.expectations import Fault
from mm_core.ingest.findings import Finding
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe
from mm_core.ingest.statements import ALPHA, COLUMNS, TAKEN, Statement, stated, word
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.retry import patient

SAMPLE_COLUMNS = ("id", "kind", "batch", "name", "width", "height", *COLUMNS)
HASH_COLUMNS = ("id", "phash", "landmarks")
LABEL_COLUMNS = ("id", "sample_id", "version", "origin", "batch", "alpha_sha256", "created_at", "withdrawn_at")
MAX_LOOKS = 8
"""Photos that one is compared with as an edit, likeliest first: bounds work where many share a backdrop."""
ASKED = 1 << 14
"""Photos looked up at once: of a larger drop the search takes no more memory, it reads the catalog again."""
SAME_ASPECT = 0.04
"""Copies of one picture have the same width by height, up to rounding."""

CONFLICT = "rows of one photo disagree"
"""Reason of a conflict."""

Glances = Callable[[str], np.ndarray]
"""What the second look needs of a photo, by its sha256, read when it is needed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A photo that others may repeat."""

    identity: str
    """sha256 of its bytes."""
    name: str
    group: str
    aspect: float
    """Width by height."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one row."""

    row: int
    verdict: Literal["accept", "update", "quarantine", "duplicate", "conflict", "held"]
    """`held`: nothing becomes of the row, as its drop is held back whole."""
    reason: str = ""
    detail: str = ""
    sample_id: str = ""
    label_version: int = 0
    """Version of the label that the row brings; 0 where it brings none."""
    changes: tuple[Change, ...] = ()
    """Of an update: what the row changes of a known photo."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What the row, and those that list the same photo again, say (`statements.stated`)."""
    group: str = ""
    """Declared, or that of the earlier photo which this one shows again; empty: a group of its own."""
    near: tuple[str, ...] = ()
    """Earlier photos, by id, that this one shows again, edited: one of each group."""

    @property
    def is_taken(self) -> bool:
        """The catalog holds what the row says."""
        return self.verdict in TAKEN


def label_id(sample_id: str, alpha_sha256: str) -> str:
    """Key of a label: the same matte of the same photo is one label, whoever brings it."""
    return sha256_bytes(f"{sample_id}:{alpha_sha256}".encode())


@dataclass
class Known:
    """The catalog as one batch sees it, at one version of each table."""

    samples_version: int
    labels_version: int
    samples: dict[str, Mapping[str, Any]]
    """By id: those that this batch brings again or resembles."""
    labels: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """By sample id."""
    candidates: dict[str, Candidates] = field(default_factory=dict)
    """Samples that a photo of the batch may repeat, by its sha256."""
    photos: frozenset[str] = frozenset()
    """Ids that this batch brings."""
    forgotten: frozenset[str] = frozenset()
    """Those of them that must not come back."""
    history: History = field(default_factory=dict)
    """Earlier changes of them."""

    @staticmethod
    @patient
    def read(catalog: Catalog, photos: Hashed, near_bits: int) -> Known:
        """Reads what may matter for these photos; the rest of a large catalog is not kept."""
        versions = catalog.version("samples"), catalog.version("labels")
        mine = pa.array(photos.ids, pa.string())
        again: set[str] = set()

        def catalog_in_pieces() -> Iterator[Hashed]:
            for piece in catalog.scan("samples", version=versions[0], columns=HASH_COLUMNS):
                again.update(piece["id"].filter(pc.is_in(piece["id"], mine)).to_pylist())
                yield Hashed.of(*(piece[name].to_pylist() for name in HASH_COLUMNS))

        candidates: dict[str, Candidates] = {}
        for part in photos.parts(ASKED):
            found = find_candidates(part, catalog_in_pieces(), near_bits)
            candidates |= {i: c for i, c in zip(part.ids.tolist(), found, strict=True) if c.copies or c.edits}
        wanted = again.union(*((*c.copies, *c.edits) for c in candidates.values()))
        named: list[Filter] = [("id", "in", sorted(wanted))]
        frame = catalog.read("samples", version=versions[0], columns=SAMPLE_COLUMNS, filters=named)
        clean: pd.DataFrame = frame.astype(object).where(frame.notna(), None)
        samples: dict[str, Mapping[str, Any]] = {str(row["id"]): row for row in clean.to_dict("records")}
        of_mine: list[Filter] = [("sample_id", "in", sorted(photos.ids.tolist()))]
        rows: Any = catalog.read("labels", version=versions[1], columns=LABEL_COLUMNS, filters=of_mine).astype(object)
        labels: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows.where(rows.notna(), None).to_dict("records"):
            labels.setdefault(row["sample_id"], []).append(row)
        ids = frozenset(photos.ids.tolist())
        forgotten = forgotten_among(catalog, ids)
        return Known(*versions, samples, labels, candidates, ids, forgotten, read_history(catalog, sorted(ids)))

    def entry(self, identity: str) -> Entry:
        row = self.samples[identity]
        return Entry(identity, row["name"], row["group"] or identity, row["width"] / row["height"])


def read_history(catalog: Catalog, ids: Sequence[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The changes of these samples so far, by sample and column, oldest first."""
    columns = ("sample_id", "column", "verdict", "old", "new", "origin", "kind", "batch", "stated_at", "key")
    frame: Any = catalog.read("corrections", columns=columns, filters=[("sample_id", "in", list(ids))]).astype(object)
    history: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in frame.where(frame.notna(), None).sort_values(["stated_at", "key"]).to_dict("records"):
        history.setdefault((row["sample_id"], row["column"]), []).append(row)
    return history


def photos_of(findings: Iterable[Finding]) -> Hashed:
    """Every photo of a drop that could be read, once, by its sha256."""
    found = {p.sha256: (p.phash, bytes.fromhex(p.landmarks or "")) for _, p, _ in findings if p.sha256 and p.phash}
    return Hashed.of(list(found), [phash for phash, _ in found.values()], [marks for _, marks in found.values()])


def decide(
    kind: str,
    batch: str,
    findings: Iterable[Finding],
    known: Known,
    glances: Glances,
    near_bits: int,
    before: Statement | None = None,
    meant: Mapping[int, Sequence[Change]] | None = None,
) -> list[Decision]:
    """Verdicts in the order of the rows; the first of several copies is the one that stays.

    `before`: what this drop said last. `meant`: row → the changes that an interrupted run of
    this arrival meant to make.
    """
    said, own = (before.by_sample(), before.taken()) if before else ({}, frozenset())
    meant = meant or {}
    repeated = Repeated.find(findings)
    listed: dict[str, str] = {}
    taken: dict[str, str] = {}
    """Photos that this batch brings: by sha256, their names."""
    beside = _beside(findings, near_bits)
    entries: dict[int, Entry] = {}
    """The same, by their place in the batch."""

    def verdict_on(place: int, row: ManifestRow, probe: Probe, fault: Fault | None) -> Decision:
        if fault:
            return Decision(row.row, "quarantine", fault.reason, fault.detail)
        identity, name = probe.sha256 or "", row.image
        assert probe.phash and probe.width and probe.height, "accepted rows are measured whole"
        here = next(beside)
        if identity in repeated.conflicts:
            return Decision(row.row, "conflict", CONFLICT, repeated.conflicts[identity], identity)
        if name in listed:
            return Decision(row.row, "duplicate", "listed twice", f"{name} is in the manifest already", listed[name])
        listed[name] = identity
        if identity in taken:
            return Decision(row.row, "duplicate", "duplicate", f"same bytes as {taken[identity]}", identity)
        if identity in known.forgotten:
            return Decision(row.row, "duplicate", FORGOTTEN, "this photo was to be forgotten")
        values = repeated.values.get(identity) or stated(row, probe)
        sample = known.samples.get(identity)
        if sample is not None:
            changes = changes_of(
                values, sample, known.labels.get(identity, []), known.history, said.get(word(identity), {}),
                meant.get(row.row, ()),
            )  # fmt: skip
            is_own = (sample["kind"], sample["batch"], sample["name"]) == (kind, batch, name) or word(identity) in own
            decision = _again(row.row, sample, known.labels.get(identity, []), values, changes, is_own)
            if decision.is_taken:
                taken[identity] = name
            return decision
        far = known.candidates.get(identity, Candidates())
        copies = [*(entries.get(n) for n in here.copies), *map(known.entry, far.copies)]
        edits = [*map(known.entry, far.edits), *(entries.get(n) for n in here.edits)]
        aspect = probe.width / probe.height
        for other in filter(None, copies):
            fits = abs(other.aspect / aspect - 1) < SAME_ASPECT and (not row.group or other.group != row.group)
            if fits and same_picture(glances(identity), glances(other.identity)):
                return Decision(row.row, "duplicate", "near-duplicate", f"the photo of {other.name}", other.identity)
        group, near = _relatives(identity, values.get("group", ""), [e for e in (*edits, *copies) if e], glances)
        taken[identity] = name
        entries[place] = Entry(identity, name, group or identity, aspect)
        version = _label_version(batch, probe, known.labels.get(identity, []))
        return Decision(
            row.row, "accept", sample_id=identity, label_version=version, group=group, near=near, values=values
        )

    return [verdict_on(place, *finding) for place, finding in enumerate(findings)]


def _beside(findings: Iterable[Finding], near_bits: int) -> Iterator[Candidates]:
    """For each row without fault, in order, the rows of the same batch that it may repeat, by their places."""
    good = [(n, p.phash, bytes.fromhex(p.landmarks or "")) for n, (_, p, fault) in enumerate(findings) if not fault]
    places, phashes, marks = zip(*good, strict=True) if good else ((), (), ())
    batch = Hashed.of(places, phashes, marks)
    del good, phashes, marks
    for part in batch.parts(ASKED):
        yield from find_candidates(part, [batch], near_bits)


def _relatives(identity: str, declared: str, others: Sequence[Entry], glances: Glances) -> tuple[str, tuple[str, ...]]:
    """The group of a photo and the earlier ones that it shows again, one of each group; `others` likeliest first."""
    group, near = declared, []
    settled = {declared}
    looks = 0
    for other in others:
        if other.group in settled:
            continue
        if looks == MAX_LOOKS:
            break
        looks += 1
        if same_scene(glances(identity), glances(other.identity)):
            group = group or other.group
            near.append(other.identity)
            settled.add(other.group)
    return group, tuple(near)


def _again(
    row: int,
    sample: Mapping[str, Any],
    labels: Sequence[Mapping[str, Any]],
    values: Mapping[str, str],
    changes: Sequence[Change],
    own: bool,
) -> Decision:
    """The verdict on bytes that the catalog holds; `own`: this drop brought them, or was taken with them before."""
    known_as = str(sample["id"])
    if changes:
        version = 0
        if any(change.column == ALPHA for change in changes):
            newest = label_in_use(labels)
            is_done = newest is not None and newest["alpha_sha256"] == values[ALPHA]
            version = newest["version"] if newest and is_done else 1 + max((x["version"] for x in labels), default=0)
        return Decision(
            row, "update", sample_id=known_as, label_version=int(version), changes=tuple(changes), values=values
        )
    if own:
        return Decision(row, "accept", sample_id=known_as, values=values)
    place = f"{sample['kind']}/{sample['batch']}/{sample['name']}"
    return Decision(row, "duplicate", "duplicate", f"same bytes as {place}", known_as)


def _label_version(batch: str, probe: Probe, labels: Sequence[Mapping[str, Any]]) -> int:
    """The version of the label that the row brings, or brought before; 0 where it brings nothing new."""
    if not probe.alpha_sha256:
        return 0
    for label in labels:
        if label["alpha_sha256"] == probe.alpha_sha256:
            return int(label["version"]) if label["batch"] == batch else 0
    return 1 + max((int(label["version"]) for label in labels), default=0)
