"""What a drop said last: its rows' words as digests, and the sizes and stamps of their files.

The ledger's latest row of a drop names its statement. Against it, a corrected manifest shows which rows say something
new and which are gone, and an unchanged manifest shows which files were replaced in place. Words are kept as digests:
a statement holds neither text nor photo ids that `mm forget` would have to find.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import BlobNotFound
from mm_core.core.records import digest_of, sha256_bytes
from mm_core.ingest.manifest import ManifestRow
from mm_core.storage.store import Store

if TYPE_CHECKING:
    from mm_core.ingest.inbox import ReadyBatch
    from mm_core.ingest.probe import Probe

COLUMNS = ("category", "caption", "group", "role", "source", "license", "taken_at")
"""Columns of a manifest, and of `samples`, that a later row may change."""
ALPHA = "alpha"
TAKEN = ("accept", "update")
"""Verdicts on rows of which the catalog holds what they say."""
KEPT = "kept"
"""Verdict, in statements alone, on a row that is refused now: what it said before still counts."""
COUNTING = (*TAKEN, KEPT)
ABSENT = (-1, "")
"""Size and stamp of a file that is not there."""
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("sample", pa.string()),  # digest of its photo's id; null: the photo could not be read
        ("verdict", pa.string()),  # as of `Decision`, or KEPT
        ("values", pa.string()),  # JSON: column → digest of what it said
        ("files", pa.string()),  # JSON: digest of the name → size, stamp
    ]
)


def stated(row: ManifestRow, probe: Probe) -> dict[str, str]:
    """What a row says about its photo: column → text, `alpha` → digest of the normalised matte; empty cells say
    nothing."""
    values = {name: getattr(row, name) for name in COLUMNS} | {ALPHA: probe.alpha_sha256 or ""}
    return {name: value for name, value in values.items() if value}


def word(value: str) -> str:
    """A value as statements keep it."""
    return sha256_bytes(value.encode())[:16]


def file_key(name: str) -> str:
    """A file's name in one spelling: plain path, composed accents (macOS writes ü in two signs)."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


@dataclass(frozen=True)
class Listing:
    """The files of a drop as they lay in the inbox at one moment."""

    files: Mapping[str, tuple[int, str]]
    """Digest of the name → size in bytes, stamp."""
    digest: str

    @staticmethod
    def read(inbox: Store, batch: ReadyBatch) -> Listing:
        """Lists the drop's folder; no file is read."""
        prefix = f"{batch.kind}/{batch.batch}"
        entries = {word(file_key(e.key[len(prefix) + 1 :])): (e.size, e.stamp) for e in inbox.list(prefix)}
        return Listing(entries, digest_of(sorted(entries.items())))

    def of(self, row: ManifestRow) -> str:
        """Size and stamp of the files that a row names, as JSON."""
        names = (word(file_key(name)) for name in (row.image, row.alpha) if name)
        return json.dumps({name: self.files.get(name, ABSENT) for name in names})


@dataclass(frozen=True, slots=True)
class SaidRow:
    """One row of a statement."""

    row: int
    sample: str | None
    verdict: str
    values: Mapping[str, str]
    """Column → digest of its value."""
    files: str
    """As `Listing.of` gives it."""


@dataclass
class Statement:
    """What a drop said last, by row; empty before its first ingest."""

    rows: dict[int, SaidRow] = field(default_factory=dict)

    @staticmethod
    def read(store: Store, key: str | None) -> Statement:
        """The statement under a key of the ledger; an empty one where there is no key."""
        try:
            if not key:
                return Statement()
            table = pq.read_table(store.fetch(key), schema=SCHEMA)
        except BlobNotFound:  # every row then says its words anew
            return Statement()
        rows = (SaidRow(**{**line, "values": json.loads(line["values"])}) for line in table.to_pylist())
        return Statement({row.row: row for row in rows})

    def write(self, store: Store) -> str:
        """Puts the statement under its own digest and returns the key."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        lines: list[dict[str, Any]] = [
            {
                "row": row.row,
                "sample": row.sample,
                "verdict": row.verdict,
                "values": json.dumps(dict(row.values), sort_keys=True),
                "files": row.files,
            }
            for row in rows
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        key = f"ingest/statements/{sha256_bytes(data)}.parquet"
        if not store.exists(key):
            store.put(key, data)
        return key

    def by_sample(self) -> dict[str, dict[str, str]]:
        """What the rows that counted said: digest of the photo's id → column → digest; of two rows the first."""
        found: dict[str, dict[str, str]] = {}
        for number in sorted(self.rows):
            row = self.rows[number]
            if row.sample and row.verdict in (*COUNTING, "duplicate"):
                found[row.sample] = {**row.values, **found.get(row.sample, {})}
        return found

    def taken(self) -> frozenset[str]:
        """Photos, by digests of their ids, of which the catalog holds what this drop said."""
        return frozenset(row.sample for row in self.rows.values() if row.sample and row.verdict in COUNTING)

    def keep(self, before: Statement) -> Statement:
        """This statement, with what `before` said of the photos whose rows are refused now.

        Such a row lists its photo still. Once it is removed, what it said before has to be withdrawn.
        """
        counted, values = before.taken(), before.by_sample()
        names = before.images()
        photo_of = {names[row.row]: row.sample for row in before.rows.values() if row.sample in counted}
        image_of, rows = self.images(), dict(self.rows)
        there = self.taken()
        for number, row in self.rows.items():
            photo = row.sample if row.sample in counted else photo_of.get(image_of[number])
            if row.verdict in ("quarantine", "conflict") and photo in counted and photo not in there:
                rows[number] = replace(row, sample=photo, verdict=KEPT, values=values[photo])
        return Statement(rows)

    def replaced(self, listing: Listing) -> frozenset[int]:
        """Rows whose files were written again since, or have come; files that left the inbox say nothing.

        Every other row of the same photo is looked at again with them.
        """
        changed = {row.row for row in self.rows.values() if _is_replaced(row, listing)}
        photos = {self.rows[number].sample for number in changed} - {None}
        return frozenset(changed | {row.row for row in self.rows.values() if row.sample in photos})

    def images(self) -> dict[int, str]:
        """Row → digest of its photo's name."""
        return {row.row: next(iter(json.loads(row.files)), "") for row in self.rows.values()}


def _is_replaced(row: SaidRow, listing: Listing) -> bool:
    files: dict[str, list[Any]] = json.loads(row.files)
    now = ((listing.files.get(name), before) for name, before in files.items())
    return any(there is not None and list(there) != before for there, before in now)


@dataclass(frozen=True)
class Arrival:
    """One coming of a drop, and what was said before it."""

    id: str
    """Digest over the ledger's key and the arrival before: the same manifest may come back."""
    listing: Listing
    """Taken before the files are read: what is replaced meanwhile is seen the next time."""
    seen: Statement
    """Of the arrival before, held or not."""
    said: Statement
    """The one that counts: of the last arrival that was ingested."""

    def statement(self, rows: Iterable[SaidRow], partial: bool) -> Statement:
        """The statement after a run; a partial run leaves the rows that it did not look at as they were."""
        now = Statement((dict(self.seen.rows) if partial else {}) | {row.row: row for row in rows})
        return now.keep(self.said)

    def gone(self, now: Statement) -> dict[str, str]:
        """Photos that were taken, or known, and that the drop no longer lists: digest of the id → digest of what its
        matte was.

        A row whose photo cannot be read now still lists the photo that it listed before.
        """
        names = self.said.images()
        unread = {name for row, name in now.images().items() if not now.rows[row].sample}
        there = {row.sample for row in now.rows.values()}
        there |= {row.sample for row in self.said.rows.values() if names[row.row] in unread}
        values = self.said.by_sample()
        return {photo: values[photo].get(ALPHA, "") for photo in sorted(set(values) - there)}
