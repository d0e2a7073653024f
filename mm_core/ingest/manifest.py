"""Read the manifest of a drop: an untrusted table of file names and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.capture_time import is_unset, parse_taken_at
from mm_core.core.errors import DropError
from mm_core.core.spellings import category_of
from mm_core.ingest.csv_text import csv_lines, unescaped
from mm_core.ingest.drop import MANIFEST_COLUMNS

MAX_BYTES = 64 << 20
MAX_ROWS = 200_000
MAX_COLUMNS = 64
PIECE = 4096
"""Rows of a parquet file that are held in memory together."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row of a manifest; an absent column gives an empty text."""

    row: int
    """Row number from 0; blank lines are not counted."""
    image: str
    alpha: str = ""
    caption: str = ""
    category: str = ""
    group: str = ""
    role: str = ""
    sha256: str = ""
    source: str = ""
    license: str = ""
    taken_at: str = ""
    extra_fields: int = 0
    """Number of fields beyond the header, usually from an unquoted comma."""


class Manifest:
    """The rows of a validated manifest; each iteration reads them from the file."""

    def __init__(self, path: Path, rows: int, ignored: Sequence[str]) -> None:
        self.path, self._rows = path, rows
        self.ignored = ignored
        """Columns that are not read, such as a misspelled one."""

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[ManifestRow]:
        return _rows(self.path)


def read_manifest(path: Path) -> Manifest:
    """Open and validate a manifest; unknown columns are listed and not read.

    Args:
        path: A manifest.csv (encodings and delimiters as in `csv_lines`, columns in any order) or manifest.parquet.

    Raises:
        DropError: The file is too large, is not a valid table, or has no rows.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DropError(f"{path.name}: {path.stat().st_size} bytes, at most {MAX_BYTES} are read: split the drop")
    # Reading all rows once validates the whole file before any row is used.
    rows = sum(1 for _ in _rows(path))
    if not rows:
        raise DropError(f"{path.name}: lists no images (no rows)")
    known = [*MANIFEST_COLUMNS, ""]
    return Manifest(path, rows, [name for name in dict.fromkeys(_names(path)) if name not in known])


def _names(path: Path) -> list[str]:
    """Return the names of all columns as they are compared."""
    return _plain(pq.read_schema(path).names if path.suffix == ".parquet" else _csv(path)[0])


def _plain(header: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _rows(path: Path) -> Iterator[ManifestRow]:
    # Only CSV files are escaped for spreadsheets: the escaped `'-5°C` is -5°C there.
    plain = str if path.suffix == ".parquet" else unescaped
    header, lines = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    names = _plain(header)
    if len(names) > MAX_COLUMNS:
        raise DropError(f"{path.name}: {len(names)} columns, at most {MAX_COLUMNS} are read")
    if "image" not in names:
        found = ", ".join(names)[:200]
        raise DropError(
            f"{path.name}: no column `image` (found: {found}); columns are separated by commas, or all of them by "
            "semicolons or tabs"
        )
    # A duplicate column is ambiguous: the file does not tell which one is right.
    if twice := {name for name in names if name in MANIFEST_COLUMNS and names.count(name) > 1}:
        raise DropError(f"{path.name}: column {sorted(twice)[0]!r} is there twice")
    number = 0
    for line in lines:
        # Spreadsheets often write blank lines at the end.
        if not any(field.strip() for field in line):
            continue
        if number == MAX_ROWS:
            raise DropError(f"{path.name}: more than {MAX_ROWS} rows: split the drop")
        values = {n: plain(v.strip()) for n, v in zip(names, line, strict=False) if n in MANIFEST_COLUMNS}
        yield ManifestRow(row=number, **_tidy(values), extra_fields=_count_extra(line, len(names)))
        number += 1


def _count_extra(line: Sequence[str], columns: int) -> int:
    """Count the fields beyond the header, without the empty trailing fields that spreadsheets write."""
    return max((n + 1 - columns for n, field in enumerate(line) if n >= columns and field.strip()), default=0)


def _tidy(values: dict[str, str]) -> dict[str, str]:
    """Normalise the spelling: `Multi-Person ` becomes multi_person, `2026:05:01` becomes 2026-05-01."""
    for name in ("role", "sha256"):
        if name in values:
            values[name] = values[name].lower()
    if values.get("category"):
        values["category"] = category_of(values["category"])
    if taken_at := values.get("taken_at"):
        # A rule refuses a text that is no time, and names it.
        values["taken_at"] = "" if is_unset(taken_at) else parse_taken_at(taken_at) or taken_at
    return {"image": ""} | values


def _csv(path: Path) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    lines = csv_lines(path)
    return next((line for line in lines if any(field.strip() for field in line)), []), lines


def _parquet(path: Path) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    lines = _parquet_lines(path)
    return next(lines), lines


def _parquet_lines(path: Path) -> Iterator[Sequence[str]]:
    """Yield the names of the columns, then the rows."""
    try:
        with pq.ParquetFile(path) as file:
            # A small compressed file can hold very many rows. The metadata gives the count without decoding.
            if file.metadata.num_rows > MAX_ROWS:
                raise DropError(f"{path.name}: more than {MAX_ROWS} rows: split the drop")
            names = file.schema_arrow.names
            wanted = [name for name in names if name.strip().lower() in MANIFEST_COLUMNS][:MAX_COLUMNS]
            yield wanted or names
            for batch in file.iter_batches(batch_size=PIECE, columns=wanted):
                yield from zip(*(_texts(path, name, batch[name]) for name in wanted), strict=True)
    except UnicodeDecodeError as error:
        raise DropError(f"{path.name}: text that is not UTF-8 ({error}): write it again") from None
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise DropError(f"{path.name}: not a parquet file that can be read: {said}: write it again") from None


def _texts(path: Path, name: str, column: pa.ChunkedArray) -> list[str]:
    # Nested and binary values are not plain text.
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise DropError(f"{path.name}: column {name!r} holds {column.type}: write text")
    return [_text(value) for value in column.to_pylist()]


def _text(value: object) -> str:
    # pandas writes whole numbers with gaps as floats, and the group 7 must not become 7.0.
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else "" if value != value else str(value)
    return "" if value is None else str(value)
