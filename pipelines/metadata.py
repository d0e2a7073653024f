"""A `Report` as Dagster shows it, and a stage's progress as observations."""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
from PIL import Image

from mm_core.core.layout import Layout
from mm_core.core.records import Report

MAX_NUMBERS = 40
MAX_ROWS = 200
MAX_PICTURES = 6
PICTURE_SIDE = 640
"""Pixels on the long side: pictures are stored in Dagster's event log, so they stay small."""


def of_report(report: Report, *, paths: Mapping[str, Path] | None = None) -> dict[str, dg.MetadataValue]:
    """Numbers, facts, tables and pictures of a report, with the files that belong to it.

    At most MAX_NUMBERS numbers, MAX_ROWS rows per table and MAX_PICTURES pictures are shown; what was left
    out is said in the metadata, and the report's JSON file has all of it.
    """
    shown: dict[str, dg.MetadataValue] = {"seconds": dg.MetadataValue.float(report.seconds)}
    shown |= {name: _number(value) for name, value in report.cost.items()}
    if (images := images_of(report)) is not None:
        shown["images"] = dg.MetadataValue.int(images)
    shown |= {name: dg.MetadataValue.path(path) for name, path in (paths or {}).items()}
    shown |= {name: table(rows) for name, rows in report.tables.items() if rows}
    for title, png in list(report.pictures.items())[:MAX_PICTURES]:
        shown[title] = picture(title, Path(png))
    shown |= {name: _fact(value) for name, value in report.facts.items() if value is not None}
    shown |= {name: _number(value) for name, value in list(report.metrics.items())[:MAX_NUMBERS]}
    left_out = {
        "numbers": len(report.metrics) - MAX_NUMBERS,
        "pictures": len(report.pictures) - MAX_PICTURES,
        **{f"rows of {name}": len(rows) - MAX_ROWS for name, rows in report.tables.items()},
    }
    if any(count > 0 for count in left_out.values()):
        shown["left out here"] = dg.MetadataValue.json({name: count for name, count in left_out.items() if count > 0})
    return shown


def images_of(report: Report) -> int | None:
    """Photos that the stage worked on (of training: seen, again and again); None where it works on none."""
    numbers, stage = report.metrics, report.stage.removeprefix("train-")
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


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a table; a column holds numbers where all its values are numbers, text otherwise."""
    rows = rows[:MAX_ROWS]
    types = {name: _column_type(row.get(name) for row in rows) for row in rows for name in row}
    records = [dg.TableRecord({name: _value(row.get(name), kind) for name, kind in types.items()}) for row in rows]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in types.items()])
    return dg.MetadataValue.table(records=records, schema=schema)


def picture(title: str, png: Path) -> dg.MarkdownMetadataValue:
    """A PNG file as an inline image, scaled to at most PICTURE_SIDE pixels."""
    with Image.open(png) as image:
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(data.getvalue()).decode()})")


def page(layout: Layout, path: Path) -> dg.MetadataValue:
    """A page of the workspace: a link where `mm ui` serves it, else the path of the file."""
    if served := layout.settings.pages_url:
        return dg.MetadataValue.url(f"{served}/{quote(path.relative_to(layout.root).as_posix())}")
    return dg.MetadataValue.path(path)


class Observations:
    """A `Progress` that logs one observation of the asset per tenth of the work, with the numbers heard last.

    Stages are counted in steps, so it is tenths and not epochs: of few photos an epoch is a step or two, of many it is
    longer than a stage. Which epoch it is stands among the numbers.
    """

    def __init__(self, context: dg.AssetExecutionContext):
        self._context = context
        self._tenths: dict[str, int] = {}
        self._numbers: dict[str, float] = {}

    def numbers(self, values: Mapping[str, float]) -> None:
        self._numbers |= values

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth <= self._tenths.get(what, 0):
            return
        self._tenths[what] = tenth
        numbers, self._numbers = self._numbers, {}
        epoch = f", epoch {numbers['epoch']:.1f}" if "epoch" in numbers else ""
        said = f"{what}: {done} of {total}{epoch}"
        self._context.log.info(said)
        self._context.log_event(
            dg.AssetObservation(
                asset_key=self._context.asset_key,
                partition=self._context.partition_key if self._context.has_partition_key else None,
                description=said,
                metadata={"work": what, "done": done, "total": total} | {n: _number(v) for n, v in numbers.items()},
            )
        )


def _fact(value: Any) -> dg.MetadataValue:
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
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    return dg.MetadataValue.float(value) if math.isfinite(value) else dg.MetadataValue.text(str(value))


def _column_type(values: Iterable[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int"
    return "float" if kinds and kinds <= {int, float} else "string"


def _value(value: Any, kind: str) -> str | int | float | bool | None:
    if value is None:
        return None
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if kind == "float":
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
