"""Measure a model's uncertainty on an unlabelled photo, and how hard its matte is."""

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
"""Exponents of the two views with changed exposure."""


def look(photos: Sequence[np.ndarray], decoders: Sequence[str], predictor: Predictor) -> list[dict[str, float]]:
    """Return `entropy`, `tta_variance` and `matte_difficulty` of each photo; higher values favour labelling.

    `tta_variance` is the variance of alpha over the original, mirrored, darker and lighter photo, averaged over the
    picture (test-time augmentation; Ayhan & Berens 2018). `matte_difficulty` is the score of `structuring.difficulty`
    on the model's matte.

    Args:
        photos: uint8 (H, W, 3).
        decoders: One decoder name per photo.
        predictor: The model.
    """
    # Views under which a good matte should not change.
    views = [list(photos), [np.ascontiguousarray(p[:, ::-1]) for p in photos]]
    views += [[relit(p, exponent) for p in photos] for exponent in (DARKER, LIGHTER)]
    predictions = [predictor.predict(view, decoders) for view in views]
    rows = []
    for index, rgb in enumerate(photos):
        plain, mirrored, *others = (mattes[index] for mattes in predictions)
        # Mirror the prediction back before comparing.
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
    """Return the binary entropy in bits of a matte's soft band (0.05, 0.95), averaged over the whole picture (H, W)."""
    soft = alpha[(alpha > SOFT[0]) & (alpha < SOFT[1])].astype(np.float64)
    return float(-(soft * np.log2(soft) + (1 - soft) * np.log2(1 - soft)).sum() / alpha.size)


def relit(rgb: np.ndarray, exponent: float) -> np.ndarray:
    """Return a photo uint8 (H, W, 3) at another exposure; an exponent above 1 darkens."""
    levels = np.rint(255 * np.linspace(0, 1, 256) ** exponent).astype(np.uint8)
    return cv2.LUT(rgb, levels)
