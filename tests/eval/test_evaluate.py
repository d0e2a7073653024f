"""The streamed evaluation on a small real workspace, and the metric suite on a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from eval_workspace import Blurred, make, write_snapshot

from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.layout import Layout
from mm_core.core.params import EvaluateParams, Params
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, Report
from mm_core.eval.dvc_files import plot_stages
from mm_core.eval.evaluate import evaluate_folder, evaluate_models
from mm_core.eval.metrics import TruthMatte, category_scores
from mm_core.eval.scoring import SCHEMA
from mm_core.storage.run import StorageRun

STAGES = {"simple": 0.5, "hard": 0.4, "semi": 0.3, "multimodal": 0.2}


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Report, pd.DataFrame]:
    layout, store, truths = make(tmp_path_factory.mktemp("evaluate"))
    models = {(name, "float"): Blurred(truths, error) for name, error in STAGES.items()}
    models |= {("multimodal", "int8"): Blurred(truths, 0.21), ("champion", "float"): Blurred(truths, 0.45)}
    report = evaluate_models(StorageRun(Params(), layout), models, Report("evaluate"))
    return layout, report, pd.read_parquet(layout.per_image)


def test_one_row_per_model_and_photo(evaluated) -> None:
    layout, _, table = evaluated
    assert list(table.columns) == SCHEMA.names
    assert len(table) == (6 + 1) * 3 * len(ALL_CATEGORIES), "six models, and the blind matte"
    assert set(table.loc[table["model"] == "blind", "mse"] > 0) == {True}
    assert not table.duplicated(["model", "precision", "sample_id"]).any()
    assert table.drop(columns="fcurve").notna().all().all()
    assert {len(curve) for curve in table["fcurve"]} == {256}
    about = json.loads(pq.read_schema(layout.per_image).metadata[b"mm"])
    assert about["champion"] is None and set(about["quantised"]) == {"saliency.int8.onnx"}


def test_better_models_score_better(evaluated) -> None:
    _, report, _ = evaluated
    macro = [report.metrics[f"{name}/macro/mse"] for name in STAGES]
    assert macro == sorted(macro, reverse=True)
    assert report.metrics["multimodal.int8/pets/mse"] > report.metrics["multimodal/pets/mse"]


def test_scores_are_those_of_the_metric_suite(evaluated) -> None:
    layout, report, table = evaluated
    part = table[(table["model"] == "hard") & (table["category"] == "cards")]
    assert report.metrics["hard/cards/conn"] == pytest.approx(part["conn"].mean())
    assert report.metrics["hard/cards/maxf"] == pytest.approx(
        np.stack(part["fcurve"].to_list()).mean(0).max(), abs=1e-6
    )
    metrics = json.loads((layout.evaluation / "metrics.json").read_text())
    assert metrics["hard"]["cards"]["conn"] == pytest.approx(part["conn"].mean(), rel=1e-6)
    stages = pd.read_csv(layout.evaluation / "stages.csv")
    assert list(stages["stage"].unique()) == list(STAGES)
    assert set(stages["category"]) == {*ALL_CATEGORIES, "macro", "weighted"}


def test_the_headline_is_macro_and_the_six_of_the_released_files(evaluated) -> None:
    layout, report, _ = evaluated
    headline = json.loads(layout.headline.read_text())
    assert list(headline) == ["mse"] and set(headline["mse"]) == {"macro", *CATEGORIES}
    assert headline["mse"]["macro"] == pytest.approx(report.metrics["multimodal.int8/macro/mse"], abs=1e-6)


def test_plots_are_pictures_that_need_no_network_and_stay_the_same(evaluated, tmp_path: Path) -> None:
    layout, _, table = evaluated
    keys = [(name, "float") for name in (*STAGES, "blind")]
    scores = {k: category_scores(table[(table["model"] == k[0]) & (table["precision"] == k[1])]) for k in keys}
    for path in plot_stages(tmp_path, scores):
        text = path.read_text()
        assert all(name in text for name in (*STAGES, *ALL_CATEGORIES, "macro"))
        assert text.count("stroke-dasharray") == len(scores[keys[0]]), "a line for the blind matte in each panel"
        links = re.findall(r'(?:href|src)="(?!#)([^"]*)"|url\((?!#)', text)
        assert links == []
        assert (layout.evaluation / "plots" / path.name).read_text() == text


def test_example_mattes(evaluated) -> None:
    layout, report, table = evaluated
    rows = report.tables["mattes"]
    assert [(row["category"], row["rank"]) for row in rows] == [
        (c, r) for c in ALL_CATEGORIES for r in ("best", "worst")
    ]
    last = table[(table["model"] == "multimodal") & (table["precision"] == "float") & (table["category"] == "pets")]
    worst = next(row for row in rows if (row["category"], row["rank"]) == ("pets", "worst"))
    assert worst["sample_id"] == last.sort_values("mse")["sample_id"].iloc[-1]
    assert list(worst["files"]) == ["photo", "truth", *STAGES, "champion"]
    assert all((layout.evaluation / "mattes" / name).is_file() for name in worst["files"].values())
    assert all(Path(path).is_file() for path in report.pictures.values())


def test_again_gives_the_same_bytes(evaluated, tmp_path: Path) -> None:
    layout, store, truths = make(tmp_path, per_category=2, categories=["pets", "scenery"])
    models = {("multimodal", "float"): Blurred(truths, 0.2)}
    evaluate_models(
        StorageRun(Params(evaluate=EvaluateParams(max_side=40)), layout), models_small(models, layout), Report("e")
    )
    first = layout.per_image.read_bytes()
    evaluate_models(
        StorageRun(Params(evaluate=EvaluateParams(max_side=40)), layout), models_small(models, layout), Report("e")
    )
    assert layout.per_image.read_bytes() == first


def models_small(models, layout):
    """Photos come at no more than max_side, so that the truth is not known by bytes: a constant matte does."""

    class Half:
        def predict(self, photos, decoders):
            assert all(max(photo.shape[:2]) == 40 for photo in photos)
            return [np.full(photo.shape[:2], 0.5, np.float32) for photo in photos]

    return dict.fromkeys(models, Half())


def test_empty_eval_set_and_lost_blob(tmp_path: Path) -> None:
    layout, store, truths = make(tmp_path, per_category=1, categories=["pets"])
    models = {("multimodal", "float"): Blurred(truths, 0.1)}
    frame = pd.read_parquet(layout.snapshot / "eval.parquet")
    store.delete(f"blobs/{frame.alpha_sha256[0][:2]}/{frame.alpha_sha256[0][2:4]}/{frame.alpha_sha256[0]}")
    with pytest.raises(BlobNotFound):
        evaluate_models(StorageRun(Params(), layout), models, Report("e"))
    assert not layout.per_image.exists()
    write_snapshot(layout, frame[:0])
    with pytest.raises(InputError, match="eval.parquet holds no photos"):
        evaluate_models(StorageRun(Params(), layout), models, Report("e"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "truth").mkdir()
    (tmp_path / "pred").mkdir()
    lines = ["image,alpha,category"]
    for index, category in enumerate(("pets", "pets", "cards")):
        for place in ("truth", "pred"):
            cv2.imwrite(str(tmp_path / place / f"{index}.png"), rng.integers(0, 256, (20, 30), np.uint8))
        lines.append(f"photos/{index}.jpg,truth/{index}.png,{category}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_folder(folder: Path) -> None:
    report = evaluate_folder(folder / "manifest.csv", folder / "pred")
    truth, pred = (cv2.imread(str(folder / place / "2.png"), cv2.IMREAD_GRAYSCALE) / 255 for place in ("truth", "pred"))
    expected = TruthMatte(truth).score(pred)
    for metric in ("mse", "sad", "grad", "conn", "biou", "maxf"):
        assert report.metrics[f"cards/{metric}"] == pytest.approx(expected[metric], rel=1e-5)
    assert [row["category"] for row in report.tables["per_category"]] == ["pets", "cards", "macro", "weighted"]
    assert len(report.tables["per_image"]) == 3
    json.dumps(report.tables)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda root: (root / "pred/1.png").unlink(), r"row 2 \(photos/1.jpg\): prediction: .*1.png is missing"),
        (lambda root: (root / "truth/0.png").unlink(), r"row 1 .* alpha: .*0.png is missing"),
        (
            lambda root: cv2.imwrite(str(root / "pred/2.png"), np.zeros((30, 20), np.uint8)),
            "row 3 .*20 × 30 .* 30 × 20",
        ),
        (lambda root: (root / "pred/0.png").write_bytes(b"<html>"), "0.png"),
        (lambda root: (root / "manifest.csv").write_text("image,mask\na,b\n"), "column 'alpha' is missing"),
        (lambda root: (root / "manifest.csv").write_text("image,alpha\n"), "no rows"),
        (lambda root: (root / "manifest.csv").write_text("image,alpha\na/0.jpg,x\nb/0.png,y\n"), "2 rows would be"),
        (lambda root: (root / "manifest.csv").unlink(), "no such file"),
    ],
)
def test_folder_faults(folder: Path, damage, text: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=text):
        evaluate_folder(folder / "manifest.csv", folder / "pred")
