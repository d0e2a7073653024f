"""Quarantine: what was refused and why, and another look after the producer repaired the files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from mm_core.catalog import Catalog
from mm_core.data.expectations import DataDocs
from mm_core.data.inbox import arrived_batches
from mm_core.data.ingest import Ingest, Progress, describe
from mm_core.errors import BlobNotFound, InputError
from mm_core.params import IngestParams
from mm_core.records import Report
from mm_core.store import Store, blob_key


def list_rejects(catalog: Catalog) -> pd.DataFrame:
    """Every refused row of every batch, by kind, batch and row; columns of the catalog's `rejects`, no nulls."""
    return catalog.read("rejects").fillna("").sort_values(["kind", "batch", "row"], ignore_index=True)


def show(catalog: Catalog, store: Store, key: str) -> dict[str, Any]:
    """One refused row in full, by its key or an unambiguous beginning of it.

    `file` is a local path of the kept copy, or of the sample that a duplicate repeats; empty where nothing
    was kept. It may be a file that no viewer opens. Raises InputError where no row or several match.
    """
    rejects = list_rejects(catalog)
    found = rejects[rejects["key"].str.startswith(key)] if key else rejects.head(0)
    if len(found) != 1:
        raise InputError(f"key {key!r} fits {len(found)} refused rows: copy a longer one from `mm quarantine list`")
    row: dict[str, Any] = found.iloc[0].to_dict()
    row["file"] = ""
    sample = row["sample_id"]
    if place := row["where"] or (blob_key(sample) if sample else ""):
        with suppress(BlobNotFound):
            row["file"] = str(store.fetch(place))
    return row | {"row": int(row["row"])}


def retry(
    params: IngestParams,
    catalog: Catalog,
    store: Store,
    inbox: Store,
    batch: str,
    data_docs: Path,
    spool: Path,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Looks at the quarantined rows of `batch` (or `kind/batch`) again, or at all rows of one that was held.

    For a producer who repaired files under the same names; a changed manifest is a new arrival and taken by
    `mm ingest`. Rows that are good now enter the catalog and leave quarantine. Raises InputError where the
    batch was never ingested or has left the inbox.
    """
    ledger = catalog.read("batches").set_index("key")["state"].to_dict()
    chosen = [one for one in arrived_batches(inbox) if batch in (one.batch, one.name)]
    known = [one for one in chosen if one.key in ledger]
    if not known:
        remedy = "run `mm ingest`" if chosen else f"there is no manifest at {inbox.url}/<kind>/{batch}"
        raise InputError(f"batch {batch!r} was not ingested as it lies in the inbox: {remedy}")
    docs = DataDocs(data_docs)
    for one in known:
        work = Ingest(params, catalog, store, inbox, one, docs, spool, progress)
        if ledger[one.key] == "held":
            work.run(again=True)
        else:
            filters = [("kind", "=", one.kind), ("batch", "=", one.batch), ("verdict", "=", "quarantine")]
            work.run(only=frozenset(catalog.read("rejects", columns=["row"], filters=filters)["row"].tolist()))
    docs.build()
    return describe(Report("quarantine-retry"), catalog, store, known, data_docs)
