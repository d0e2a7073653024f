"""What goes into an extractor and what comes out: a decoded photo, a row of the table `features`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Photo:
    """A sample, decoded once for all extractors."""

    sample_id: str
    name: str | None
    """As the manifest called it."""
    path: Path
    """Of the blob on this machine."""
    rgb: np.ndarray
    """uint8 (H, W, 3) sRGB, upright, long side `DECODE_SIDE` at most."""
    small: np.ndarray
    """The same at long side `photo.SIDE` at most."""


VECTORS = ("clip", "classifier", "embedding")
"""Extractors that give vectors, the most telling first (`tags`, `classifier`, `embedding`)."""


@dataclass(frozen=True)
class Found:
    """What an extractor says about one photo: numbers, texts and vector of its row."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    vector: np.ndarray | None = None


def best_vector(found: Mapping[str, Found]) -> np.ndarray:
    """Return the most telling vector that extractors gave for a photo; raises KeyError where none gave one."""
    for extractor in VECTORS:
        if extractor in found and found[extractor].vector is not None:
            return np.asarray(found[extractor].vector)
    raise KeyError("no extractor gave a vector")


def row_of(sample_id: str, extractor: str, version: str, found: Found) -> dict[str, Any]:
    """A row of the table `features`, computed now."""
    return {
        "sample_id": sample_id,
        "extractor": extractor,
        "version": version,
        "numbers": dict(found.numbers),
        "texts": dict(found.texts),
        "computed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "vector": None if found.vector is None else found.vector.tolist(),
    }
