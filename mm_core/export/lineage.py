"""Trace a registered version back to its data, parameters and code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from typing import TypedDict, cast

import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.export.provenance import Provenance, SnapshotPin, StageProvenance, read_provenance
from mm_core.export.registry import NAME, Move, Registry
from mm_core.ingest.snapshot import POOLS
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
    """A version whose snapshot holds some samples."""

    version: str
    aliases: list[str]
    pools: dict[str, int]
    """Pool → number of the samples."""


class Lineage(TypedDict):
    """The origin of a version; JSON values."""

    version: str
    aliases: list[str]
    model: str
    files: dict[str, str]
    bundle: str
    code_revision: str
    versions: dict[str, str]
    seed: int
    params: dict[str, object]
    start: str | None
    stages: dict[str, StageProvenance]
    snapshot: SnapshotPin
    snapshot_files: dict[str, str]
    split_files: dict[str, str]
    calibration: dict[str, list[str]]
    verdict: dict[str, object]
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
        "version": tags["version"],
        "aliases": json.loads(tags["aliases"]),
        "model": tags["model_digest"],
        "files": json.loads(tags["files"]),
        "bundle": tags["bundle"],
        "code_revision": provenance["code_revision"],
        "versions": provenance["versions"],
        "seed": provenance["seed"],
        "params": provenance["params"],
        "start": provenance["start"],
        "stages": provenance["stages"],
        "snapshot": provenance["snapshot"],
        "snapshot_files": provenance["snapshot_files"],
        "split_files": provenance["split_files"],
        "calibration": provenance["calibration"],
        "verdict": provenance["verdict"],
        "moves": [move for move in registry.history() if tags["version"] in (move["from"], move["to"])],
        "counts": dict(Counter(sample["pool"] for sample in samples)),
        "samples": samples,
    }


def tags_of(registry: Registry, version: str) -> dict[str, str]:
    """Return `Registry.tags` of an existing version; raise InputError for a missing one."""
    tags = registry.tags(version)
    if tags is None:
        promoted = list(dict.fromkeys(move["to"] for move in registry.history()))
        raise InputError(
            f"{NAME} has no version {version!r}: "
            + (f"promoted were {', '.join(promoted)}" if promoted else "none yet")
        )
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
    registry = Registry(settings)
    # Versions without provenance cannot be traced.
    tags = [
        version_tags
        for version in registry.versions()
        if (version_tags := registry.tags(version)) and "provenance" in version_tags
    ]
    by_digest = {version_tags["model_digest"]: version_tags for version_tags in tags}
    learnt: dict[str, str] = {}
    # Breadth-first walk from each model to its start weights.
    waiting, done = [digest for digest in digests if digest in by_digest], set()
    while waiting:
        digest = waiting.pop(0)
        if digest in done:
            continue
        done.add(digest)
        version_tags = by_digest[digest]
        provenance = read_provenance(store, version_tags["provenance"])
        for row in samples_of(provenance, store):
            if row["pool"] != "eval":
                learnt.setdefault(row["sample_id"], f"version {version_tags['version']} ({row['pool']})")
        if provenance["start"] in by_digest:
            waiting.append(provenance["start"])
    return learnt


def models_with(settings: Settings, ids: Collection[str]) -> list[AffectedModel]:
    """Return registered versions with any of the samples in their snapshot: `version, aliases, pools` (counts)."""
    registry, store = Registry(settings), open_store(settings.store, Layout(settings).cache)
    # A version belongs to the result if any of its pools holds a sample.
    models: list[AffectedModel] = []
    for version in registry.versions():
        tags = registry.tags(version)
        if tags is None or "provenance" not in tags:
            continue
        samples = samples_of(read_provenance(store, tags["provenance"]), store)
        pools = Counter(sample["pool"] for sample in samples if sample["sample_id"] in ids)
        if pools:
            models.append({"version": version, "aliases": json.loads(tags["aliases"]), "pools": dict(pools)})
    return models
