"""The catalog: five Delta tables in the store. The only module that knows deltalake.

Rows are only ever added or replaced by key, so that doing the same work twice leaves the same
catalog, and every commit has a version that a snapshot can name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from mm_core.errors import CatalogError

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
        """A table (or some columns, some rows, an old version) as a DataFrame; maps come as dicts."""
        schema = SCHEMAS[table]
        delta = None if version == -1 else self._open(table, version)
        if delta is None:
            return schema.empty_table().select(list(columns or schema.names)).to_pandas()
        frame = delta.to_pyarrow_table(columns=list(columns) if columns else None, filters=filters).to_pandas(
            maps_as_pydicts="lossy"
        )
        return frame

    def add(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Inserts the rows whose key is not there yet, in one commit; returns how many were new.

        Safe to repeat and safe beside other writers: a lost race is tried again on the new version.
        """
        return self._merge(table, rows, update=False)

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Inserts rows, or replaces those of the same key, in one commit."""
        return self._merge(table, rows, update=True)

    def delete(self, table: str, predicate: str) -> int:
        """Deletes rows by an SQL predicate; returns how many."""
        delta = self._open(table)
        return 0 if delta is None else int(delta.delete(predicate)["num_deleted_rows"])

    def _merge(self, table: str, rows: Iterable[Mapping[str, Any]], *, update: bool) -> int:
        from deltalake import DeltaTable
        from deltalake.exceptions import CommitFailedError, DeltaError

        schema, keys = SCHEMAS[table], KEYS[table]
        unique = {tuple(row[k] for k in keys): {name: row.get(name) for name in schema.names} for row in rows}
        if not unique:
            return 0
        data = pa.Table.from_pylist(list(unique.values()), schema=schema)
        on = " AND ".join(f"t.`{k}` = s.`{k}`" for k in keys)
        for attempt in range(20):
            try:
                delta = (
                    DeltaTable.create(self._uri(table), schema, mode="ignore", storage_options=self._options)
                    if self._open(table) is None
                    else self._open(table)
                )
                assert delta is not None
                merge = delta.merge(data, predicate=on, source_alias="s", target_alias="t")
                if update:
                    merge = merge.when_matched_update_all()
                result = merge.when_not_matched_insert_all().execute()
                return int(result["num_target_rows_inserted"])
            except CommitFailedError:
                continue
            except DeltaError as error:
                if attempt >= 3:
                    raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        raise CatalogError(f"catalog table {table} at {self.url}: 20 commits lost to other writers; run again")

    def _uri(self, table: str) -> str:
        return f"{self.url}/{table}"

    def _open(self, table: str, version: int | None = None):
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            return DeltaTable(self._uri(table), version=version, storage_options=self._options)
        except TableNotFoundError:
            return None


def _s3_options() -> dict[str, str]:
    """delta-rs reads credentials from the environment itself; only the address differs by name."""
    options = {"conditional_put": "etag"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"AWS_ENDPOINT_URL": endpoint}
        if endpoint.startswith("http://"):
            options |= {"AWS_ALLOW_HTTP": "true"}
    return options
