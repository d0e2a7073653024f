"""Multimodal stage: captions improve the mattes of photos (Matting Moments, section 2.2).

A frozen CLIP text embedding is fused into the encoder's bottleneck. Five terms are added to the earlier stages':

- `captioned`: labelled photos decoded with their text must match their matte; this trains the fusion;
- `text`: on captioned photos without a matte, the image-only and the text-image matte must agree. By default the
  text-image matte is the target without gradient, because it has more information (`teacher` changes this);
- `contrast`: the fused feature (anchor) must be nearer to the photo's image-only feature (positive) than features
  fused with other photos' captions (negatives) are; photos with the same caption are not negatives of each other;
- `text_view`: both mattes of a strongly augmented captioned photo must match the teacher's prediction;
- `distil`: a projection of the encoder's pooled features must match the vector of CLIP's image tower. The term is
  meant for data sets with few mattes; on its own it brought no measured gain (docs/decisions/0018).

The CLIP towers run once per caption and photo before training, and not during it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_core.core.params import LossParams, MultimodalParams, SemiParams
from mm_core.core.records import digest_of
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.model.clip import cached_embeddings, load_clip, train_local_clip
from mm_core.model.fusion import TextFusion
from mm_core.model.network import MattingNet
from mm_core.training.losses import consistency, contrastive, matting_losses
from mm_core.training.semi import Semi, frozen_batch_norm_stats, pseudo_label_loss, ramp, scale_gradient
from mm_core.training.supervised import Features, Pools
from mm_core.training.trainer import Sample

if TYPE_CHECKING:
    # For type checkers alone, so that the code of the catalog is no part of a model's content key.
    from mm_core.storage.run import StorageRun

NEGATIVES = 4
"""Maximum number of captions of other photos per anchor."""


@dataclass(frozen=True)
class Towers:
    """Embeddings by a frozen CLIP as unit vectors (D,), by caption and by sample id."""

    captions: Mapping[str, Tensor]
    photos: Mapping[str, Tensor]
    """Vectors by sample id."""


def embed(run: StorageRun, cache: PixelCache, text_image: pd.DataFrame, others: Sequence[pd.DataFrame]) -> Towers:
    """Embed all photos and captions of `text_image` and `others` with CLIP.

    With `clip.model: local` a small CLIP is trained on `text_image` first, once per set of pairs.

    Args:
        run: Params, workspace, storage and progress.
        cache: Decoded photos of all frames.
        text_image: Frame of captioned photos.
        others: Further frames of photos, with or without captions.

    Raises:
        InputError: Model or weights are not available.
        NothingToTrainOn: The local CLIP has fewer than two different captions.
    """
    params = run.params
    local = None
    if params.clip.model == "local":
        # The file name is a digest of everything that the training depends on.
        pairs = sorted(zip(text_image["sample_id"], text_image["caption"], strict=True))
        local = run.layout.cache / "clip" / f"{digest_of([pairs, params.clip.model_dump(), params.seed])}.safetensors"
        if not local.is_file():
            photos = [(np.asarray(cache.photos[sample]), caption) for sample, caption in pairs]
            train_local_clip(
                photos, params.clip.steps, params.seed, local, progress=partial(run.progress, "train clip")
            )
    clip = load_clip(params.clip, local)
    frames, folder = [text_image, *others], run.layout.cache / "clip"
    captions = sorted({caption for frame in frames for caption in frame["caption"].dropna() if caption.strip()})
    samples = sorted({sample for frame in frames for sample in frame["sample_id"]})
    texts = cached_embeddings(clip, folder, "text", captions, lambda caption: caption)
    photos = cached_embeddings(clip, folder, "image", samples, lambda sample: np.asarray(cache.photos[sample]))
    return Towers(
        dict(zip(captions, torch.from_numpy(texts), strict=True)),
        dict(zip(samples, torch.from_numpy(photos), strict=True)),
    )


def with_captions(frame: pd.DataFrame, text_image: pd.DataFrame, towers: Towers) -> pd.DataFrame:
    """Return a copy of `frame` in which every photo has a caption.

    A photo without a caption gets the one from its category's captions that CLIP finds nearest to the photo. If the
    category has no captions, all captions are candidates. A sentence made of the category's name would be unlike the
    captions that the fusion receives on captioned photos.
    """
    captions = frame["caption"].fillna("").tolist()
    pools = text_image.groupby("category")["caption"].unique().to_dict()
    every = text_image["caption"].unique()
    for row, (sample, category) in enumerate(zip(frame["sample_id"], frame["category"], strict=True)):
        if not captions[row].strip():
            candidates = pools.get(category, every)
            # Unit vectors: the dot product is the cosine similarity.
            similarity = torch.stack([towers.captions[text] for text in candidates]) @ towers.photos[sample]
            captions[row] = candidates[int(similarity.argmax())]
    return frame.assign(caption=captions)


class Multimodal(Semi):
    """Semi-supervised training plus the terms on captions."""

    def __init__(
        self,
        net: MattingNet,
        pools: Pools,
        loss: LossParams,
        semi: SemiParams,
        multimodal: MultimodalParams,
        towers: Towers,
    ) -> None:
        """Create the strategy with the fusion and, if `multimodal.distil` is set, the projection head.

        Args:
            net: Net to train.
            pools: As in `Semi`, with `text` in addition.
            loss: Weights of the supervised terms.
            semi: Options of the consistency terms; `multimodal.semi` replaces their weight.
            multimodal: Weights of the terms on captions.
            towers: Vectors of the captions of `text` and `labeled`; for `distil` also of every photo.
        """
        super().__init__(net, pools, loss, semi, weight=multimodal.semi)
        self._multimodal = multimodal
        self._caption_place = {caption: row for row, caption in enumerate(towers.captions)}
        self._photo_place = {sample: row for row, sample in enumerate(towers.photos)}
        # The vectors are buffers, so that they move to the device with the module; they are not saved.
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
        """Return the semi-supervised terms and the terms on captions."""
        terms = super().terms(features, batches, progress)
        with frozen_batch_norm_stats(self.net.decoders):
            return terms | self._text_terms(features, batches, ramp(progress, self._semi.ramp_share))

    def _text_terms(
        self, features: Mapping[str, Features], batches: Mapping[str, Sample], rise: float
    ) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0; `rise` is the ramp in [0, 1]."""
        terms, options = dict[str, Tensor](), self._multimodal
        labeled, batch = batches["labeled"], batches["text"]
        if options.captioned:
            # Only the main output is fused; the side outputs of U2-Net get no text.
            fused = self.fusion(features["labeled"], self.texts(labeled.captions))
            outputs = self.net.route(fused, labeled.decoders)[:1]
            weighted = matting_losses(outputs, labeled.alpha, labeled.binary, self._loss)
            terms["captioned"] = options.captioned * torch.stack(list(weighted.values())).sum()
        # Captioned photos: decode the same features with and without text.
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
        """Return the vectors (B, D) of captions, with zero mean and unit variance over all captions."""
        return self._vectors[torch.tensor([self._caption_place[c] for c in captions], device=self._vectors.device)]

    def _distil(self, features: Mapping[str, Features], batches: Mapping[str, Sample], rise: float) -> Tensor:
        """Return one minus the cosine similarity of projected features and CLIP's image vectors, averaged: scalar."""
        assert self.projection_head is not None
        pooled = torch.cat([features[name][-1].float().mean((2, 3)) for name in batches])
        rows = [self._photo_place[sample] for batch in batches.values() for sample in batch.ids]
        targets = self._looks[torch.tensor(rows, device=self._looks.device)]
        # The head starts from random weights; until it is trained, its gradient for the encoder is noise.
        return 1 - F.cosine_similarity(self.projection_head(scale_gradient(pooled, rise)), targets).mean()

    def _contrast(self, maps: Features, fused: Features, text: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the contrastive loss of fused features against features fused with captions of other rows: scalar."""
        # Rolling the batch pairs each photo with the captions of other rows.
        shifts = range(1, min(NEGATIVES, len(captions) - 1) + 1)
        wrong = [self.fusion.project(self.fusion(maps, text.roll(shift, 0))[-1]) for shift in shifts]
        ids = torch.tensor([self._caption_place[c] for c in captions], device=text.device)
        # Rows with an equal caption are not negatives.
        # One column per roll: true if the captions differ.
        allowed = torch.stack([ids != ids.roll(shift) for shift in shifts], 1)
        anchor, positive = self.fusion.project(fused[-1]), self.fusion.project(maps[-1])
        return contrastive(anchor, positive, torch.stack(wrong, 1), allowed, self._multimodal.temperature)


def projection_head(channels: int, dim: int, hidden: int = 256) -> nn.Module:
    """Return a network (B, channels) → (B, dim) that predicts a tower's vector from the pooled bottleneck."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _spread(vectors: Tensor) -> Tensor:
    """Centre vectors (N, D) and scale them to unit variance.

    CLIP's vectors are concentrated in a narrow cone (Liang et al. 2022): without centring, their common direction
    dominates the differences between them.
    """
    centred = _centred(vectors)
    return centred / centred.std(unbiased=False).clamp_min(1e-6)


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)


def agreement(image_logits: Tensor, text_logits: Tensor, teacher: Literal["text", "image", "both"]) -> Tensor:
    """Return the mean squared distance of the two mattes.

    The teacher's side gets no gradient; with `both` each side gets one.
    """
    if teacher == "text":
        return consistency(image_logits, text_logits.float().sigmoid())
    if teacher == "image":
        return consistency(text_logits, image_logits.float().sigmoid())
    return F.mse_loss(image_logits.float().sigmoid(), text_logits.float().sigmoid())
