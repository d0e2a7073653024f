"""What is in a photo, by the packaged ImageNet classifier: tags and a vector that need no model hub.

The vector is the classifier's pooled feature. It serves guesses of the category, diversity and drift wherever no
pretrained CLIP is named; CLIP's own vector and tags replace it where one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mm_core.model.packaged import PACKAGED, load_packaged_classifier, packaged_file
from mm_core.model.predict import pick_device
from mm_core.model.preprocess import prepare
from mm_core.structuring.rows import Found, Photo
from mm_core.structuring.tags import class_names, softmax

EXTRACTOR = "classifier"
VERSION = "1"
"""Rises whenever a number below may come out differently; older rows are then computed again."""
SIDE = 224
"""Side of the square that the classifier sees, in pixels: the one it was trained at."""
BATCH = 16


class ClassifierTags:
    """ImageNet tags and vectors of photos; the weights are loaded when the first photo comes."""

    extractor = EXTRACTOR

    def __init__(self, encoder: str, tags: int, device: str):
        """Check that the weights are there.

        Args:
            encoder: timm model name whose weights a package ships.
            tags: Classes kept per photo.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            InputError: The package is missing or damaged.
        """
        packaged_file(encoder)
        self._encoder, self._tags, self._device = encoder, tags, pick_device(device)
        self.version = f"{VERSION}/{PACKAGED[encoder].sha256[:16]}/{tags}"

    @cached_property
    def _model(self) -> Any:
        return load_packaged_classifier(self._encoder).to(self._device)

    @cached_property
    def _names(self) -> list[str]:
        return class_names()

    def run(self, photos: Sequence[Photo]) -> list[Found]:
        """Classify photos.

        Args:
            photos: Decoded photos.

        Returns:
            Per photo: numbers `tag/<class>`, the probability of the likeliest classes; text `tags`, likeliest first;
            vector, the pooled features as a float32 unit vector (1280,).
        """
        found = []
        for start in range(0, len(photos), BATCH):
            logits, vectors = self._classify([photo.small for photo in photos[start : start + BATCH]])
            for chances, vector in zip(softmax(logits), vectors, strict=True):
                best = np.argsort(-chances, kind="stable")[: self._tags]
                numbers = {f"tag/{self._names[i]}": float(chances[i]) for i in best}
                found.append(Found(numbers, {"tags": "; ".join(self._names[i] for i in best)}, vector))
        return found

    def _classify(self, photos: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        import torch

        config = self._model.pretrained_cfg
        mean, std = (np.array(config[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
        images = np.stack([(prepare(photo, SIDE) - mean) / std for photo in photos])
        with torch.inference_mode():
            features = self._model.forward_features(torch.from_numpy(images).to(self._device))
            pooled = self._model.forward_head(features, pre_logits=True)
            logits = self._model.classifier(pooled)
            vectors = torch.nn.functional.normalize(pooled, dim=1)
        return logits.float().cpu().numpy(), vectors.float().cpu().numpy()
