"""Gather a model's provenance at promotion: all facts for `mm lineage` and for a rebuild."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from mm_core.core.deferred import Deferred
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.pins import ModelPin, read_snapshot
from mm_core.core.records import Verdict, parse_record, sha256_file
from mm_core.core.revision import code_revision
from mm_core.export.float_graph import tool_versions
from mm_core.model.meta import read_meta
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, blob_key, fetch_blob, put_blob

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")


# The types below describe the JSON record of a version.
class StageProvenance(TypedDict):
    """Origin of one stage's weights, from its own model file."""

    digest: str
    """sha256 of the weights."""
    start: NotRequired[str | None]
    """Digest of the start weights; None: trained from scratch."""
    data: NotRequired[str]
    """Digest of the training rows."""
    recipe: NotRequired[str]
    params: dict[str, object]
    """The sections of params.yaml for this stage."""
    model: NotRequired[dict[str, object]]


class SnapshotPin(TypedDict):
    """The snapshot that a model was trained on."""

    digest: str
    eval_digest: str | None
    catalog: dict[str, int] | None
    champion: ModelPin | None
    anchor: ModelPin | None


class Provenance(TypedDict):
    """The record of a version, written when it is registered."""

    model: str
    stages: dict[str, StageProvenance]
    start: str | None
    snapshot: SnapshotPin
    snapshot_files: dict[str, str]
    """File name → blob digest."""
    split_files: dict[str, str]
    params: dict[str, object]
    seed: int
    calibration: dict[str, list[str]]
    """Decoder → ids of the photos that set int8's ranges."""
    code_revision: str
    versions: dict[str, str]
    """Versions of libraries."""
    verdict: dict[str, object]
    """The gate's `Verdict` as JSON."""


def gather(run: StorageRun, verdict: Verdict) -> Provenance:
    """Return the provenance of the cycle's candidate; files of snapshot and split are stored as blobs.

    The params, start and data of a training stage come from its model file, because params.yaml may have changed.
    """
    layout = run.layout
    snapshot = read_snapshot(layout)
    stages: dict[str, StageProvenance] = {}
    # Each model file records how its stage was trained.
    for stage in TRAIN_STAGES:
        meta = read_meta(layout.model(stage))
        known = {name: value for name, value in meta.items() if name in ("start", "data", "recipe", "params", "model")}
        stages[stage] = cast(StageProvenance, {"digest": sha256_file(layout.model(stage)), **known})
    return {
        "model": verdict.candidate,
        "stages": stages,
        # Later stages start from the stage before them; only the first one starts from another model.
        "start": stages[TRAIN_STAGES[0]].get("start"),
        "snapshot": {
            "digest": snapshot["digest"],
            "eval_digest": snapshot.get("eval_digest"),
            "catalog": snapshot.get("catalog"),
            "champion": snapshot.get("champion"),
            "anchor": snapshot.get("anchor"),
        },
        "snapshot_files": _blobs(layout.snapshot, run.store),
        "split_files": _blobs(layout.split, run.store),
        "params": run.params.model_dump(mode="json"),
        "seed": run.params.seed,
        "calibration": _calibration(layout.quantised / "quantised.json"),
        "code_revision": code_revision(),
        "versions": versions(),
        "verdict": verdict.model_dump(mode="json"),
    }


def read_provenance(store: Store, digest: str) -> Provenance:
    """Read a provenance from its blob; raises BlobNotFound."""
    content, where = fetch_blob(store, digest).read_bytes(), f"{store.url}/{blob_key(digest)}"
    fields = ("start", "snapshot_files", "split_files")
    return parse_record(content, Provenance, where, "it is not the record of a version", fields)


class _Quantised(TypedDict):
    """The field of `quantised.json` that is used here."""

    calibration: dict[str, list[str]]


def _calibration(path: Path) -> dict[str, list[str]]:
    """Return the ids of the photos that set int8's ranges, by decoder."""
    record = parse_record(path.read_bytes(), _Quantised, path, "run `mm evaluate` again", ("calibration",))
    return record["calibration"]


def versions() -> dict[str, str]:
    """Return versions of libraries that influence weights and files, and the thread count (it changes last bits)."""
    installed = {name: version(name) for name in ("numpy", "open_clip_torch", "opencv-python-headless", "timm")}
    return tool_versions() | installed | {"threads": str(torch.get_num_threads())}


def _blobs(folder: Path, store: Store) -> dict[str, str]:
    # Blobs are stored once, so an unchanged file costs nothing.
    files = sorted(path for path in folder.iterdir() if path.suffix in (".parquet", ".json"))
    return {path.name: put_blob(store, path) for path in files}
