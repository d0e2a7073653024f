"""Pseudo-labels: mattes that another model predicts for unlabelled photos (Lee 2013; for mattes, Ke et al. 2022).

The teacher is the model that `train.semi.teacher` names: any ONNX matting model, or a model file of this project, such
as a larger one from another workspace. It sees each photo once, at its own size. Its mattes lie in the pixel cache
only, so they never mix with people's labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_core.core.params import SemiParams
from mm_core.core.records import digest_of, sha256_file
from mm_core.imaging.images import load_rgb
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.model.onnx_matting import OnnxInput, OnnxMatting
from mm_core.model.predict import Predictor, TorchPredictor
from mm_core.storage.store import fetch_blob

if TYPE_CHECKING:
    # For type checkers alone, so that the code of the catalog is no part of a model's content key.
    from mm_core.storage.run import StorageRun

FIELD = "train.semi.teacher"
"""The parameter, for error messages."""
LONGEST_SIDE = 1024
"""Pixels of the longer side of a photo that the teacher sees; no training input is larger."""


def teacher_digest(semi: SemiParams) -> str | None:
    """Return a digest of the teacher's file and of its input, or None without a teacher.

    Raises:
        InputError: The file is missing or is no matting model.
    """
    if not semi.teacher:
        return None
    open_teacher(semi)
    return digest_of([sha256_file(_path(semi)), semi.teacher_size, semi.teacher_mean, semi.teacher_std])


def open_teacher(semi: SemiParams, device: str = "cpu") -> Predictor:
    """Open the teacher; an ONNX file computes on the CPU.

    Raises:
        InputError: The file is missing or is no matting model.
    """
    path = _path(semi)
    if path.suffix == ".safetensors" and path.is_file():
        return TorchPredictor(path, device)
    return OnnxMatting(path, FIELD, OnnxInput(semi.teacher_size, semi.teacher_mean, semi.teacher_std))


def pseudo_labeled(unlabeled: pd.DataFrame, semi: SemiParams, teacher: str) -> pd.DataFrame:
    """Return the photos that the teacher labels, with the keys of its mattes in `alpha_sha256`.

    Args:
        unlabeled: Unlabelled rows of a snapshot.
        semi: Names the teacher's categories.
        teacher: Its digest (`teacher_digest`).
    """
    if semi.teacher_categories:
        unlabeled = unlabeled.loc[unlabeled["category"].fillna("unknown").isin(semi.teacher_categories), :]
    pairs = zip(unlabeled["sample_id"], unlabeled["decoder"], strict=True)
    keys = [digest_of([teacher, sample, decoder]) for sample, decoder in pairs]
    # A soft matte: every pixel counts, the band along the edge too.
    return unlabeled.assign(alpha_sha256=keys, label_binary=False)


def predict_missing(frame: pd.DataFrame, cache: PixelCache, run: StorageRun) -> None:
    """Predict the mattes of `pseudo_labeled` rows that the cache lacks, some at a time: a killed run goes on there.

    Args:
        frame: Rows of `pseudo_labeled`.
        cache: Receives the mattes.
        run: Gives the teacher, the photos and the progress, which is called after each photo.

    Raises:
        InputError: The teacher's file is missing, or its output is no single map.
        BlobNotFound: The store lacks a photo.
    """
    columns = (frame["alpha_sha256"], frame["sample_id"], frame["decoder"])
    missing = [
        (key, sample, decoder) for key, sample, decoder in zip(*columns, strict=True) if not cache.has_matte(key)
    ]

    def predictions() -> Iterator[tuple[str, np.ndarray]]:
        teacher = open_teacher(run.params.train.semi, run.layout.settings.device)
        for done, (key, sample, decoder) in enumerate(missing):
            photo = load_rgb(fetch_blob(run.store, sample), max_side=LONGEST_SIDE)
            yield key, teacher.predict([photo], [decoder])[0]
            run.progress("pseudo-labels", done + 1, len(missing))

    if missing:
        cache.keep_mattes(predictions())


def _path(semi: SemiParams) -> Path:
    return Path(semi.teacher).expanduser()
