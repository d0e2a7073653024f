"""Evaluation of every model on the frozen eval set, photo by photo.

`scoring` computes the scores, `score_cache` keeps them. The gate reads `per_image.parquet`; the other outputs are for
people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.pins import ModelPin, PinnedInputs, read_snapshot
from mm_core.core.records import METRICS, Report, digest_of, sha256_file, write_bytes, write_json
from mm_core.core.spellings import name_forms
from mm_core.eval.dvc_files import plot_stages, write_headline
from mm_core.eval.examples import Example, choose, choose_regressions, write_examples
from mm_core.eval.metrics import SPEC, TruthMatte, category_scores
from mm_core.eval.rows import EvalRow, Flips, ScoreIdentity, eval_rows
from mm_core.eval.score_cache import ScoreCache
from mm_core.eval.scoring import (
    BLIND,
    SCHEMA,
    THREADS,
    Key,
    blind_matter,
    blind_mattes,
    load_item,
    matter_of,
    photo_key,
    score_lacking,
    table_of,
)
from mm_core.imaging.images import load_alpha
from mm_core.ingest.snapshot import read_pool
from mm_core.ingest.truths import Truth, read_truths, stem_of
from mm_core.model.predict import Predictor
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store

GOOD = 0.9
"""Smallest MaxF of a good matte, for the count of flips."""


def identity(layout: Layout, inputs: PinnedInputs) -> ScoreIdentity:
    """Return digests of everything that the scores depend on; the gate rejects scores with another identity.

    Args:
        layout: The workspace.
        inputs: Pins with the digests of champion and anchor.

    Raises:
        InputError: The snapshot or the candidate is missing.
    """
    frozen, candidate = read_snapshot(layout), layout.model(TRAIN_STAGES[-1])
    if not has_file(candidate):
        raise InputError(f"{candidate} is missing: run `mm train-{TRAIN_STAGES[-1]}` first")
    return {
        "metrics": SPEC,
        "snapshot": frozen["digest"],
        "eval_digest": frozen["eval_digest"],
        "candidate": sha256_file(candidate),
        # A score belongs to bytes: the same weights can be quantised in another way.
        "quantised": {path.name: sha256_file(path) for path in sorted(layout.quantised.glob("*.onnx"))},
        "champion": _digest_of(inputs.get("champion")),
        "anchor": _digest_of(inputs.get("anchor")),
    }


def _digest_of(pin: ModelPin | None) -> str | None:
    return pin["digest"] if pin else None


def evaluate_models(
    run: StorageRun, models: Mapping[Key, Predictor], report: Report, digests: Mapping[Key, str] | None = None
) -> Report:
    """Score the models on the snapshot's eval photos and write the results to `layout.evaluation`.

    The files are `per_image.parquet` (SCHEMA), `metrics.json` (model → category → metric), `stages.csv` (stage,
    category and metrics), `plots/` (pictures for `dvc plots`) and `mattes/` (best and worst photo per category). The
    headline for `dvc metrics` is `layout.headline`.

    Args:
        run: Params, workspace, storage and progress.
        models: (name, precision) → Predictor.
        report: Receives metrics, tables, pictures and facts.
        digests: (name, precision) → digest of everything that the model's mattes depend on beside the photo. Scores of
            these models are kept, and known ones are not computed again.

    Returns:
        `report`.

    Raises:
        InputError: The eval set is empty.
        BlobNotFound: A photo or matte is missing in the store.
    """
    layout = run.layout
    frame = read_pool(layout.snapshot, "eval")
    if frame.empty:
        raise InputError(
            f"{layout.snapshot / 'eval.parquet'} holds no photos: drop more labelled photos, or some with role `eval`"
        )
    # Use the champion and anchor that the snapshot froze. The pins of the next cycle may differ.
    about = identity(layout, read_snapshot(layout))
    # Score first, then write the table that the gate reads.
    rows = _score_models(run, frame, models, digests or {}, report)
    table = rows.sort_values(["model", "precision", "sample_id"], ignore_index=True)
    _write_parquet(layout.per_image, table, about)

    report.metrics["evaluate/photos"] = len(frame)
    # Means per category, for the report and MLflow.
    scores = {key: category_scores(_of(table, key)) for key in (*models, BLIND)}
    for key, score in scores.items():
        report.metrics |= {f"{_name(key)}/{category}/{m}": v for category, m, v in _cells(score) if np.isfinite(v)}
    report.tables["per_category"] = [
        {"model": key[0], "precision": key[1], "category": category} | {k: _rounded(v) for k, v in row.items()}
        for key, score in scores.items()
        for category, row in score.to_dict("index").items()
    ]
    nested: dict[str, dict[str, dict[str, object]]] = {}
    for key, score in scores.items():
        for category, metric, value in _cells(score):
            nested.setdefault(_name(key), {}).setdefault(category, {})[metric] = _rounded(value)
    write_json(layout.evaluation / "metrics.json", nested)
    _write_stages(layout.evaluation / "stages.csv", scores)
    write_headline(layout.headline, scores)
    plot_stages(layout.evaluation / "plots", scores)

    # The example pictures show the float models, without the anchor.
    shown = {name: model for (name, precision), model in models.items() if precision == "float" and name != "anchor"}
    stages = [key for key in models if key[0] in TRAIN_STAGES and key[1] == "float"]
    # The last training stage is the candidate.
    chosen = choose(_of(table, (stages or list(models))[-1]))
    rows_of = {row.sample_id: row for row in eval_rows(frame)}
    last, before = (_of(table, key) for key in ((TRAIN_STAGES[-1], "int8"), ("champion", "int8")))
    # Regressions and flips compare the int8 files, because these are released.
    if len(last) and len(before):
        chosen += choose_regressions(last, before)
        report.tables["flips"] = flips(last, before)
    examples = (_example(place, rows_of[place[2]], shown, run.store, run.params.evaluate.max_side) for place in chosen)
    write_examples(examples, layout.evaluation / "mattes", report)

    counts = frame["category"].value_counts().sort_index()
    report.facts |= {**about, "images": {str(category): int(count) for category, count in counts.items()}}
    return report


def _score_models(
    run: StorageRun, frame: pd.DataFrame, models: Mapping[Key, Predictor], digests: Mapping[Key, str], report: Report
) -> pd.DataFrame:
    """Return the scores of all models and of the blind matte, in the columns of SCHEMA."""
    rows, max_side = eval_rows(frame), run.params.evaluate.max_side
    cache = ScoreCache(run.layout.scores, max_side)
    # The blind matte depends on all rows of the set.
    digests = {**digests, BLIND: digest_of(sorted([photo_key(row), row.group, row.category] for row in rows))}
    known = {key: cache.read(digest) for key, digest in digests.items()}
    # Models with equal digests are scored once: stages without steps pass their start weights on.
    first = {digest: key for key, digest in reversed(digests.items())}
    same = {key: first[digests[key]] if key in digests else key for key in (*models, BLIND)}
    matters = {key: matter_of(model) for key, model in models.items() if same[key] == key}
    if all(photo_key(row) in known[BLIND] for row in rows):
        matters[BLIND] = lambda items: []
    else:
        matters[BLIND] = blind_matter(blind_mattes(frame, run.store))
    scores = score_lacking(rows, matters, known, run.store, max_side, run.progress)
    for key, digest in digests.items():
        if key in scores and len(scores[key]) > len(known[key]):
            cache.write(digest, scores[key])
    report.metrics["evaluate/scored"] = sum(len(scores[key]) - len(known.get(key, {})) for key in scores)
    report.metrics["evaluate/scores"] = len(rows) * len(same)
    return table_of(rows, {key: scores[of] for key, of in same.items()})


def evaluate_folder(truth_manifest: Path, pred_dir: Path) -> Report:
    """Compute all metrics for a folder of mattes.

    Args:
        truth_manifest: CSV or parquet with image, alpha and category, read by `truths.read_truths`. Its paths are
            relative to the manifest.
        pred_dir: Folder of predicted mattes; the prediction for the image a/b/c.jpg is `pred_dir/c.png`.

    Returns:
        A report with the tables `per_category` and `per_image`.

    Raises:
        InputError: A file is missing, unreadable or of another size; the message names the row.
    """
    truths = read_truths(truth_manifest)

    def score(truth: Truth) -> Mapping[str, object]:
        # Predictions are matched by the stem of the image's file name.
        forms = [pred_dir / name for name in name_forms(f"{stem_of(truth.image)}.png")]
        predicted = next(filter(Path.is_file, forms), forms[0])
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
    # The folder's categories may differ from ours; `category_scores` lists them after the seven.
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


def flips(candidate: pd.DataFrame, champion: pd.DataFrame) -> list[Flips]:
    """Count negative and positive flips per category.

    A negative flip is a photo with a good matte (MaxF of at least `GOOD`) from the champion and a bad one from the
    candidate. A better mean can hide negative flips (Yan et al. 2021, "Positive-congruent training").

    Args:
        candidate: Per-image rows of the candidate.
        champion: Per-image rows of the champion.

    Returns:
        One row per category.
    """
    both = candidate.merge(champion[["sample_id", "maxf"]], on="sample_id", suffixes=("", "_before"))
    now, then = (both[name].to_numpy(float) >= GOOD for name in ("maxf", "maxf_before"))
    categories = both["category"].to_numpy(str)
    found: list[Flips] = []
    for category in sorted(set(categories.tolist())):
        here = categories == category
        # Positive flips are the reverse: a bad matte became a good one.
        lost, won = (here & then & ~now).sum(), (here & now & ~then).sum()
        found.append({"category": category, "photos": int(here.sum()), "negative": int(lost), "positive": int(won)})
    return found


def _example(
    place: tuple[str, str, str, float], row: EvalRow, models: Mapping[str, Predictor], store: Store, max_side: int
) -> Example:
    category, rank, sample, mse = place
    item = load_item(row, store, max_side)
    mattes = {name: model.predict([item.photo], [item.row.decoder])[0] for name, model in models.items()}
    # A regression compares candidate and champion only, with their absolute difference.
    if rank == "regression":
        mattes = {name: mattes[name] for name in (TRAIN_STAGES[-1], "champion")}
        mattes["difference"] = np.abs(mattes[TRAIN_STAGES[-1]] - mattes["champion"])
    return Example(category, rank, sample, mse, item.photo, {"truth": item.alpha} | mattes)


def _write_parquet(path: Path, table: pd.DataFrame, about: ScoreIdentity) -> None:
    columns = {name: table[name].tolist() for name in SCHEMA.names if name != "fcurve"}
    # float32 halves the size of the file; the curves are the largest column.
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


def _rounded(value: object) -> object:
    """Round floats to seven digits for files that people read; NaN and infinity become None."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if np.isfinite(value) else None
