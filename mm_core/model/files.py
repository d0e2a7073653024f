"""Save and load a model: one safetensors file with JSON under the metadata key "mm", identified by its sha256."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save

from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.core.records import sha256_bytes, write_bytes
from mm_core.model.meta import METADATA_KEY, ModelMeta, foreground_scale_of, read_meta
from mm_core.model.network import MattingNet


def save_model(path: Path, net: MattingNet, meta: Mapping[str, object]) -> str:
    """Write weights in float32 and metadata atomically; return the file's digest.

    Args:
        path: File to write.
        net: Network to save.
        meta: Metadata; `model`, the network's params, and its `foreground_scale` are added. The same weights and
            metadata give the same bytes, so times and paths must not be part of it.
    """
    tensors = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in net.state_dict().items()
    }
    # Sorted keys keep the bytes, and so the digest, reproducible.
    own = {"model": net.config.model_dump(mode="json"), "foreground_scale": net.foreground_scale}
    text = json.dumps({**meta, **own}, sort_keys=True)
    data = save(tensors, metadata={METADATA_KEY: text})
    write_bytes(path, data)
    return sha256_bytes(data)


def load_model(path: Path, device: str | torch.device = "cpu") -> tuple[MattingNet, ModelMeta]:
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
    net.foreground_scale = foreground_scale_of(meta, path)
    return net.eval().to(device), meta
