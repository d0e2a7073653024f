"""The catalog: five Delta tables in the store. The only module that knows deltalake.

Rows are only ever added or replaced by key, so that doing the same work twice leaves the same
catalog, and every commit has a version that a snapshot can name.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from mm_core.errors import CatalogError
from mm_core.settings import s3_timeout

if TYPE_CHECKING:
    from deltalake import DeltaTable

ATTEMPTS = 20
"""Commits tried against other writers before giving up."""
SCHEMAS: Mapping[str, pa.Schema] = {
    # The ledger: one row per (kind, batch, manifest digest), written last, when all its rows are in.
    "batches": pa.schema(
        [
            ("key", pa.string()),  # sha256 over kind, batch and manifest digest
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("manifest_sha256", pa.string()),
            ("state", pa.string()),  # ingested | held
            ("reason", pa.string()),  # why a batch is held
            ("rows", pa.int64()),
            ("accepted", pa.int64()),
            ("quarantined", pa.int64()),
            ("duplicates", pa.int64()),
            ("uri", pa.string()),
            ("ingested_at", pa.string()),  # ISO 8601, UTC
        ]
    ),
    # One row per distinct image; id = sha256 of the file's bytes.
    "samples": pa.schema(
        [
            ("id", pa.string()),
            ("kind", pa.string()),  # of the drop that brought it first
            ("batch", pa.string()),
            ("category", pa.string()),  # null: unknown
            ("caption", pa.string()),
            ("group", pa.string()),  # burst, scene, near-duplicates: never split over train and eval
            ("role", pa.string()),  # "" | train | eval, as the manifest asks
            ("width", pa.int32()),  # pixels, after EXIF orientation
            ("height", pa.int32()),
            ("format", pa.string()),  # JPEG, PNG, …
            ("phash", pa.string()),  # 64-bit perceptual hash, 16 hex digits
            ("source", pa.string()),
            ("license", pa.string()),
            ("taken_at", pa.string()),
            ("name", pa.string()),  # as the manifest called it
            ("accepted_at", pa.string()),
        ]
    ),
    # Every version of every alpha; the newest by (version) counts.
    "labels": pa.schema(
        [
            ("id", pa.string()),  # sha256 over sample id and alpha digest
            ("sample_id", pa.string()),
            ("alpha_sha256", pa.string()),  # blob: 8- or 16-bit grey PNG of the oriented image's size
            ("version", pa.int32()),  # 1, 2, … per sample
            ("origin", pa.string()),  # drop | label_studio
            ("batch", pa.string()),
            ("annotator", pa.string()),
            ("binary", pa.bool_()),  # a mask of 0 and 1 only: carries no soft band
            ("created_at", pa.string()),
        ]
    ),
    "rejects": pa.schema(
        [
            ("key", pa.string()),  # sha256 over batch key and row number
            ("kind", pa.string()),
            ("batch", pa.string()),
            ("row", pa.int64()),  # 0-based row of the manifest
            ("image", pa.string()),
            ("verdict", pa.string()),  # quarantine | duplicate
            ("reason", pa.string()),  # plain words, from a fixed list
            ("detail", pa.string()),  # what was measured
            ("sample_id", pa.string()),  # of a duplicate: the sample it repeats
            ("where", pa.string()),  # store key of the kept copy, if any
            ("rejected_at", pa.string()),
        ]
    ),
    # What extractors found, one row per sample, extractor and its version.
    "features": pa.schema(
        [
            ("sample_id", pa.string()),
            ("extractor", pa.string()),  # photo | difficulty | model_difficulty | …
            ("version", pa.string()),
            ("numbers", pa.map_(pa.string(), pa.float64())),
            ("texts", pa.map_(pa.string(), pa.string())),
            ("computed_at", pa.string()),
        ]
    ),
}
KEYS: Mapping[str, tuple[str, ...]] = {
    "batches": ("key",),
    "samples": ("id",),
    "labels": ("id",),
    "rejects": ("key",),
    "features": ("sample_id", "extractor", "version"),
}


class CatalogMoved(CatalogError):
    """Another writer committed to the table since it was read: read again, decide again."""


class Catalog:
    """The five tables under `<store>/catalog/`, on a folder or S3."""

    def __init__(self, store_url: str):
        self.url = f"{store_url.rstrip('/')}/catalog"
        self._options = _s3_options() if store_url.startswith("s3://") else None

    def version(self, table: str) -> int:
        """Commit number of a table; -1 before its first row."""
        delta = self._open(table)
        return -1 if delta is None else delta.version()

    def versions(self) -> dict[str, int]:
        return {table: self.version(table) for table in SCHEMAS}

    def read(
        self,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        filters: list[tuple[str, str, Any]] | None = None,
    ) -> pd.DataFrame:
        """A table (or some columns, some rows, an old version) as a DataFrame; maps come as dicts.

        `filters`: all must hold, as (column, one of = != < <= > >= in "not in", value).
        """
        from pyarrow.parquet import filters_to_expression

        names = list(columns or SCHEMAS[table].names)
        delta = None if version == -1 else self._open(table, version)
        if delta is None:
            return SCHEMAS[table].empty_table().select(names).to_pandas()
        needed = list(dict.fromkeys([*names, *(column for column, _, _ in filters or ())]))
        try:
            rows = delta.to_pyarrow_table(columns=needed)
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        if filters:
            # Not pushed down: delta-rs describes its files by string views, which pyarrow cannot compare with strings.
            typed = [
                (name, verb, pa.array(list(value), rows.schema.field(name).type) if "in" in verb else value)
                for name, verb, value in filters
            ]
            rows = rows.filter(filters_to_expression(typed))
        return rows.select(names).to_pandas(maps_as_pydicts="lossy")

    def add(self, table: str, rows: Iterable[Mapping[str, Any]], *, at: int | None = None) -> int:
        """Inserts the rows whose key is not there yet, in one commit; returns how many were new.

        Safe to repeat and safe beside other writers: a lost race is tried again on the new version.
        With `at`, the version that the rows were decided on, a lost race raises CatalogMoved instead.
        """
        return self._merge(table, rows, at=at)

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Inserts rows, or replaces those of the same key, in one commit; returns how many were new."""
        return self._merge(table, rows, replace=SCHEMAS[table].names)

    def fill(
        self, table: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, at: int | None = None
    ) -> int:
        """Like `add`, and of rows that are there already fills those of `columns` that are null."""
        return self._merge(table, rows, fill=columns, at=at)

    def delete(self, table: str, predicate: str) -> int:
        """Deletes rows by an SQL predicate; returns how many."""
        delta = self._open(table)
        return 0 if delta is None else int(delta.delete(predicate)["num_deleted_rows"])

    def _merge(
        self,
        table: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        replace: Sequence[str] = (),
        fill: Sequence[str] = (),
        at: int | None = None,
    ) -> int:
        from deltalake import CommitProperties
        from deltalake.exceptions import CommitFailedError, DeltaError

        schema, keys = SCHEMAS[table], KEYS[table]
        unique = {tuple(row[k] for k in keys): _plain(row, schema.names) for row in rows}
        if not unique:
            return 0
        data = pa.Table.from_pylist(list(unique.values()), schema=schema)
        on = " AND ".join(f"t.`{k}` = s.`{k}`" for k in keys)
        updates = {f"`{c}`": f"s.`{c}`" for c in replace} | {f"`{c}`": f"coalesce(t.`{c}`, s.`{c}`)" for c in fill}
        for attempt in range(ATTEMPTS):
            try:
                delta = self._open_or_create(table)
                if at is not None and delta.version() != max(at, 0):
                    raise CatalogMoved(f"{table}: version {delta.version()}, decided on {at}")
                merge = delta.merge(
                    data,
                    predicate=on,
                    source_alias="s",
                    target_alias="t",
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
                if updates:
                    merge = merge.when_matched_update(updates)
                result = merge.when_not_matched_insert_all().execute()
                return int(result["num_target_rows_inserted"])
            except CommitFailedError as error:
                if at is not None:
                    raise CatalogMoved(f"{table}: {error}") from error
                time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
            except (DeltaError, OSError) as error:
                raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        raise CatalogError(f"catalog table {table} at {self.url}: {ATTEMPTS} commits lost to other writers; run again")

    def _uri(self, table: str) -> str:
        return f"{self.url}/{table}"

    def _open(self, table: str, version: int | None = None) -> DeltaTable | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            delta = DeltaTable(self._uri(table), version=version, storage_options=self._options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        if missing := set(SCHEMAS[table].names) - {field.name for field in delta.schema().fields}:
            raise CatalogError(f"catalog table {table} at {self.url} is of another version: no column {min(missing)!r}")
        return delta

    def _open_or_create(self, table: str) -> DeltaTable:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if delta := self._open(table):
            return delta
        try:
            return DeltaTable.create(self._uri(table), SCHEMAS[table], storage_options=self._options)
        except (DeltaError, OSError) as error:
            if delta := self._open(table):  # another process made it in this moment
                return delta
            raise CatalogError(f"catalog table {table} at {self.url} cannot be made: {error}") from error


def _plain(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A row as pyarrow takes it: what pandas calls missing (NaN, NA) is None."""
    values = {name: row.get(name) for name in names}
    return {n: None if v is pd.NA or (isinstance(v, float) and math.isnan(v)) else v for n, v in values.items()}


def _s3_options() -> dict[str, str]:
    """delta-rs reads credentials from the environment itself; only the address differs by name."""
    options = {
        "conditional_put": "etag",
        # A request that S3 leaves without answer is given up and tried again, with growing pauses.
        "timeout": f"{s3_timeout():g}s",
        "max_retries": "8",
        "retry_timeout": f"{10 * s3_timeout():g}s",
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"AWS_ENDPOINT_URL": endpoint}
        if endpoint.startswith("http://"):
            options |= {"AWS_ALLOW_HTTP": "true"}
    return options
