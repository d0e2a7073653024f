"""Score models on photos, photo by photo.

Photos are read once for all models, a few at a time. Two threads read and score while the models predict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from mm_core.core.progress import Progress
from mm_core.eval.blind import NAME as BLIND_NAME
from mm_core.eval.blind import BlindMattes
from mm_core.eval.metrics import MEANINGS, PER_IMAGE, TruthMatte
from mm_core.eval.rows import EvalRow, eval_rows
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.model.predict import Predictor
from mm_core.storage.schemas import Column, schema_of
from mm_core.storage.store import Store, fetch_blob

Key = tuple[str, str]
"""(model, precision): `("champion", "int8")`."""
Scores = Mapping[str, float | np.ndarray]
"""The metrics of one matte: result of `TruthMatte.score`."""
BLIND: Key = (BLIND_NAME, "float")
PHOTOS_AT_ONCE, THREADS = 4, 2
COLUMNS: Sequence[Column] = (
    ("model", pa.string(), "name of the model: a stage, champion, anchor, or blind"),
    ("precision", pa.string(), "float or int8"),
    ("sample_id", pa.string(), "id of the photo in the table `samples`"),
    ("group", pa.string(), "burst, scene or near-duplicates"),
    ("category", pa.string(), "category of the photo"),
    ("decoder", pa.string(), "decoder of the category"),
    *((name, pa.float64(), MEANINGS[name]) for name in PER_IMAGE if name != "fcurve"),
    ("fcurve", pa.list_(pa.float32()), MEANINGS["fcurve"]),
)
SCHEMA = schema_of(COLUMNS)
"""Columns of per_image.parquet. Its metadata contains `identity` as JSON under the key "mm"."""


@dataclass(frozen=True)
class EvalItem:
    """One photo of the eval set with its true matte, both at the size for comparing mattes."""

    row: EvalRow
    photo: np.ndarray
    """uint8 (H, W, 3)."""
    alpha: np.ndarray
    """float32 (H, W), [0, 1]."""


Matter = Callable[[Sequence[EvalItem]], Sequence[np.ndarray]]
"""A function that returns a matte float32 (H, W) per item."""


def blind_mattes(frame: pd.DataFrame, store: Store) -> BlindMattes:
    """Return the leave-one-group-out mean mattes of the frame's categories."""
    rows = eval_rows(frame)
    with ThreadPoolExecutor(THREADS) as pool:
        return BlindMattes(rows, pool.map(lambda row: load_alpha(fetch_blob(store, row.alpha_sha256)), rows))


def score_all(
    frame: pd.DataFrame,
    models: Mapping[Key, Predictor],
    store: Store,
    max_side: int,
    progress: Progress,
    blind: BlindMattes | None = None,
) -> pd.DataFrame:
    """Return the scores of all models on all photos.

    Args:
        frame: The eval pool, one row per photo.
        models: (name, precision) → Predictor.
        store: Holds the photos and mattes.
        max_side: Long side in pixels for comparing mattes.
        progress: Called after each batch of photos.
        blind: Mean mattes that are scored as one more model, if given.

    Returns:
        The columns of SCHEMA, one row per photo and model.
    """
    rows, matters = eval_rows(frame), {key: matter_of(model) for key, model in models.items()}
    if blind:
        matters[BLIND] = blind_matter(blind)
    scores = score_lacking(rows, matters, {}, store, max_side, progress)
    return table_of(rows, scores)


def matter_of(model: Predictor) -> Matter:
    """Return the function that predicts the mattes of eval items."""
    return lambda items: model.predict([item.photo for item in items], [item.row.decoder for item in items])


def blind_matter(blind: BlindMattes) -> Matter:
    """Return the function that gives the blind mattes of eval items."""
    return lambda items: [blind.predict(item.row, *item.alpha.shape) for item in items]


def table_of(rows: Sequence[EvalRow], scores: Mapping[Key, Mapping[str, Scores]]) -> pd.DataFrame:
    """Return the scores of all models in the columns of SCHEMA, one row per photo and model."""
    about = ("sample_id", "group", "category", "decoder")
    records = [
        {"model": model, "precision": precision, **{name: getattr(row, name) for name in about}, **of[photo_key(row)]}
        for row in rows
        for (model, precision), of in scores.items()
    ]
    return pd.DataFrame(records, columns=SCHEMA.names)


def photo_key(row: EvalRow) -> str:
    """Return the identity of a photo for its scores: its bytes, its true matte and the decoder."""
    return f"{row.sample_id}/{row.alpha_sha256}/{row.decoder}"


def score_lacking(
    rows: Sequence[EvalRow],
    matters: Mapping[Key, Matter],
    known: Mapping[Key, Mapping[str, Scores]],
    store: Store,
    max_side: int,
    progress: Progress,
) -> dict[Key, dict[str, Scores]]:
    """Return the scores of all models on all photos; only those that are not known are computed.

    Args:
        rows: Rows of the eval pool.
        matters: (name, precision) → function that returns the mattes of items.
        known: (name, precision) → `photo_key` → scores.
        store: Holds the photos and mattes.
        max_side: Long side in pixels for comparing mattes.
        progress: Called after each batch of photos.

    Returns:
        (name, precision) → `photo_key` → scores.
    """
    scores = {key: dict(known.get(key, {})) for key in matters}
    # A photo that all models have scored before is not read at all.
    lacking = {photo_key(row): [key for key in matters if photo_key(row) not in scores[key]] for row in rows}
    todo, done = [row for row in rows if lacking[photo_key(row)]], 0
    waiting: deque[Future[tuple[str, dict[Key, Scores]]]] = deque()

    def take(future: Future[tuple[str, dict[Key, Scores]]]) -> None:
        photo, of_models = future.result()
        for key, of_photo in of_models.items():
            scores[key][photo] = of_photo

    progress("evaluate", 0, len(todo))
    with ThreadPoolExecutor(THREADS) as pool:
        # Each photo is decoded once and given to every model that lacks it.
        for batch in _batches(todo, store, max_side, pool):
            mattes: list[dict[Key, np.ndarray]] = [{} for _ in batch]
            for key, matter in matters.items():
                places = [n for n, item in enumerate(batch) if key in lacking[photo_key(item.row)]]
                predicted = matter([batch[n] for n in places]) if places else []
                for n, matte in zip(places, predicted, strict=True):
                    mattes[n][key] = matte
            waiting.extend(pool.submit(_score, item, own) for item, own in zip(batch, mattes, strict=True))
            # A bounded queue limits how many mattes are in memory.
            while len(waiting) > PHOTOS_AT_ONCE:
                take(waiting.popleft())
            done += len(batch)
            progress("evaluate", done, len(todo))
        for future in waiting:
            take(future)
    return scores


def load_item(row: EvalRow, store: Store, max_side: int) -> EvalItem:
    """Load the photo and the true matte of an eval row, the matte at the photo's size.

    Raises:
        BlobNotFound: The photo or the matte is missing in the store.
        UnreadableImage: The photo or the matte cannot be decoded.
    """
    photo = load_rgb(fetch_blob(store, row.sample_id), max_side)
    alpha = load_alpha(fetch_blob(store, row.alpha_sha256))
    # The photo may be scaled down to `max_side`; the true matte follows its size.
    if alpha.shape != photo.shape[:2]:
        alpha = cv2.resize(alpha, (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_AREA)
    return EvalItem(row, photo, alpha)


def _batches(
    rows: Sequence[EvalRow], store: Store, max_side: int, pool: ThreadPoolExecutor
) -> Iterator[list[EvalItem]]:
    """Yield lists of PHOTOS_AT_ONCE items; the next list is read while the models predict this one."""
    ahead: deque[Future[EvalItem]] = deque()
    # One extra step yields the last batch, which was submitted in the step before.
    for start in range(0, len(rows) + PHOTOS_AT_ONCE, PHOTOS_AT_ONCE):
        current = list(ahead)
        ahead = deque(pool.submit(load_item, row, store, max_side) for row in rows[start : start + PHOTOS_AT_ONCE])
        if current:
            yield [future.result() for future in current]


def _score(item: EvalItem, mattes: Mapping[Key, np.ndarray]) -> tuple[str, dict[Key, Scores]]:
    # All models share the work that depends on the truth alone.
    truth = TruthMatte(item.alpha)
    return photo_key(item.row), {key: truth.score(matte) for key, matte in mattes.items()}
