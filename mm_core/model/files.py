"""Save and load a model: one safetensors file with JSON under the metadata key "mm", identified by its sha256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.core.records import sha256_bytes, write_bytes
from mm_core.model.network import MattingNet

METADATA_KEY = "mm"


def save_model(path: Path, net: MattingNet, meta: dict[str, Any]) -> str:
    """Write weights in float32 and metadata atomically; return the file's digest.

    Args:
        path: File to write.
        net: Network to save.
        meta: Metadata; `model`, the network's params, is added. The same weights and metadata give the same bytes, so
            times and paths must not be part of it.
    """
    tensors = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in net.state_dict().items()
    }
    # Sorted keys keep the bytes, and so the digest, reproducible.
    text = json.dumps(meta | {"model": net.config.model_dump(mode="json")}, sort_keys=True)
    data = save(tensors, metadata={METADATA_KEY: text})
    write_bytes(path, data)
    return sha256_bytes(data)


def read_meta(path: Path) -> dict[str, Any]:
    """Return the metadata of a model file without loading its weights; raise InputError if the file is not a model."""
    remedy = "give a model.safetensors that a training stage wrote"
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); {remedy}") from None
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: a safetensors file without the metadata key {METADATA_KEY!r}; {remedy}")
    return json.loads(metadata[METADATA_KEY])


def load_model(path: Path, device: str | torch.device = "cpu") -> tuple[MattingNet, dict[str, Any]]:
    """Return the network in eval mode and its metadata; raise InputError if the file contains no valid model."""
    meta = read_meta(path)
    try:
        config = ModelParams.model_validate(meta.get("model"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: model.{field}: {first['msg']}; it was written by another version") from None
    # Initialisation draws random numbers, which must not change the caller's generator.
    with torch.random.fork_rng(devices=[]):
        net = MattingNet(config)
    # Models saved before the chooser existed keep an untrained one; all other weights are required.
    untrained = {f"chooser.{name}": value for name, value in net.chooser.state_dict().items()}
    try:
        net.load_state_dict(untrained | load_file(path))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: its weights do not fit {config.encoder}: {detail}; train it again") from None
    return net.eval().to(device), meta
