"""Another model's mattes of unlabelled photos as targets: which photos, which values, kills and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import real_photos
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.imaging.images import load_rgb
from mm_core.imaging.pixel_cache import PixelCache
from mm_core.model.files import load_model
from mm_core.model.onnx_matting import OnnxMatting
from mm_core.model.predict import TorchPredictor
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, fetch_blob
from mm_core.training.losses import matting_losses
from mm_core.training.pseudo_labels import predict_missing, pseudo_labeled, teacher_digest
from mm_core.training.semi import Semi
from mm_core.training.stage import train_stage
from mm_core.training.trainer import DeviceBatch

PLAIN = {"train.semi.teacher_mean": (0.0, 0.0, 0.0), "train.semi.teacher_std": (1.0, 1.0, 1.0)}


class Brightest(torch.nn.Module):
    """Logits that are positive where the brightest colour is above the given value; true for the drawn shapes."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return one map (B, 1, S, S)."""
        return (image.amax(1, keepdim=True) - self.above) * 200


def export(path: Path, above: float = 0.55) -> Path:
    """Write the teacher; its mattes are the drawn shapes with hard edges."""
    torch.onnx.export(Brightest(above), (torch.zeros(1, 3, 96, 96),), str(path), input_names=["x"], dynamo=False)
    return path


@pytest.fixture
def taught(params: Params, tmp_path: Path) -> Params:
    return params.with_values(**{"train.semi.teacher": str(export(tmp_path / "teacher.onnx")), **PLAIN})


def train(params: Params, layout: Layout) -> Report:
    return train_stage("semi", StorageRun(params, layout), Report("train-semi"), start=layout.model("simple"))


@pytest.fixture
def started(workspace: Layout, params: Params) -> Layout:
    run = StorageRun(params.with_values(**{"train.simple.steps": 0}), workspace)
    train_stage("simple", run, Report("train-simple"), start=None)
    return workspace


def unlabelled(layout: Layout) -> pd.DataFrame:
    return pd.read_parquet(layout.snapshot / "train_unlabeled.parquet")


def labeled_by_teacher(frame: pd.DataFrame, params: Params) -> pd.DataFrame:
    digest = teacher_digest(params.train.semi)
    assert digest is not None
    return pseudo_labeled(frame, params.train.semi, digest)


def test_the_teachers_mattes_are_targets_of_the_main_decoder(
    started: Layout, taught: Params, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[DeviceBatch] = []
    terms = Semi.terms

    def watched(self: Semi, features: Mapping, samples: Mapping[str, DeviceBatch], progress: float) -> dict:
        batch = samples["pseudo_labeled"]
        batches.append(batch)
        with torch.no_grad():
            outputs = self.net.eval().route(features["pseudo_labeled"], batch.decoders)
            expected = sum(matting_losses(outputs, batch.alpha, batch.binary, self._loss).values())
            result = terms(self, features, samples, progress)
        assert result["pseudo_label"] == pytest.approx(0.5 * float(expected), rel=1e-5)
        return terms(self, features, samples, progress)

    monkeypatch.setattr(Semi, "terms", watched)
    params = taught.with_values(**{"train.semi.teacher_weight": 0.5, "train.semi.steps": 1})
    assert train(params, started).metrics["semi/loss/pseudo_label"] > 0
    # The targets are the shapes of the photos: bright inside and dark outside, in the same crop.
    (batch,) = batches
    bright = batch.images.amax(1, keepdim=True) > 0.55
    assert not batch.binary.any() and ((batch.alpha > 0.5) == bright).float().mean() > 0.95
    cache = PixelCache(started.cache, params.model.size)
    for row in labeled_by_teacher(unlabelled(started), params).itertuples():
        photo = load_rgb(fetch_blob(store, str(row.sample_id)))
        true = cv2.resize((photo.max(2) > 140).astype(np.float32), (cache.side, cache.side))
        assert np.abs(cache.mattes[str(row.alpha_sha256)] / 255 - true).mean() < 0.03


def test_a_model_file_of_the_project_teaches_with_the_decoder_of_the_category(
    started: Layout, params: Params, store: LocalStore
) -> None:
    weights = started.model("simple")
    params = params.with_values(**{"train.semi.teacher": str(weights)})
    train(params, started)
    cache = PixelCache(started.cache, params.model.size)
    for row in labeled_by_teacher(unlabelled(started), params).itertuples():
        photo = load_rgb(fetch_blob(store, str(row.sample_id)))
        (matte,) = TorchPredictor(weights, "cpu").predict([photo], [str(row.decoder)])
        expected = cv2.resize(matte, (cache.side, cache.side))
        assert np.abs(cache.mattes[str(row.alpha_sha256)] / 255 - expected).max() < 0.01


def test_without_cross_consistency_no_whole_unlabelled_photo_is_encoded(
    started: Layout, taught: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[set[str]] = []
    losses = Semi.losses

    def watched(self: Semi, batches: Mapping[str, DeviceBatch], progress: float) -> dict[str, torch.Tensor]:
        drawn.append(set(batches))
        return losses(self, batches, progress)

    monkeypatch.setattr(Semi, "losses", watched)
    for changed in ({}, {"train.semi.perturbations": ()}, {"train.semi.weight": 0.0}):
        train(taught.with_values(**changed, **{"train.semi.steps": 1}), started)
    taught_alone = {"labeled", "pseudo_labeled"}
    assert drawn == [taught_alone | {"unlabeled"}, taught_alone, taught_alone]


def test_only_the_named_categories_are_labelled_by_the_teacher(started: Layout, taught: Params) -> None:
    params = taught.with_values(**{"train.semi.teacher_categories": ("pets",)})
    frame = labeled_by_teacher(unlabelled(started), params)
    assert set(frame["category"]) == {"pets"} and frame["alpha_sha256"].notna().all()
    train(params, started)
    assert set(PixelCache(started.cache, params.model.size).mattes.stored()) >= set(frame["alpha_sha256"])
    others = labeled_by_teacher(unlabelled(started), taught)
    others = others[others["category"] != "pets"]
    assert not set(PixelCache(started.cache, params.model.size).mattes.stored()) & set(others["alpha_sha256"])


def test_a_teacher_counts_by_its_content(started: Layout, taught: Params, tmp_path: Path) -> None:
    first = train(taught, started).facts
    assert train(taught, started).facts["reused"]
    export(tmp_path / "teacher.onnx", above=0.7)
    other = train(taught, started).facts
    assert "reused" not in other and other["digest"] != first["digest"]
    assert train(taught.with_values(**{"train.semi.teacher": ""}), started).facts["digest"] != first["digest"]


def test_a_killed_run_predicts_only_what_is_missing(
    started: Layout, taught: Params, draw: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StorageRun(taught, started)
    frame = labeled_by_teacher(draw(5, 9, labelled=False), taught)
    cache, calls, matte = PixelCache(started.cache, 64), [], OnnxMatting._matte

    def breaks(self: OnnxMatting, photo: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return matte(self, photo)

    monkeypatch.setattr(OnnxMatting, "_matte", breaks)
    with pytest.raises(KeyboardInterrupt):
        predict_missing(frame, cache, run)
    kept = len(PixelCache(started.cache, 64).mattes)
    assert 0 < kept < 12
    calls.clear()
    monkeypatch.setattr(OnnxMatting, "_matte", lambda self, photo: calls.append(1) or matte(self, photo))
    predict_missing(frame, PixelCache(started.cache, 64), run)
    assert len(calls) == len(frame) - kept
    assert all(PixelCache(started.cache, 64).has_matte(key) for key in frame["alpha_sha256"])


def test_a_teacher_that_is_none_ends_before_anything_is_trained(
    started: Layout, taught: Params, tmp_path: Path
) -> None:
    (tmp_path / "text.onnx").write_bytes(b"no model")
    for name, words in (("missing.onnx", "no such file"), ("text.onnx", "onnxruntime cannot load it")):
        with pytest.raises(InputError, match=rf"train\.semi\.teacher: .*{name}: {words}"):
            train(taught.with_values(**{"train.semi.teacher": str(tmp_path / name)}), started)
    assert not started.model("semi").exists()


def test_the_benchmark_of_real_photos_trains_its_arms(workspace: Layout, params: Params) -> None:
    """Its split has no catalog behind it, but its stages are the product's own."""
    frames = {path.stem: pd.read_parquet(path) for path in workspace.snapshot.glob("*.parquet")}
    trainings = real_photos.Trainings(workspace, frames, params, "small 0")
    assert load_model(trainings.run("semi"))[1]["stage"] == "semi"
