"""Tag and embed photos by the packaged ImageNet classifier, which needs no model hub.

The vector is the classifier's pooled feature. It is used for category guesses, diversity and drift if no pretrained
CLIP is configured. CLIP's own vector and tags replace it otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime

from mm_core.model.packaged import PACKAGED, packaged_file
from mm_core.model.preprocess import prepare
from mm_core.structuring.classifier_graph import CLASSES, SIDE, classifier_graph
from mm_core.structuring.decode import code_version
from mm_core.structuring.imagenet import softmax
from mm_core.structuring.rows import Found, Photo

EXTRACTOR = "classifier"
VERSION = code_version(__name__)
BATCH = 16


class ClassifierTags:
    """ImageNet tags and vectors of photos, computed by onnxruntime on the CPU; the weights load at the first photo."""

    extractor = EXTRACTOR

    def __init__(self, encoder: str, tags: int, folder: Path) -> None:
        """Check that the weights are available.

        Args:
            encoder: timm model name with weights in a package.
            tags: Classes kept per photo.
            folder: Where the exported classifier is kept.

        Raises:
            InputError: The package is missing or damaged.
        """
        packaged_file(encoder)
        self._encoder, self._tags, self._folder = encoder, tags, folder
        self.version = f"{VERSION}/{PACKAGED[encoder].sha256[:16]}/{tags}"

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        # Level 3: errors only. Ray and other schedulers limit the threads of a process by this variable.
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        graph = classifier_graph(self._encoder, self._folder)
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    @cached_property
    def _names(self) -> list[str]:
        return json.loads(self._session.get_modelmeta().custom_metadata_map[CLASSES])

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
            images = np.stack([prepare(photo.small, SIDE) for photo in photos[start : start + BATCH]])
            logits, vectors = (np.asarray(o) for o in self._session.run(["logits", "vectors"], {"images": images}))
            for probabilities, vector in zip(softmax(logits), vectors, strict=True):
                # A stable sort keeps the class order among equal probabilities.
                best = np.argsort(-probabilities, kind="stable")[: self._tags]
                numbers = {f"tag/{self._names[i]}": float(probabilities[i]) for i in best}
                rows.append(Found(numbers, {"tags": "; ".join(self._names[i] for i in best)}, vector))
        return rows
