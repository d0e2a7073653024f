"""Read CSV files of producers in UTF-8, with or without BOM, and write CSV files; errors name the line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from mm_core.core.errors import DropError


def csv_lines(path: Path) -> Iterator[Sequence[str]]:
    """Yield the fields of each line of a CSV file in UTF-8, with or without BOM.

    Args:
        path: The file.

    Raises:
        DropError: The file is not a CSV file in UTF-8.
    """
    # `newline=""` leaves line breaks inside quoted fields to the csv module.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(_plain_lines(path, stream), strict=True)
        try:
            yield from reader
        except csv.Error as error:
            raise DropError(f"{path.name}: line {reader.line_num}: {error}") from None


def csv_bytes(rows: Iterable[Sequence[str]]) -> bytes:
    """Return rows as a CSV file in UTF-8 that `csv_lines` reads back unchanged, line breaks of any kind included."""
    lines = []
    for row in rows:
        # Python's writer quotes a line break only if it is one of its line terminator's, so that one has both.
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines).encode()


def _plain_lines(path: Path, stream: TextIO) -> Iterator[str]:
    try:
        for number, line in enumerate(stream):
            # Some programs write a byte order mark before one that is there already.
            line = line.lstrip("\ufeff") if number == 0 else line
            # A binary file usually has NUL bytes. Report it before the csv module fails with an unclear error.
            if "\0" in line:
                raise DropError(f"{path.name}: holds NUL bytes: it is not a CSV file")
            yield line
    except UnicodeDecodeError:
        raise DropError(f"{path.name}: not UTF-8 at byte {_first_wrong(path)}: save it as UTF-8") from None


def _first_wrong(path: Path) -> int:
    """Return the offset of the first byte that is not UTF-8.

    The error of a stream gives the offset within its block, so the whole file is decoded again.
    """
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0
