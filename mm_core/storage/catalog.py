"""The catalog: Delta tables in the store. Only this module uses deltalake.

Rows are only added, or replaced by key. Repeated work therefore leaves the same catalog. Every commit has a version
that a snapshot can name.

The cost of a write depends on the new rows. Keys are digests, so new rows are appended after one streamed pass over
the existing keys. Only files with changed rows are written again. Appending leaves many small files; every
COMPACT_EVERY commits the writer compacts them, so the catalog needs no maintenance service. Unreferenced files stay
for RETENTION_DAYS, until `mm catalog compact` removes them.
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, QueryBuilder, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from mm_core.core.errors import CatalogError
from mm_core.core.servers import report_wait
from mm_core.core.settings import s3_timeout
from mm_core.storage.retry import patient, s3_server, table_fault
from mm_core.storage.schemas import ADDED, KEYS, RETENTION_DAYS, SCHEMAS, table_properties
from mm_core.storage.seals import data_fault, log_fault, seal

ATTEMPTS = 20
"""Attempts to commit against other writers before an error."""
COMPACT_EVERY = 64
"""Commits of a table between two compactions."""
FILE_BYTES = 32 << 20
"""Target size of data files in bytes: a change of one row rewrites at most this much."""
PUSHED = 1000
"""Largest number of `in` values passed to the query engine as text. Its time grows with the square of that number, so
longer lists are applied in this process to the streamed rows."""
PIECE = 4096
"""Rows held in memory as Python objects during a write."""
_RESTORE = "restore the store's catalog/ from a backup; run `mm check`, which names every damaged file"
Filter = tuple[str, str, Any]
"""(column, one of = != < <= > >= in "not in", value)."""


class CatalogMoved(CatalogError):
    """Another writer committed to the table since it was read; the caller must read and decide again."""


class Catalog:
    """The tables under `<store>/catalog/`, in a folder or on S3."""

    def __init__(self, store_url: str) -> None:
        self.url = f"{store_url.rstrip('/')}/catalog"
        self._options = _s3_options() if store_url.startswith("s3://") else None

    @patient
    def version(self, table: str) -> int:
        """Return the commit number of a table, 0 before its first row; -1 if there is no table."""
        delta = self._open(table)
        return -1 if delta is None else delta.version()

    def versions(self) -> dict[str, int]:
        """Return the version of each table."""
        return {table: self.version(table) for table in SCHEMAS}

    @patient
    def read(
        self,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        filters: Sequence[Filter] | None = None,
    ) -> pd.DataFrame:
        """Return a table, or some columns, some rows or an old version of it, as a DataFrame; maps become dicts.

        The order of rows is undefined. All `filters` must hold. Raises CatalogError if files are missing or broken.
        """
        # The schema of the result follows the requested columns, also for an empty table.
        names = list(columns or SCHEMAS[table].names)
        schema = pa.schema([SCHEMAS[table].field(name) for name in names])
        rows = pa.Table.from_batches(self.scan(table, version=version, columns=names, filters=filters), schema)
        return rows.to_pandas(maps_as_pydicts="lossy")

    def scan(
        self,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str],
        filters: Sequence[Filter] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the result of `read` in batches of a few thousand rows, to bound the memory."""
        delta = None if version == -1 else self._open(table, version)
        if delta is not None:
            yield from self._select(delta, table, columns, filters or ())

    @patient
    def count(self, table: str, *, version: int | None = None) -> int:
        """Return the number of rows of a table from the commit log, without reading its files."""
        delta = None if version == -1 else self._open(table, version)
        return 0 if delta is None else sum(pa.table(delta.get_add_actions())["num_records"].to_pylist())

    @patient
    def query(self, sql: str, versions: Mapping[str, int] | None = None) -> pd.DataFrame:
        """Return the result of an SQL SELECT over the tables (DataFusion's dialect), without loading whole tables.

        Missing tables named in the query are created. Tables in `versions` are read at that version; columns that it
        lacks are null. Raises CatalogError if the query fails.
        """
        # Only tables named in the query are registered with the engine.
        named = [table for table in SCHEMAS if re.search(rf"\b{table}\b", sql)]
        tables: dict[str, DeltaTable] = {}
        views: list[str] = []
        for table in named:
            version = (versions or {}).get(table)
            old = self._open(table, version) if version is not None and version >= 0 else None
            delta = old or self._open_or_create(table)
            absent = _lacking(delta, table)
            if version == -1 or absent:
                # A view in place of the table: it has no rows before the first commit.
                shown = (f"NULL AS {_quoted(n)}" if n in absent else _quoted(n) for n in SCHEMAS[table].names)
                where = " WHERE false" if version == -1 else ""
                views.append(f"{table} AS (SELECT {', '.join(shown)} FROM {table}_stored{where})")
                tables[f"{table}_stored"] = delta
            else:
                tables[table] = delta
        batches = list(self._stream(f"WITH {', '.join(views)} {sql}" if views else sql, tables))
        return pa.Table.from_batches(batches).to_pandas() if batches else pd.DataFrame()

    def _select(
        self, delta: DeltaTable, table: str, names: Sequence[str], filters: Sequence[Filter]
    ) -> Iterator[pa.RecordBatch]:
        # Long `in` lists are applied to the streamed rows; all other filters become SQL.
        lookups = [f for f in filters if "in" in f[1] and len(f[2]) > PUSHED]
        conditions = [_sql(f) for f in filters if f not in lookups]
        columns = list(dict.fromkeys([*names, *(column for column, _, _ in lookups)]))
        # Old versions of a table lack younger columns; they read as nulls.
        absent = _lacking(delta, table)
        shown = (f"NULL AS {_quoted(name)}" if name in absent else _quoted(name) for name in columns)
        query = f"SELECT {', '.join(shown)} FROM {table}"
        if conditions:
            query += f" WHERE {' AND '.join(conditions)}"
        wanted = [(c, verb, pa.array(list(values), SCHEMAS[table].field(c).type)) for c, verb, values in lookups]
        schema = pa.schema([SCHEMAS[table].field(name) for name in names])
        for rows in self._stream(query, {table: delta}):
            for column, verb, values in wanted:
                matches = pc.is_in(rows[column], values)
                rows = rows.filter(matches if verb == "in" else pc.invert(matches))
            if rows.num_rows:
                yield rows.select(list(names)).cast(schema)

    def _stream(self, sql: str, tables: Mapping[str, DeltaTable]) -> Iterator[pa.RecordBatch]:
        engine = QueryBuilder()
        for name, delta in tables.items():
            self._require_intact(delta, name.removesuffix("_stored"))
            engine = engine.register(name, delta)
        try:
            # A pyarrow stream releases the interpreter lock while it waits for data.
            stream = pa.RecordBatchReader.from_stream(engine.execute(sql))
            # The engine returns string views, which pandas and pyarrow's comparisons do not support.
            fields = [f.with_type(pa.string()) if pa.types.is_string_view(f.type) else f for f in stream.schema]
            for batch in stream:
                yield _copy(batch.cast(pa.schema(fields)))
        except (DeltaError, pa.ArrowException, OSError) as error:
            raise CatalogError(f"catalog table {', '.join(tables)} at {self.url}: {table_fault(error)}") from error

    @patient
    def require_whole(self, table: str) -> None:
        """Raise CatalogError if a file of the table's present version is missing or damaged; S3 guards its own."""
        delta = self._open(table)
        if delta is None or self._options:
            return
        self._require_intact(delta, table)
        folder = Path(self._uri(table))
        if lost := next((path for uri in delta.file_uris() if not (path := folder / Path(uri).name).is_file()), None):
            raise CatalogError(f"catalog table {table}: {lost} is missing: {_RESTORE}")

    def add(self, table: str, rows: Iterable[Mapping[str, object]], *, at: int | None = None) -> int:
        """Insert rows with new keys in one commit; return the number of new rows.

        Safe to repeat and safe with concurrent writers: a lost race is repeated on the new version. With `at`, the
        version on which the caller based its rows, a lost race raises CatalogMoved instead.
        """
        return self._merge(table, as_table(table, rows), at=at)

    def upsert(
        self,
        table: str,
        rows: Iterable[Mapping[str, object]],
        *,
        columns: Sequence[str] = (),
        at: int | None = None,
    ) -> int:
        """Insert rows or replace rows with the same key, in one commit; return the number of new rows.

        With `columns`, only these columns of existing rows are replaced. `at`: see `add`.
        """
        return self._merge(table, as_table(table, rows), replace=columns or SCHEMAS[table].names, at=at)

    def fill(
        self, table: str, rows: Iterable[Mapping[str, object]], columns: Sequence[str], *, at: int | None = None
    ) -> int:
        """Insert rows like `add`, and fill the nulls of `columns` in existing rows; return the number of new rows."""
        return self._merge(table, as_table(table, rows), fill=columns, at=at)

    @patient
    def delete(self, table: str, column: str, values: Collection[str]) -> int:
        """Delete the rows with one of `values` in `column`; return the number of deleted rows."""
        todo, deleted, lost = sorted(set(values)), 0, 0
        while todo and (delta := self._open(table)) is not None:
            where = _sql((column, "in", todo[:PUSHED]))
            self._require_intact(delta, table)
            try:
                # No retries by the library: it would apply the deletion to a version that was not read.
                alone = CommitProperties(max_commit_retries=0)
                deleted += int(delta.delete(where, commit_properties=alone)["num_deleted_rows"])
                todo = todo[PUSHED:]
            except CommitFailedError as error:
                lost += 1
                if lost == ATTEMPTS:
                    raise CatalogError(
                        f"{self._uri(table)}: {lost} commits lost to other writers; run again"
                    ) from error
                time.sleep(random.uniform(0, 0.05 * lost))
            except (DeltaError, OSError) as error:
                raise CatalogError(f"catalog table {table} at {self.url}: {table_fault(error)}") from error
        self._seal(table)
        return deleted

    @patient
    def compact(self, table: str) -> int:
        """Merge small files; return the number of merged files. Keeps the rows; safe with concurrent writers."""
        delta = self._open(table)
        if delta is None:
            return 0
        # The merged file gets a seal of its own, which no longer shows that a bit flipped before.
        self._require_intact(delta, table)
        try:
            done = delta.optimize.compact(target_size=FILE_BYTES, max_concurrent_tasks=1)
        except CommitFailedError:
            return 0  # another writer replaced one of the files; its compaction or the next one does the work
        except (DeltaError, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {table_fault(error)}") from error
        self._seal(table)
        return int(done["numFilesRemoved"])

    @patient
    def vacuum(self, table: str, *, keep: Iterable[int] = (), days: float = RETENTION_DAYS) -> int:
        """Remove data files without a reference from versions of the last `days` or from `keep`; return their number.

        Files of unfinished commits stay: only files that the log marks as replaced are removed.
        """
        delta = self._open(table)
        if delta is None:
            return 0
        # Versions that a snapshot names must stay readable.
        versions = sorted({v for v in keep if 0 <= v <= delta.version()}) or None
        hours = int(days * 24)
        try:
            if not delta.vacuum(hours, enforce_retention_duration=False, keep_versions=versions):
                return 0  # a vacuum without files would still create a new version
            removed = len(delta.vacuum(hours, False, enforce_retention_duration=False, keep_versions=versions))
            self._seal(table)
            return removed
        except (DeltaError, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {table_fault(error)}") from error

    @patient
    def _merge(
        self,
        table: str,
        rows: pa.Table,
        *,
        replace: Sequence[str] = (),
        fill: Sequence[str] = (),
        at: int | None = None,
    ) -> int:
        schema, keys = SCHEMAS[table], KEYS[table]
        if not rows.num_rows:
            return 0
        new_keys = list(zip(*(rows[key].to_pylist() for key in keys), strict=True))
        for attempt in range(ATTEMPTS):
            try:
                delta = self._open_or_create(table)
                if at is not None and delta.version() != max(at, 0):
                    raise CatalogMoved(f"{table}: version {delta.version()}, decided on {at}")
                # Split the given rows into new ones, changed ones and those without a difference.
                old_rows = self._rows_of(delta, table, new_keys, schema.names if replace or fill else keys)
                new = rows.filter(pa.array([key not in old_rows for key in new_keys]))
                changed = []
                if replace or fill:
                    present = rows.filter(pa.array([key in old_rows for key in new_keys]))
                    for row in present.to_pylist():
                        old = old_rows[tuple(row[k] for k in keys)]
                        merged = old | {c: row[c] for c in replace}
                        merged |= {c: row[c] for c in fill if merged[c] is None}
                        if merged != old:
                            changed.append(merged)
                if new.num_rows or changed:
                    _commit(delta, table, new, changed)
                    self._seal(table)
                    self._tidy(table)
                return new.num_rows
            except CommitFailedError as error:
                if at is not None:
                    raise CatalogMoved(f"{table}: {error}") from error
                # A random pause that grows with the attempts separates the writers.
                time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
            except (DeltaError, OSError) as error:
                raise CatalogError(f"catalog table {table} at {self.url}: {table_fault(error)}") from error
        raise CatalogError(f"catalog table {table} at {self.url}: {ATTEMPTS} commits lost to other writers; run again")

    def _rows_of(
        self, delta: DeltaTable, table: str, wanted_keys: Sequence[tuple[Any, ...]], names: Sequence[str]
    ) -> dict[tuple[Any, ...], dict[str, object]]:
        """Return the table's rows with these keys, by key."""
        keys, wanted = KEYS[table], set(wanted_keys)
        # The first key column narrows the rows; the full key is compared below.
        filters: list[Filter] = [(keys[0], "in", sorted({key[0] for key in wanted_keys}))]
        batches = self._select(delta, table, names, filters)
        rows = (row for batch in batches for row in batch.to_pylist())
        by_key = ((tuple(row[k] for k in keys), row) for row in rows)
        return {key: row for key, row in by_key if key in wanted}

    def _seal(self, table: str) -> None:
        """Record the digests of a commit's files; S3 keeps checksums of its own."""
        if self._options is None:
            seal(Path(self._uri(table)))

    def _tidy(self, table: str) -> None:
        version = self.version(table)
        if version and version % COMPACT_EVERY == 0:
            self.compact(table)

    def _require_intact(self, delta: DeltaTable, table: str) -> None:
        """Raise CatalogError if a data file differs from its seal; a flipped bit there can abort delta-rs' process."""
        folder = Path(self._uri(table))
        if not self._options and (fault := data_fault(folder / Path(uri).name for uri in delta.file_uris())):
            raise CatalogError(f"catalog table {table}: {fault}: {_RESTORE}")

    def _uri(self, table: str) -> str:
        return f"{self.url}/{table}"

    def _open(self, table: str, version: int | None = None) -> DeltaTable | None:
        if not self._options and (fault := log_fault(Path(self._uri(table)))):
            raise CatalogError(f"catalog table {table}: {fault}: {_RESTORE}")
        try:
            # Each operation begins here, so that a server that does not answer is reported here.
            with report_wait(s3_server()) if self._options else nullcontext():
                delta = DeltaTable(self._uri(table), version=version, storage_options=self._options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {table_fault(error)}") from error
        if missing := _lacking(delta, table) - set(ADDED.get(table, ())):
            raise CatalogError(f"catalog table {table} at {self.url} is of another version: no column {min(missing)!r}")
        return delta

    def _open_or_create(self, table: str) -> DeltaTable:
        if delta := self._open(table):
            if absent := _lacking(delta, table):
                # A table of an earlier version gets the columns that were added since, empty.
                columns = pa.schema([field for field in SCHEMAS[table] if field.name in absent])
                delta.alter.add_columns(Schema.from_arrow(columns).fields)
            return delta
        try:
            return DeltaTable.create(
                self._uri(table), SCHEMAS[table], configuration=table_properties(table), storage_options=self._options
            )
        except (DeltaError, OSError) as error:
            if delta := self._open(table):  # another process created it at the same moment
                return delta
            raise CatalogError(
                f"catalog table {table} at {self.url} cannot be created: {table_fault(error)}"
            ) from error


def _lacking(delta: DeltaTable, table: str) -> set[str]:
    """Return the columns of the present schema that this version of a table lacks."""
    return set(SCHEMAS[table].names) - {field.name for field in delta.schema().fields}


def as_table(table: str, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Return rows with the column types of a catalog table; of rows with the same key, the last one.

    Other columns are dropped. `rows` may be a generator: only the compact Arrow form is kept in memory.
    """
    schema, keys = SCHEMAS[table], KEYS[table]
    rows, place, pieces = iter(rows), {}, []
    while piece := [_plain(row, schema.names) for row in islice(rows, PIECE)]:
        start = sum(p.num_rows for p in pieces)
        place |= {tuple(row[k] for k in keys): start + n for n, row in enumerate(piece)}
        pieces.append(pa.RecordBatch.from_pylist(piece, schema=schema))
    whole = pa.Table.from_batches(pieces, schema=schema)
    return whole if len(place) == whole.num_rows else whole.take(sorted(place.values()))


def _commit(delta: DeltaTable, table: str, new: pa.Table, changed: Sequence[Mapping[str, object]]) -> None:
    """Write new and changed rows in one commit on the version that was read; raise CommitFailedError otherwise."""
    # Without retries of the library, a concurrent commit makes this one fail.
    alone = CommitProperties(max_commit_retries=0)
    if not changed:
        write_deltalake(delta, new, mode="append", commit_properties=alone)
        return
    data = pa.concat_tables([new, pa.Table.from_pylist(list(changed), schema=SCHEMAS[table])])
    # Delta's MERGE replaces the matching rows and inserts the others.
    keys = KEYS[table]
    on = " AND ".join(f"t.`{k}` = s.`{k}`" for k in keys)
    touched = sorted({str(row[keys[0]]) for row in changed})
    if len(touched) <= PUSHED:  # the engine then joins with few rows instead of the whole table
        on += f" AND t.`{keys[0]}` IN ({', '.join(map(_literal, touched))})"
    merge = delta.merge(data, predicate=on, source_alias="s", target_alias="t", commit_properties=alone)
    merge.when_matched_update_all().when_not_matched_insert_all().execute()


def _sql(condition: Filter) -> str:
    column, verb, value = condition
    if "in" not in verb:
        return f"{_quoted(column)} {verb} {_literal(value)}"
    if not len(value):
        return "false" if verb == "in" else "true"
    return f"{_quoted(column)} {verb.upper()} ({', '.join(map(_literal, value))})"


def _quoted(name: str) -> str:
    return f'"{name}"'


def _copy(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch without memory of the engine, which keeps its whole batch while one buffer of it is in use.

    A cast copies the texts, but not the bitmap of their nulls.
    """
    # A concatenation copies all buffers, also one with no rows.
    arrays = [pa.concat_arrays([column, column.slice(0, 0)]) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _literal(value: object) -> str:
    """Return a value as an SQL literal."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _plain(row: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """Return a row for pyarrow: pandas' missing values (NaN, NA) become None."""
    values = {name: row.get(name) for name in names}
    return {n: None if v is pd.NA or (isinstance(v, float) and math.isnan(v)) else v for n, v in values.items()}


def _s3_options() -> dict[str, str]:
    """Return delta-rs options for S3; it reads credentials from the environment, only the address has another name."""
    options = {
        "conditional_put": "etag",
        # A request without an answer is cancelled and repeated, with growing pauses.
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
