"""Trace a registered version back to its data, parameters and code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple, TypedDict, cast

import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.export.provenance import Provenance, read_provenance
from mm_core.export.registry import NAME, Move, Registry
from mm_core.export.start_weights import kept_starts
from mm_core.ingest.placement import POOLS
from mm_core.storage.store import Store, fetch_blob, open_store

# Columns of a snapshot's frames that the lineage shows.
_SAID = ("sample_id", "category", "alpha_sha256", "label_version", "kind", "batch")


class LearnedSample(TypedDict):
    """A sample of the snapshot that a version was trained on."""

    pool: str
    sample_id: str
    category: str | None
    alpha_sha256: str | None
    label_version: int | None
    kind: str
    batch: str


class AffectedModel(TypedDict):
    """A model whose snapshot holds some samples."""

    version: str
    """A registry version, or `candidate` with the beginning of its digest."""
    aliases: list[str]
    pools: dict[str, int]
    """Pool → number of the samples."""


class Lineage(Provenance):
    """The origin of a version, JSON values: its provenance and what the registry has about it."""

    version: str
    aliases: list[str]
    files: dict[str, str]
    bundle: str
    moves: list[Move]
    counts: dict[str, int]
    """Pool → number of samples."""
    samples: list[LearnedSample]


def lineage(settings: Settings, version: str) -> Lineage:
    """Return the lineage of a version: samples with label versions, params, code revision, seeds, stages.

    Args:
        settings: The installation.
        version: A version number or an alias.

    Raises:
        InputError: The registry has no such version.
        BlobNotFound: The store lacks a file of the version.
    """
    registry, store = Registry(settings), open_store(settings.store, Layout(settings).cache)
    tags = tags_of(registry, version)
    provenance = read_provenance(store, tags["provenance"])
    samples = samples_of(provenance, store)
    return {
        **provenance,
        "version": tags["version"],
        "aliases": json.loads(tags["aliases"]),
        "model": tags["model_digest"],
        "files": json.loads(tags["files"]),
        "bundle": tags["bundle"],
        "moves": [move for move in registry.history() if tags["version"] in (move["from"], move["to"])],
        "counts": dict(Counter(sample["pool"] for sample in samples)),
        "samples": samples,
    }


def tags_of(registry: Registry, version: str) -> dict[str, str]:
    """Return `Registry.tags` of an existing version; raise InputError for a missing one."""
    tags = registry.tags(version)
    if tags is None:
        raise InputError(f"{NAME} has no version {version!r}: {registry.describe_versions()}")
    return tags


def provenance_of(settings: Settings, store: Store, version: str) -> Provenance:
    """Return the provenance that `mm_core.export.provenance` recorded when the version was registered."""
    tags = tags_of(Registry(settings), version)
    return read_provenance(store, tags["provenance"])


def samples_of(provenance: Provenance, store: Store) -> list[LearnedSample]:
    """Return every sample of a snapshot with its pool and label version; missing values are None."""
    rows: list[LearnedSample] = []
    for pool in POOLS:
        frame = pd.read_parquet(fetch_blob(store, provenance["snapshot_files"][f"{pool}.parquet"]), columns=list(_SAID))
        # pandas marks missing values with NaN or NA; JSON has null.
        frame = frame.astype(object).where(frame.notna(), None)
        rows += [cast(LearnedSample, {"pool": pool, **row}) for row in frame.to_dict("records")]
    for row in rows:
        # A column with missing values is read as float.
        row["label_version"] = None if row["label_version"] is None else int(row["label_version"])
    return rows


def training_labels(settings: Settings, store: Store, version: str) -> dict[str, str]:
    """Return sample id → digest of the matte that a version was trained on; empty for an unknown version."""
    tags = Registry(settings).tags(version)
    if tags is None or "provenance" not in tags:
        return {}
    samples = samples_of(read_provenance(store, tags["provenance"]), store)
    return {row["sample_id"]: row["alpha_sha256"] or "" for row in samples if row["pool"] == "train_labeled"}


def learnt_by(settings: Settings, store: Store, digests: Collection[str]) -> dict[str, str]:
    """Return the samples that models were trained on, including the models that their weights started from.

    Args:
        settings: The installation, with the registry's address.
        store: Holds the snapshots of registered versions.
        digests: Digests of the models' weights; digests unknown to the registry are ignored.

    Returns:
        Sample id of the training and validation pools → text that names the first model found with it.
    """
    by_digest = {model.digest: model for model in _traceable(Registry(settings), store)}
    learnt: dict[str, str] = {}
    # Breadth-first walk from each model to its start weights.
    waiting, done = [digest for digest in digests if digest in by_digest], set()
    while waiting:
        digest = waiting.pop(0)
        if digest in done:
            continue
        done.add(digest)
        provenance = read_provenance(store, by_digest[digest].provenance)
        for row in samples_of(provenance, store):
            # Validation counts as learnt: it chose the checkpoint.
            if row["pool"] != "eval":
                learnt.setdefault(row["sample_id"], f"{by_digest[digest].name} ({row['pool']})")
        if provenance["start"] in by_digest:
            waiting.append(provenance["start"])
    return learnt


def starts_with(store: Store, ids: Collection[str]) -> list[str]:
    """Return the digests of the kept candidates that were trained on, or validated with, any of the samples."""
    return [
        start["digest"]
        for start in kept_starts(store)
        if any(
            row["sample_id"] in ids
            for row in samples_of(read_provenance(store, start["provenance"]), store)
            if row["pool"] != "eval"
        )
    ]


def models_with(settings: Settings, ids: Collection[str]) -> list[AffectedModel]:
    """Return the models with any of the samples in their snapshot.

    They are registered versions and the candidates that later cycles may start from (`candidate` and a digest).
    """
    registry, store = Registry(settings), open_store(settings.store, Layout(settings).cache)
    # A model belongs to the result if any of its pools holds a sample.
    models: list[AffectedModel] = []
    for model in _traceable(registry, store):
        samples = samples_of(read_provenance(store, model.provenance), store)
        pools = Counter(sample["pool"] for sample in samples if sample["sample_id"] in ids)
        if pools:
            version = model.name.removeprefix("version ")
            models.append({"version": version, "aliases": model.aliases, "pools": dict(pools)})
    return models


class _Traceable(NamedTuple):
    """A model whose training photos are recorded."""

    name: str
    """`version 3`, or `candidate` with the beginning of its digest."""
    digest: str
    """sha256 of the weights."""
    provenance: str
    """Digest of the blob with its provenance."""
    aliases: list[str]


def _traceable(registry: Registry, store: Store) -> list[_Traceable]:
    """Return the registered versions with a provenance, oldest first, then the kept candidates."""
    models = [
        _Traceable(f"version {version}", tags["model_digest"], tags["provenance"], json.loads(tags["aliases"]))
        for version in registry.versions()
        if (tags := registry.tags(version)) and "provenance" in tags
    ]
    # A kept candidate that was promoted since then is listed as its version only.
    registered = {model.digest for model in models}
    return models + [
        _Traceable(f"candidate {start['digest'][:12]}", start["digest"], start["provenance"], ["start"])
        for start in kept_starts(store)
        if start["digest"] not in registered
    ]
