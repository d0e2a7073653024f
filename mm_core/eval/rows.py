"""The rows that evaluation reads and writes, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypedDict, cast

import pandas as pd

from mm_core.core.pins import ModelPin


class PhotoRow(Protocol):
    """A row of the catalog's samples, as `DataFrame.itertuples` gives it."""

    id: str
    """Sample id."""
    category: str | None
    """Category of the photo."""


class EvalRow(Protocol):
    """A row of the snapshot's eval pool, as `DataFrame.itertuples` gives it."""

    sample_id: str
    """Sample id."""
    group: str
    """Burst, scene or near-duplicates."""
    category: str
    """Category of the photo."""
    decoder: str
    """Decoder of the category."""
    alpha_sha256: str
    """Digest of the true matte."""


class ScoreIdentity(TypedDict):
    """Digests of everything that scores depend on."""

    metrics: str
    """Definition of the metrics."""
    snapshot: str
    eval_digest: str
    candidate: str
    quantised: dict[str, str]
    """File name → digest of each int8 file."""
    champion: str | None
    anchor: str | None


class Flips(TypedDict):
    """Changes of good mattes between two models in a category."""

    category: str
    photos: int
    negative: int
    positive: int


class CategoryScore(TypedDict):
    """The means of a model in a category."""

    model: str
    precision: str
    category: str
    images: int
    mse: float | None
    maxf: float | None
    biou: float | None
    conn: float | None
    sad: float | None
    grad: float | None


Scores = Mapping[tuple[str, str, str], CategoryScore]
"""(model, precision, category) → means."""


class HeatCell(TypedDict):
    """One metric of a category in the report's table; numbers are formatted."""

    value: str
    blind: str
    """The score of the blind matte; empty without one."""
    reference: str
    gain: str
    bound: str
    margin: str
    role: str
    result: str
    pooled: bool
    """True if the six categories together gave the result."""
    heat: int
    """Strength of the colour, 0 … 100."""


class ExampleRow(TypedDict):
    """The pictures of one photo."""

    category: str
    rank: str
    """best | worst | regression"""
    sample_id: str
    mse: float
    files: dict[str, str]
    """Title → file name."""


class ShadowRow(TypedDict):
    """A photo of the shadow run."""

    sample_id: str
    category: str | None
    difference: float


class ValueRow(TypedDict):
    """New labels of a category by source, and its error before and after."""

    category: str
    mse_before: float | None
    mse_after: float | None
    gain: float | None
    bound: float | None
    result: str | None


class ComparedRow(TypedDict):
    """Routed against random labels in a category."""

    category: str
    mse_routed: float | None
    mse_random: float | None
    gain: float | None
    spread: float | None


class SplitRow(TypedDict):
    """A photo of the simple or the hard set."""

    sample_id: str
    category: str | None
    difficulty: float


class PartialSnapshot(TypedDict, total=False):
    """The facts of a snapshot that the report shows; all are missing before the first snapshot."""

    digest: str
    eval_digest: str
    catalog: dict[str, int]
    champion: ModelPin | None
    anchor: ModelPin | None


def eval_rows(frame: pd.DataFrame) -> list[EvalRow]:
    """Return the rows of the eval pool."""
    # The named tuples have every column of the pool; EvalRow lists those that scoring reads.
    return cast(list[EvalRow], list(frame.itertuples(index=False)))
