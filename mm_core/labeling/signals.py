"""What a model says about a photo that nobody labelled: how unsure it is of the matte, and how hard that matte is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mm_core.structuring.difficulty import SOFT, measure

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor

UNCERTAINTY = ("entropy", "tta_variance")
DARKER, LIGHTER = 1.6, 0.625
"""Exponents of the two relit views."""


def look(photos: Sequence[np.ndarray], decoders: Sequence[str], predictor: Predictor) -> list[dict[str, float]]:
    """Per photo uint8 (H, W, 3) and decoder: `entropy`, `tta_variance`, `matte_difficulty`, all higher = rather sent.

    `tta_variance`: variance of alpha over the photo as it is, mirrored, darker and lighter, averaged over the picture
    (test-time augmentation; Ayhan & Berens 2018). `matte_difficulty`: the score of `structuring.difficulty` with the
    model's matte in place of a person's.
    """
    views = [list(photos), [np.ascontiguousarray(p[:, ::-1]) for p in photos]]
    views += [[relit(p, exponent) for p in photos] for exponent in (DARKER, LIGHTER)]
    found = [predictor.predict(view, decoders) for view in views]
    rows = []
    for index, rgb in enumerate(photos):
        plain, mirrored, *others = (mattes[index] for mattes in found)
        together = np.stack([plain, mirrored[:, ::-1], *others])
        rows.append(
            {
                "entropy": band_entropy(plain),
                "tta_variance": float(together.var(axis=0, dtype=np.float64).mean()),
                "matte_difficulty": measure(rgb, plain).score,
            }
        )
    return rows


def band_entropy(alpha: np.ndarray) -> float:
    """Binary entropy in bits of the soft band (0.05, 0.95) of a matte (H, W), averaged over the whole picture."""
    soft = alpha[(alpha > SOFT[0]) & (alpha < SOFT[1])].astype(np.float64)
    return float(-(soft * np.log2(soft) + (1 - soft) * np.log2(1 - soft)).sum() / alpha.size)


def relit(rgb: np.ndarray, exponent: float) -> np.ndarray:
    """A photo uint8 (H, W, 3) under another exposure: gamma > 1 is darker."""
    levels = np.rint(255 * np.linspace(0, 1, 256) ** exponent).astype(np.uint8)
    return cv2.LUT(rgb, levels)
