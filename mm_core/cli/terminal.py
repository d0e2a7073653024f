"""Common parts of the verbs of `mm`: options, progress bars, results as text or JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.progress import Progress, quiet
from mm_core.core.settings import Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from mm_core.core import params, records
    from mm_core.core.records import Report
    from mm_core.pinned_inputs import Run
else:
    params = Deferred("mm_core.core.params")
    records = Deferred("mm_core.core.records")

MOST_ROWS = 60
"""Largest number of table rows in the text output; the rest is counted."""
DIGEST = re.compile(r"[0-9a-f]{64}")
LONG_TEXT = 60
"""Characters above which a text of several words is a sentence: it gets a line of its own, or a table's last column."""
SHORT_DIGEST = 12
"""Hexadecimal digits of a digest in the text output; `--json` has all of them."""
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Inbox = Annotated[
    str | None,
    typer.Option(help="Folder or s3://bucket/prefix of the drops.", show_default="MM_INBOX or <workspace>/inbox"),
]


def open_layout(inbox: str | None = None) -> Layout:
    """Return the workspace of the environment; raise InputError if it is a file, or if inbox and store overlap."""
    settings = Settings.from_env(inbox=inbox)
    if settings.workspace.is_file():
        raise InputError(f"MM_WORKSPACE: {settings.workspace} is a file: name a folder")
    # Drops in the store would be taken for files of ours, and the store for folders of a producer.
    if "://" not in settings.inbox + settings.store:
        inside, outside = Path(settings.inbox).resolve(), Path(settings.store).resolve()
        if inside.is_relative_to(outside) or outside.is_relative_to(inside):
            raise InputError(f"the inbox {inside} and the store {outside} lie in one another: name folders apart")
    return Layout(settings)


def open_run(inbox: str | None = None, progress: Progress = quiet) -> Run:
    """Return the run of a verb, with the workspace of the environment and the params of params.yaml."""
    # Imported here, because they need packages that `mm --help` does not need.
    from mm_core.pinned_inputs import Run

    layout = open_layout(inbox)
    return Run(params.Params.load(layout.settings.params_file), layout, progress)


class Bars:
    """Progress callback that draws one tqdm bar on stderr per kind of work."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Draw the present state; `what` names the kind of work."""
        from tqdm import tqdm

        # Another description means that the next kind of work has begun.
        if self._bar is None or self._bar.desc != what:
            self.close()
            self._bar = tqdm(desc=what, total=total, file=sys.stderr, leave=True, dynamic_ncols=True, mininterval=0.5)
        self._bar.n = done
        self._bar.total = total
        # `update(0)` respects mininterval; the last state is always drawn.
        self._bar.refresh() if done >= total else self._bar.update(0)

    def close(self) -> None:
        """Close the open bar, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Yield a `Bars` and close its last bar at the end, also after an error."""
    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()


@contextmanager
def run_with_bars(inbox: str | None = None) -> Iterator[Run]:
    """Yield the run of a verb. Its progress draws bars, which are closed at the end, also after an error."""
    with progress_bars() as progress:
        yield open_run(inbox, progress)


def say(result: Report | Mapping[str, object], as_json: bool) -> None:
    """Print a result as text, or as one JSON object if `as_json` is true."""
    # Both kinds of result have the same JSON form.
    data = asdict(result) if isinstance(result, records.Report) else result
    if as_json:
        # `default=str` covers paths, times and numpy values.
        typer.echo(json.dumps(data, default=str))
    elif isinstance(result, records.Report):
        typer.echo(f"{result.stage}: {result.seconds:.1f} s")
        for name, value in result.facts.items():
            typer.echo(_named(name, value, "  "))
        for name, number in sorted(result.metrics.items()):
            typer.echo(f"  {name}: {number:.5g}")
        for name, rows in result.tables.items():
            if rows:
                typer.echo(f"\n{name}\n{table(rows[:MOST_ROWS])}")
            if len(rows) > MOST_ROWS:
                typer.echo(f"… and {len(rows) - MOST_ROWS} more rows: `--json` prints all")
    else:
        for name, value in data.items():
            typer.echo(_named(name, value, ""))


def _named(name: str, value: object, indent: str) -> str:
    """Format a value with its name; nested values are indented below, lists of rows become tables."""
    inner = indent + "  "
    if isinstance(value, dict):
        return "\n".join([f"{indent}{name}:", *(_named(key, item, inner) for key, item in value.items())])
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return "\n".join([f"{indent}{name}:", *(inner + line for line in table(value).splitlines())])
    # Sentences stand below one another; names and numbers share a line.
    if isinstance(value, list) and any(isinstance(item, str) and _is_sentence(item) for item in value):
        return "\n".join([f"{indent}{name}:", *(f"{inner}{_cell(item)}" for item in value)])
    if isinstance(value, (list, tuple)):
        return f"{indent}{name}: {', '.join(_cell(item) for item in value) or 'none'}"
    return f"{indent}{name}: {'none' if value is None else _cell(value)}"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: `1 photo`, `2 photos`; the plural has an s more."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as an aligned plain-text table; cells are never cut, but digests are shortened.

    A list of texts has one line per text. Columns with lists or sentences are the last ones, because they are wide.
    """
    # Columns in the order of their first appearance; rows may have different keys.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.sort(key=lambda name: any(_is_wide(row.get(name)) for row in rows))
    cells = [[_cell_lines(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(name), *(len(text) for line in cells for text in line[i])) for i, name in enumerate(columns)]
    lines = ["  ".join(name.ljust(w) for name, w in zip(columns, widths, strict=True))]
    for row in cells:
        # A row with lists has several lines; its short cells are filled with blanks.
        for texts in zip_longest(*row, fillvalue=""):
            lines.append("  ".join(text.ljust(w) for text, w in zip(texts, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_wide(value: object) -> bool:
    return _is_texts(value) or (isinstance(value, str) and _is_sentence(value))


def _is_sentence(text: str) -> bool:
    return len(text) > LONG_TEXT and " " in text


def _cell_lines(value: object) -> list[str]:
    return [printable(text) for text in (cast(list[str], value) if _is_texts(value) else [_cell(value)])]


def printable(text: str) -> str:
    """Return a producer's text on one line: line breaks and codes that control a terminal are spelled out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else json.dumps(value, default=str) if isinstance(value, (dict, list)) else str(value)
    return text[:SHORT_DIGEST] if DIGEST.fullmatch(text) else text
