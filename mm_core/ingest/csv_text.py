"""Read CSV and text files of producers, also as Excel saves them, and write CSV files; errors name the line.

Only what a file states itself is used: its byte order mark, the delimiters of its header, a line `sep=;`. An encoding
without a mark is never guessed, because a wrong guess changes file names and captions without a word.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from mm_core.core.errors import DropError

DELIMITERS = (",", ";", "\t")
"""Comma is the contract. Excel writes semicolons where the decimal sign is a comma, and tabs as "Unicode Text"."""
FORMULA_SIGNS = tuple("=+-@＝＋－＠")
"""First characters of a cell that a spreadsheet runs as a formula, also in full width, as input methods write them."""
BEFORE_SIGNS = "'\t\r\n"
"""Characters before such a sign that do not hide it, and the apostrophe of `escaped`."""
_MARKS = {
    codecs.BOM_UTF32_LE: "",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark → Python's name of the encoding; "" for one that is not read."""
_REMEDY = 'save it as UTF-8 (in Excel: "CSV UTF-8")'
_QUOTED = re.compile(r'"[^"]*("|$)')
_HINT = re.compile(r"sep=(.)\s*")
"""A first line such as `sep=;`, which tells Excel the delimiter."""


def csv_lines(path: Path) -> Iterator[Sequence[str]]:
    """Yield the fields of each line of a CSV file.

    Args:
        path: A file in UTF-8, with or without byte order mark, or in UTF-16 with one. Fields are separated by commas;
            by semicolons or tabs if the header has no other delimiter, or if a first line `sep=;` says so.

    Raises:
        DropError: The file has another encoding, or it is not a CSV file.
    """
    with _open_text(path) as stream:
        lines = _plain_lines(path, stream)
        head, delimiter = _read_head(path, lines)
        reader = csv.reader((line for part in (head, lines) for line in part), delimiter=delimiter, strict=True)
        try:
            yield from reader
        except csv.Error as error:
            remedy = "quote fields that hold quotes, and double these"
            raise DropError(f"{path.name}: line {reader.line_num}: {error}: {remedy}") from None


def read_text(path: Path) -> str:
    """Return the content of a text file in UTF-8 or marked UTF-16; raises DropError with its path for other ones."""
    try:
        with _open_text(path) as stream:
            return "".join(_plain_lines(path, stream))
    except DropError as error:
        raise DropError(f"{path.parent / str(error)}") from None


def csv_bytes(rows: Iterable[Sequence[str]]) -> bytes:
    """Return rows as a CSV file in UTF-8 for people and programs.

    Every cell is `escaped`. `csv_lines` and `unescaped` read it back unchanged, line breaks of any kind included.
    """
    lines = []
    for row in rows:
        # Python's writer quotes a line break only if it is one of its line terminator's, so that one has both.
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(map(escaped, row))
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines).encode()


def escaped(value: str) -> str:
    """Return a cell that no spreadsheet runs as a formula.

    The cell gets a leading apostrophe if it begins like a formula. It also gets one if it begins with apostrophes
    before such a sign, so that `unescaped` restores it exactly.
    """
    return f"'{value}" if value.lstrip(BEFORE_SIGNS).startswith(FORMULA_SIGNS) else value


def unescaped(value: str) -> str:
    """Return the original cell of an `escaped` one."""
    return value[1:] if value[:1] == "'" and value.lstrip(BEFORE_SIGNS).startswith(FORMULA_SIGNS) else value


def _open_text(path: Path) -> TextIO:
    """Open a text file in the encoding of its byte order mark, in UTF-8 without one."""
    with path.open("rb") as stream:
        start = stream.read(4)
    encoding = next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), "utf-8")
    if not encoding:
        raise DropError(f"{path.name}: its encoding is UTF-32: {_REMEDY}")
    # `newline=""` leaves line breaks inside quoted fields to the csv module.
    return path.open(encoding=encoding, newline="")


def _read_head(path: Path, lines: Iterator[str]) -> tuple[list[str], str]:
    """Return the lines up to the header, and the delimiter that a hint or the header itself states."""
    head: list[str] = []
    hint = ""
    for line in lines:
        if not hint and (match := _HINT.fullmatch(line)):
            hint = match[1]
            if hint not in DELIMITERS:
                raise DropError(f"{path.name}: its first line names the delimiter {hint!r}: separate fields by commas")
            head.append("\n")  # keeps the line numbers of errors right
            continue
        head.append(line)
        # Spreadsheets may write blank rows, which consist of delimiters, above the header.
        if line.strip("".join((*DELIMITERS, '" \r\n'))):
            break
    present = [sign for sign in DELIMITERS if sign in _QUOTED.sub("", head[-1])] if head else []
    # A header with commas is read by the contract, whatever else is in it.
    return head, hint or (present[0] if len(present) == 1 else ",")


def _plain_lines(path: Path, stream: TextIO) -> Iterator[str]:
    try:
        for number, line in enumerate(stream):
            # Some programs write a byte order mark before one that is there already.
            line = line.lstrip("\ufeff") if number == 0 else line
            # A binary file usually has NUL bytes. Report it before the csv module fails with an unclear error.
            if "\0" in line:
                raise DropError(f"{path.name}: {_nul_fault(path, stream.encoding)}")
            yield line
    except UnicodeDecodeError:
        raise DropError(f"{path.name}: {_encoding_fault(path, stream.encoding)}: {_REMEDY}") from None


def _nul_fault(path: Path, encoding: str) -> str:
    """Return what a file with NUL characters is: UTF-16 without a mark if about every second byte is NUL."""
    data = path.read_bytes()
    if encoding == "utf-8" and max(data[::2].count(0), data[1::2].count(0)) > len(data) // 4:
        return f"its encoding looks like UTF-16, without a byte order mark: {_REMEDY}"
    return "holds NUL bytes: it is not a text file"


def _encoding_fault(path: Path, encoding: str) -> str:
    """Return where a file is not in its encoding, and which encoding the byte there suggests.

    The error of a stream gives the offset within its block, so the whole file is decoded again.
    """
    data, name = path.read_bytes(), "UTF-16" if encoding == "utf-16" else "UTF-8"
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        # The codec that skips a mark counts from after it.
        at = error.start + (len(data) - len(error.object))
        fault = f"not {name} at byte {at}"
        if name == "UTF-16":
            return fault
        try:
            data.decode("cp1252")
        except UnicodeDecodeError:  # five bytes have no meaning there
            return fault
        letter = data[at : at + 1].decode("cp1252")
        return f"{fault}: its encoding is probably Windows-1252, as Excel's plain CSV, where that byte is {letter!r}"
    return f"not {name}"
