"""Multimodal stage: text teaches where the picture alone is unsure (Matting Moments, section 2.2).

A frozen CLIP text embedding is fused into the encoder's bottleneck. Five terms come on top of the earlier stages':
- `captioned`: labelled photos decoded with their text must match their matte, so that text becomes useful at all;
- `text`: on captioned photos without a matte, the image-only and the text-image matte must agree. By default the text
  side is the target without gradient: it knows more, and at inference there is no text (`teacher` says otherwise);
- `contrast`: the fused feature (anchor) must be nearer to the image-only feature of the photo (positive) than
  features fused with other photos' texts (negatives) are; equal captions are no negatives of each other;
- `text_view`: both mattes of a captioned photo, strongly altered, follow the teacher's, as unlabelled photos do;
- `distil`: from the encoder's features of any photo one must be able to read what the image tower says of it, and of a
  captioned photo which of all captions is its own: what the towers know of kinds of subjects helps to tell one from its
  surroundings where few mattes do.

The CLIP towers run once per caption and photo, before training, and not in the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.data.dataset import PixelCache
from mm_core.layout import Layout
from mm_core.model.fusion import TextFusion
from mm_core.model.network import MattingNet
from mm_core.params import LossParams, MultimodalParams, Params, SemiParams
from mm_core.records import digest_of
from mm_core.training.loop import Sample
from mm_core.training.losses import consistency, contrastive, matting_losses
from mm_core.training.semi import Semi, followed, ramp
from mm_core.training.supervised import Features, Pools

NEGATIVES = 4
"""Wrong texts per anchor, at most."""
PROMPTS: Mapping[str, str] = {
    "portrait": "a portrait photo of a person",
    "multi_person": "a photo of several people",
    "pets": "a photo of a pet animal",
    "accessories": "a photo of a fashion accessory",
    "cards": "a photo of a card with text",
    "delicacy": "a photo of food and drink",
    "scenery": "a landscape photo with sky",
}
"""What stands for the caption of a labelled photo that has only a category."""


def with_prompts(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy in which every row has a text: its caption, or its category's prompt, or `a photo`."""
    prompts = frame["category"].map(lambda category: PROMPTS.get(category, "a photo"))
    return frame.assign(caption=frame["caption"].where(frame["caption"].fillna("").str.strip() != "", prompts))


@dataclass(frozen=True)
class Towers:
    """What a frozen CLIP says; unit vectors (D,)."""

    captions: Mapping[str, Tensor]
    photos: Mapping[str, Tensor]
    """By sample id."""


def embed(
    params: Params,
    layout: Layout,
    cache: PixelCache,
    text_image: pd.DataFrame,
    others: Sequence[pd.DataFrame],
    progress: Callable[[str, int, int], None],
) -> Towers:
    """The towers' vectors of all photos and captions of `text_image` and `others`, which `cache` has decoded.

    With `clip.model: local` a small CLIP is trained on `text_image` first, once per set of pairs.
    """
    from mm_core.model.clip import cached_embeddings, load_clip, train_local_clip

    local = None
    if params.clip.model == "local":
        pairs = sorted(zip(text_image["sample_id"], text_image["caption"], strict=True))
        local = layout.cache / "clip" / f"{digest_of([pairs, params.clip.model_dump(), params.seed])}.safetensors"
        if not local.is_file():
            photos = [(np.asarray(cache.photos[sample]), caption) for sample, caption in pairs]
            train_local_clip(photos, params.clip.steps, params.seed, local, progress=partial(progress, "train clip"))
    clip = load_clip(params.clip, local)
    frames, folder = [text_image, *others], layout.cache / "clip"
    captions = sorted({caption for frame in frames for caption in frame["caption"].dropna()})
    samples = (
        sorted({sample for frame in frames for sample in frame["sample_id"]}) if params.train.multimodal.distil else []
    )
    texts = cached_embeddings(clip, folder, "text", captions, lambda caption: caption)
    looks = cached_embeddings(clip, folder, "image", samples, lambda sample: np.asarray(cache.photos[sample]))
    return Towers(
        dict(zip(captions, torch.from_numpy(texts), strict=True)),
        dict(zip(samples, torch.from_numpy(looks), strict=True)),
    )


class Multimodal(Semi):
    """Semi plus text."""

    def __init__(
        self,
        net: MattingNet,
        pools: Pools,
        loss: LossParams,
        semi: SemiParams,
        multimodal: MultimodalParams,
        towers: Towers,
    ):
        """`pools` also holds `text`; `towers` knows its captions and those of `labeled`, and to distil every photo."""
        super().__init__(net, pools, loss, semi, weight=multimodal.semi)
        self._multimodal = multimodal
        self._place = {caption: row for row, caption in enumerate(towers.captions)}
        self._photo_place = {sample: row for row, sample in enumerate(towers.photos)}
        self._vectors: Tensor
        self._looks: Tensor
        self.register_buffer("_vectors", _spread(torch.stack(list(towers.captions.values()))), persistent=False)
        self.fusion = TextFusion(net.bottleneck_channels, self._vectors.shape[1])
        self.reader = None
        if multimodal.distil:
            self.register_buffer("_looks", _spread(torch.stack(list(towers.photos.values()))), persistent=False)
            self.reader = reader(net.bottleneck_channels, self._looks.shape[1])

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        terms, options = super().terms(features, batches, progress), self._multimodal
        labeled, batch = batches["labeled"], batches["text"]
        if options.captioned:
            fused = self.fusion(features["labeled"], self.texts(labeled.captions))
            outputs = self.net.route(fused, labeled.decoders)[:1]
            parts = matting_losses(outputs, labeled.alpha, labeled.binary, self._loss)
            terms["captioned"] = options.captioned * torch.stack(list(parts.values())).sum()
        maps, text = features["text"], self.texts(batch.captions)
        fused = self.fusion(maps, text)
        if options.consistency:
            image_logits = self.net.route(maps, batch.decoders)[0]
            text_logits = self.net.route(fused, batch.decoders)[0]
            rise = ramp(progress, self._semi.ramp_share)
            terms["text"] = options.consistency * rise * agreement(image_logits, text_logits, options.teacher)
            if batch.taught and self._semi.view:
                both = followed(image_logits, batch.alpha) + followed(text_logits, batch.alpha)
                terms["text_view"] = self._semi.view * rise * both / 2
        if options.contrastive:
            terms["contrast"] = options.contrastive * self._contrast(maps, fused, text, batch.captions)
        if self.reader is not None:
            terms["distil"] = options.distil * self._distil(features, batches)
        return terms

    def texts(self, captions: Sequence[str]) -> Tensor:
        """(B, D), of zero mean and unit variance over all captions."""
        return self._vectors[torch.tensor([self._place[c] for c in captions], device=self._vectors.device)]

    def _distil(self, features: Mapping[str, Features], batches: Mapping[str, Sample]) -> Tensor:
        assert self.reader is not None
        read = {name: self.reader(features[name][-1].float().mean((2, 3))) for name in batches}
        rows = [self._photo_place[sample] for batch in batches.values() for sample in batch.ids]
        looks = self._looks[torch.tensor(rows, device=self._looks.device)]
        far = 1 - F.cosine_similarity(torch.cat(list(read.values())), looks).mean()
        likeness = F.normalize(read["text"], dim=1) @ F.normalize(self._vectors, dim=1).T
        own = torch.tensor([self._place[c] for c in batches["text"].captions], device=likeness.device)
        wrong = F.cross_entropy(likeness / self._multimodal.temperature, own)
        # Against its value for a guess, so that it weighs the same however many captions there are.
        return far + wrong / math.log(max(2, len(self._place)))

    def _contrast(self, maps: Features, fused: Features, text: Tensor, captions: Sequence[str]) -> Tensor:
        shifts = range(1, min(NEGATIVES, len(captions) - 1) + 1)
        wrong = [self.fusion.project(self.fusion(maps, text.roll(shift, 0))[-1]) for shift in shifts]
        ids = torch.tensor([self._place[c] for c in captions], device=text.device)
        allowed = torch.stack([ids != ids.roll(shift) for shift in shifts], 1)
        anchor, positive = self.fusion.project(fused[-1]), self.fusion.project(maps[-1])
        return contrastive(anchor, positive, torch.stack(wrong, 1), allowed, self._multimodal.temperature)


def reader(channels: int, dim: int, hidden: int = 256) -> nn.Module:
    """(B, channels) → (B, dim): reads a tower's vector from the pooled bottleneck."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _spread(vectors: Tensor) -> Tensor:
    """(N, D) centred and scaled to unit variance: CLIP's vectors lie in a narrow cone (Liang et al. 2022), and what
    they share would drown what tells them apart."""
    centred = vectors - vectors.mean(0)
    return centred / centred.std(unbiased=False).clamp_min(1e-6)


def agreement(image_logits: Tensor, text_logits: Tensor, teacher: Literal["text", "image", "both"]) -> Tensor:
    """Mean squared distance of the two mattes; the teacher's side gets no gradient, with `both` each side does."""
    if teacher == "text":
        return consistency(image_logits, text_logits.float().sigmoid())
    if teacher == "image":
        return consistency(text_logits, image_logits.float().sigmoid())
    return F.mse_loss(image_logits.float().sigmoid(), text_logits.float().sigmoid())
