"""Feedback on a cutout becomes a drop in the inbox, and raises the photo's routing score."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.records import digest_of, write_bytes
from mm_core.gallery.library import Entry
from mm_core.imaging.images import encode_alpha, load_alpha, load_rgb
from mm_core.ingest.drop import write_manifest
from mm_core.model.preprocess import finish
from mm_core.storage.catalog import Catalog
from mm_core.structuring.rows import Found, row_of

EXTRACTOR = "feedback"
VERSION = "1"
"""Feedback is kept as it came. It is not computed, so no code changes it."""
KINDS = {"bad_cut": "unlabeled", "corrected": "pixel_labeled"}
"""Feedback → kind of the drop."""
LICENSE = "user consent to training"


@dataclass(frozen=True)
class Feedback:
    """What a user says about the matte of a photo."""

    kind: str
    """One of KINDS."""
    consent: bool
    """True if the user allows training with the photo."""
    group: str
    """Name of the scene, for several photos of it; the evaluation split keeps them together."""
    device: str
    """Name of the user's device."""
    matte: Path | None = None
    """File of the corrected matte."""


def give(inbox: Path, catalog: Catalog, entry: Entry, feedback: Feedback, *, model: str) -> tuple[str, bool]:
    """Write `<inbox>/<kind>/feedback-…/` with the photo's original bytes and, for `corrected`, the matte.

    The manifest is written last.

    Args:
        inbox: The inbox folder.
        catalog: Receives the features of the feedback.
        entry: The photo.
        feedback: What the user says about its matte.
        model: Version of the model that made the matte.

    Returns:
        The batch's name, and whether it is new: repeated feedback of the same content gives the same drop.

    Raises:
        InputError: No consent, unknown feedback, or a matte that is unreadable or of another aspect ratio.
    """
    kind, matte, device = feedback.kind, feedback.matte, feedback.device
    if not feedback.consent:
        raise InputError("consent is missing: without it nothing leaves the gallery")
    if kind not in KINDS:
        raise InputError(f"{kind!r}: use one of {', '.join(KINDS)}")
    if (matte is not None) != (kind == "corrected"):
        raise InputError("send a matte with `corrected`, and only with it")
    alpha = None if matte is None else _fitting(matte, entry.path)
    # The name is a digest of the content, so that a repeated request finds its earlier drop.
    batch = "feedback-" + digest_of([entry.id, kind, None if alpha is None else alpha.tobytes().hex()])[:16]
    target = inbox / KINDS[kind] / batch
    new = not (target / "manifest.csv").exists()
    # The manifest completes a drop; without it a killed request is repeated.
    if new:
        photo = f"images/{entry.id}{entry.path.suffix.lower()}"
        (target / photo).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.path, target / photo)
        row = {"image": photo, "sha256": entry.id, "license": LICENSE, "group": feedback.group}
        row["source"] = f"gallery feedback; model {model}; device {device}"
        row["category"] = entry.category or ""
        if alpha is not None:
            row["alpha"] = f"alphas/{entry.id}.png"
            write_bytes(target / row["alpha"], encode_alpha(alpha))
        write_manifest(target, [row])
    # The features exist also for an old batch: routing reads them from the catalog.
    numbers = {"bad_cut": 1.0, "corrected": float(alpha is not None)}
    texts = {"model": model, "device": device, "batch": batch}
    catalog.upsert("features", [row_of(entry.id, EXTRACTOR, VERSION, Found(numbers, texts))])
    return batch, new


def _fitting(matte: Path, photo: Path) -> np.ndarray:
    """Return the matte at the photo's own size, float32 (H, W); raise InputError for another aspect ratio."""
    alpha, size = load_alpha(matte), load_rgb(photo).shape[:2]
    ratio = (alpha.shape[1] / alpha.shape[0]) / (size[1] / size[0])
    # Rounding to whole pixels changes the ratio by less than 2 %.
    if not 0.98 < ratio < 1.02:
        raise InputError(f"the matte is {alpha.shape[1]} x {alpha.shape[0]}, its aspect ratio differs from the photo's")
    return finish(alpha, (size[0], size[1]))
