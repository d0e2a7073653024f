"""The catalog: Delta tables in the store. The only module that knows deltalake.

Rows are only ever added or replaced by key, so that doing the same work twice leaves the same
catalog, and every commit has a version that a snapshot can name.

Cost follows the new rows: keys are digests, so new rows are appended after one streamed look at the keys
that are there, and only files that hold a changed row are written again. The many small files that this
leaves are put together every COMPACT_EVERY commits, by the writer whose commit it was: the catalog then stays
fast without a service that somebody has to run, and the version only moves where rows moved. What is no longer
referenced stays for RETENTION_DAYS, until `mm catalog compact` removes it.
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.core.errors import CatalogError
from mm_core.core.settings import s3_timeout
from mm_core.storage.retry import patient
from mm_core.storage.schemas import ADDED, KEYS, SCHEMAS
from mm_core.storage.seals import seal

if TYPE_CHECKING:
    from deltalake import DeltaTable

ATTEMPTS = 20
"""Commits tried against other writers before giving up."""
COMPACT_EVERY = 64
"""Commits of a table between two compactions."""
FILE_BYTES = 32 << 20
"""Data files grow up to this size: a change of one row writes at most this much again."""
RETENTION_DAYS = 90
"""Old versions of a table can be read for this long; `inputs.json` names younger ones."""
PUSHED = 1000
"""Values of an `in` that the query engine is given as text; its time grows with their square, so that longer lists
are looked up here while the table streams by."""
PIECE = 4096
"""Rows that stand in memory as Python objects while they are written."""
Filter = tuple[str, str, Any]
"""(column, one of = != < <= > >= in "not in", value)."""


class CatalogMoved(CatalogError):
    """Another writer committed to the table since it was read: read again, decide again."""


class Catalog:
    """The tables under `<store>/catalog/`, on a folder or S3."""

    def __init__(self, store_url: str):
        self.url = f"{store_url.rstrip('/')}/catalog"
        self._options = _s3_options() if store_url.startswith("s3://") else None

    @patient
    def version(self, table: str) -> int:
        """Commit number of a table; -1 before its first row."""
        delta = self._open(table)
        return -1 if delta is None else delta.version()

    def versions(self) -> dict[str, int]:
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
        """A table (or some columns, some rows, an old version) as a DataFrame; maps come as dicts.

        Rows are in no order. All of `filters` must hold. Raises CatalogError where files are missing or broken.
        """
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
        """As `read`, in batches of a few thousand rows: what is not kept takes no memory."""
        delta = None if version == -1 else self._open(table, version)
        if delta is not None:
            yield from self._select(delta, table, columns, filters or ())

    @patient
    def query(self, sql: str) -> pd.DataFrame:
        """What an SQL SELECT over the tables finds (DataFusion's dialect): joins and counts without loading tables.

        Tables that it names and that are not there yet are made. Raises CatalogError where it cannot be answered.
        """
        named = [table for table in SCHEMAS if re.search(rf"\b{table}\b", sql)]
        batches = list(self._stream(sql, {table: self._open_or_create(table) for table in named}))
        return pa.Table.from_batches(batches).to_pandas() if batches else pd.DataFrame()

    def _select(
        self, delta: DeltaTable, table: str, names: Sequence[str], filters: Sequence[Filter]
    ) -> Iterator[pa.RecordBatch]:
        lookups = [f for f in filters if "in" in f[1] and len(f[2]) > PUSHED]
        conditions = [_sql(f) for f in filters if f not in lookups]
        columns = list(dict.fromkeys([*names, *(column for column, _, _ in lookups)]))
        absent = _lacking(delta, table)
        shown = (f"NULL AS {_quoted(name)}" if name in absent else _quoted(name) for name in columns)
        query = f"SELECT {', '.join(shown)} FROM {table}"
        if conditions:
            query += f" WHERE {' AND '.join(conditions)}"
        wanted = [(c, verb, pa.array(list(values), SCHEMAS[table].field(c).type)) for c, verb, values in lookups]
        schema = pa.schema([SCHEMAS[table].field(name) for name in names])
        for rows in self._stream(query, {table: delta}):
            for column, verb, values in wanted:
                found = pc.is_in(rows[column], values)
                rows = rows.filter(found if verb == "in" else pc.invert(found))
            if rows.num_rows:
                yield rows.select(list(names)).cast(schema)

    def _stream(self, sql: str, tables: Mapping[str, DeltaTable]) -> Iterator[pa.RecordBatch]:
        from deltalake import QueryBuilder
        from deltalake.exceptions import DeltaError

        engine = QueryBuilder()
        for name, delta in tables.items():
            engine = engine.register(name, delta)
        try:
            # As a stream of pyarrow, which lets go of the interpreter while it waits for data.
            stream = pa.RecordBatchReader.from_stream(engine.execute(sql))
            # The engine describes text by string views, which pandas and pyarrow's comparisons do not take.
            fields = [f.with_type(pa.string()) if pa.types.is_string_view(f.type) else f for f in stream.schema]
            for batch in stream:
                yield batch.cast(pa.schema(fields))
        except (DeltaError, pa.ArrowException, OSError) as error:
            raise CatalogError(f"catalog table {', '.join(tables)} at {self.url}: {error}") from error

    def add(self, table: str, rows: Iterable[Mapping[str, Any]], *, at: int | None = None) -> int:
        """Inserts the rows whose key is not there yet, in one commit; returns how many were new.

        Safe to repeat and safe beside other writers: a lost race is tried again on the new version.
        With `at`, the version that the rows were decided on, a lost race raises CatalogMoved instead.
        """
        return self._merge(table, as_table(table, rows), at=at)

    def upsert(
        self,
        table: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        columns: Sequence[str] = (),
        at: int | None = None,
    ) -> int:
        """Inserts rows, or replaces those of the same key, in one commit; returns how many were new.

        With `columns`, only these are replaced of rows that are there. `at` as for `add`.
        """
        return self._merge(table, as_table(table, rows), replace=columns or SCHEMAS[table].names, at=at)

    def fill(
        self, table: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, at: int | None = None
    ) -> int:
        """Like `add`, and of rows that are there already fills those of `columns` that are null."""
        return self._merge(table, as_table(table, rows), fill=columns, at=at)

    @patient
    def delete(self, table: str, column: str, values: Collection[str]) -> int:
        """Deletes the rows whose `column` is one of `values`; returns how many."""
        from deltalake import CommitProperties
        from deltalake.exceptions import CommitFailedError, DeltaError

        todo, deleted, lost = sorted(set(values)), 0, 0
        while todo and (delta := self._open(table)) is not None:
            where = _sql((column, "in", todo[:PUSHED]))
            try:
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
                raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        self._seal(table)
        return deleted

    @patient
    def compact(self, table: str) -> int:
        """Puts small files together; returns how many went. Rows and their order of keys stay; safe beside writers."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        delta = self._open(table)
        if delta is None:
            return 0
        try:
            done = delta.optimize.compact(target_size=FILE_BYTES, max_concurrent_tasks=1)
        except CommitFailedError:
            return 0  # another writer replaced one of the files: its compaction, or the next, does the work
        except (DeltaError, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        self._seal(table)
        return int(done["numFilesRemoved"])

    @patient
    def vacuum(self, table: str, *, keep: Iterable[int] = (), days: float = RETENTION_DAYS) -> int:
        """Removes data files that no version of the last `days`, and none of `keep`, refers to; returns how many.

        Files of commits in the making are not touched: only what the log says was replaced goes.
        """
        from deltalake.exceptions import DeltaError

        delta = self._open(table)
        if delta is None:
            return 0
        versions = sorted({v for v in keep if 0 <= v <= delta.version()}) or None
        hours = int(days * 24)
        try:
            if not delta.vacuum(hours, enforce_retention_duration=False, keep_versions=versions):
                return 0  # a vacuum of nothing would still move the version
            removed = len(delta.vacuum(hours, False, enforce_retention_duration=False, keep_versions=versions))
            self._seal(table)
            return removed
        except (DeltaError, OSError) as error:
            raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error

    @patient
    def _merge(
        self,
        table: str,
        given: pa.Table,
        *,
        replace: Sequence[str] = (),
        fill: Sequence[str] = (),
        at: int | None = None,
    ) -> int:
        from deltalake.exceptions import CommitFailedError, DeltaError

        schema, keys = SCHEMAS[table], KEYS[table]
        if not given.num_rows:
            return 0
        asked = list(zip(*(given[key].to_pylist() for key in keys), strict=True))
        for attempt in range(ATTEMPTS):
            try:
                delta = self._open_or_create(table)
                if at is not None and delta.version() != max(at, 0):
                    raise CatalogMoved(f"{table}: version {delta.version()}, decided on {at}")
                there = self._rows_of(delta, table, asked, schema.names if replace or fill else keys)
                new = given.filter(pa.array([key not in there for key in asked]))
                changed = []
                if replace or fill:
                    known = given.filter(pa.array([key in there for key in asked]))
                    for row in known.to_pylist():
                        old = there[tuple(row[k] for k in keys)]
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
                time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
            except (DeltaError, OSError) as error:
                raise CatalogError(f"catalog table {table} at {self.url}: {error}") from error
        raise CatalogError(f"catalog table {table} at {self.url}: {ATTEMPTS} commits lost to other writers; run again")

    def _rows_of(
        self, delta: DeltaTable, table: str, asked: Sequence[tuple[Any, ...]], names: Sequence[str]
    ) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The table's rows that have these keys, by key."""
        keys, wanted = KEYS[table], set(asked)
        filters: list[Filter] = [(keys[0], "in", sorted({key[0] for key in asked}))]
        batches = self._select(delta, table, names, filters)
        found = (row for batch in batches for row in batch.to_pylist())
        by_key = ((tuple(row[k] for k in keys), row) for row in found)
        return {key: row for key, row in by_key if key in wanted}

    def _seal(self, table: str) -> None:
        """Keep the digests of the files that a commit made; S3 keeps its own."""
        if self._options is None:
            seal(Path(self._uri(table)))

    def _tidy(self, table: str) -> None:
        version = self.version(table)
        if version and version % COMPACT_EVERY == 0:
            self.compact(table)

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
        if missing := _lacking(delta, table) - set(ADDED.get(table, ())):
            raise CatalogError(f"catalog table {table} at {self.url} is of another version: no column {min(missing)!r}")
        return delta

    def _open_or_create(self, table: str) -> DeltaTable:
        from deltalake import DeltaTable, Schema
        from deltalake.exceptions import DeltaError

        if delta := self._open(table):
            if absent := _lacking(delta, table):
                columns = pa.schema([field for field in SCHEMAS[table] if field.name in absent])
                delta.alter.add_columns(Schema.from_arrow(columns).fields)
            return delta
        try:
            return DeltaTable.create(
                self._uri(table), SCHEMAS[table], configuration=_configuration(table), storage_options=self._options
            )
        except (DeltaError, OSError) as error:
            if delta := self._open(table):  # another process made it in this moment
                return delta
            raise CatalogError(f"catalog table {table} at {self.url} cannot be made: {error}") from error


def _lacking(delta: DeltaTable, table: str) -> set[str]:
    """Columns of today's schema that this version of a table has not."""
    return set(SCHEMAS[table].names) - {field.name for field in delta.schema().fields}


def as_table(table: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows with the types of the catalog's table, the last of those that share a key; other columns are left aside.

    The rows may be made as they are asked for: only their compact form stands in memory.
    """
    schema, keys = SCHEMAS[table], KEYS[table]
    rows, place, pieces = iter(rows), {}, []
    while piece := [_plain(row, schema.names) for row in islice(rows, PIECE)]:
        start = sum(p.num_rows for p in pieces)
        place |= {tuple(row[k] for k in keys): start + n for n, row in enumerate(piece)}
        pieces.append(pa.RecordBatch.from_pylist(piece, schema=schema))
    whole = pa.Table.from_batches(pieces, schema=schema)
    return whole if len(place) == whole.num_rows else whole.take(sorted(place.values()))


def _commit(delta: DeltaTable, table: str, new: pa.Table, changed: Sequence[Mapping[str, Any]]) -> None:
    """New and changed rows in one commit on exactly the version that was read; raises CommitFailedError otherwise."""
    from deltalake import CommitProperties, write_deltalake

    alone = CommitProperties(max_commit_retries=0)
    if not changed:
        write_deltalake(delta, new, mode="append", commit_properties=alone)
        return
    data = pa.concat_tables([new, pa.Table.from_pylist(list(changed), schema=SCHEMAS[table])])
    keys = KEYS[table]
    on = " AND ".join(f"t.`{k}` = s.`{k}`" for k in keys)
    touched = sorted({row[keys[0]] for row in changed})
    if len(touched) <= PUSHED:  # the engine then joins with a few rows, not with the whole table
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


def _literal(value: Any) -> str:
    """A value as SQL has it."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _configuration(table: str) -> dict[str, str | None]:
    """Properties of a new table. Statistics are kept of what is looked up, not of words about people."""
    text = {"caption", "name", "image", "detail", "source", "license", "taken_at", "numbers", "texts", "vector"}
    text |= {"landmarks", "near", "old", "new"}
    return {
        "delta.logRetentionDuration": f"interval {RETENTION_DAYS} days",
        "delta.deletedFileRetentionDuration": f"interval {RETENTION_DAYS} days",
        "delta.dataSkippingStatsColumns": ",".join(f"`{n}`" for n in SCHEMAS[table].names if n not in text),
    }


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
