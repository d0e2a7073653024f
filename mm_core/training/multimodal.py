"""Multimodal stage: captions improve the mattes of photos (Matting Moments, section 2.2).

A frozen CLIP text embedding is fused into the encoder's bottleneck. Three terms are added to the earlier stages':

- `captioned`: labelled photos decoded with their text must match their matte; this trains the fusion;
- `text`: on captioned photos without a matte, the image-only matte must match the text-image matte. The target gets no
  gradient, because the text-image matte has more information;
- `contrast`: the fused feature (anchor) must be nearer to the photo's image-only feature (positive) than features
  fused with other photos' captions (negatives) are; photos with the same caption are not negatives of each other.

The CLIP towers run once per caption and photo before training, and not during it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mm_core.core.params import LossParams, MultimodalParams, SemiParams
from mm_core.core.records import digest_of
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.model.clip import cached_embeddings, load_clip, train_local_clip
from mm_core.model.fusion import TextFusion
from mm_core.model.network import MattingNet
from mm_core.training.losses import consistency, contrastive, matting_losses
from mm_core.training.semi import Semi, frozen_batch_norm_stats, ramp
from mm_core.training.supervised import Features, Pools
from mm_core.training.trainer import DeviceBatch

if TYPE_CHECKING:
    # For type checkers alone, so that the code of the catalog is no part of a model's content key.
    from mm_core.storage.run import StorageRun

NEGATIVES = 4
"""Maximum number of captions of other photos per anchor."""


@dataclass(frozen=True)
class Towers:
    """Embeddings by a frozen CLIP as unit vectors (D,)."""

    captions: Mapping[str, Tensor]
    """Vectors by caption."""
    photos: Mapping[str, Tensor]
    """Vectors by sample id; only of labelled photos without a caption."""


def embed(run: StorageRun, cache: PixelCache, text_image: pd.DataFrame, labeled: pd.DataFrame) -> Towers:
    """Embed all captions, and the labelled photos without a caption, with CLIP.

    With `clip.model: local` a small CLIP is trained on `text_image` first, once per set of pairs.

    Args:
        run: Params, workspace, storage and progress.
        cache: Decoded photos of both frames.
        text_image: Frame of captioned photos.
        labeled: Frame of labelled photos, with or without captions.

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
    folder = run.layout.cache / "clip"
    captions = sorted({text for frame in (text_image, labeled) for text in frame["caption"].dropna() if text.strip()})
    has_caption = labeled["caption"].fillna("").str.strip() != ""
    samples = sorted(labeled.loc[~has_caption, "sample_id"].unique())
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
        """Create the strategy and its fusion.

        Args:
            net: Net to train.
            pools: As in `Semi`, with `text` in addition.
            loss: Weights of the supervised terms.
            semi: Options of the consistency terms; `multimodal.semi` replaces their weight.
            multimodal: Weights of the terms on captions.
            towers: Vectors of the captions of `text` and `labeled`.
        """
        super().__init__(net, pools, loss, semi.model_copy(update={"weight": multimodal.semi}))
        self._multimodal = multimodal
        self._caption_place = {caption: row for row, caption in enumerate(towers.captions)}
        # The vectors are buffers, so that they move to the device with the module; they are not saved.
        self._vectors: Tensor
        self.register_buffer("_vectors", _spread(torch.stack(list(towers.captions.values()))), persistent=False)
        self.fusion = TextFusion(net.bottleneck_channels, self._vectors.shape[1])

    def terms(
        self, features: Mapping[str, Features], batches: Mapping[str, DeviceBatch], progress: float
    ) -> dict[str, Tensor]:
        """Return the semi-supervised terms and the terms on captions."""
        terms = super().terms(features, batches, progress)
        with frozen_batch_norm_stats(self.net.decoders):
            return terms | self._text_terms(features, batches, ramp(progress, self._semi.ramp_share))

    def _text_terms(
        self, features: Mapping[str, Features], batches: Mapping[str, DeviceBatch], rise: float
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
            logits = self.net.route(maps, batch.decoders)[0]
            with torch.no_grad():
                target = self.net.route(fused, batch.decoders)[0].float().sigmoid()
            terms["text"] = options.consistency * rise * consistency(logits, target)
        if options.contrastive:
            terms["contrast"] = options.contrastive * self._contrast(maps, fused, text, batch.captions)
        return terms

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Return the vectors (B, D) of captions, with zero mean and unit variance over all captions."""
        return self._vectors[torch.tensor([self._caption_place[c] for c in captions], device=self._vectors.device)]

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


def _spread(vectors: Tensor) -> Tensor:
    """Centre vectors (N, D) and scale them to unit variance.

    CLIP's vectors are concentrated in a narrow cone (Liang et al. 2022): without centring, their common direction
    dominates the differences between them.
    """
    centred = vectors - vectors.mean(0)
    return centred / centred.std(unbiased=False).clamp_min(1e-6)
