"""What is in a photo, in ImageNet's 1000 words: zero-shot by CLIP (Radford et al. 2021, section 3.1.4).

Each class name is put into template sentences, their vectors are averaged, and the photo's likeness to the 1000 means
goes through a softmax. The photo's own vector is kept, and LAION's linear aesthetic head reads it where one is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from mm_core.core.errors import InputError
from mm_core.core.params import ClipParams, StructureParams
from mm_core.core.records import sha256_file, write_bytes
from mm_core.model.clip import Clip, clip_digest, load_clip
from mm_core.model.torchvision_shim import ensure_torchvision
from mm_core.structuring.rows import Found, Photo

EXTRACTOR = "clip"
VERSION = "1"
"""Rises whenever a number below may come out differently; older rows are then computed again."""
SAVE_EVERY = 25
"""Classes between two saves of the class vectors: encoding 80,000 texts on a CPU takes hours and may be killed."""


class ClipTags:
    """Tags, vector and learned aesthetic score by one CLIP, loaded when the first photo comes."""

    extractor = EXTRACTOR

    def __init__(self, clip: ClipParams, structure: StructureParams, cache: Path, device: str):
        self._params, self._cache, self._device = clip, cache, device
        self._top, self._templates = structure.tags, structure.tag_templates
        self._head_file = Path(structure.aesthetic_head) if structure.aesthetic_head else None
        parts = [VERSION, clip_digest(clip)[:16], self._templates, str(self._top)]
        if self._head_file:
            if not self._head_file.is_file():
                raise InputError(f"params.yaml: structure.aesthetic_head: {self._head_file}: no such file")
            parts.append(sha256_file(self._head_file)[:16])
        self.version = "/".join(parts)

    @cached_property
    def clip(self) -> Clip:
        return load_clip(self._params, device=self._device)

    @cached_property
    def _classes(self) -> np.ndarray:
        return class_vectors(self.clip, self._templates, self._cache)

    @cached_property
    def _head(self) -> tuple[np.ndarray, float] | None:
        return read_head(self._head_file, self.clip.dim) if self._head_file else None

    def run(self, photos: Sequence[Photo]) -> list[Found]:
        """Per photo: numbers `tag/<class>` = probability of the likeliest classes, `laion_aesthetic` (about 1 to 10)
        where a head is named; texts `tags`, likeliest first; vector, the unit CLIP embedding.
        """
        names = class_names()
        found = []
        for vector in self.clip.encode_image([photo.small for photo in photos]):
            chances = softmax(self.clip.logit_scale * (self._classes @ vector))
            best = np.argsort(-chances, kind="stable")[: self._top]
            numbers = {f"tag/{names[i]}": float(chances[i]) for i in best}
            if self._head:
                weight, bias = self._head
                numbers["laion_aesthetic"] = float(weight @ vector) + bias
            found.append(Found(numbers, {"tags": "; ".join(names[i] for i in best)}, vector))
        return found


def class_names() -> list[str]:
    """ImageNet's 1000 classes as OpenAI worded them, in ImageNet's order; a repeated name gets its number."""
    names: list[str] = []
    for number, name in enumerate(_open_clip().IMAGENET_CLASSNAMES):
        names.append(f"{name} ({number})" if name in names else name)
    return names


def class_vectors(clip: Clip, templates: str, cache: Path) -> np.ndarray:
    """float32 (1000, dim) unit vectors, one per class; made once per CLIP and kept in `cache`.

    Killed half-way, the next call goes on from what was saved.
    """
    open_clip = _open_clip()
    sentences = open_clip.OPENAI_IMAGENET_TEMPLATES if templates == "openai" else open_clip.SIMPLE_IMAGENET_TEMPLATES
    names = open_clip.IMAGENET_CLASSNAMES
    path = cache / f"{clip.digest[:16]}-imagenet-{templates}.npz"
    known = _read(path, clip.dim)
    for start in range(len(known), len(names), SAVE_EVERY):
        part = names[start : start + SAVE_EVERY]
        vectors = clip.encode_text([sentence(name) for name in part for sentence in sentences])
        means = vectors.reshape(len(part), len(sentences), -1).mean(1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        known = np.concatenate([known, means])
        stream = BytesIO()
        np.savez(stream, vectors=known)
        write_bytes(path, stream.getvalue())
    return known


def read_head(path: Path, dim: int) -> tuple[np.ndarray, float]:
    """Weight (dim,) and bias of a linear head `{"weight": (1, dim), "bias": (1,)}`, the form of LAION's
    `sa_0_4_vit_*_linear` files; they read unit vectors. Raises InputError where it does not fit the CLIP.
    """
    import pickle

    import torch

    try:
        data = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        weight, bias = data["weight"].float().numpy().reshape(-1), data["bias"].float().numpy().reshape(-1)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        KeyError,
        AttributeError,
        TypeError,
        EOFError,
    ) as error:
        raise InputError(f"params.yaml: structure.aesthetic_head: {path}: no linear head ({error})") from None
    if weight.shape != (dim,) or bias.shape != (1,):
        raise InputError(
            f"params.yaml: structure.aesthetic_head: {path} reads vectors of {weight.size} numbers, "
            f"the CLIP makes {dim}: take the head that was trained on this CLIP"
        )
    return weight, float(bias[0])


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _read(path: Path, dim: int) -> np.ndarray:
    try:
        with np.load(path) as data:
            return data["vectors"]
    except (FileNotFoundError, BadZipFile, ValueError, KeyError):
        return np.zeros((0, dim), np.float32)


def _open_clip() -> Any:
    ensure_torchvision()
    import open_clip

    return open_clip
