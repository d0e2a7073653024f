"""Versions and shapes of assets: computed code versions, data versions, row counts and columns of tables."""

import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.code_digest import ROOTS, code_digest, source_path
from mm_core.core.records import digest_of
from mm_core.storage.schemas import SCHEMAS

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


def table_schema(schema: pa.Schema) -> dg.TableSchema:
    """Return an Arrow schema as Dagster's column schema."""
    return dg.TableSchema([dg.TableColumn(field.name, str(field.type)) for field in schema])


def catalog_table(name: str) -> dict[str, Raw]:
    """Return the definition metadata of an asset that writes rows of a table of the catalog."""
    return {"dagster/table_name": name, **table_columns(SCHEMAS[name])}


def table_columns(schema: pa.Schema) -> dict[str, Raw]:
    """Return the column schema as metadata of a definition or a materialization."""
    return {"dagster/column_schema": table_schema(schema)}


def row_count(rows: float) -> dict[str, Raw]:
    """Return the number of rows as the metadata that Dagster plots over time."""
    return {"dagster/row_count": int(rows)}


def parquet_rows(files: Iterable[Path]) -> dict[str, Raw]:
    """Return row count and columns of parquet files of one schema; only their footers are read."""
    footers = [pq.read_metadata(file) for file in sorted(files)]
    if not footers:
        return row_count(0)
    return row_count(sum(footer.num_rows for footer in footers)) | table_columns(footers[0].schema.to_arrow_schema())
