"""Tag photos with ImageNet's 1000 classes, zero-shot by CLIP (Radford et al. 2021, section 3.1.4).

Each class name is inserted into template sentences, and their vectors are averaged. The photo's similarity to the 1000
means passes a softmax. The photo's vector is stored too. If LAION's linear aesthetic head is configured, it scores
that vector.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.params import ClipParams, StructureParams
from mm_core.core.records import sha256_file, write_bytes
from mm_core.model.clip import Clip, clip_digest, load_clip
from mm_core.structuring.decode import code_version
from mm_core.structuring.imagenet import class_names, import_open_clip, softmax
from mm_core.structuring.rows import Found, Photo

if TYPE_CHECKING:
    import open_clip
    import torch
    from safetensors import torch as safetensors_torch
else:
    torch = Deferred("torch")
    safetensors_torch = Deferred("safetensors.torch")
    open_clip = Deferred("open_clip")

EXTRACTOR = "clip"
VERSION = code_version(__name__)
SAVE_EVERY = 25
"""Classes between two saves of the class vectors; encoding 80,000 texts on a CPU takes hours and may be killed."""


class ClipTags:
    """Tags, vector and learned aesthetic score by one CLIP, loaded at the first photo."""

    extractor = EXTRACTOR

    def __init__(self, clip: ClipParams, structure: StructureParams, cache: Path, device: str) -> None:
        self._params, self._cache, self._device = clip, cache, device
        self._top, self._templates = structure.tags, structure.tag_templates
        self._head_file = Path(structure.aesthetic_head) if structure.aesthetic_head else None
        # Everything that the rows depend on is part of the version.
        parts = [VERSION, clip_digest(clip)[:16], self._templates, str(self._top)]
        if self._head_file:
            if not self._head_file.is_file():
                raise InputError(f"params.yaml: structure.aesthetic_head: {self._head_file}: no such file")
            parts.append(sha256_file(self._head_file)[:16])
        self.version = "/".join(parts)

    @cached_property
    def clip(self) -> Clip:
        """The CLIP model of the parameters, loaded once."""
        return load_clip(self._params, device=self._device)

    @cached_property
    def _classes(self) -> np.ndarray:
        return class_vectors(self.clip, self._templates, self._cache)

    @cached_property
    def _head(self) -> tuple[np.ndarray, float] | None:
        return read_head(self._head_file, self.clip.dim) if self._head_file else None

    def run(self, photos: Sequence[Photo]) -> list[Found]:
        """Tag photos.

        Args:
            photos: Decoded photos.

        Returns:
            Per photo the numbers `tag/<class>`, probabilities of the most probable classes, and `laion_aesthetic`
            (about 1 to 10) if a head is configured; the text `tags`, most probable first; and the unit CLIP embedding
            as vector.
        """
        names = class_names()
        rows = []
        for vector in self.clip.encode_image([photo.small for photo in photos]):
            # Both are unit vectors, so their product is the cosine.
            probabilities = softmax(self.clip.logit_scale * (self._classes @ vector))
            best = np.argsort(-probabilities, kind="stable")[: self._top]
            numbers = {f"tag/{names[i]}": float(probabilities[i]) for i in best}
            # LAION's head is linear on the unit vector.
            if self._head:
                weight, bias = self._head
                numbers["laion_aesthetic"] = float(weight @ vector) + bias
            rows.append(Found(numbers, {"tags": "; ".join(names[i] for i in best)}, vector))
        return rows


def class_vectors(clip: Clip, templates: str, cache: Path) -> np.ndarray:
    """Return unit vectors float32 (1000, dim), one per class, computed once per CLIP and stored in `cache`.

    After a kill the next call continues from the saved part.
    """
    open_clip = import_open_clip()
    # OpenAI's 80 templates, or the few simple ones.
    sentences = open_clip.OPENAI_IMAGENET_TEMPLATES if templates == "openai" else open_clip.SIMPLE_IMAGENET_TEMPLATES
    names = open_clip.IMAGENET_CLASSNAMES
    path = cache / f"{clip.digest[:16]}-imagenet-{templates}.npz"
    done = _read(path, clip.dim)
    for start in range(len(done), len(names), SAVE_EVERY):
        chunk = names[start : start + SAVE_EVERY]
        # All sentences of a class are adjacent, which the reshape below needs.
        vectors = clip.encode_text([sentence(name) for name in chunk for sentence in sentences])
        # Average the templates of each class, then normalise again.
        means = vectors.reshape(len(chunk), len(sentences), -1).mean(1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        done = np.concatenate([done, means])
        stream = BytesIO()
        np.savez(stream, vectors=done)
        write_bytes(path, stream.getvalue())
    return done


def read_head(path: Path, dim: int) -> tuple[np.ndarray, float]:
    """Return weight (dim,) and bias of a linear head on unit vectors.

    Args:
        path: File with `{"weight": (1, dim), "bias": (1,)}`, the format of LAION's `sa_0_4_vit_*_linear` files.
        dim: Size of the CLIP's vectors.

    Raises:
        InputError: The file is not a linear head or does not fit the CLIP.
    """
    try:
        # `weights_only` keeps a hostile file from running code.
        data = (
            safetensors_torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, "cpu", weights_only=True)
        )
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
        raise InputError(f"params.yaml: structure.aesthetic_head: {path}: not a linear head ({error})") from None
    if weight.shape != (dim,) or bias.shape != (1,):
        raise InputError(
            f"params.yaml: structure.aesthetic_head: {path} needs vectors of {weight.size} numbers, "
            f"the CLIP gives {dim}: use the head that was trained on this CLIP"
        )
    return weight, float(bias[0])


def _read(path: Path, dim: int) -> np.ndarray:
    """Return the stored class vectors; an empty array if the file is missing or damaged."""
    try:
        with np.load(path) as data:
            return data["vectors"]
    except (FileNotFoundError, BadZipFile, ValueError, KeyError):
        return np.zeros((0, dim), np.float32)
