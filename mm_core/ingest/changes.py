"""Find the values that a row changes for a photo in the catalog.

The newest value is used. A value is new if it differs from two earlier values. The first is the last value of the same
drop, because a corrected manifest repeats most of its rows. The second is the last value of any producer, so that a
drop that is sent again does not revert a person's correction. The table `corrections` keeps the previous values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from mm_core.ingest.findings import Finding
from mm_core.ingest.statements import ALPHA, COLUMNS, file_key, stated, word
from mm_core.storage.rows import CorrectionRow, LabelRow, SampleRow

CONFLICT = "rows of one photo disagree"
SHARED_MATTE = "one matte for several photos"
"""Reasons of rows that contradict one another."""

History = Mapping[tuple[str, str], Sequence[CorrectionRow]]
"""(sample id, column) → its rows of `corrections`, oldest first."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value of a known photo that a row changes."""

    column: str
    """A column of `samples`, or `alpha`."""
    old: str | None
    """The previous value; None if there was none."""
    new: str
    number: int
    """Number of earlier changes of this value."""


def changes_of(
    values: Mapping[str, str],
    sample: SampleRow,
    labels: Sequence[LabelRow],
    history: History,
    before: Mapping[str, str],
    meant: Sequence[Change] = (),
) -> list[Change]:
    """Return the changes that a row makes to a known sample.

    Args:
        values: Values of the row (`statements.stated`).
        sample: The catalog's row of the sample.
        labels: All labels of the sample.
        history: Earlier changes, by sample and column.
        before: Column → digest of the last value in this drop.
        meant: Changes that an interrupted run of the same arrival planned. They are returned even if the catalog holds
            them already.
    """
    found = []
    for column, new in values.items():
        # The drop repeats its own last value: not a change.
        if before.get(column) == word(new):
            continue
        told = history.get((str(sample["id"]), column), ())
        # A row that was removed and is sent again states an old value: a person's newer one stays.
        superseded = superseded_label(new, labels) if column == ALPHA else _is_superseded(new, told)
        if superseded:
            continue
        if column == ALPHA:
            # A matte may also come from annotation. `last` is the newest one from a drop.
            current, last = _digest(label_in_use(labels)), _digest(label_in_use(labels, "drop"))
        else:
            current = cell(sample, column) or None
            last = _last_of_drops(told, current)
        if current == new:
            # An interrupted run may have written the value already. Its planned change is still to be recorded.
            found += [change for change in meant if (change.column, change.new) == (column, new)]
        # An old value of a producer must not replace a later correction.
        elif last != new:
            found.append(Change(column, current, new, len(told)))
    return found


def cell(sample: SampleRow, column: str) -> str | None:
    """Return the value of one of the columns that producers state (`statements.COLUMNS`)."""
    return cast(Mapping[str, str | None], sample)[column]


def label_in_use(labels: Sequence[LabelRow], origin: str = "") -> LabelRow | None:
    """Return the newest label that is not withdrawn, or None.

    Args:
        labels: Labels of one sample.
        origin: Only labels of this origin; all if empty.
    """
    rows = [row for row in labels if not row["withdrawn_at"] and origin in ("", row["origin"])]
    return max(rows, key=lambda row: (int(row["version"]), row["created_at"] or "", row["id"]), default=None)


def superseded_label(alpha_sha256: str, labels: Sequence[LabelRow]) -> LabelRow | None:
    """Return the withdrawn label of a drop with this matte if a person's newer label is in use, or None.

    Args:
        alpha_sha256: Digest of the matte that a row states.
        labels: All labels of its photo.
    """
    in_use = label_in_use(labels)
    if in_use is None or in_use["origin"] == "drop":
        return None
    withdrawn = (row for row in labels if row["withdrawn_at"] and row["origin"] == "drop")
    return next(
        (row for row in withdrawn if row["alpha_sha256"] == alpha_sha256 and row["version"] < in_use["version"]), None
    )


def _is_superseded(value: str, history: Sequence[CorrectionRow]) -> bool:
    """Return whether a drop stated a value and withdrew it, and a person's value is in use.

    Args:
        value: The value.
        history: All changes of the column, oldest first.
    """
    drops = [row for row in history if row["origin"] == "drop"]
    withdrawn = any(one["new"] == value and two["verdict"] == "removed" for one, two in pairwise(drops))
    return withdrawn and history[-1]["origin"] != "drop"


def _digest(label: LabelRow | None) -> str | None:
    return label["alpha_sha256"] if label else None


def _last_of_drops(told: Sequence[CorrectionRow], current: str | None) -> str | None:
    """Return the last value from any producer."""
    # Without a change by a drop, the value before the first correction is the producer's.
    by_drops = [row["new"] for row in told if row["origin"] == "drop"]
    return by_drops[-1] if by_drops else told[0]["old"] if told else current


@dataclass(frozen=True)
class Repeated:
    """Photos that a drop lists more than once, and mattes that it lists for several photos."""

    values: Mapping[str, Mapping[str, str]]
    """Photo → combined values of its rows, for rows that agree."""
    conflicts: Mapping[str, tuple[str, str]]
    """Photo → reason, and message that names the rows."""

    @staticmethod
    def find(findings: Iterable[Finding], near_bits: int) -> Repeated:
        """Find photos and matte files that several rows list, then compare these rows.

        Args:
            findings: All rows of the drop; iterated three times.
            near_bits: Largest Hamming distance of the hashes of a photo and of its copy, in bits.
        """
        conflicts = _shared_mattes(findings, near_bits)
        # First pass: count the rows of each photo.
        counted = Counter(probe.sha256 for _, probe, fault in findings if not fault)
        rows: dict[str, list[tuple[int, str, dict[str, str]]]] = {}
        # Most drops repeat no photo. They skip the second pass.
        for row, probe, fault in findings if counted.total() > len(counted) else ():
            if not fault and probe.sha256 and counted[probe.sha256] > 1:
                rows.setdefault(probe.sha256, []).append((row.row, row.image, stated(row, probe)))
        values: dict[str, dict[str, str]] = {}
        for photo, listed in rows.items():
            together: dict[str, tuple[int, str, str]] = {}
            apart = []
            for number, image, said in listed:
                for column, value in said.items():
                    # Empty cells have no entry here, so they agree with any value.
                    first = together.setdefault(column, (number, image, value))
                    if first[2] != value:
                        apart.append(_disagreement(column, first, (number, image, value)))
            if apart:
                conflicts[photo] = CONFLICT, "; ".join(apart)
            else:
                values[photo] = {column: value for column, (_, _, value) in together.items()}
        return Repeated(values, conflicts)


def _shared_mattes(findings: Iterable[Finding], near_bits: int) -> dict[str, tuple[str, str]]:
    """Return the conflicts of different photos with one matte file: it can belong to one of them only."""
    first: dict[str, tuple[int, str, str, str]] = {}
    conflicts: dict[str, tuple[str, str]] = {}
    for row, probe, fault in findings:
        if fault or not (probe.alpha_sha256 and probe.sha256 and probe.phash):
            continue
        number, image, photo, phash = first.setdefault(
            file_key(row.alpha), (row.row, row.image, probe.sha256, probe.phash)
        )
        # A copy of the photo, such as a brighter one, has the same outlines.
        if photo != probe.sha256 and (int(phash, 16) ^ int(probe.phash, 16)).bit_count() > near_bits:
            message = f"rows {number} ({image}) and {row.row} ({row.image}) both have {row.alpha}: each needs its own"
            conflicts[probe.sha256] = SHARED_MATTE, message
            conflicts.setdefault(photo, (SHARED_MATTE, message))
    return conflicts


def _disagreement(column: str, one: tuple[int, str, str], other: tuple[int, str, str]) -> str:
    if column == ALPHA:
        return f"rows {one[0]} ({one[1]}) and {other[0]} ({other[1]}) have different mattes"
    return f"{column}: row {one[0]} ({one[1]}) says {one[2]!r}, row {other[0]} ({other[1]}) says {other[2]!r}"


def apply_changes(sample: SampleRow, changes: Iterable[Change]) -> dict[str, str | None]:
    """Return the sample's id and all its changeable columns with the changes applied."""
    changed = {change.column: change.new for change in changes if change.column != ALPHA}
    return {"id": sample["id"]} | {name: cell(sample, name) for name in COLUMNS} | changed
