"""Convert a `Report` to Dagster metadata and a stage's progress to observations."""

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path
from urllib.parse import quote

import dagster as dg
from PIL import Image

from mm_core.core.layout import Layout
from mm_core.core.records import Report

MAX_NUMBERS = 40
MAX_ROWS = 200
MAX_PICTURES = 6
DIGEST = re.compile(r"[0-9a-f]{64}")
SHORT_DIGEST = 12
"""Hexadecimal digits of a digest in a table; the report's JSON file has all of them."""
PICTURE_SIDE = 640
"""Long side in pixels; pictures are stored in Dagster's event log and must stay small."""


def of_report(report: Report, *, paths: Mapping[str, Path] | None = None) -> dict[str, dg.MetadataValue]:
    """Return numbers, facts, tables and pictures of a report as metadata, with the given files.

    At most MAX_NUMBERS numbers, MAX_ROWS rows per table and MAX_PICTURES pictures are included. The metadata lists the
    rest as left out; the report's JSON file is complete.
    """
    shown: dict[str, dg.MetadataValue] = {"seconds": dg.MetadataValue.float(report.seconds)}
    shown |= {name: _number(value) for name, value in report.cost.items()}
    if (images := images_of(report)) is not None:
        shown["images"] = dg.MetadataValue.int(images)
    shown |= {name: dg.MetadataValue.path(path) for name, path in (paths or {}).items()}
    shown |= {name: table(rows) for name, rows in report.tables.items() if rows}
    # The worst matte of each category comes first, because a person looks for faults.
    pictures = sorted(report.pictures.items(), key=lambda item: not item[0].endswith(", worst"))
    for title, png in pictures[:MAX_PICTURES]:
        shown[title] = picture(title, Path(png))
    # Later entries replace earlier ones of the same name.
    shown |= {name: _fact(value) for name, value in report.facts.items() if value is not None}
    shown |= {name: _number(value) for name, value in list(report.metrics.items())[:MAX_NUMBERS]}
    # List the entries beyond the limits.
    left_out = {
        "numbers": len(report.metrics) - MAX_NUMBERS,
        "pictures": len(report.pictures) - MAX_PICTURES,
        **{f"rows of {name}": len(rows) - MAX_ROWS for name, rows in report.tables.items()},
    }
    if any(count > 0 for count in left_out.values()):
        shown["left out here"] = dg.MetadataValue.json({name: count for name, count in left_out.items() if count > 0})
    return shown


def images_of(report: Report) -> int | None:
    """Return the number of photos that a stage processed (in training: with repetitions); None for other stages."""
    numbers, stage = report.metrics, report.stage.removeprefix("train-")
    # A stage that was trained before processed no photo.
    if "reused" in report.facts:
        return 0
    if f"{stage}/images_per_s" in numbers:
        return round(numbers[f"{stage}/images_per_s"] * numbers[f"{stage}/train_seconds"])
    counted = {
        "ingest": ("ingest/accepted", "ingest/quarantined", "ingest/duplicates"),
        "structure": ("structure/photos",),
        "evaluate": ("evaluate/photos",),
        "route": ("route/looked_at",),
    }.get(report.stage, ())
    return sum(int(numbers.get(name, 0)) for name in counted) if counted else None


def table(rows: Sequence[Mapping[str, object]]) -> dg.TableMetadataValue:
    """Return rows as a table; a column is numeric if all its values are numbers, otherwise text.

    Digests are shortened, so that the other columns are in sight.
    """
    rows = rows[:MAX_ROWS]
    # Rows may have different columns; the table has all of them.
    types = {name: _column_type(row.get(name) for row in rows) for row in rows for name in row}
    records = [dg.TableRecord({name: _value(row.get(name), kind) for name, kind in types.items()}) for row in rows]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in types.items()])
    return dg.MetadataValue.table(records=records, schema=schema)


def picture(title: str, png: Path) -> dg.MarkdownMetadataValue:
    """Return a PNG file as an inline image, scaled to at most PICTURE_SIDE pixels."""
    with Image.open(png) as image:
        # Shrinks in place and never enlarges.
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(data.getvalue()).decode()})")


def page(layout: Layout, path: Path) -> dg.MetadataValue:
    """Return a page of the workspace as a link if `mm ui` serves it, otherwise as a path."""
    # `mm ui` sets this address.
    if served := layout.settings.pages_url:
        return dg.MetadataValue.url(f"{served}/{quote(path.relative_to(layout.root).as_posix())}")
    return dg.MetadataValue.path(path)


def data_docs(layout: Layout, partition: str) -> dict[str, dg.MetadataValue]:
    """Return the newest Data Docs page about the rows of a batch (kind/batch); empty if no rule was evaluated."""
    kind, _, batch = partition.partition("/")
    # Each validation has a folder with its time as name.
    pages = layout.data_docs.glob(f"validations/{escape(kind)} row rules/{escape(batch)}/*/*.html")
    newest = max(pages, key=lambda path: path.parent.name, default=None)
    return {"data docs": page(layout, newest)} if newest else {}


class Observations:
    """A `Progress` that logs one observation per tenth of the work, with the last numbers received.

    Stages are counted in steps. Tenths are used and not epochs, because an epoch is one or two steps with few photos
    and longer than a stage with many. The current epoch is among the numbers.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._tenths: dict[str, int] = {}
        self._numbers: dict[str, float] = {}

    def numbers(self, values: Mapping[str, float]) -> None:
        """Keep the newest values for the next observation."""
        self._numbers |= values

    def __call__(self, what: str, done: int, total: int) -> None:
        """Log an observation if a further tenth is done."""
        tenth = 10 * done // total if total else 10
        # At most one observation per tenth and kind of work.
        if tenth <= self._tenths.get(what, 0):
            return
        self._tenths[what] = tenth
        # Each number is logged once.
        numbers, self._numbers = self._numbers, {}
        epoch = f", epoch {numbers['epoch']:.1f}" if "epoch" in numbers else ""
        line = f"{what}: {done} of {total}{epoch}"
        self._context.log.info(line)
        self._context.log_event(
            dg.AssetObservation(
                asset_key=self._context.asset_key,
                partition=self._context.partition_key if self._context.has_partition_key else None,
                description=line,
                metadata={"work": what, "done": done, "total": total} | {n: _number(v) for n, v in numbers.items()},
            )
        )


def _fact(value: object) -> dg.MetadataValue:
    """Return a fact as metadata of its type; other types become JSON."""
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return dg.MetadataValue.text(value)
    if isinstance(value, Path):
        return dg.MetadataValue.path(value)
    return dg.MetadataValue.json(json.loads(json.dumps(value, default=str)))


def _number(value: float) -> dg.MetadataValue:
    """Return a number as metadata; NaN and infinity become text."""
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    return dg.MetadataValue.float(value) if math.isfinite(value) else dg.MetadataValue.text(str(value))


def _column_type(values: Iterable[object]) -> str:
    """Return the Dagster type of a column; a column with mixed types is text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int"
    return "float" if kinds and kinds <= {int, float} else "string"


def _value(value: object, kind: str) -> str | int | float | bool | None:
    """Return a cell in the type of its column."""
    if value is None:
        return None
    if kind == "string":
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return text[:SHORT_DIGEST] if DIGEST.fullmatch(text) else text
    if kind == "float":
        number = float(str(value))
        return float(f"{number:.6g}") if math.isfinite(number) else None
    return value if isinstance(value, int) else str(value)
