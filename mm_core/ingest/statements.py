"""Store the last statement of a drop: digests of its rows' values, and sizes and stamps of its files.

The latest ledger row of a drop names its statement. A comparison shows the changed and the removed rows of a corrected
manifest, and the replaced files of an unchanged manifest. Values are stored as digests. A statement therefore contains
neither texts nor photo ids, and `mm forget` does not need to edit it.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import BlobNotFound
from mm_core.core.records import digest_of, sha256_bytes
from mm_core.core.spellings import PHOTOS, is_hidden
from mm_core.ingest.manifest import ManifestRow
from mm_core.storage.store import Store

if TYPE_CHECKING:
    from mm_core.ingest.inbox import ReadyBatch
    from mm_core.ingest.probe import Probe

COLUMNS = ("category", "caption", "group", "role", "source", "license", "taken_at")
"""Columns of a manifest, and of `samples`, that a later row may change."""
ALPHA = "alpha"
TAKEN = ("accept", "update")
"""Verdicts of rows with values that the catalog holds."""
KEPT = "kept"
"""Verdict of a row that is refused now but keeps its earlier values; used in statements only."""
COUNTING = (*TAKEN, KEPT)
"""Verdicts of rows with values in use."""
ABSENT = (-1, "")
"""Size and stamp of a missing file."""
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("sample", pa.string()),  # digest of its photo's id; null: the photo could not be read
        ("verdict", pa.string()),  # as of `Decision`, or KEPT
        ("values", pa.string()),  # JSON: column → digest of its value
        ("files", pa.string()),  # JSON: digest of the name → size, stamp
    ]
)


def stated(row: ManifestRow, probe: Probe) -> dict[str, str]:
    """Return the values of a row about its photo, without empty cells.

    Args:
        row: Row of the manifest.
        probe: Its measures.

    Returns:
        Column → text; `alpha` → sha256 of the normalised matte.
    """
    values = {name: getattr(row, name) for name in COLUMNS} | {ALPHA: probe.alpha_sha256 or ""}
    return {name: value for name, value in values.items() if value}


def word(value: str) -> str:
    """Return the digest of a value in statements: 16 hex digits."""
    return sha256_bytes(value.encode())[:16]


def file_key(name: str) -> str:
    """Return a file name in one spelling: a plain path with composed accents, because macOS decomposes ü."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


@dataclass(frozen=True)
class Listing:
    """The files of a drop in the inbox at one time."""

    files: Mapping[str, tuple[int, str]]
    """Digest of the name → size in bytes, stamp."""
    digest: str
    """Digest over `files`; equal listings have equal digests."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Digest of the name → name of each file that is a picture by its suffix."""

    @staticmethod
    def read(inbox: Store, batch: ReadyBatch) -> Listing:
        """List the drop's folder without reading its files."""
        prefix = f"{batch.kind}/{batch.batch}"
        named = {e.key[len(prefix) + 1 :]: (e.size, e.stamp) for e in inbox.list(prefix)}
        words = {name: word(file_key(name)) for name in named}
        entries: dict[str, tuple[int, str]] = {}
        for name, (size, stamp) in named.items():
            # Two files may differ in the form of an accent alone. A change of either one must be seen.
            before = entries.get(words[name], (0, ""))
            entries[words[name]] = size + before[0], stamp + before[1]
        pictures = {words[n]: n for n in named if PurePath(n).suffix.lower() in PHOTOS and not is_hidden(PurePath(n))}
        return Listing(entries, digest_of(sorted(entries.items())), pictures)

    def unlisted(self, rows: Iterable[ManifestRow]) -> list[str]:
        """Return the pictures that no row names, by name."""
        named = {word(file_key(name)) for row in rows for name in (row.image, row.alpha) if name}
        return sorted(name for key, name in self.pictures.items() if key not in named)

    def of(self, row: ManifestRow) -> str:
        """Return the sizes and stamps of a row's files as JSON, the photo first."""
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
    """Result of `Listing.of`."""


@dataclass
class Statement:
    """The last statement of a drop, by row; empty before its first ingest."""

    rows: dict[int, SaidRow] = field(default_factory=dict)

    @staticmethod
    def read(store: Store, key: str | None) -> Statement:
        """Read the statement with a key of the ledger.

        Args:
            store: The store.
            key: Key of the statement, or None.

        Returns:
            The statement; an empty one without a key or if the file is missing.
        """
        try:
            if not key:
                return Statement()
            table = pq.read_table(store.fetch(key), schema=SCHEMA)
        except BlobNotFound:  # all values of the drop then count as new
            return Statement()
        rows = (SaidRow(**{**line, "values": json.loads(line["values"])}) for line in table.to_pylist())
        return Statement({row.row: row for row in rows})

    def write(self, store: Store) -> str:
        """Store the statement under its own digest and return the key."""
        # Sorted rows and keys give equal statements the same bytes and the same key.
        rows = [self.rows[number] for number in sorted(self.rows)]
        lines: list[dict[str, object]] = [
            {
                "row": row.row,
                "sample": row.sample,
                "verdict": row.verdict,
                "values": json.dumps(dict(row.values), sort_keys=True),
                "files": row.files,
            }
            for row in rows
        ]
        # Write to memory first, because the key is the digest of the bytes.
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        key = f"ingest/statements/{sha256_bytes(data)}.parquet"
        if not store.exists(key):
            store.put(key, data)
        return key

    def by_sample(self) -> dict[str, dict[str, str]]:
        """Return the values in use: digest of the photo's id → column → digest; the first of several rows wins."""
        found: dict[str, dict[str, str]] = {}
        for number in sorted(self.rows):
            row = self.rows[number]
            # A duplicate row also lists its photo and may fill columns that the first row leaves empty.
            if row.sample and row.verdict in (*COUNTING, "duplicate"):
                found[row.sample] = {**row.values, **found.get(row.sample, {})}
        return found

    def taken(self) -> frozenset[str]:
        """Return the digests of the ids of photos with values of this drop in the catalog."""
        return frozenset(row.sample for row in self.rows.values() if row.sample and row.verdict in COUNTING)

    def keep(self, before: Statement, copies: Mapping[int, str]) -> Statement:
        """Return this statement with the earlier values of photos that are refused now.

        Such a row still lists its photo. When the row is removed later, its earlier values must be withdrawn.

        Args:
            before: The previous statement that was ingested.
            copies: Row → digest of the id of the photo that the row repeats in other bytes.
        """
        listed = {row.sample for row in before.rows.values()}
        counted, values = before.taken(), before.by_sample()
        names = before.images()
        photo_of = {names[row.row]: row.sample for row in before.rows.values() if row.sample in counted}
        image_of, rows = self.images(), dict(self.rows)
        there = self.taken()
        for number, row in self.rows.items():
            # A replaced or unreadable photo has another digest. Find the earlier photo by its file name.
            photo = row.sample if row.sample in counted else photo_of.get(image_of[number])
            # A picture that was saved again stands for the photo before, unless it was listed beside it.
            copied = copies.get(number) if row.sample not in listed else None
            is_refused = row.verdict in ("quarantine", "conflict") or copied is not None
            photo = copied or photo
            if is_refused and photo in counted and photo not in there:
                rows[number] = replace(row, sample=photo, verdict=KEPT, values=values[photo])
        return Statement(rows)

    def replaced(self, listing: Listing) -> frozenset[int]:
        """Return the rows with new or rewritten files, and all other rows of the same photos or mattes.

        Files that are missing from the inbox are ignored.

        Args:
            listing: The current files of the drop.
        """
        changed = frozenset(row.row for row in self.rows.values() if _is_replaced(row, listing))
        # All rows of a photo or of a matte file are decided together, so they are measured together.
        names = {name for number in changed for name in json.loads(self.rows[number].files)}
        changed |= {row.row for row in self.rows.values() if changed and not names.isdisjoint(json.loads(row.files))}
        return changed | self.rows_of({sample for number in changed if (sample := self.rows[number].sample)})

    def rows_of(self, photos: Collection[str]) -> frozenset[int]:
        """Return the rows that list any of these photos, by the digests of their ids."""
        return frozenset(row.row for row in self.rows.values() if row.sample in photos)

    def images(self) -> dict[int, str]:
        """Return row → digest of its photo's name."""
        # `Listing.of` writes the photo first.
        return {row.row: next(iter(json.loads(row.files)), "") for row in self.rows.values()}


def _is_replaced(row: SaidRow, listing: Listing) -> bool:
    # JSON turns tuples into lists, so lists are compared.
    files: dict[str, list[str | int | float]] = json.loads(row.files)
    now = ((listing.files.get(name), before) for name, before in files.items())
    return any(there is not None and list(there) != before for there, before in now)


@dataclass
class OtherDrops:
    """What other drops state about photos that a drop no longer lists; photos by the digests of their ids."""

    holders: dict[str, str] = field(default_factory=dict)
    """Photo → batch of a drop with the same matte."""
    values: set[tuple[str, str, str]] = field(default_factory=set)
    """Photo, column and digest of the value."""

    def states(self, sample: str, column: str, value: str) -> bool:
        """Return whether another drop states this value of a sample."""
        return (word(sample), column, word(value)) in self.values


@dataclass(frozen=True)
class Arrival:
    """One arrival of a drop, with its earlier statements."""

    id: str
    """Digest over the ledger's key and the previous arrival, because the same manifest may arrive again."""
    listing: Listing
    """Listing before the files are read; a later replacement is found by the next run."""
    seen: Statement
    """Statement of the previous arrival, held or ingested."""
    said: Statement
    """Statement of the last ingested arrival; its values are in use."""

    def statement(self, rows: Iterable[SaidRow], copies: Mapping[int, str], partial: bool) -> Statement:
        """Return the statement after a run.

        Args:
            rows: The measured rows.
            copies: Measured row → digest of the id of the photo that the row repeats in other bytes.
            partial: Whether only some rows were measured. The other rows then keep their previous entries.
        """
        # Measured rows replace their earlier entries.
        now = Statement((dict(self.seen.rows) if partial else {}) | {row.row: row for row in rows})
        return now.keep(self.said, copies)

    def gone(self, now: Statement) -> dict[str, str]:
        """Return the photos that the drop listed before and no longer lists.

        A row with an unreadable photo still lists its earlier photo.

        Args:
            now: The new statement.

        Returns:
            Digest of the photo's id → digest of its last matte, or "".
        """
        names = self.said.images()
        # Rows without a readable photo are matched by file name.
        unread = {name for row, name in now.images().items() if not now.rows[row].sample}
        there = {row.sample for row in now.rows.values()}
        there |= {row.sample for row in self.said.rows.values() if names[row.row] in unread}
        values = self.said.by_sample()
        return {photo: values[photo].get(ALPHA, "") for photo in sorted(set(values) - there)}
