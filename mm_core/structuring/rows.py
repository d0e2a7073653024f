"""Input and output of extractors: a decoded photo and a row of the table `features`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mm_core.storage.rows import FeatureRow


@dataclass(frozen=True)
class Photo:
    """A photo, decoded once for all extractors."""

    sample_id: str
    name: str | None
    """File name in the manifest."""
    path: Path
    """Path of the blob on this machine."""
    rgb: np.ndarray
    """uint8 (H, W, 3) sRGB, upright, long side at most `DECODE_SIDE`."""
    small: np.ndarray
    """The same photo with a long side of at most `photo_features.SIDE`."""


VECTORS = ("clip", "classifier", "embedding")
"""Extractors that give vectors, the most informative first (`tags`, `classifier`, `embedding`)."""


@dataclass(frozen=True)
class Found:
    """Result of an extractor for one photo: numbers, texts and vector of its row."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    vector: np.ndarray | None = None


def best_vector(found: Mapping[str, Found]) -> np.ndarray:
    """Return the most informative of a photo's vectors; raise KeyError if there is none."""
    # VECTORS is ordered from the most to the least informative.
    for extractor in VECTORS:
        if extractor in found and found[extractor].vector is not None:
            return np.asarray(found[extractor].vector)
    raise KeyError("no extractor gave a vector")


def row_of(sample_id: str, extractor: str, version: str, found: Found) -> FeatureRow:
    """Return a row of the table `features` with the current time."""
    return {
        "sample_id": sample_id,
        "extractor": extractor,
        "version": version,
        "numbers": dict(found.numbers),
        "texts": dict(found.texts),
        "computed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "vector": None if found.vector is None else found.vector.tolist(),
    }
