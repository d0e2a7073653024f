"""Rows of a CSV file, to which a later call of a runner adds its own."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of earlier calls; none if there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the columns of the last one."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_page_table(page: Path, lines: Sequence[str]) -> None:
    """Replace what follows the mark `<!-- table -->` of a page by these lines."""
    text, mark, _ = page.read_text().partition("<!-- table -->\n")
    page.write_text(text + mark + "\n" + "\n".join(lines) + "\n")
