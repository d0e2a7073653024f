"""Scores every model on the frozen eval set, photo by photo.

Photos are read once for all models, a few at a time; reading and scoring run in two threads beside the
models. What the gate needs is `per_image.parquet`; the rest is for people.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import InputError
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import EvaluateParams
from mm_core.core.pins import ROLES, PinnedInputs, read_snapshot
from mm_core.core.records import METRICS, Report, sha256_file, write_bytes, write_json
from mm_core.eval.blind import NAME as BLIND_NAME
from mm_core.eval.blind import BlindMattes
from mm_core.eval.examples import Example, choose, choose_regressions, write_examples
from mm_core.eval.metrics import SPEC, TruthMatte, category_scores
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.ingest.snapshot import read_pool
from mm_core.ingest.truths import Truth, read_truths, stem_of
from mm_core.model.predict import Predictor
from mm_core.storage.store import Store, fetch_blob

Progress = Callable[[str, int, int], None]
Key = tuple[str, str]
"""(model, precision): `("champion", "int8")`."""
BLIND: Key = (BLIND_NAME, "float")
PHOTOS_AT_ONCE, THREADS = 4, 2
GOOD = 0.9
"""MaxF of a photo from which its matte counts as good, in the count of flips."""
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("model", "precision", "sample_id", "group", "category", "decoder")]
    + [(name, pa.float64()) for name in ("mse", "mse_band", "sad", "grad", "conn", "biou", "maxf")]
    + [("fcurve", pa.list_(pa.float32()))]
)
"""per_image.parquet; its metadata holds `identity` as JSON under the key "mm"."""


@dataclass(frozen=True)
class EvalItem:
    """One photo of the eval set with its true matte, both at the size at which mattes are compared."""

    row: Any
    photo: np.ndarray
    """uint8 (H, W, 3)."""
    alpha: np.ndarray
    """float32 (H, W), [0, 1]."""


def identity(layout: Layout, inputs: PinnedInputs) -> dict[str, Any]:
    """What a set of scores is about; the gate refuses scores that are about anything else than what lies here now.

    Raises InputError where the snapshot or the candidate is missing.
    """
    frozen, candidate = read_snapshot(layout), layout.model(TRAIN_STAGES[-1])
    if not candidate.is_file():
        raise InputError(f"{candidate} is missing: run `mm train-{TRAIN_STAGES[-1]}` first")
    return {
        "metrics": SPEC,
        "snapshot": frozen["digest"],
        "eval_digest": frozen["eval_digest"],
        "candidate": sha256_file(candidate),
        "quantised": {path.name: sha256_file(path) for path in sorted(layout.quantised.glob("*.onnx"))},
        **{role: (inputs.get(role) or {}).get("digest") for role in ROLES},
    }


def evaluate_models(
    params: EvaluateParams,
    models: Mapping[Key, Predictor],
    layout: Layout,
    store: Store,
    report: Report,
    *,
    progress: Progress,
) -> Report:
    """Runs `models` ((name, precision) → Predictor) over the snapshot's eval frame and writes, in `layout.evaluation`:

    `per_image.parquet` (SCHEMA), `metrics.json` (model → category → metric, for `dvc metrics`), `stages.csv`
    (stage, category and the metrics, for `dvc plots`) and `mattes/` (best and worst photo of each category).
    Raises InputError where the eval frame is empty, BlobNotFound where a photo or matte is gone.
    """
    frame = read_pool(layout.snapshot, "eval")
    if frame.empty:
        raise InputError(
            f"{layout.snapshot / 'eval.parquet'} holds no photos: drop more labelled photos, or some with role `eval`"
        )
    # The champion and anchor that the snapshot froze, not those that are pinned for the next cycle.
    about = identity(layout, read_snapshot(layout))
    blind = blind_mattes(frame, store)
    rows = score_all(frame, models, store, params.max_side, progress, blind)
    table = rows.sort_values(["model", "precision", "sample_id"], ignore_index=True)
    _write_parquet(layout.per_image, table, about)

    report.metrics["evaluate/photos"] = len(frame)
    scores = {key: category_scores(_of(table, key)) for key in (*models, BLIND)}
    for key, score in scores.items():
        report.metrics |= {f"{_name(key)}/{category}/{m}": v for category, m, v in _cells(score) if np.isfinite(v)}
    report.tables["per_category"] = [
        {"model": key[0], "precision": key[1], "category": category} | {k: _rounded(v) for k, v in row.items()}
        for key, score in scores.items()
        for category, row in score.to_dict("index").items()
    ]
    nested: dict[str, Any] = {}
    for key, score in scores.items():
        for category, metric, value in _cells(score):
            nested.setdefault(_name(key), {}).setdefault(category, {})[metric] = _rounded(value)
    write_json(layout.evaluation / "metrics.json", nested)
    _write_stages(layout.evaluation / "stages.csv", scores)

    shown = {name: model for (name, precision), model in models.items() if precision == "float" and name != "anchor"}
    stages = [key for key in models if key[0] in TRAIN_STAGES and key[1] == "float"]
    chosen = choose(_of(table, (stages or list(models))[-1]))
    rows_of = {row.sample_id: row for row in frame.itertuples(index=False)}
    last, before = (_of(table, key) for key in ((TRAIN_STAGES[-1], "int8"), ("champion", "int8")))
    if len(last) and len(before):
        chosen += choose_regressions(last, before)
        report.tables["flips"] = flips(last, before)
    examples = (_example(place, rows_of[place[2]], shown, store, params.max_side) for place in chosen)
    write_examples(examples, layout.evaluation / "mattes", report)

    counts = frame["category"].value_counts().sort_index()
    report.facts |= about | {"images": {str(category): int(count) for category, count in counts.items()}}
    return report


def evaluate_folder(truth_manifest: Path, pred_dir: Path) -> Report:
    """The metric suite on any folder of mattes: the prediction for the row of `image` a/b/c.jpg is `pred_dir/c.png`.

    The manifest (CSV or parquet) is read as ingest reads one (`truths.read_truths`); paths are relative to it. Raises
    InputError that names the row where a file is missing, unreadable or of another size.
    """
    truths = read_truths(truth_manifest)

    def score(truth: Truth) -> dict[str, Any]:
        predicted = pred_dir / f"{stem_of(truth.image)}.png"
        if not predicted.is_file():
            raise InputError(f"{truth.where}: prediction: {predicted} is missing")
        alpha, matte = truth.load(), load_alpha(predicted)
        if alpha.shape != matte.shape:
            size = "{1} × {0}".format
            raise InputError(
                f"{truth.where}: {predicted} is {size(*matte.shape)} pixels, its truth {size(*alpha.shape)}: "
                "predict at the photo's own size"
            )
        return {"image": truth.image, "category": truth.category or "unknown"} | TruthMatte(alpha).score(matte)

    with ThreadPoolExecutor(THREADS) as pool:
        table = pd.DataFrame(list(pool.map(score, truths)))
    scores = category_scores(table)
    report = Report("evaluate-folder", facts={"truth": str(truth_manifest), "predictions": str(pred_dir)})
    report.metrics = {f"{category}/{metric}": value for category, metric, value in _cells(scores) if np.isfinite(value)}
    report.facts["images"] = len(table)
    report.tables["per_category"] = [
        {"category": category} | {name: _rounded(value) for name, value in row.items()}
        for category, row in scores.to_dict("index").items()
    ]
    report.tables["per_image"] = [
        {name: _rounded(value) for name, value in row.items()}
        for row in table.drop(columns="fcurve").to_dict("records")
    ]
    return report


def flips(candidate: pd.DataFrame, champion: pd.DataFrame) -> list[dict[str, Any]]:
    """Per category the photos that the champion cut out well and the candidate does not, and the other way round.

    Well: MaxF of at least `GOOD`. Yan et al. 2021, "Positive-congruent training": a rising mean hides negative flips.
    """
    both = candidate.merge(champion[["sample_id", "maxf"]], on="sample_id", suffixes=("", "_before"))
    now, then = (both[name].to_numpy(float) >= GOOD for name in ("maxf", "maxf_before"))
    categories = both["category"].to_numpy(str)
    found = []
    for category in sorted(set(categories.tolist())):
        here = categories == category
        lost, won = (here & then & ~now).sum(), (here & now & ~then).sum()
        found.append({"category": category, "photos": int(here.sum()), "negative": int(lost), "positive": int(won)})
    return found


def blind_mattes(frame: pd.DataFrame, store: Store) -> BlindMattes:
    """Return the mean mattes of the frame's categories, each without the group of the photo that it is asked for."""
    rows = list(frame.itertuples(index=False))
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
    """SCHEMA's columns, one row per photo of the eval frame and model; `blind` is scored as one more model."""
    rows, done = list(frame.itertuples(index=False)), 0
    scored: list[dict[str, Any]] = []
    waiting: deque[Future[list[dict[str, Any]]]] = deque()
    progress("evaluate", 0, len(rows))
    with ThreadPoolExecutor(THREADS) as pool:
        for batch in _batches(rows, store, max_side, pool):
            photos, decoders = [item.photo for item in batch], [item.row.decoder for item in batch]
            mattes = {key: model.predict(photos, decoders) for key, model in models.items()}
            for index, item in enumerate(batch):
                own = {key: found[index] for key, found in mattes.items()}
                if blind:
                    own[BLIND] = blind.predict(item.row, *item.alpha.shape)
                waiting.append(pool.submit(_score, item, own))
            while len(waiting) > PHOTOS_AT_ONCE:
                scored += waiting.popleft().result()
            done += len(batch)
            progress("evaluate", done, len(rows))
        for future in waiting:
            scored += future.result()
    return pd.DataFrame(scored, columns=SCHEMA.names)


def load_item(row: Any, store: Store, max_side: int) -> EvalItem:
    """Photo and truth of an eval row, the truth at the photo's size; raises BlobNotFound and UnreadableImage."""
    photo = load_rgb(fetch_blob(store, row.sample_id), max_side)
    alpha = load_alpha(fetch_blob(store, row.alpha_sha256))
    if alpha.shape != photo.shape[:2]:
        alpha = cv2.resize(alpha, (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_AREA)
    return EvalItem(row, photo, alpha)


def _batches(rows: Sequence[Any], store: Store, max_side: int, pool: ThreadPoolExecutor) -> Iterator[list[EvalItem]]:
    """Lists of PHOTOS_AT_ONCE items; the next list is read while the models work on this one."""
    ahead: deque[Future[EvalItem]] = deque()
    for start in range(0, len(rows) + PHOTOS_AT_ONCE, PHOTOS_AT_ONCE):
        current = list(ahead)
        ahead = deque(pool.submit(load_item, row, store, max_side) for row in rows[start : start + PHOTOS_AT_ONCE])
        if current:
            yield [future.result() for future in current]


def _score(item: EvalItem, mattes: Mapping[Key, np.ndarray]) -> list[dict[str, Any]]:
    truth, row = TruthMatte(item.alpha), item.row
    about = {name: getattr(row, name) for name in ("sample_id", "group", "category", "decoder")}
    return [
        {"model": model, "precision": precision} | about | truth.score(matte)
        for (model, precision), matte in mattes.items()
    ]


def _example(
    place: tuple[str, str, str, float], row: Any, models: Mapping[str, Predictor], store: Store, max_side: int
) -> Example:
    category, rank, sample, mse = place
    item = load_item(row, store, max_side)
    mattes = {name: model.predict([item.photo], [item.row.decoder])[0] for name, model in models.items()}
    if rank == "regression":
        mattes = {name: mattes[name] for name in (TRAIN_STAGES[-1], "champion")}
        mattes["difference"] = np.abs(mattes[TRAIN_STAGES[-1]] - mattes["champion"])
    return Example(category, rank, sample, mse, item.photo, {"truth": item.alpha} | mattes)


def _write_parquet(path: Path, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    columns = {name: table[name].tolist() for name in SCHEMA.names if name != "fcurve"}
    columns["fcurve"] = [np.asarray(curve, np.float32) for curve in table["fcurve"]]
    stream = BytesIO()
    schema = SCHEMA.with_metadata({"mm": json.dumps(about, sort_keys=True)})
    pq.write_table(pa.table(columns, schema=schema), stream, compression="zstd")
    write_bytes(path, stream.getvalue())


def _write_stages(path: Path, scores: Mapping[Key, pd.DataFrame]) -> None:
    rows = [
        {"stage": name, "category": category} | {metric: _rounded(row[metric]) for metric in METRICS}
        for (name, precision), score in scores.items()
        if precision == "float" and name in TRAIN_STAGES
        for category, row in score.to_dict("index").items()
    ]
    write_bytes(path, pd.DataFrame(rows, columns=["stage", "category", *METRICS]).to_csv(index=False).encode())


def _of(table: pd.DataFrame, key: Key) -> pd.DataFrame:
    return table.loc[(table["model"] == key[0]) & (table["precision"] == key[1])]


def _name(key: Key) -> str:
    return key[0] if key[1] == "float" else f"{key[0]}.{key[1]}"


def _cells(scores: pd.DataFrame) -> Iterator[tuple[str, str, float]]:
    for category, row in scores.to_dict("index").items():
        for metric in (*METRICS, "mse_band"):
            yield str(category), metric, float(row[metric])


def _rounded(value: Any) -> Any:
    """For files that people read: seven digits, null for what is not a number."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if np.isfinite(value) else None
