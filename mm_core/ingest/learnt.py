"""The table `learnt`: which photos earlier cycles trained on, and which chose their checkpoints.

A training stage adds its photos before its first step. The replay of `mm_core.ingest.holdout` never uses them for
evaluation again, and the trained ones never for validation. This also holds if the params have changed since, or if a
photo was forgotten, when the replay alone would draw other photos of an old arrival.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.ingest.scenes import connect, declared_of, links_of
from mm_core.storage.catalog import Catalog
from mm_core.storage.schemas import SCHEMAS

TRAINING, VALIDATION = "training", "validation"
USES = (TRAINING, VALIDATION)
SCENE_COLUMNS = ("id", "group", "phash", "near", "accepted_at")


def _no_ids() -> pa.Array:
    return pa.array([], pa.string())


@dataclass(frozen=True)
class Learnt:
    """The photos that the models of earlier cycles have learnt from."""

    training: pa.Array = field(default_factory=_no_ids)
    """Ids of the photos that were trained on."""
    validation: pa.Array = field(default_factory=_no_ids)
    """Ids of the photos that chose a checkpoint."""
    training_groups: Collection[str] = ()
    """Declared groups of forgotten photos that were trained on."""
    validation_groups: Collection[str] = ()
    """Declared groups of forgotten photos that chose a checkpoint."""


def read_learnt(catalog: Catalog, version: int | None = None) -> Learnt:
    """Return what a version of the table records: the newest by default; -1 is before its first row.

    The groups of forgotten photos are always the newest, because older versions of the catalog cannot be read after a
    photo was forgotten.
    """
    ids: dict[str, list[pa.Array]] = {use: [] for use in USES}
    for rows in catalog.scan("learnt", version=version, columns=["sample_id", "use"]):
        for use, pieces in ids.items():
            pieces.append(rows["sample_id"].filter(pc.equal(rows["use"], use)))
    # Tables of before this column lack it, so that it cannot be a filter.
    forgotten = catalog.read("forgotten", columns=["group", "learnt"])
    groups = {use: set(forgotten.loc[forgotten["learnt"] == use, "group"].dropna()) for use in USES}
    whole = {use: pa.concat_arrays([_no_ids(), *pieces]) for use, pieces in ids.items()}
    return Learnt(whole[TRAINING], whole[VALIDATION], groups[TRAINING], groups[VALIDATION])


def record_learnt(catalog: Catalog, training: Sequence[pd.DataFrame], validation: pd.DataFrame) -> int:
    """Add the photos of a training stage to the table; a repeated call adds nothing.

    Args:
        catalog: The catalog.
        training: The frames that the stage trains on, with the column `sample_id`.
        validation: The frame that chooses its checkpoint.

    Returns:
        The number of new rows.
    """
    learnt = read_learnt(catalog)
    frames = {TRAINING: pd.concat([frame["sample_id"] for frame in training]), VALIDATION: validation["sample_id"]}
    known = {TRAINING: learnt.training, VALIDATION: learnt.validation}
    # Later cycles train on the same photos again, so that most ids are known. They are found in columns.
    fresh = {use: _without(pa.array(ids, pa.string()), known[use]) for use, ids in frames.items()}
    return _add(catalog, fresh)


def mark_scenes(catalog: Catalog, ids: Collection[str], bits: int) -> int:
    """Record the other photos of the scenes of learnt photos as learnt too.

    It is called before the photos are erased, because nothing connects them with their scenes any more afterwards.

    Args:
        catalog: The catalog.
        ids: Ids of the photos that will be erased.
        bits: Largest Hamming distance of the perceptual hashes of near-duplicates.

    Returns:
        The number of new rows.
    """
    learnt, erased = read_learnt(catalog), pa.array(sorted(ids), pa.string())
    known = {TRAINING: learnt.training, VALIDATION: learnt.validation}
    seeds = {use: rows.filter(pc.is_in(rows, erased)) for use, rows in known.items()}
    if not any(len(rows) for rows in seeds.values()):
        return 0
    schema = pa.schema([SCHEMAS["samples"].field(name) for name in SCENE_COLUMNS])
    samples = pa.Table.from_batches(catalog.scan("samples", columns=SCENE_COLUMNS), schema).combine_chunks()
    declared = declared_of(samples)
    codes = np.asarray(declared.indices)
    component = connect(codes, len(declared.dictionary), links_of(samples, bits))[codes]
    everyone = samples["id"].combine_chunks()
    mates = {}
    for use, rows in seeds.items():
        scenes = component[np.asarray(pc.is_in(everyone, rows).to_numpy(zero_copy_only=False))]
        found = everyone.filter(pa.array(np.isin(component, scenes)))
        mates[use] = _without(_without(found, erased), known[use])
    return _add(catalog, mates)


def uses_of(catalog: Catalog, ids: Collection[str]) -> dict[str, str]:
    """Return sample id → its use, for the learnt photos among these; training if it has both."""
    rows = catalog.read("learnt", columns=["sample_id", "use"], filters=[("sample_id", "in", list(ids))])
    # `training` is the alphabetically first one.
    rows = rows.sort_values("use").drop_duplicates("sample_id")
    return dict(zip(rows["sample_id"], rows["use"], strict=True))


def _without(ids: pa.Array, known: pa.Array) -> pa.Array:
    return ids.filter(pc.invert(pc.is_in(ids, known)))


def _add(catalog: Catalog, ids: dict[str, pa.Array]) -> int:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = ({"sample_id": i, "use": use, "learnt_at": now} for use, some in ids.items() for i in some.to_pylist())
    return catalog.add("learnt", rows)
