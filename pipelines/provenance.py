"""Versions and shapes of assets: computed code versions, data versions, row counts and columns of tables."""

import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.code_digest import ROOTS, code_digest, source_path
from mm_core.core.records import digest_of
from mm_core.storage.schemas import COLUMNS, SCHEMAS, Column

Raw = str | int | dg.TableSchema
"""What Dagster turns into a metadata value."""
DIGITS = 16
"""Number of hex digits of a version in Dagster's pages."""
INHERITED = "MM_CODE_VERSIONS"
"""Environment variable that passes computed code versions to the processes of a run; nobody sets it by hand."""


def code_version(*modules: str) -> str:
    """Return the version of the code in modules and all that they import; docstrings and comments do not count.

    The computation takes seconds, and each step of a run loads the definitions in a process of its own. These processes
    inherit the versions through the environment, as long as no source file has changed.
    """
    key, known = " ".join(modules), json.loads(os.environ.get(INHERITED, "{}"))
    if known.get("sources") != _sources():
        known = {"sources": _sources()}
    if key not in known:
        known[key] = code_digest(*modules)[:DIGITS]
        os.environ[INHERITED] = json.dumps(known)
    return known[key]


@cache
def _sources() -> str:
    """Return a digest of the names, sizes and times of all source files of `code_digest`."""
    files = sorted(file for root in ROOTS for file in source_path(root).parent.rglob("*.py"))
    return digest_of([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def data_version(*values: object) -> dg.DataVersion:
    """Return the version of an asset's content: one digest as it is, several values as their digest."""
    single = values[0] if len(values) == 1 and isinstance(values[0], str) else digest_of(values)
    return dg.DataVersion(single[:DIGITS])


def catalog_table(name: str) -> dict[str, Raw]:
    """Return the definition metadata of an asset that writes rows of a table of the catalog."""
    return {"dagster/table_name": name, **table_columns(SCHEMAS[name], COLUMNS[name])}


def table_columns(schema: pa.Schema, described: Sequence[Column]) -> dict[str, Raw]:
    """Return an Arrow schema as the column schema of a definition or a materialization.

    Args:
        schema: The columns that the files have.
        described: Columns with their meanings; those that the files lack are left out.
    """
    meanings = {name: meaning for name, _, meaning in described}
    columns = [dg.TableColumn(field.name, str(field.type), meanings.get(field.name)) for field in schema]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def row_count(rows: float) -> dict[str, Raw]:
    """Return the number of rows as the metadata that Dagster plots over time."""
    return {"dagster/row_count": int(rows)}


def parquet_rows(files: Iterable[Path], described: Sequence[Column]) -> dict[str, Raw]:
    """Return row count and columns of parquet files of one schema; only their footers are read."""
    footers = [pq.read_metadata(file) for file in sorted(files)]
    if not footers:
        return row_count(0)
    columns = table_columns(footers[0].schema.to_arrow_schema(), described)
    return row_count(sum(footer.num_rows for footer in footers)) | columns
