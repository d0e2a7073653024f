"""The metadata of a model file: JSON under the metadata key "mm" of a safetensors file. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError, safe_open

from mm_core.core.errors import InputError
from mm_core.core.records import digest_of

METADATA_KEY = "mm"
REMEDY = "give a model.safetensors that a training stage wrote; `mm check` finds a damaged one of the workspace"


class ModelMeta(TypedDict, total=False):
    """What a model file records; a file of an earlier version may lack fields."""

    model: dict[str, object]
    """The network's params, the section `model` of params.yaml."""
    foreground_scale: float
    """Factor of positive logits (mm_core.model.network); 1 in files of an earlier version."""
    stage: str
    steps: int
    start: str | None
    """Digest of the start weights; None: trained from scratch."""
    data: str
    """Digest of the training rows."""
    snapshot: str
    recipe: str
    params: dict[str, object]
    """The sections of params.yaml for this stage."""


def read_meta(path: Path) -> ModelMeta:
    """Return the metadata of a model file without loading its weights; raise InputError if the file is not a model."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {REMEDY}")
    # safetensors calls a file without read permission missing; Python's own error names the cause.
    path.open("rb").close()
    try:
        # "np", because "pt" would import torch.
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); {REMEDY}") from None
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: a safetensors file without the metadata key {METADATA_KEY!r}; {REMEDY}")
    return json.loads(metadata[METADATA_KEY])


def weights_digest(path: Path) -> str:
    """Return the digest of what a model file's mattes depend on: network params, weights and foreground scale.

    A stage without steps passes its start weights on: its file differs, this digest does not.
    """
    meta = read_meta(path)
    with path.open("rb") as stream:
        # The format: the header's length in 8 bytes, the header as JSON, the tensors.
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        tensors = hashlib.file_digest(stream, "sha256").hexdigest()
    header.pop("__metadata__", None)
    return digest_of([meta.get("model"), foreground_scale_of(meta, path), header, tensors])


def foreground_scale_of(meta: ModelMeta, path: Path) -> float:
    """Return the factor of positive logits that metadata record; `path` names the file in the InputError."""
    scale = meta.get("foreground_scale", 1.0)
    # Written as `not <`, so that NaN fails too.
    if not isinstance(scale, float) or not 0 < scale <= 1:
        raise InputError(
            f"{path}: foreground_scale is {str(scale)[:40]}, not a number in (0, 1]; train the model again"
        )
    return scale


def input_size_of(path: Path) -> int:
    """Return the side in pixels of the network's square input; raise InputError if the file is not a model."""
    size = read_meta(path).get("model", {}).get("size")
    if not isinstance(size, int):
        raise InputError(f"{path}: model.size is missing; {REMEDY}")
    return size
