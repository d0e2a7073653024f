"""Gather a model's provenance at promotion: all facts for `mm lineage` and for a rebuild."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import Verdict, sha256_file
from mm_core.export.quantise import tool_versions
from mm_core.storage.store import Store, put_blob


def gather(params: Params, layout: Layout, store: Store, verdict: Verdict) -> dict[str, Any]:
    """Return the provenance of the cycle's candidate as JSON; files of snapshot and split are stored as blobs.

    The params, start and data of a training stage come from its model file, because params.yaml may have changed.
    """
    from mm_core.model.files import read_meta

    snapshot = json.loads((layout.snapshot / "snapshot.json").read_text())
    stages = {}
    # Each model file records how its stage was trained.
    for stage in TRAIN_STAGES:
        meta = read_meta(layout.model(stage))
        stages[stage] = {"digest": sha256_file(layout.model(stage))}
        stages[stage] |= {name: meta[name] for name in ("start", "data", "recipe", "params", "model") if name in meta}
    return {
        "model": verdict.candidate,
        "stages": stages,
        "start": stages[TRAIN_STAGES[0]].get("start"),
        "snapshot": {name: snapshot.get(name) for name in ("digest", "eval_digest", "catalog", "champion", "anchor")},
        "snapshot_files": _blobs(layout.snapshot, store),
        "split_files": _blobs(layout.split, store),
        "params": params.model_dump(mode="json"),
        "seed": params.seed,
        "calibration": json.loads((layout.quantised / "quantised.json").read_text())["calibration"],
        "code_revision": code_revision(),
        "versions": versions(),
        "verdict": verdict.model_dump(mode="json"),
    }


def versions() -> dict[str, str]:
    """Return versions of libraries that influence weights and files, and the thread count (it changes last bits)."""
    import torch

    installed = {name: version(name) for name in ("numpy", "open_clip_torch", "opencv-python-headless", "timm")}
    return tool_versions() | installed | {"threads": str(torch.get_num_threads())}


def _blobs(folder: Path, store: Store) -> dict[str, str]:
    # Blobs are stored once, so an unchanged file costs nothing.
    files = sorted(path for path in folder.iterdir() if path.suffix in (".parquet", ".json"))
    return {path.name: put_blob(store, path) for path in files}


def code_revision() -> str:
    """Return the commit of this code, with `-dirty` for changed tracked files; outside a checkout, the version.

    `MM_CODE_REVISION` takes precedence, because an image built from a commit contains no checkout.
    """
    if named := os.environ.get("MM_CODE_REVISION"):
        return named
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else f"matting-moments {version('matting-moments')}"
