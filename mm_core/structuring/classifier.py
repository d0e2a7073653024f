"""Tag and embed photos by the packaged ImageNet classifier, which needs no model hub.

The vector is the classifier's pooled feature. It is used for category guesses, diversity and drift if no pretrained
CLIP is configured. CLIP's own vector and tags replace it otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.model.packaged import PACKAGED, load_packaged_classifier, packaged_file
from mm_core.model.predict import pick_device
from mm_core.model.preprocess import prepare
from mm_core.structuring.decode import code_version
from mm_core.structuring.imagenet import class_names, softmax
from mm_core.structuring.rows import Found, Photo

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

EXTRACTOR = "classifier"
VERSION = code_version(__name__)
SIDE = 224
"""Side in pixels of the classifier's square input, the size it was trained at."""
BATCH = 16


class ClassifierTags:
    """ImageNet tags and vectors of photos; the weights are loaded at the first photo."""

    extractor = EXTRACTOR

    def __init__(self, encoder: str, tags: int, device: str) -> None:
        """Check that the weights are available.

        Args:
            encoder: timm model name with weights in a package.
            tags: Classes kept per photo.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            InputError: The package is missing or damaged.
        """
        packaged_file(encoder)
        self._encoder, self._tags, self._device_name = encoder, tags, device
        self.version = f"{VERSION}/{PACKAGED[encoder].sha256[:16]}/{tags}"

    @cached_property
    def _device(self) -> str:
        # Resolved at the first photo: it needs torch, whose import takes seconds.
        return pick_device(self._device_name)

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
            Per photo the numbers `tag/<class>`, probabilities of the most probable classes; the text `tags`, in order;
            vector, the pooled features as a float32 unit vector (1280,).
        """
        rows = []
        for start in range(0, len(photos), BATCH):
            logits, vectors = self._classify([photo.small for photo in photos[start : start + BATCH]])
            for probabilities, vector in zip(softmax(logits), vectors, strict=True):
                # A stable sort keeps the class order among equal probabilities.
                best = np.argsort(-probabilities, kind="stable")[: self._tags]
                numbers = {f"tag/{self._names[i]}": float(probabilities[i]) for i in best}
                rows.append(Found(numbers, {"tags": "; ".join(self._names[i] for i in best)}, vector))
        return rows

    def _classify(self, photos: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (B, 1000) and unit vectors (B, 1280) of photos."""
        config = self._model.pretrained_cfg
        mean, std = (np.array(config[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
        # Normalise as the classifier was trained.
        images = np.stack([(prepare(photo, SIDE) - mean) / std for photo in photos])
        with torch.inference_mode():
            # Run the head in two steps, because both pooled features and logits are needed.
            features = self._model.forward_features(torch.from_numpy(images).to(self._device))
            pooled = self._model.forward_head(features, pre_logits=True)
            logits = self._model.classifier(pooled)
            vectors = torch.nn.functional.normalize(pooled, dim=1)
        return logits.float().cpu().numpy(), vectors.float().cpu().numpy()
