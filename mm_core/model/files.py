"""A model on disk: one safetensors file; JSON under the metadata key "mm"; its identity is the file's sha256."""

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
    """Writes the weights in float32, and `meta` with `model` = the network's params; returns the file's digest.

    Atomic. The same weights and meta give the same bytes, so leave times and paths out of `meta`.
    """
    tensors = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in net.state_dict().items()
    }
    text = json.dumps(meta | {"model": net.config.model_dump(mode="json")}, sort_keys=True)
    data = save(tensors, metadata={METADATA_KEY: text})
    write_bytes(path, data)
    return sha256_bytes(data)


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON beside the weights, without reading them; raises InputError where `path` is no model of ours."""
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
    """The network (in eval mode) and its meta; raises InputError where the file does not hold one."""
    meta = read_meta(path)
    try:
        config = ModelParams.model_validate(meta.get("model"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: model.{field}: {first['msg']}; it was written by another version") from None
    with torch.random.fork_rng(devices=[]):
        net = MattingNet(config)
    # Models from before the chooser keep an untrained one; all else is strict.
    untrained = {f"chooser.{name}": value for name, value in net.chooser.state_dict().items()}
    try:
        net.load_state_dict(untrained | load_file(path))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: its weights do not fit {config.encoder}: {detail}; train it again") from None
    return net.eval().to(device), meta
