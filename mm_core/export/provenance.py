"""What made a model: everything that `mm lineage` tells and a rebuild needs, gathered at promotion."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.pins import ModelPin, read_snapshot
from mm_core.core.records import Verdict, sha256_file
from mm_core.export.quantise import tool_versions
from mm_core.storage.store import Store, fetch_blob, put_blob


class StageProvenance(TypedDict):
    """What trained one stage, from the stage's own model file."""

    digest: str
    """sha256 of the weights."""
    start: NotRequired[str | None]
    """Digest of the weights that it began from; None: from scratch."""
    data: NotRequired[str]
    """Digest of the rows that it learned from."""
    recipe: NotRequired[str]
    params: dict[str, Any]
    """The sections of params.yaml that concern it."""
    model: NotRequired[dict[str, Any]]


class SnapshotPin(TypedDict):
    """Which snapshot a model was trained on."""

    digest: str
    eval_digest: str | None
    catalog: dict[str, int] | None
    champion: ModelPin | None
    anchor: ModelPin | None


class Provenance(TypedDict):
    """What is recorded of a version when it is registered."""

    model: str
    stages: dict[str, StageProvenance]
    start: str | None
    snapshot: SnapshotPin
    snapshot_files: dict[str, str]
    """File name → blob digest."""
    split_files: dict[str, str]
    params: dict[str, Any]
    seed: int
    calibration: dict[str, list[str]]
    """Decoder → ids of the photos that set int8's ranges."""
    code_revision: str
    versions: dict[str, str]
    """Of libraries."""
    verdict: dict[str, Any]
    """The gate's `Verdict` as JSON."""


def gather(params: Params, layout: Layout, store: Store, verdict: Verdict) -> Provenance:
    """Return the provenance of the cycle's candidate; the snapshot's and the split's files become blobs.

    What trained a stage (params, start, data) comes from the stage's own file: params.yaml may have changed since.
    """
    from mm_core.model.files import read_meta

    snapshot = read_snapshot(layout)
    stages: dict[str, StageProvenance] = {}
    for stage in TRAIN_STAGES:
        meta = read_meta(layout.model(stage))
        known = {name: meta[name] for name in ("start", "data", "recipe", "params", "model") if name in meta}
        stages[stage] = {"digest": sha256_file(layout.model(stage)), **known}  # pyright: ignore[reportArgumentType]
    return {
        "model": verdict.candidate,
        "stages": stages,
        "start": stages[TRAIN_STAGES[0]].get("start"),
        "snapshot": {
            "digest": snapshot["digest"],
            "eval_digest": snapshot.get("eval_digest"),
            "catalog": snapshot.get("catalog"),
            "champion": snapshot.get("champion"),
            "anchor": snapshot.get("anchor"),
        },
        "snapshot_files": _blobs(layout.snapshot, store),
        "split_files": _blobs(layout.split, store),
        "params": params.model_dump(mode="json"),
        "seed": params.seed,
        "calibration": json.loads((layout.quantised / "quantised.json").read_text())["calibration"],
        "code_revision": code_revision(),
        "versions": versions(),
        "verdict": verdict.model_dump(mode="json"),
    }


def read_provenance(store: Store, digest: str) -> Provenance:
    """Read a provenance from its blob; raises BlobNotFound."""
    return json.loads(fetch_blob(store, digest).read_text())


def versions() -> dict[str, str]:
    """Libraries that shape weights and files; threads that sums are split over (other threads, other last bits)."""
    import torch

    found = {name: version(name) for name in ("numpy", "open_clip_torch", "opencv-python-headless", "timm")}
    return tool_versions() | found | {"threads": str(torch.get_num_threads())}


def _blobs(folder: Path, store: Store) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".parquet", ".json"))
    return {path.name: put_blob(store, path) for path in files}


def code_revision() -> str:
    """The commit of this code, with `-dirty` where tracked files differ; the package's version outside a checkout.

    `MM_CODE_REVISION` wins: an image built from a commit has no checkout inside.
    """
    if named := os.environ.get("MM_CODE_REVISION"):
        return named
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=here,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else f"matting-moments {version('matting-moments')}"
