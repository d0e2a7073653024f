"""Reading CSV files of producers: UTF-8 with or without BOM, and an error that names the line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from mm_core.core.errors import DropError


def csv_lines(path: Path) -> Iterator[Sequence[str]]:
    """Yield the fields of each line of a CSV file in UTF-8, with or without BOM.

    Raises:
        DropError: The file is no CSV file in UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(_plain_lines(path, stream), strict=True)
        try:
            yield from reader
        except csv.Error as error:
            raise DropError(f"{path.name}: line {reader.line_num}: {error}") from None


def _plain_lines(path: Path, stream: TextIO) -> Iterator[str]:
    try:
        for line in stream:
            if "\0" in line:
                raise DropError(f"{path.name}: holds NUL bytes: it is not a CSV file")
            yield line
    except UnicodeDecodeError:
        raise DropError(f"{path.name}: not UTF-8 at byte {_first_wrong(path)}: save it as UTF-8") from None


def _first_wrong(path: Path) -> int:
    """Where a file stops being UTF-8; a decoder that reads it in blocks tells the place in its block."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0
