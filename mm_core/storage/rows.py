"""The rows of the catalog's tables as typed records, column by column as in `schemas.py`.

Rows are `TypedDict`s, because pyarrow and pandas take and return plain dicts. Columns that some readers leave out are
`NotRequired`. A missing value is None, never NaN: read rows by `records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict, TypeVar, cast

import pandas as pd

Row = TypeVar("Row")


class SampleRow(TypedDict):
    """A photo. See the table `samples`."""

    id: str
    width: int
    height: int
    category: str | None
    kind: NotRequired[str]
    batch: NotRequired[str]
    caption: NotRequired[str | None]
    group: NotRequired[str | None]
    role: NotRequired[str | None]
    format: NotRequired[str]
    phash: NotRequired[str]
    landmarks: NotRequired[bytes | None]
    near: NotRequired[list[str] | None]
    source: NotRequired[str | None]
    license: NotRequired[str | None]
    taken_at: NotRequired[str | None]
    name: NotRequired[str | None]
    accepted_at: NotRequired[str | None]


class NewLabelRow(TypedDict):
    """A version of a matte that is added; it is not withdrawn. See the table `labels`."""

    id: str
    sample_id: str
    alpha_sha256: str
    version: int
    origin: str
    batch: str | None
    annotator: NotRequired[str | None]
    binary: NotRequired[bool | None]
    created_at: str
    task: NotRequired[str | None]
    prediction: NotRequired[str | None]
    withdrawn_why: NotRequired[str | None]


class LabelRow(NewLabelRow):
    """A version of a matte as the catalog has it."""

    withdrawn_at: str | None


class RejectRow(TypedDict):
    """A row of a manifest that was not accepted. See the table `rejects`."""

    key: str
    kind: str
    batch: str
    row: int
    image: str
    verdict: str
    reason: str
    detail: str
    sample_id: str | None
    where: str | None
    rejected_at: str


class CorrectionRow(TypedDict):
    """A change of a known photo. See the table `corrections`."""

    key: str
    sample_id: str
    verdict: str
    column: str
    old: str | None
    new: str | None
    origin: str
    kind: str | None
    batch: str | None
    stated_at: str
    arrival: NotRequired[str]
    row: NotRequired[int | None]
    image: NotRequired[str | None]


class FeatureRow(TypedDict):
    """The result of an extractor for a photo. See the table `features`."""

    sample_id: str
    extractor: str
    version: str
    # Written as mappings; pandas reads them as lists of pairs.
    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    computed_at: str
    vector: NotRequired[list[float] | None]


class BatchRow(TypedDict):
    """An arrival of a drop. See the table `batches`."""

    key: str
    kind: str
    batch: str
    manifest_sha256: str
    state: str
    reason: str | None
    rows: int
    accepted: int
    quarantined: int
    duplicates: int
    uri: str
    ingested_at: str
    updated: int | None
    conflicts: int | None
    arrival: str | None
    statement: str | None
    files: str | None


def records(frame: pd.DataFrame, row: type[Row]) -> list[Row]:
    """Return the rows of a frame of the catalog as dicts of the type `row`, with None for missing values."""
    # Only a column of objects holds None; a column of numbers would turn it into NaN.
    plain = frame.astype(object)
    return cast(list[Row], plain.where(plain.notna(), None).to_dict("records"))
