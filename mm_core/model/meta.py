"""The metadata of a model file: JSON under the metadata key "mm" of a safetensors file. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError, safe_open

from mm_core.core.errors import InputError

METADATA_KEY = "mm"


class ModelMeta(TypedDict, total=False):
    """What a model file records; a file of an earlier version may lack fields."""

    model: dict[str, object]
    """The network's params, the section `model` of params.yaml."""
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
    remedy = "give a model.safetensors that a training stage wrote"
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    try:
        # "np", because "pt" would import torch.
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); {remedy}") from None
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: a safetensors file without the metadata key {METADATA_KEY!r}; {remedy}")
    return json.loads(metadata[METADATA_KEY])


def input_size_of(path: Path) -> int:
    """Return the side in pixels of the network's square input; raise InputError if the file is not a model."""
    size = read_meta(path).get("model", {}).get("size")
    if not isinstance(size, int):
        raise InputError(f"{path}: model.size is missing; give a model.safetensors that a training stage wrote")
    return size
