"""Changes of mind: what a row says about a photo that the catalog knows, against what counts now.

The newest statement counts. What is new is a statement that differs from what the same drop said before (a corrected
manifest restates most of its rows) and from what producers said last (a drop that is sent again takes no person's
correction back). What counted before is kept in the table `corrections`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_core.ingest.findings import Finding
from mm_core.ingest.statements import ALPHA, COLUMNS, stated, word

History = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""(sample id, column) → its rows of `corrections`, oldest first."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value of a known photo that a row changes."""

    column: str
    """Of `samples`, or `alpha`."""
    old: str | None
    """None: nothing was known."""
    new: str
    number: int
    """How many changes of this value came before."""


def changes_of(
    values: Mapping[str, str],
    sample: Mapping[str, Any],
    labels: Sequence[Mapping[str, Any]],
    history: History,
    before: Mapping[str, str],
    meant: Sequence[Change] = (),
) -> list[Change]:
    """The changes that a row with these values (`statements.stated`) brings to a known sample.

    `labels`: all labels of the sample. `before`: what this drop said of it last. `meant`: the changes that an
    interrupted run of the same arrival meant to make; they stay changes where they have been made.
    """
    found = []
    for column, new in values.items():
        if before.get(column) == word(new):
            continue
        told = history.get((str(sample["id"]), column), ())
        if column == ALPHA:
            current, last = _digest(label_in_use(labels)), _digest(label_in_use(labels, "drop"))
        else:
            current, last = sample[column] or None, _last_of_drops(told, sample[column] or None)
        if current == new:
            found += [change for change in meant if (change.column, change.new) == (column, new)]
        elif last != new:
            found.append(Change(column, current, new, len(told)))
    return found


def label_in_use(labels: Sequence[Mapping[str, Any]], origin: str = "") -> Mapping[str, Any] | None:
    """The newest label that is not withdrawn, of any origin or of one."""
    rows = [row for row in labels if not row["withdrawn_at"] and origin in ("", row["origin"])]
    return max(rows, key=lambda row: (int(row["version"]), row["created_at"] or "", row["id"]), default=None)


def _digest(label: Mapping[str, Any] | None) -> str | None:
    return label["alpha_sha256"] if label else None


def _last_of_drops(told: Sequence[Mapping[str, Any]], current: str | None) -> str | None:
    """What producers said last of a value."""
    by_drops = [row["new"] for row in told if row["origin"] == "drop"]
    return by_drops[-1] if by_drops else told[0]["old"] if told else current


@dataclass(frozen=True)
class Repeated:
    """The photos that a drop lists more than once."""

    values: Mapping[str, Mapping[str, str]]
    """Photo → what its rows say together, where they agree."""
    conflicts: Mapping[str, str]
    """Photo → where its rows disagree, in words that name them."""

    @staticmethod
    def find(findings: Iterable[Finding]) -> Repeated:
        """Goes through the rows twice: first for the photos, then for what is said of those that come again."""
        counted = Counter(probe.sha256 for _, probe, fault in findings if not fault)
        rows: dict[str, list[tuple[int, str, dict[str, str]]]] = {}
        for row, probe, fault in findings if counted.total() > len(counted) else ():
            if not fault and probe.sha256 and counted[probe.sha256] > 1:
                rows.setdefault(probe.sha256, []).append((row.row, row.image, stated(row, probe)))
        values: dict[str, dict[str, str]] = {}
        conflicts: dict[str, str] = {}
        for photo, listed in rows.items():
            together: dict[str, tuple[int, str, str]] = {}
            apart = []
            for number, image, said in listed:
                for column, value in said.items():
                    first = together.setdefault(column, (number, image, value))
                    if first[2] != value:
                        apart.append(_disagreement(column, first, (number, image, value)))
            if apart:
                conflicts[photo] = "; ".join(apart)
            else:
                values[photo] = {column: value for column, (_, _, value) in together.items()}
        return Repeated(values, conflicts)


def _disagreement(column: str, one: tuple[int, str, str], other: tuple[int, str, str]) -> str:
    if column == ALPHA:
        return f"rows {one[0]} ({one[1]}) and {other[0]} ({other[1]}) have different mattes"
    return f"{column}: row {one[0]} ({one[1]}) says {one[2]!r}, row {other[0]} ({other[1]}) says {other[2]!r}"


def apply_changes(sample: Mapping[str, Any], changes: Iterable[Change]) -> dict[str, Any]:
    """The sample's id with all its changeable columns, changed."""
    changed = {change.column: change.new for change in changes if change.column != ALPHA}
    return {"id": sample["id"]} | {name: sample[name] for name in COLUMNS} | changed
