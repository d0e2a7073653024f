"""Convert the candidate to ExecuTorch and LiteRT files in the toolchains' own environments, and cache them by key.

The float network is passed as a `torch.export` program, so the toolchains need none of our packages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.layout import Layout
from mm_core.core.params import ExportParams
from mm_core.core.records import digest_of, read_keyed, sha256_file, write_bytes, write_json
from mm_core.export.calibration import calibration_images, categories_of
from mm_core.export.float_reference import served
from mm_core.export.formats.run import HERE, SUFFIX, call, python_of
from mm_core.export.quantise import QuantisedRecord
from mm_core.model.meta import input_size_of
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.run import StorageRun

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")


class MadeFile(TypedDict):
    """The result of a conversion program, with the file's digest and size."""

    diff_mse: float
    diff_max: float
    float_convolutions: list[int]
    undelegated: NotRequired[int]
    """Operators that the accelerator does not take; in ExecuTorch files."""
    sha256: NotRequired[str]
    bytes: NotRequired[int]


class ConvertedFile(TypedDict):
    """The record of a converted file."""

    file: str
    key: str
    versions: dict[str, str]
    """Versions of the toolchain."""
    diff_mse: float
    diff_max: float
    float_convolutions: list[int]
    undelegated: NotRequired[int]
    sha256: str
    bytes: int


Converted = Mapping[str, Mapping[str, ConvertedFile]]
"""Format → decoder → record."""


@dataclass(frozen=True)
class _Photos:
    """The calibration data of a conversion."""

    images: np.ndarray
    """float32 (N,3,S,S), prepared."""
    categories: list[str]
    steps: list[int]
    """How many of the first convolutions may stay in float, in the order of trial."""


def convert(run: StorageRun, model: Path, quantised: QuantisedRecord) -> Converted:
    """Write `layout.formats/<decoder>.int8.<suffix>` and a `.json` record for each file.

    A record is written after its file, and an up-to-date file is kept: after a kill only the rest is made. The same
    model, photos and tools give the same bytes.

    Args:
        run: Params, workspace, storage and progress.
        model: The trained weights.
        quantised: The record of `quantise`, with calibration photos and the steps of float convolutions.

    Returns:
        Format → decoder → record: `file`, `sha256`, `bytes`, `key`, `versions`, `diff_mse`, `float_convolutions` and,
        for ExecuTorch, `undelegated`.

    Raises:
        InputError: An environment is missing.
    """
    layout = run.layout
    others = [name for name in run.params.export.formats if name != "onnx"]
    # Check all environments before the first conversion, which takes minutes.
    for name in others:
        python_of(name, layout.settings)
    records: dict[str, dict[str, ConvertedFile]] = {}
    for name in others:
        versions = call(name, layout.settings, f"to_{name}.py", ["versions"])
        # The key covers tools, programs, weights and photos.
        programs = [sha256_file(HERE / program) for program in (f"to_{name}.py", "pt2e.py")]
        records[name] = {}
        for decoder, ids in quantised["calibration"].items():
            steps = quantised["decoders"][decoder]["steps"]
            key = digest_of(
                {"programs": programs, "model": sha256_file(model), "calibration": ids, "versions": versions}
                | {"steps": steps, "max_int8_mse": run.params.export.max_int8_mse}
            )
            record_file = layout.formats / f"{decoder}{SUFFIX[name]}.json"
            record = _kept(record_file, key)
            if record is None:
                record_file.unlink(missing_ok=True)
                size = input_size_of(model)
                photos = _Photos(calibration_images(ids, size, run.store), categories_of(layout.snapshot, ids), steps)
                made = _make(name, model, decoder, photos, run.params.export, layout)
                record = cast(
                    ConvertedFile, {"file": f"{decoder}{SUFFIX[name]}", "key": key, "versions": versions, **made}
                )
                write_json(record_file, record)
            records[name][decoder] = record
    return records


def _kept(record_file: Path, key: str) -> ConvertedFile | None:
    record, file = cast(ConvertedFile | None, read_keyed(record_file, key)), record_file.with_suffix("")
    if record is None or not file.is_file() or sha256_file(file) != record["sha256"]:
        return None
    return record


def _make(name: str, model: Path, decoder: str, photos: _Photos, params: ExportParams, layout: Layout) -> MadeFile:
    network = served(model, decoder)
    with tempfile.TemporaryDirectory(prefix="mm-convert-") as folder, disk_faults_of(Path(folder)):
        program, calibration, plan, result = (
            Path(folder) / part for part in ("float.pt2", "photos.npz", "plan", "made")
        )
        torch.export.save(torch.export.export(network, (torch.from_numpy(photos.images[:1]),)), program)
        np.savez(
            calibration,
            images=photos.images,
            categories=np.unique(photos.categories, return_inverse=True)[1],
        )

        write_json(plan, {"float": photos.steps, "max_mse": params.max_int8_mse})
        record = cast(MadeFile, call(name, layout.settings, f"to_{name}.py", [program, calibration, plan, result]))
        # Write the file before its record: a record without a file never exists.
        data = result.read_bytes()
        target = layout.formats / f"{decoder}{SUFFIX[name]}"
        write_bytes(target, data)
    return {**record, "sha256": sha256_file(target), "bytes": len(data)}
