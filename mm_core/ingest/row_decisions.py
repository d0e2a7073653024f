"""Decide each row of a drop: accept, update, quarantine, conflict or duplicate.

A decision is a pure function of the rows, their probes and one version of the catalog. A worker decides again when
the catalog version has changed. A worker that was killed reaches the same decision on its next run.

- Bytes that the catalog already holds are an update if the row has new values for them (`changes`). A new matte becomes
  the newest label version. Every other manifest column replaces the value in the catalog. Without new values the row is
  a duplicate.
- A photo that the drop lists twice with different values is a conflict. None of its rows is used until they agree.
  So are two different photos with one matte file.
- A picture that was saved again (re-encoded, resized, brightened) is a near-duplicate. The exception is a pair of rows
  with the same declared `group`: a burst is kept whole, and its group stays in one split.
- An edited photo (cropped, framed, with text) or a photo of the same burst is accepted, because it adds training data.
  It joins the group of the earlier photo, and `near` lists the earlier photos that it repeats.
- A photo that `mm forget` erased is not accepted again.
- A row that already added its sample (in an interrupted or partial run) is accepted again without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.core.records import sha256_bytes
from mm_core.imaging.hash_index import Candidates, Hashed, find_candidates
from mm_core.imaging.near_duplicates import same_picture, same_scene
from mm_core.ingest.changes import Change, History, Repeated, changes_of, label_in_use, superseded_label
from mm_core.ingest.erasure import FORGOTTEN, forgotten_among
from mm_core.ingest.expectations import Fault
from mm_core.ingest.findings import Finding
from mm_core.ingest.inbox import ReadyBatch
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.probe import Probe
from mm_core.ingest.statements import ALPHA, COLUMNS, TAKEN, Statement, stated, word
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.retry import patient
from mm_core.storage.rows import CorrectionRow, LabelRow, SampleRow, records

SAMPLE_COLUMNS = ("id", "kind", "batch", "name", "width", "height", *COLUMNS)
HASH_COLUMNS = ("id", "phash", "landmarks")
LABEL_COLUMNS = ("id", "sample_id", "version", "origin", "batch", "alpha_sha256", "created_at", "withdrawn_at")
MAX_LOOKS = 8
"""Largest number of photos that one photo is compared with as an edit, most likely first.

The limit bounds the work when many photos share a backdrop.
"""
ASKED = 1 << 14
"""Photos per search. A larger drop reads the catalog several times instead of using more memory."""
SAME_ASPECT = 0.04
"""Largest relative difference of the aspect ratios of two copies of one picture."""

NEAR_DUPLICATE = "near-duplicate"

Glances = Callable[[str], np.ndarray]
"""Function that loads the reduced photo of a sha256 for the second comparison."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A photo that later photos may repeat."""

    identity: str
    """sha256 of its bytes."""
    name: str
    group: str
    aspect: float
    """Width divided by height."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one row."""

    row: int
    verdict: Literal["accept", "update", "quarantine", "duplicate", "conflict", "held"]
    """`held`: the row is not used because its whole drop is held."""
    reason: str = ""
    detail: str = ""
    sample_id: str = ""
    label_version: int = 0
    """Version of the label that the row adds; 0 without a label."""
    changes: tuple[Change, ...] = ()
    """The values of a known photo that an update changes."""
    values: Mapping[str, str] = field(default_factory=dict)
    """The values of all rows that list this photo (`statements.stated`)."""
    group: str = ""
    """The declared group, or the group of the repeated earlier photo; empty for a group of its own."""
    near: tuple[str, ...] = ()
    """Ids of the earlier photos that this photo shows in edited form, one per group."""

    @property
    def is_taken(self) -> bool:
        """Whether the catalog holds the values of the row."""
        return self.verdict in TAKEN


def label_id(sample_id: str, alpha_sha256: str) -> str:
    """Return the key of a label.

    The same matte of the same photo is one label, independent of the drop.

    Args:
        sample_id: sha256 of the photo, 64 hex digits.
        alpha_sha256: sha256 of the normalised matte, 64 hex digits.
    """
    return sha256_bytes(f"{sample_id}:{alpha_sha256}".encode())


@dataclass
class Known:
    """The part of the catalog that one batch needs, at one version of each table."""

    samples_version: int
    labels_version: int
    samples: dict[str, SampleRow]
    """Sample id → row of each sample that this batch repeats or resembles."""
    labels: dict[str, list[LabelRow]] = field(default_factory=dict)
    """Sample id → its labels."""
    candidates: dict[str, Candidates] = field(default_factory=dict)
    """sha256 of a photo of the batch → samples that it may repeat."""
    photos: frozenset[str] = frozenset()
    """Ids of the photos of this batch."""
    forgotten: frozenset[str] = frozenset()
    """Ids of `photos` that were erased and must not be accepted again."""
    history: History = field(default_factory=dict)
    """Earlier changes of these photos."""
    near_bits: int = 0
    """Largest Hamming distance, in bits, of the hashes of two photos of `candidates`."""

    @staticmethod
    @patient
    def read(catalog: Catalog, photos: Hashed, near_bits: int) -> Known:
        """Read the catalog rows that these photos repeat or resemble.

        Args:
            catalog: The catalog.
            photos: Ids and hashes of the photos of the batch.
            near_bits: Largest Hamming distance of two perceptual hashes, in bits.

        Returns:
            The rows, at one version of `samples` and of `labels`.
        """
        # Pin the versions first. The commit fails if another worker has changed the tables since.
        versions = catalog.version("samples"), catalog.version("labels")
        mine = pa.array(photos.ids, pa.string())
        again: set[str] = set()

        def catalog_in_pieces() -> Iterator[Hashed]:
            # Stream the hashes: a large catalog does not fit in memory.
            for piece in catalog.scan("samples", version=versions[0], columns=HASH_COLUMNS):
                again.update(piece["id"].filter(pc.is_in(piece["id"], mine)).to_pylist())
                yield Hashed.of(*(piece[name].to_pylist() for name in HASH_COLUMNS))

        candidates: dict[str, Candidates] = {}
        # Each part of the batch scans the catalog once.
        for part in photos.parts(ASKED):
            found = find_candidates(part, catalog_in_pieces(), near_bits)
            candidates |= {i: c for i, c in zip(part.ids.tolist(), found, strict=True) if c.copies or c.edits}
        # Read full rows only for repeated photos and their candidates.
        wanted = again.union(*((*c.copies, *c.edits) for c in candidates.values()))
        named: list[Filter] = [("id", "in", sorted(wanted))]
        frame = catalog.read("samples", version=versions[0], columns=SAMPLE_COLUMNS, filters=named)
        # pandas reads nulls as NaN. None compares as expected in the decisions.
        samples = {row["id"]: row for row in records(frame, SampleRow)}
        # Labels are needed only for photos of the batch, not for the photos that resemble them.
        of_mine: list[Filter] = [("sample_id", "in", sorted(photos.ids.tolist()))]
        rows = catalog.read("labels", version=versions[1], columns=LABEL_COLUMNS, filters=of_mine)
        labels: dict[str, list[LabelRow]] = {}
        for row in records(rows, LabelRow):
            labels.setdefault(row["sample_id"], []).append(row)
        ids = frozenset(photos.ids.tolist())
        forgotten = forgotten_among(catalog, ids)
        return Known(
            *versions, samples, labels, candidates, ids, forgotten, read_history(catalog, sorted(ids)), near_bits
        )

    def entry(self, identity: str) -> Entry:
        """Return the comparison entry of a sample in `samples`."""
        row = self.samples[identity]
        return Entry(identity, row.get("name") or "", row.get("group") or identity, row["width"] / row["height"])


def read_history(catalog: Catalog, ids: Sequence[str]) -> dict[tuple[str, str], list[CorrectionRow]]:
    """Return the recorded changes of these samples.

    Args:
        catalog: The catalog.
        ids: Sample ids.

    Returns:
        (sample id, column) → rows of `corrections`, oldest first.
    """
    columns = ("sample_id", "column", "verdict", "old", "new", "origin", "kind", "batch", "stated_at", "key", "arrival")
    frame = catalog.read("corrections", columns=columns, filters=[("sample_id", "in", list(ids))])
    history: dict[tuple[str, str], list[CorrectionRow]] = {}
    for row in records(frame.sort_values(["stated_at", "key"]), CorrectionRow):
        history.setdefault((row["sample_id"], row["column"]), []).append(row)
    return history


def photos_of(findings: Iterable[Finding]) -> Hashed:
    """Return the ids and hashes of all readable photos of a drop, each photo once."""
    found = {p.sha256: (p.phash, bytes.fromhex(p.landmarks or "")) for _, p, _ in findings if p.sha256 and p.phash}
    return Hashed.of(list(found), [phash for phash, _ in found.values()], [marks for _, marks in found.values()])


def decide(
    batch: ReadyBatch,
    findings: Iterable[Finding],
    known: Known,
    glances: Glances,
    before: Statement | None = None,
    meant: Mapping[int, Sequence[Change]] | None = None,
) -> list[Decision]:
    """Decide every row of a batch; of several copies the first is accepted.

    Args:
        batch: Kind and name of the batch.
        findings: Rows with their probes and faults; iterated several times.
        known: The relevant part of the catalog.
        glances: Loads the reduced photo of a sha256.
        before: Last statement of this drop, if it was ingested before.
        meant: Row → changes that an interrupted run of this arrival planned.

    Returns:
        One decision per row, in the order of the rows.
    """
    said, own = (before.by_sample(), before.taken()) if before else ({}, frozenset())
    meant = meant or {}
    repeated = Repeated.find(findings, known.near_bits)
    listed: dict[str, str] = {}
    taken: dict[str, str] = {}
    """sha256 → name of each photo that this batch has accepted so far."""
    beside = _beside(findings, known.near_bits)
    entries: dict[int, Entry] = {}
    """Position in the batch → new photo."""

    def verdict_on(place: int, row: ManifestRow, probe: Probe, fault: Fault | None) -> Decision:
        if fault:
            # A broken rule decides the row before any comparison.
            return Decision(row.row, "quarantine", fault.reason, fault.detail)
        identity, name = probe.sha256 or "", row.image
        assert probe.phash and probe.width and probe.height, "accepted rows are measured whole"
        # `beside` yields one entry per row without a fault, so it advances exactly here.
        here = next(beside)
        # Rows that contradict each other are refused together.
        if identity in repeated.conflicts:
            return Decision(row.row, "conflict", *repeated.conflicts[identity], identity)
        # The first row of a file name or of its bytes is used; the others are duplicates.
        if name in listed:
            return Decision(row.row, "duplicate", "listed twice", f"{name} is in the manifest already", listed[name])
        listed[name] = identity
        if identity in taken:
            return Decision(row.row, "duplicate", "duplicate", f"same bytes as {taken[identity]}", identity)
        if identity in known.forgotten:
            return Decision(row.row, "duplicate", FORGOTTEN, "this photo was to be forgotten")
        # Rows that agree are merged: each may fill columns that the others leave empty.
        values = repeated.values.get(identity) or stated(row, probe)
        sample = known.samples.get(identity)
        if sample is not None:
            labels = known.labels.get(identity, [])
            changes = changes_of(
                values, sample, labels, known.history, said.get(word(identity), {}),
                meant.get(row.row, ()),
            )  # fmt: skip
            stated_by = {(label["origin"], label["batch"], label["alpha_sha256"]) for label in labels}
            # A row that added the sample or its label itself is accepted again, so that a repeated run has no effect.
            is_own = (
                (sample.get("kind"), sample.get("batch"), sample.get("name")) == (batch.kind, batch.batch, name)
                or word(identity) in own
                or ("drop", batch.batch, values.get(ALPHA, "")) in stated_by
            )
            decision = _again(row.row, sample, labels, values, changes, is_own)
            if decision.is_taken:
                taken[identity] = name
            return decision
        # The photo is new. Compare it with similar photos of this batch and of the catalog.
        far = known.candidates.get(identity, Candidates())
        copies = [*(entries.get(n) for n in here.copies), *map(known.entry, far.copies)]
        edits = [*map(known.entry, far.edits), *(entries.get(n) for n in here.edits)]
        aspect = probe.width / probe.height
        for other in filter(None, copies):
            # Hashes only propose pairs. The pixels decide, and only for photos outside a common declared group.
            fits = abs(other.aspect / aspect - 1) < SAME_ASPECT and (not row.group or other.group != row.group)
            if fits and same_picture(glances(identity), glances(other.identity)):
                detail = f"the photo of {other.name}, saved again: to correct it, send that file"
                return Decision(row.row, "duplicate", NEAR_DUPLICATE, detail, other.identity)
        # The photo is accepted. It joins the group of any earlier photo of the same scene.
        group, near = _relatives(identity, values.get("group", ""), [e for e in (*edits, *copies) if e], glances)
        taken[identity] = name
        entries[place] = Entry(identity, name, group or identity, aspect)
        version = _label_version(batch.batch, probe, known.labels.get(identity, []))
        return Decision(
            row.row, "accept", sample_id=identity, label_version=version, group=group, near=near, values=values
        )

    return [verdict_on(place, *finding) for place, finding in enumerate(findings)]


def _beside(findings: Iterable[Finding], near_bits: int) -> Iterator[Candidates]:
    """Yield, for each row without a fault, the positions of rows in the batch that it may repeat."""
    good = [(n, p.phash, bytes.fromhex(p.landmarks or "")) for n, (_, p, fault) in enumerate(findings) if not fault]
    # `zip(*...)` of an empty list cannot be unpacked.
    places, phashes, marks = zip(*good, strict=True) if good else ((), (), ())
    batch = Hashed.of(places, phashes, marks)
    # A drop can have 200 000 rows. Release the Python lists before the search.
    del good, phashes, marks
    for part in batch.parts(ASKED):
        yield from find_candidates(part, [batch], near_bits)


def _relatives(identity: str, declared: str, others: Sequence[Entry], glances: Glances) -> tuple[str, tuple[str, ...]]:
    """Return the group of a photo and the earlier photos that it repeats, one per group.

    Args:
        identity: sha256 of the photo.
        declared: Its declared group, or "".
        others: Photos that it may repeat, most likely first.
        glances: Loads the reduced photo of a sha256.
    """
    group, near = declared, []
    settled = {declared}
    looks = 0
    for other in others:
        # One photo of a group is enough to join it.
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
    sample: SampleRow,
    labels: Sequence[LabelRow],
    values: Mapping[str, str],
    changes: Sequence[Change],
    own: bool,
) -> Decision:
    """Return the decision for bytes that the catalog already holds.

    Args:
        row: Row number.
        sample: The catalog's row of the photo.
        labels: All labels of the photo.
        values: Values of the row.
        changes: New values among them.
        own: Whether this drop added the photo or was accepted with it before.
    """
    known_as = str(sample["id"])
    if changes:
        version = 0
        if any(change.column == ALPHA for change in changes):
            newest = label_in_use(labels)
            # An interrupted run may have written this matte already. It keeps its version then.
            is_done = newest is not None and newest["alpha_sha256"] == values[ALPHA]
            version = newest["version"] if newest and is_done else 1 + max((x["version"] for x in labels), default=0)
        return Decision(
            row, "update", sample_id=known_as, label_version=int(version), changes=tuple(changes), values=values
        )
    # The row's matte counts again once the person's newer one is withdrawn.
    superseded = superseded_label(values.get(ALPHA, ""), labels)
    if own or superseded:
        version = int(superseded["version"]) if superseded else 0
        return Decision(row, "accept", sample_id=known_as, label_version=version, values=values)
    place = f"{sample.get('kind')}/{sample.get('batch')}/{sample.get('name')}"
    return Decision(row, "duplicate", "duplicate", f"same bytes as {place}", known_as)


def _label_version(batch: str, probe: Probe, labels: Sequence[LabelRow]) -> int:
    """Return the version of the row's label, new or from an earlier run; 0 without a new label."""
    if not probe.alpha_sha256:
        return 0
    for label in labels:
        if label["alpha_sha256"] == probe.alpha_sha256:
            return int(label["version"]) if label["batch"] == batch else 0
    return 1 + max((int(label["version"]) for label in labels), default=0)
