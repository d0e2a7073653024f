"""How hard a labelled photo is to the champion: what its mattes say, beside what the label says (`difficulty.py`).

| signal   | what                                                                              |
|----------|-----------------------------------------------------------------------------------|
| band     | mean absolute error where the label is soft or has an edge: what a matte is about |
| error    | mean squared error of the whole matte                                             |
| entropy  | the champion's own doubt: binary entropy in bits, mean over the photo             |

A high error is also what a wrong label looks like: the review of labels looks for those (`labeling/review.py`).
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
"""Photos of one commit."""
REACH = 5
"""Side of the square by which the band is widened, in pixels at `SIDE`."""


def version_for(model: str, alpha_sha256: str) -> str:
    """Version of a sample's row: another champion or another label gives another row."""
    return f"{VERSION}/{model[:16]}/{alpha_sha256[:16]}"


def judged(
    labels: pd.DataFrame,
    model: str,
    predictor: Callable[[], Predictor],
    catalog: Catalog,
    store: Store,
    progress: Callable[[str, int, int], None],
) -> pd.Series:
    """`band` in [0, 1] by sample id, of the champion with digest `model`; rows that the catalog lacks are added to it.

    `labels`: columns sample_id, alpha_sha256, category, one row per sample. `predictor` is called where a row is
    missing. Killed half-way, the next call goes on.
    """
    ids = labels["sample_id"].tolist()
    versions = {sample: version_for(model, alpha) for sample, alpha in zip(ids, labels["alpha_sha256"], strict=True)}
    columns = ["sample_id", "version", "numbers"]
    have = catalog.read("features", columns=columns, filters=[("extractor", "=", EXTRACTOR), ("sample_id", "in", ids)])
    known = {
        sample: dict(numbers)["band"]
        for sample, version, numbers in zip(have["sample_id"], have["version"], have["numbers"], strict=True)
        if versions[sample] == version
    }
    missing = labels[~labels["sample_id"].isin(known)]
    asked = predictor() if len(missing) else None
    for start in range(0, len(missing), CHUNK):
        part: Any = missing.iloc[start : start + CHUNK]
        photos = [load_rgb(fetch_blob(store, sample), SIDE) for sample in part["sample_id"]]
        truths = [load_alpha(fetch_blob(store, alpha)) for alpha in part["alpha_sha256"]]
        assert asked is not None
        categories = [c if isinstance(c, str) else None for c in part["category"]]
        mattes = asked.predict(photos, decoders_for(asked, photos, categories))
        rows = []
        for sample, truth, matte in zip(part["sample_id"], truths, mattes, strict=True):
            numbers = measure(truth, matte)
            known[sample] = numbers["band"]
            rows.append(row_of(sample, EXTRACTOR, versions[sample], Found(numbers)))
        catalog.upsert("features", rows)
        progress("ask the champion", start + len(part), len(missing))
    return pd.Series(known, dtype="float64").reindex(ids)


def measure(truth: np.ndarray, matte: np.ndarray) -> dict[str, float]:
    """The signals of one label (H, W) and one matte (h, w), both in [0, 1]; compared at the matte's size."""
    truth = resize(truth.astype(np.float32), *matte.shape)
    off = np.abs(matte.astype(np.float64) - truth)
    square = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(truth, square) - cv2.erode(truth, square) > 0.5
    soft = ((truth > SOFT[0]) & (truth < SOFT[1])) | edge
    band = cv2.dilate(soft.astype(np.uint8), np.ones((REACH, REACH), np.uint8)) > 0
    p = np.clip(matte.astype(np.float64), 1e-6, 1 - 1e-6)
    return {
        "band": float(off[band].mean()) if band.any() else float(off.mean()),
        "error": float((off**2).mean()),
        "entropy": float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()),
    }
