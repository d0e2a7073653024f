"""Frozen CLIP towers through open_clip (Radford et al. 2021), with any of its weights or a small model trained here.

Weights from a hub are not available everywhere. `local` therefore trains a small network of open_clip's own class on
the text-image samples of the data set. It is registered as an open_clip architecture and loaded like any other file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError, NothingToTrainOn
from mm_core.core.locks import exclusive
from mm_core.core.params import ClipParams
from mm_core.core.records import digest_of, sha256_bytes, sha256_file, write_bytes
from mm_core.imaging.images import load_rgb
from mm_core.imaging.pixel_cache import Shelf
from mm_core.model.predict import pick_device
from mm_core.model.preprocess import resize
from mm_core.model.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    import open_clip
    from open_clip import CLIP
else:
    open_clip = Deferred("open_clip")

LOCAL_NAME = "mm-local-clip"
"""Architecture name of the small CLIP; its sizes are in the JSON file of the same name in this folder."""
MAX_LOGIT_SCALE = math.log(100)
TEXTS, PHOTOS = 256, 64
"""Texts and photos that are encoded at once."""
SAVE_EVERY = 256
"""Number of embeddings computed between two writes."""
BATCH, PEAK_LR = 32, 1e-3
"""Maximum number of pairs per step, and peak learning rate, of the small CLIP."""


class Clip:
    """Both towers of one CLIP, frozen, in eval mode."""

    def __init__(
        self,
        model: CLIP,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[Sequence[str]], Tensor],
        digest: str,
        device: str,
    ) -> None:
        self._model = model.eval().requires_grad_(False).to(device)
        self._transform, self._tokenizer, self._device = transform, tokenizer, device
        self.digest = digest
        """Identifies the weights: sha256 of the file, or of architecture and tag."""
        self.logit_scale = float(model.logit_scale.detach().exp())
        """Factor of the similarity of a photo and a text before the softmax."""
        # The size of the embedding is not in every architecture's config, so encode a text to find it.
        with torch.inference_mode():
            self.dim = int(self._model.encode_text(tokenizer(["a"]).to(device)).shape[1])

    def encode_text(self, captions: Sequence[str]) -> np.ndarray:
        """Return unit vectors (N, dim), float32."""
        tokens = [self._tokenizer(list(captions[at : at + TEXTS])) for at in range(0, len(captions), TEXTS)]
        return self._run(self._model.encode_text, tokens)

    def encode_image(self, photos: Sequence[np.ndarray]) -> np.ndarray:
        """Return unit vectors (N, dim), float32, of uint8 (H, W, 3) sRGB photos of any sizes.

        Each photo is resized to a square without cropping.
        """
        chunks = (
            torch.stack([self._transform(Image.fromarray(photo)) for photo in photos[at : at + PHOTOS]])
            for at in range(0, len(photos), PHOTOS)
        )
        return self._run(self._model.encode_image, chunks)

    def _run(self, tower: Callable[..., Tensor], chunks: Iterable[Tensor]) -> np.ndarray:
        """Embed chunks by one tower and concatenate the results."""
        vectors: list[Tensor] = []
        with torch.inference_mode():
            for chunk in chunks:
                vectors.append(tower(chunk.to(self._device), normalize=True).float().cpu())
        return torch.cat(vectors).numpy() if vectors else np.zeros((0, self.dim), np.float32)


def load_clip(params: ClipParams, local: Path | None = None, device: str = "cpu") -> Clip:
    """Load the CLIP that the params name.

    Args:
        params: Architecture and weights.
        local: The file that `train_local_clip` wrote, for model `local`.
        device: `auto` or the name of a torch device.

    Raises:
        InputError: Architecture, tag or file is not available, or they do not match.
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
    """Return `Clip.digest` of the CLIP that `load_clip` would load, without loading it; raises InputError like it."""
    name, pretrained = _named_weights(params, local)
    return sha256_file(Path(pretrained)) if Path(pretrained).is_file() else digest_of([name, pretrained])


@dataclass(frozen=True)
class LocalClip:
    """Result of training the small CLIP."""

    digest: str
    first_loss: float
    """Mean over the first tenth of the steps."""
    last_loss: float
    """Mean over the last tenth of the steps."""
    held_out: int
    """Number of pairs with distinct captions kept out of training; 0 with fewer than 40 pairs."""
    retrieval: float
    """Share of held-out photos whose own caption is the nearest of the held-out ones; chance level is 1 / held_out."""


def train_local_clip(
    pairs: Sequence[tuple[Path | np.ndarray, str]],
    steps: int,
    seed: int,
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> LocalClip:
    """Train the small CLIP with open_clip's contrastive loss and save it atomically as safetensors.

    The same pairs, steps and seed give the same file on the same machine.

    Args:
        pairs: Photos (path, or uint8 (H, W, 3)) with their captions.
        steps: Number of training steps.
        seed: Seed of the weights and of all draws.
        out: File to write.
        progress: Called as (step, steps).

    Raises:
        NothingToTrainOn: There are fewer than two different captions.
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
        # Channels-last format makes the image tower a third faster on a CPU.
        model = open_clip.CLIP(**config).to(memory_format=torch.channels_last)
        side: int = config["vision_cfg"]["image_size"]
        # Photos are stored slightly larger than the input, for random crops.
        margin = side // 8
        photos = torch.stack([_photo(source, side + margin) for source, _ in pairs])
        # The normalisation that open_clip's own transform applies when the file is loaded.
        statistics = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
        tokens = open_clip.get_tokenizer(LOCAL_NAME)([caption for _, caption in pairs])

        def images_of(rows: list[int], y: int, x: int) -> Tensor:
            """Return a crop of these photos, normalised."""
            return (photos[rows, :, y : y + side, x : x + side].float() / 255 - mean) / std

        # Keep some pairs out of training to measure retrieval.
        test = _held_out(pairs, seed)
        # Group the training photos by caption.
        by_caption: dict[str, list[int]] = {}
        for row, (_, caption) in enumerate(pairs):
            if row not in test:
                by_caption.setdefault(caption, []).append(row)
        groups = list(by_caption.values())
        rng = np.random.default_rng(seed)
        loss_of, losses = open_clip.ClipLoss(), list[float]()
        optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
        total = max(2, steps)
        # OneCycleLR divides by zero if the rise is a single step.
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, PEAK_LR, total_steps=total, pct_start=max(0.1, 1.5 / total)
        )
        model.train()
        for step in range(steps):
            # One photo per caption: a caption that occurs twice in a batch would be its own negative.
            chosen = rng.permutation(len(groups))[:BATCH]
            rows = [groups[g][int(rng.integers(len(groups[g])))] for g in chosen]
            # One random crop and flip for the whole batch.
            y, x = rng.integers(0, margin + 1, 2)
            images = images_of(rows, int(y), int(x))
            images = images.flip(3) if rng.random() < 0.5 else images
            image, text, scale = model(images, tokens[rows])[:3]
            loss = cast(Tensor, loss_of(image, text, scale))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            # The temperature is limited as in the CLIP paper.
            with torch.no_grad():
                model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            losses.append(float(loss.detach()))
            if progress:
                progress(step + 1, steps)
        # Centre crop, as the transform of the finished model does.
        retrieval = _retrieval(model.eval(), images_of(sorted(test), margin // 2, margin // 2), tokens[sorted(test)])
    data = save({name: value.contiguous() for name, value in model.state_dict().items()})
    write_bytes(out, data)
    # Report the loss at both ends of training.
    tenth = max(1, steps // 10)
    first, last = (float(np.mean(values)) if values else math.nan for values in (losses[:tenth], losses[-tenth:]))
    return LocalClip(sha256_bytes(data), first, last, len(test), retrieval)


def cached_embeddings(
    clip: Clip,
    cache: Path,
    tower: Literal["image", "text"],
    keys: Sequence[str],
    load: Callable[[str], Any],
) -> np.ndarray:
    """Return embeddings (N, dim) in the order of `keys`, each computed once per CLIP and key.

    They are stored in a memory-mapped, append-only file. After a kill the next call continues from the saved part.

    Args:
        clip: The CLIP.
        cache: Folder of the file.
        tower: Tower to use.
        keys: Names of the photos or texts.
        load: Returns the photo (uint8 (H, W, 3)) or the caption of a key; called for missing keys only.
    """
    shelf = Shelf(cache, f"{clip.digest[:16]}-{tower}", (4 * clip.dim,))
    names = {key: sha256_bytes(key.encode()) for key in dict.fromkeys(keys)}
    encode = clip.encode_image if tower == "image" else clip.encode_text
    with exclusive(cache / ".lock"):
        # Another process may have added embeddings.
        shelf.reload()
        missing = [key for key, name in names.items() if name not in shelf]
        for start in range(0, len(missing), SAVE_EVERY):
            chunk = missing[start : start + SAVE_EVERY]
            rows = encode([load(key) for key in chunk]).astype(np.float32).view(np.uint8)
            shelf.append([(names[key], row) for key, row in zip(chunk, rows, strict=True)])
    vectors = [shelf[names[key]].view(np.float32) for key in keys]
    return np.stack(vectors) if vectors else np.zeros((0, clip.dim), np.float32)


def _open_clip() -> ModuleType:
    """Import open_clip with the local architecture registered."""
    ensure_torchvision()
    if LOCAL_NAME not in open_clip.list_models():
        open_clip.add_model_config(Path(__file__).with_name(f"{LOCAL_NAME}.json"))
    return import_module("open_clip")


def _named_weights(params: ClipParams, local: Path | None) -> tuple[str, str]:
    """Return the architecture and the tag or file of its weights; raise InputError if either is not available."""
    open_clip = _open_clip()
    name, pretrained = params.model, params.pretrained
    if name == "local":
        if local is None or not local.is_file():
            raise InputError(f"{local}: no local CLIP yet: train it from text-image samples (train-multimodal)")
        # The local model is loaded under its registered name.
        name, pretrained = LOCAL_NAME, str(local)
    if name not in open_clip.list_models():
        close = [model for model in open_clip.list_models() if model[:4].lower() == name[:4].lower()][:4]
        raise InputError(
            f"params.yaml: clip.model: open_clip has no {name!r}; for example {', '.join(close or ['ViT-B-32'])}"
        )
    if not Path(pretrained).is_file() and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6]) or "none"
        raise InputError(f"params.yaml: clip.pretrained: {pretrained!r} is neither a file nor a tag of {name} ({tags})")
    return name, pretrained


def _photo(source: Path | np.ndarray, side: int) -> Tensor:
    """Return a photo resized to a square: uint8 (3, side, side)."""
    rgb = source if isinstance(source, np.ndarray) else load_rgb(source, max_side=4 * side)
    return torch.from_numpy(np.ascontiguousarray(resize(rgb, side, side).transpose(2, 0, 1)))


def _held_out(pairs: Sequence[tuple[object, str]], seed: int) -> set[int]:
    """Return up to 32 rows with different captions, at most a tenth of the pairs."""
    if len(pairs) < 40:
        return set()
    rows: dict[str, int] = {}
    for row in np.random.default_rng(seed).permutation(len(pairs)):
        rows.setdefault(pairs[row][1], int(row))
    return set(list(rows.values())[: min(32, len(pairs) // 10)])


def _retrieval(model: CLIP, images: Tensor, tokens: Tensor) -> float:
    """Return the share of images whose caption is the nearest of all images' captions; NaN without images."""
    if not len(images):
        return math.nan
    with torch.inference_mode():
        similarity = model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T
    return float((similarity.argmax(1) == torch.arange(len(images))).float().mean())
