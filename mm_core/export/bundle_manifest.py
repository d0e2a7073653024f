"""Read a bundle's manifest and check the folder's files against it.

The module uses no model and no runtime, so a bundle can be checked before any of its files is opened.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from tokenize import TokenError
from typing import NotRequired, TypedDict

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS, parse_finite_json, sha256_file
from mm_core.storage.retry import ARCHIVE_ERRORS

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20
"""Largest size of a manifest, 4 MiB."""
GOLDEN_BYTES = 256 << 20
"""Largest size of the golden pairs after decompression, 256 MiB."""


# The types below describe the parts of manifest.json, from the smallest up.
class Deviation(TypedDict):
    """Difference of the mattes of an int8 file from those of the float network."""

    mse: float
    max: float
    photos: int


class Cost(TypedDict):
    """Costs of a file on the exporting machine."""

    latency_ms: dict[str, float]
    """Milliseconds per photo by number of threads."""
    speedup: dict[str, float]
    """Relative to torch's float network, by number of threads."""
    peak_mb: float
    model_mb: float


class FormatEntry(Cost):
    """One int8 file with its origin and its costs."""

    file: str
    int8_against_float: Deviation
    float_convolutions: list[int]
    versions: NotRequired[dict[str, str]]
    """Versions of toolchain and runtime; in formats other than ONNX."""
    undelegated: NotRequired[int]
    """Operators that the accelerator does not take; in ExecuTorch files."""


# An ONNX entry has more fields than those of other formats.
class DecoderEntry(FormatEntry):
    """A decoder's ONNX file, and its files in other formats."""

    categories: list[str]
    torch_float_ms: dict[str, float]
    formats: dict[str, FormatEntry]


class Golden(TypedDict):
    """The golden pairs: their file, and the allowed differences."""

    file: str
    tolerance: dict[str, float]


class FileEntry(TypedDict):
    """Digest and size of a file."""

    sha256: str
    bytes: int


class Requests(TypedDict):
    """The request of the exporting params."""

    limits: dict[str, float]
    formats: dict[str, dict[str, str]]
    """Format → decoder → sha256."""


class VerdictHead(TypedDict):
    """The gate's `Verdict` without its cells."""

    decision: str
    basis: str
    reasons: list[str]
    candidate: str
    champion: str | None
    anchor: str | None
    snapshot: str
    eval_digest: str
    left_out: dict[str, str]
    created_at: str


class InputSpec(TypedDict):
    """The network's input, as an application must prepare it."""

    name: str
    dtype: str
    shape: list[int]
    colour: str
    resize: str
    scale: str
    mean: list[float]
    std: list[float]


class OutputSpec(TypedDict):
    """The matte."""

    name: str
    dtype: str
    shape: list[int]
    range: list[float]
    resize: str


class ChoiceSpec(TypedDict):
    """The logits of the decoders, for a photo of unknown category."""

    name: str
    dtype: str
    shape: list[int]
    decoders: list[str]
    use: str


class DataSource(TypedDict):
    """Training photos of one pool, source and licence."""

    pool: str
    source: str
    license: str
    photos: int


class DataFacts(TypedDict):
    """The training data."""

    counts: dict[str, dict[str, int]]
    """Photos by pool and category."""
    sources: list[DataSource]


# The whole manifest.
class BundleManifest(TypedDict):
    """The content of `manifest.json`. `checked_manifest` verifies only the fields that it reads."""

    schema_version: int
    key: str
    """Digest of model, files, scores and verdict."""
    version: str
    model: str
    """sha256 of the float weights."""
    snapshot: str
    eval_digest: str
    code_revision: str
    verdict: VerdictHead
    metrics: dict[str, dict[str, dict[str, float]]]
    """Category → `float`, `int8` or `blind` (the mean matte of the category) → metric."""
    asked: Requests
    decoders: dict[str, DecoderEntry]
    input: InputSpec
    output: OutputSpec
    choice: ChoiceSpec
    golden: Golden
    data: DataFacts
    opset: int
    versions: dict[str, str]
    files: dict[str, FileEntry]


def read_manifest(bundle: Path) -> BundleManifest:
    """Return the manifest of a bundle; raise InputError if it is missing or unreadable."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm export` first")
    # A foreign file must not fill the memory.
    if (size := path.stat().st_size) > MANIFEST_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {MANIFEST_BYTES} are read: fetch the bundle again")
    try:
        manifest = parse_finite_json(path.read_text())
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a bundle's manifest; fetch the bundle again")
    return manifest  # pyright: ignore[reportReturnType]


def checked_manifest(bundle: Path) -> BundleManifest:
    """Return the manifest of a foreign bundle after checking that every named file exists with its digest.

    Raises InputError for any difference. No file of the bundle is run or opened before.
    """
    manifest = read_manifest(bundle)
    try:
        # The file may have any content, so all fields that are used below are read here.
        files = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()}
        used = {*by_file(manifest), manifest["golden"]["file"]}
        _check_values(manifest)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{bundle / 'manifest.json'}: not a bundle's manifest; fetch the bundle again") from None
    for name in sorted(used | set(files)):
        # Plain names only: a path or a link could lead out of the folder.
        path = bundle / name
        if Path(name).name != name or path.is_symlink() or name not in files:
            raise InputError(f"{bundle}: the manifest names {name!r}, which is not a file of the bundle: do not use it")
        size, digest = files[name]
        if not path.is_file() or path.stat().st_size != size or sha256_file(path) != digest:
            shown = name.encode("unicode_escape").decode()
            # Escaped, because a foreign name may hold control characters.
            raise InputError(f"{bundle}/{shown}: not the file that the manifest names; fetch the bundle again")
    return manifest


def _check_values(manifest: BundleManifest) -> None:
    """Raise ValueError, KeyError or TypeError unless the values that readers compute with are possible ones."""
    mean, std = ([float(value) for value in manifest["input"][name]] for name in ("mean", "std"))
    tolerance = [float(manifest["golden"]["tolerance"][name]) for name in ("mse", "max")]
    # A photo is divided by `std`.
    possible = len(mean) == len(std) == 3 and min(std) > 0 and min(tolerance) >= 0
    if not possible or not isinstance(manifest["version"], str) or not set(manifest["decoders"]) <= set(DECODERS):
        raise ValueError(manifest["version"])


def load_golden(bundle: Path, manifest: BundleManifest) -> dict[str, np.ndarray]:
    """Return the golden pairs of a bundle by name.

    Args:
        bundle: The folder.
        manifest: The result of `checked_manifest`.

    Returns:
        Per decoder `<decoder>_image`, uint8 (S, S, 3), and `<decoder>_alpha`, float32 (S, S), among others.

    Raises:
        InputError: The file is not an archive of arrays, is too large, or lacks one of these.
    """
    path = bundle / manifest["golden"]["file"]
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        # A small compressed file can hold very large arrays.
        if size > GOLDEN_BYTES:
            raise InputError(f"{path}: {size} bytes, at most {GOLDEN_BYTES} are read: fetch the bundle again")
        with np.load(path, allow_pickle=False) as pairs:
            golden = {name: np.asarray(pairs[name]) for name in pairs.files}
        for decoder in manifest["decoders"]:
            image, alpha = golden[f"{decoder}_image"], golden[f"{decoder}_alpha"]
            if image.dtype != np.uint8 or image.shape != (*alpha.shape, 3) or alpha.dtype.kind != "f":
                raise ValueError(decoder)
    # numpy parses the header of an array as Python, and allocates what it declares.
    except (KeyError, SyntaxError, TokenError, RecursionError, MemoryError, *ARCHIVE_ERRORS):
        raise InputError(f"{path}: not the golden pairs of a bundle; fetch the bundle again") from None
    return golden


def by_file(manifest: BundleManifest) -> dict[str, FormatEntry]:
    """Return the manifest's entries by file name, ONNX files first."""
    entries: list[FormatEntry] = [*manifest["decoders"].values()]
    # ONNX entries come first; later entries are those of other formats.
    entries += [other for row in manifest["decoders"].values() for other in row["formats"].values()]
    return {entry["file"]: entry for entry in entries}
