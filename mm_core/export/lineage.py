"""From a registered version back to everything that made it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from typing import Any

import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.export.provenance import Provenance, read_provenance
from mm_core.export.registry import NAME, Registry
from mm_core.ingest.snapshot import POOLS
from mm_core.storage.store import Store, fetch_blob, open_store

_SAID = ("sample_id", "category", "alpha_sha256", "label_version", "kind", "batch")


def lineage(settings: Settings, version: str) -> dict[str, Any]:
    """What made a version (a number or an alias): samples with label versions, params, code revision, seeds, stages.

    `samples` has one row per pool and sample. Raises InputError where the registry has no such version, BlobNotFound
    where the store has lost a part.
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
    """`Registry.tags` of a version that must be there; raises InputError where it is not."""
    tags = registry.tags(version)
    if tags is None:
        known = list(dict.fromkeys(move["to"] for move in registry.history()))
        raise InputError(
            f"{NAME} has no version {version!r}: " + (f"promoted were {', '.join(known)}" if known else "none yet")
        )
    return tags


def provenance_of(settings: Settings, store: Store, version: str) -> Provenance:
    """What `mm_core.export.provenance` gathered when the version was registered."""
    tags = tags_of(Registry(settings), version)
    return read_provenance(store, tags["provenance"])


def samples_of(provenance: Provenance, store: Store) -> list[dict[str, Any]]:
    """Every sample of a snapshot with its pool and label version; missing values are None."""
    rows: list[dict[str, Any]] = []
    for pool in POOLS:
        frame = pd.read_parquet(fetch_blob(store, provenance["snapshot_files"][f"{pool}.parquet"]), columns=list(_SAID))
        frame = frame.astype(object).where(frame.notna(), None)
        rows += [{"pool": pool, **row} for row in frame.to_dict("records")]
    for row in rows:
        row["label_version"] = None if row["label_version"] is None else int(row["label_version"])
    return rows


def training_labels(settings: Settings, store: Store, version: str) -> dict[str, str]:
    """Sample id → digest of the matte that a version was trained on; empty where the registry does not know."""
    tags = Registry(settings).tags(version)
    if tags is None or "provenance" not in tags:
        return {}
    samples = samples_of(read_provenance(store, tags["provenance"]), store)
    return {row["sample_id"]: row["alpha_sha256"] for row in samples if row["pool"] == "train_labeled"}


def learnt_by(settings: Settings, store: Store, digests: Collection[str]) -> dict[str, str]:
    """Return what models have learnt from, with the models that their weights started from.

    Args:
        settings: Where the registry is.
        store: Holds the snapshots of registered versions.
        digests: Digests of the models' weights; one that the registry does not know tells nothing.

    Returns:
        Sample id → words for the model that learnt from it (the first one found), of training and validation pools.
    """
    registry = Registry(settings)
    tags = [found for version in registry.versions() if (found := registry.tags(version)) and "provenance" in found]
    by_digest = {found["model_digest"]: found for found in tags}
    learnt: dict[str, str] = {}
    waiting, done = [digest for digest in digests if digest in by_digest], set()
    while waiting:
        digest = waiting.pop(0)
        if digest in done:
            continue
        done.add(digest)
        found = by_digest[digest]
        provenance = read_provenance(store, found["provenance"])
        for row in samples_of(provenance, store):
            if row["pool"] != "eval":
                learnt.setdefault(row["sample_id"], f"version {found['version']} ({row['pool']})")
        if provenance["start"] in by_digest:
            waiting.append(provenance["start"])
    return learnt


def models_with(settings: Settings, ids: Collection[str]) -> list[dict[str, Any]]:
    """The registered versions whose snapshot holds any of the samples: `version, aliases, pools` (samples of each)."""
    registry, store = Registry(settings), open_store(settings.store, Layout(settings).cache)
    found = []
    for version in registry.versions():
        tags = registry.tags(version)
        if tags is None or "provenance" not in tags:
            continue
        samples = samples_of(read_provenance(store, tags["provenance"]), store)
        pools = Counter(sample["pool"] for sample in samples if sample["sample_id"] in ids)
        if pools:
            found.append({"version": version, "aliases": json.loads(tags["aliases"]), "pools": dict(pools)})
    return found
