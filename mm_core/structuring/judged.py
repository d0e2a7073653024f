"""Measure how hard a labelled photo is for the champion, by the errors of its mattes (`difficulty.py` uses the label).

| signal   | meaning                                                                            |
|----------|------------------------------------------------------------------------------------|
| band     | mean absolute error in areas in which the label is soft or has an edge             |
| error    | mean squared error of the whole matte                                              |
| entropy  | uncertainty of the champion: binary entropy in bits, mean over the photo           |

A wrong label has a high error too; the review of labels searches for those (`labeling/review.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pandas as pd

from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.model.predict import Predictor, decoders_for
from mm_core.model.preprocess import resize
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store, fetch_blob
from mm_core.structuring.difficulty import SIDE, SOFT
from mm_core.structuring.rows import Found, row_of

EXTRACTOR = "judged"
VERSION = "1"
CHUNK = 32
"""Photos per commit."""
REACH = 5
"""Side in pixels, at `SIDE`, of the square by which the band is dilated."""


def version_for(model: str, alpha_sha256: str) -> str:
    """Return the version of a sample's row; another champion or label gives another row."""
    return f"{VERSION}/{model[:16]}/{alpha_sha256[:16]}"


def judged(
    labels: pd.DataFrame,
    model: str,
    predictor: Callable[[], Predictor],
    catalog: Catalog,
    store: Store,
    progress: Callable[[str, int, int], None],
) -> pd.Series:
    """Return `band` in [0, 1] by sample id for the champion with digest `model`; missing rows are added to the catalog.

    After a kill the next call continues.

    Args:
        labels: Columns sample_id, alpha_sha256, category; one row per sample.
        model: Digest of the champion.
        predictor: Loads the champion; called only if a row is missing.
        catalog: The catalog.
        store: Store of photos and mattes.
        progress: Called with a label, the photos done and the total.
    """
    ids = labels["sample_id"].tolist()
    versions = {sample: version_for(model, alpha) for sample, alpha in zip(ids, labels["alpha_sha256"], strict=True)}
    columns = ["sample_id", "version", "numbers"]
    have = catalog.read("features", columns=columns, filters=[("extractor", "=", EXTRACTOR), ("sample_id", "in", ids)])
    bands = {
        sample: dict(numbers)["band"]
        for sample, version, numbers in zip(have["sample_id"], have["version"], have["numbers"], strict=True)
        if versions[sample] == version
    }
    missing = labels[~labels["sample_id"].isin(bands)]
    champion = predictor() if len(missing) else None
    for start in range(0, len(missing), CHUNK):
        chunk: Any = missing.iloc[start : start + CHUNK]
        photos = [load_rgb(fetch_blob(store, sample), SIDE) for sample in chunk["sample_id"]]
        truths = [load_alpha(fetch_blob(store, alpha)) for alpha in chunk["alpha_sha256"]]
        assert champion is not None
        categories = [c if isinstance(c, str) else None for c in chunk["category"]]
        mattes = champion.predict(photos, decoders_for(champion, photos, categories))
        rows = []
        for sample, truth, matte in zip(chunk["sample_id"], truths, mattes, strict=True):
            numbers = measure(truth, matte)
            bands[sample] = numbers["band"]
            rows.append(row_of(sample, EXTRACTOR, versions[sample], Found(numbers)))
        catalog.upsert("features", rows)
        progress("predict by the champion", start + len(chunk), len(missing))
    return pd.Series(bands, dtype="float64").reindex(ids)


def measure(truth: np.ndarray, matte: np.ndarray) -> dict[str, float]:
    """Return the signals of one label (H, W) and one matte (h, w), both in [0, 1], compared at the matte's size."""
    truth = resize(truth.astype(np.float32), *matte.shape)
    off = np.abs(matte.astype(np.float64) - truth)
    # The band: soft pixels and hard edges, dilated.
    square = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(truth, square) - cv2.erode(truth, square) > 0.5
    soft = ((truth > SOFT[0]) & (truth < SOFT[1])) | edge
    band = cv2.dilate(soft.astype(np.uint8), np.ones((REACH, REACH), np.uint8)) > 0
    # Avoid the logarithm of 0.
    p = np.clip(matte.astype(np.float64), 1e-6, 1 - 1e-6)
    return {
        "band": float(off[band].mean()) if band.any() else float(off.mean()),
        "error": float((off**2).mean()),
        "entropy": float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()),
    }
