"""Frozen CLIP towers through open_clip (Radford et al. 2021): any architecture and weights, or a small one of our own.

Weights from a hub cannot be had everywhere, so `local` trains a small network of open_clip's own class on the
text-image samples at hand. It is registered as an open_clip architecture and loaded like any other file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from mm_core.core.errors import InputError, NothingToTrainOn
from mm_core.core.locks import exclusive
from mm_core.core.params import ClipParams
from mm_core.core.records import digest_of, sha256_bytes, sha256_file, write_bytes
from mm_core.imaging.images import load_rgb
from mm_core.imaging.pixel_cache import Shelf
from mm_core.model.predict import pick_device
from mm_core.model.preprocess import resize
from mm_core.model.torchvision_shim import ensure_torchvision

LOCAL_NAME = "mm-local-clip"
"""Architecture name of the small CLIP; its sizes lie in the JSON file beside this module."""
MAX_LOGIT_SCALE = math.log(100)


class Clip:
    """Both towers of one CLIP, frozen, in eval mode."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any, digest: str, device: str):
        self._model = model.eval().requires_grad_(False).to(device)
        self._transform, self._tokenizer, self._device = transform, tokenizer, device
        self.digest = digest
        """Names the weights: sha256 of the file, or of architecture and tag."""
        self.logit_scale = float(model.logit_scale.detach().exp())
        """What the likeness of a photo and a text is multiplied by before the softmax."""
        with torch.inference_mode():
            self.dim = int(self._model.encode_text(tokenizer(["a"]).to(device)).shape[1])

    def encode_text(self, captions: Sequence[str], batch: int = 256) -> np.ndarray:
        """(N,dim) float32 unit vectors."""
        tokens = [self._tokenizer(list(captions[at : at + batch])) for at in range(0, len(captions), batch)]
        return self._run(self._model.encode_text, tokens)

    def encode_image(self, photos: Sequence[np.ndarray], batch: int = 64) -> np.ndarray:
        """Photos uint8 (H,W,3) sRGB of any sizes → (N,dim) float32 unit vectors. The whole photo is seen, squeezed."""
        chunks = (
            torch.stack([self._transform(Image.fromarray(photo)) for photo in photos[at : at + batch]])
            for at in range(0, len(photos), batch)
        )
        return self._run(self._model.encode_image, chunks)

    def _run(self, tower: Any, chunks: Any) -> np.ndarray:
        parts: list[Tensor] = []
        with torch.inference_mode():
            for chunk in chunks:
                parts.append(tower(chunk.to(self._device), normalize=True).float().cpu())
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.dim), np.float32)


def load_clip(params: ClipParams, local: Path | None = None, device: str = "cpu") -> Clip:
    """The CLIP that the params name. `local`: the file that `train_local_clip` wrote, for model `local`.

    Raises InputError where architecture, tag or file cannot be had or do not fit each other.
    """
    open_clip = _open_clip()
    name, pretrained = _named_weights(params, local)
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, image_resize_mode="squash"
        )
    except (RuntimeError, OSError, AssertionError) as error:
        raise InputError(
            f"params.yaml: clip.pretrained: {pretrained} cannot be loaded as {name}: {str(error).splitlines()[0][:200]}"
        ) from error
    return Clip(model, transform, open_clip.get_tokenizer(name), clip_digest(params, local), pick_device(device))


def clip_digest(params: ClipParams, local: Path | None = None) -> str:
    """`Clip.digest` of the CLIP that `load_clip` would give, without loading it. Raises InputError like it."""
    name, pretrained = _named_weights(params, local)
    return sha256_file(Path(pretrained)) if Path(pretrained).is_file() else digest_of([name, pretrained])


@dataclass(frozen=True)
class LocalClip:
    """What training the small CLIP came to."""

    digest: str
    first_loss: float
    """Mean of the first tenth of steps."""
    last_loss: float
    """Mean of the last tenth."""
    held_out: int
    """Pairs with distinct captions kept out of training; 0 where there were fewer than 40 pairs."""
    retrieval: float
    """Share of held-out photos whose own caption is the nearest of the held-out ones; chance is 1 / held_out."""


def train_local_clip(
    pairs: Sequence[tuple[Path | np.ndarray, str]],
    steps: int,
    seed: int,
    out: Path,
    *,
    batch: int = 32,
    lr: float = 1e-3,
    progress: Callable[[int, int], None] | None = None,
) -> LocalClip:
    """Trains the small CLIP with open_clip's contrastive loss and saves it atomically as safetensors.

    `pairs`: a photo (path, or uint8 (H,W,3)) and its caption. `progress` is called as (step, steps). The same pairs,
    steps and seed give the same file on the same machine. Raises NothingToTrainOn with fewer than two captions.
    """
    open_clip = _open_clip()
    distinct = list(dict.fromkeys(caption for _, caption in pairs))
    if len(distinct) < 2:
        raise NothingToTrainOn(
            "the local CLIP needs text-image samples with at least two different captions: drop some"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = open_clip.get_model_config(LOCAL_NAME)
        # Channels last makes the image tower a third faster on CPU.
        model = open_clip.CLIP(**config).to(memory_format=torch.channels_last)
        side: int = config["vision_cfg"]["image_size"]
        margin = side // 8
        photos = torch.stack([_photo(source, side + margin) for source, _ in pairs])
        # What open_clip's own transform will subtract and divide by when the file is loaded.
        statistics = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
        tokens = open_clip.get_tokenizer(LOCAL_NAME)([caption for _, caption in pairs])
        test = _held_out(pairs, seed)
        by_caption: dict[str, list[int]] = {}
        for row, (_, caption) in enumerate(pairs):
            if row not in test:
                by_caption.setdefault(caption, []).append(row)
        groups = list(by_caption.values())
        rng = np.random.default_rng(seed)
        loss_of, losses = open_clip.ClipLoss(), list[float]()
        optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
        total = max(2, steps)
        # A rise of one step is one that torch divides by zero for.
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, lr, total_steps=total, pct_start=max(0.1, 1.5 / total)
        )
        model.train()
        for step in range(steps):
            # One photo per caption: the same caption twice in a batch would be its own negative.
            chosen = rng.permutation(len(groups))[: min(batch, len(groups))]
            rows = [groups[g][int(rng.integers(len(groups[g])))] for g in chosen]
            y, x = rng.integers(0, margin + 1, 2)
            images = (photos[rows, :, y : y + side, x : x + side].float() / 255 - mean) / std
            images = images.flip(3) if rng.random() < 0.5 else images
            image, text, scale = model(images, tokens[rows])[:3]
            loss = cast(Tensor, loss_of(image, text, scale))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            losses.append(float(loss.detach()))
            if progress:
                progress(step + 1, steps)
        retrieval = _retrieval(model.eval(), photos, tokens, sorted(test), margin, side, mean, std)
    data = save({name: value.contiguous() for name, value in model.state_dict().items()})
    write_bytes(out, data)
    tenth = max(1, steps // 10)
    first, last = (float(np.mean(part)) if part else math.nan for part in (losses[:tenth], losses[-tenth:]))
    return LocalClip(sha256_bytes(data), first, last, len(test), retrieval)


def cached_embeddings(
    clip: Clip,
    cache: Path,
    tower: Literal["image", "text"],
    keys: Sequence[str],
    load: Callable[[str], Any],
    save_every: int = 256,
) -> np.ndarray:
    """Embeddings (N,dim) in the order of `keys`, each computed once per CLIP and key and kept in the folder `cache`.

    `load(key)` gives the photo (uint8 (H,W,3)) or, for the text tower, the caption; it is called for missing keys only.
    They lie on a memory-mapped shelf that only grows: killed half-way, the next call goes on from what was saved.
    """
    shelf = Shelf(cache, f"{clip.digest[:16]}-{tower}", (4 * clip.dim,))
    names = {key: sha256_bytes(key.encode()) for key in dict.fromkeys(keys)}
    encode = clip.encode_image if tower == "image" else clip.encode_text
    with exclusive(cache / ".lock"):
        shelf.reload()
        missing = [key for key, name in names.items() if name not in shelf]
        for start in range(0, len(missing), save_every):
            part = missing[start : start + save_every]
            rows = encode([load(key) for key in part]).astype(np.float32).view(np.uint8)
            shelf.append([(names[key], row) for key, row in zip(part, rows, strict=True)])
    vectors = [shelf[names[key]].view(np.float32) for key in keys]
    return np.stack(vectors) if vectors else np.zeros((0, clip.dim), np.float32)


def _open_clip() -> Any:
    ensure_torchvision()
    import open_clip

    if LOCAL_NAME not in open_clip.list_models():
        open_clip.add_model_config(Path(__file__).with_name(f"{LOCAL_NAME}.json"))
    return open_clip


def _named_weights(params: ClipParams, local: Path | None) -> tuple[str, str]:
    """Architecture, and tag or file of the weights; both are known to be there."""
    open_clip = _open_clip()
    name, pretrained = params.model, params.pretrained
    if name == "local":
        if local is None or not local.is_file():
            raise InputError(f"{local}: no local CLIP there yet: train it from text-image samples (train-multimodal)")
        name, pretrained = LOCAL_NAME, str(local)
    if name not in open_clip.list_models():
        close = [known for known in open_clip.list_models() if known[:4].lower() == name[:4].lower()][:4]
        raise InputError(
            f"params.yaml: clip.model: open_clip has no {name!r}; for example {', '.join(close or ['ViT-B-32'])}"
        )
    if not Path(pretrained).is_file() and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6]) or "none"
        raise InputError(f"params.yaml: clip.pretrained: {pretrained!r} is neither a file nor a tag of {name} ({tags})")
    return name, pretrained


def _photo(source: Path | np.ndarray, side: int) -> Tensor:
    rgb = source if isinstance(source, np.ndarray) else load_rgb(source, max_side=4 * side)
    return torch.from_numpy(np.ascontiguousarray(resize(rgb, side, side).transpose(2, 0, 1)))


def _held_out(pairs: Sequence[tuple[Any, str]], seed: int) -> set[int]:
    """Up to 32 rows, at most a tenth of the pairs, each of another caption."""
    if len(pairs) < 40:
        return set()
    rows: dict[str, int] = {}
    for row in np.random.default_rng(seed).permutation(len(pairs)):
        rows.setdefault(pairs[row][1], int(row))
    return set(list(rows.values())[: min(32, len(pairs) // 10)])


def _retrieval(
    model: Any, photos: Tensor, tokens: Tensor, rows: list[int], margin: int, side: int, mean: Tensor, std: Tensor
) -> float:
    if not rows:
        return math.nan
    at = margin // 2
    images = (photos[rows, :, at : at + side, at : at + side].float() / 255 - mean) / std
    with torch.inference_mode():
        likeness = model.encode_image(images, normalize=True) @ model.encode_text(tokens[rows], normalize=True).T
    return float((likeness.argmax(1) == torch.arange(len(rows))).float().mean())
