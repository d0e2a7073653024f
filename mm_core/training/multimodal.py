"""Multimodal stage: text teaches where the picture alone is unsure (Matting Moments, section 2.2).

A frozen CLIP text embedding is fused into the encoder's bottleneck. Five terms come on top of the earlier stages':
- `captioned`: labelled photos decoded with their text must match their matte, so that text becomes useful at all;
- `text`: on captioned photos without a matte, the image-only and the text-image matte must agree. By default the text
  side is the target without gradient: it knows more, and at inference there is no text (`teacher` says otherwise);
- `contrast`: the fused feature (anchor) must be nearer to the image-only feature of the photo (positive) than
  features fused with other photos' texts (negatives) are; equal captions are no negatives of each other;
- `text_view`: both mattes of a captioned photo, strongly altered, follow the teacher's, as unlabelled photos do;
- `distil`: from the encoder's features of any photo one must be able to read what the image tower says of it: meant
  for few mattes, which do not tell what belongs to a subject; alone it was not shown to help (docs/decisions/0018).

The CLIP towers run once per caption and photo, before training, and not in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.core.layout import Layout
from mm_core.core.params import LossParams, MultimodalParams, Params, SemiParams
from mm_core.core.records import digest_of
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.model.clip import cached_embeddings, load_clip, train_local_clip
from mm_core.model.fusion import TextFusion
from mm_core.model.network import MattingNet
from mm_core.training.losses import consistency, contrastive, matting_losses
from mm_core.training.semi import Semi, frozen_batch_norm_stats, pseudo_label_loss, ramp, scale_gradient
from mm_core.training.supervised import Features, Pools
from mm_core.training.trainer import Sample

NEGATIVES = 4
"""Wrong texts per anchor, at most."""


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
    local = None
    if params.clip.model == "local":
        pairs = sorted(zip(text_image["sample_id"], text_image["caption"], strict=True))
        local = layout.cache / "clip" / f"{digest_of([pairs, params.clip.model_dump(), params.seed])}.safetensors"
        if not local.is_file():
            photos = [(np.asarray(cache.photos[sample]), caption) for sample, caption in pairs]
            train_local_clip(photos, params.clip.steps, params.seed, local, progress=partial(progress, "train clip"))
    clip = load_clip(params.clip, local)
    frames, folder = [text_image, *others], layout.cache / "clip"
    captions = sorted({caption for frame in frames for caption in frame["caption"].dropna() if caption.strip()})
    samples = sorted({sample for frame in frames for sample in frame["sample_id"]})
    texts = cached_embeddings(clip, folder, "text", captions, lambda caption: caption)
    looks = cached_embeddings(clip, folder, "image", samples, lambda sample: np.asarray(cache.photos[sample]))
    return Towers(
        dict(zip(captions, torch.from_numpy(texts), strict=True)),
        dict(zip(samples, torch.from_numpy(looks), strict=True)),
    )


def with_captions(frame: pd.DataFrame, text_image: pd.DataFrame, towers: Towers) -> pd.DataFrame:
    """A copy in which every row has a text: its own, or of its category's captions the one the towers find nearest.

    Photos with mattes rarely come with text. A caption that nearly fits teaches the fusion what it will meet on
    captioned photos; a sentence made of the category is unlike any of them. Where the category has none, of all.
    """
    captions = frame["caption"].fillna("").tolist()
    pools = text_image.groupby("category")["caption"].unique().to_dict()
    every = text_image["caption"].unique()
    for row, (sample, category) in enumerate(zip(frame["sample_id"], frame["category"], strict=True)):
        if not captions[row].strip():
            known = pools.get(category, every)
            likeness = torch.stack([towers.captions[text] for text in known]) @ towers.photos[sample]
            captions[row] = known[int(likeness.argmax())]
    return frame.assign(caption=captions)


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
        self._caption_place = {caption: row for row, caption in enumerate(towers.captions)}
        self._photo_place = {sample: row for row, sample in enumerate(towers.photos)}
        self._vectors: Tensor
        self._looks: Tensor
        self.register_buffer("_vectors", _spread(torch.stack(list(towers.captions.values()))), persistent=False)
        self.fusion = TextFusion(net.bottleneck_channels, self._vectors.shape[1])
        self.projection_head = None
        if multimodal.distil:
            self.register_buffer("_looks", _centred(torch.stack(list(towers.photos.values()))), persistent=False)
            self.projection_head = projection_head(net.bottleneck_channels, self._looks.shape[1])

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], progress: float
    ) -> dict[str, Tensor]:
        terms = super().terms(features, batches, progress)
        with frozen_batch_norm_stats(self.net.decoders):
            return terms | self._text_terms(features, batches, ramp(progress, self._semi.ramp_share))

    def _text_terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], rise: float
    ) -> dict[str, Tensor]:
        terms, options = dict[str, Tensor](), self._multimodal
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
            terms["text"] = options.consistency * rise * agreement(image_logits, text_logits, options.teacher)
            if batch.taught:
                both = pseudo_label_loss(image_logits, batch.alpha) + pseudo_label_loss(text_logits, batch.alpha)
                terms["text_view"] = self._semi.view * rise * both
        if options.contrastive:
            terms["contrast"] = options.contrastive * self._contrast(maps, fused, text, batch.captions)
        if self.projection_head is not None:
            terms["distil"] = options.distil * self._distil(features, batches, rise)
        return terms

    def texts(self, captions: Sequence[str]) -> Tensor:
        """(B, D), of zero mean and unit variance over all captions."""
        return self._vectors[torch.tensor([self._caption_place[c] for c in captions], device=self._vectors.device)]

    def _distil(self, features: Mapping[str, Features], batches: Mapping[str, Sample], rise: float) -> Tensor:
        assert self.projection_head is not None
        pooled = torch.cat([features[name][-1].float().mean((2, 3)) for name in batches])
        rows = [self._photo_place[sample] for batch in batches.values() for sample in batch.ids]
        looks = self._looks[torch.tensor(rows, device=self._looks.device)]
        # The head begins from nothing: until it reads well, what it asks of the encoder is noise.
        return 1 - F.cosine_similarity(self.projection_head(scale_gradient(pooled, rise)), looks).mean()

    def _contrast(self, maps: Features, fused: Features, text: Tensor, captions: Sequence[str]) -> Tensor:
        shifts = range(1, min(NEGATIVES, len(captions) - 1) + 1)
        wrong = [self.fusion.project(self.fusion(maps, text.roll(shift, 0))[-1]) for shift in shifts]
        ids = torch.tensor([self._caption_place[c] for c in captions], device=text.device)
        allowed = torch.stack([ids != ids.roll(shift) for shift in shifts], 1)
        anchor, positive = self.fusion.project(fused[-1]), self.fusion.project(maps[-1])
        return contrastive(anchor, positive, torch.stack(wrong, 1), allowed, self._multimodal.temperature)


def projection_head(channels: int, dim: int, hidden: int = 256) -> nn.Module:
    """(B, channels) → (B, dim): reads a tower's vector from the pooled bottleneck."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _spread(vectors: Tensor) -> Tensor:
    """(N, D) centred and scaled to unit variance: CLIP's vectors lie in a narrow cone (Liang et al. 2022), and what
    they share would drown what tells them apart."""
    centred = _centred(vectors)
    return centred / centred.std(unbiased=False).clamp_min(1e-6)


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)


def agreement(image_logits: Tensor, text_logits: Tensor, teacher: Literal["text", "image", "both"]) -> Tensor:
    """Mean squared distance of the two mattes; the teacher's side gets no gradient, with `both` each side does."""
    if teacher == "text":
        return consistency(image_logits, text_logits.float().sigmoid())
    if teacher == "image":
        return consistency(text_logits, image_logits.float().sigmoid())
    return F.mse_loss(image_logits.float().sigmoid(), text_logits.float().sigmoid())
