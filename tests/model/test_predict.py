"""Preprocessing and the PyTorch predictor."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.cli.predict import predict_files
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import DECODERS
from mm_core.core.settings import Settings
from mm_core.model.files import save_model
from mm_core.model.predict import TorchPredictor, decoders_for
from mm_core.model.preprocess import finish, prepare, resize
from mm_core.pinned_inputs import Run

side = st.integers(1, 90)


@settings(max_examples=40)
@given(side, side, side, side)
def test_resizing_keeps_a_constant_and_never_overshoots(h, w, to_h, to_w):
    assert np.all(resize(np.full((h, w, 3), 93, np.uint8), to_h, to_w) == 93)
    step = np.zeros((h, w), np.float32)
    step[:, w // 2 :] = 1
    out = finish(step, (to_h, to_w))
    assert out.shape == (to_h, to_w) and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1


def test_prepare_gives_channels_first_between_0_and_1():
    photo = np.zeros((20, 10, 3), np.uint8)
    photo[..., 0] = 255
    out = prepare(photo, 32)
    assert out.shape == (3, 32, 32) and out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_array_equal(out[:, 5, 5], [1, 0, 0])


def test_shrinking_averages_and_does_not_alias():
    """One-pixel stripes become their mean, also where the other axis grows."""
    stripes = np.zeros((16, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    np.testing.assert_allclose(prepare(stripes, 64), 0.5, atol=0.01)


@pytest.mark.parametrize(
    "photo",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_photo_is_refused(photo):
    with pytest.raises(ValueError, match=r"uint8 of \(H,W,3\)"):
        prepare(photo, 32)


@pytest.fixture
def model_file(net, tmp_path):
    net.eval()
    save_model(tmp_path / "model.safetensors", net, {"stage": "simple"})
    return tmp_path / "model.safetensors"


def photos_of(shapes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_mattes_come_back_in_order_at_each_photos_size(net, model_file):
    photos = photos_of([(37, 91), (64, 64), (200, 33), (51, 50), (1, 7)])
    names = ["scenery", "saliency", "portrait", "saliency", "scenery"]
    mattes = TorchPredictor(model_file, "cpu", batch=2).predict(photos, names)
    for photo, name, matte in zip(photos, names, mattes, strict=True):
        assert matte.shape == photo.shape[:2] and matte.dtype == np.float32
        with torch.inference_mode():
            small = net(torch.from_numpy(prepare(photo, 64))[None], name).sigmoid()[0, 0].numpy()
        np.testing.assert_allclose(matte, finish(small, photo.shape[:2]), atol=2e-4)


def test_no_photos_no_mattes_and_unequal_lists_are_refused(model_file):
    predictor = TorchPredictor(model_file)
    assert predictor.predict([], []) == []
    with pytest.raises(ValueError, match="1 photos with 2"):
        predictor.predict(photos_of([(8, 8)]), ["portrait", "portrait"])


def test_threads_share_one_predictor(model_file):
    predictor, photos = TorchPredictor(model_file, "cpu"), photos_of([(40, 60)] * 3)
    expected = predictor.predict(photos, ["portrait"] * 3)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(predictor.predict(photos, ["portrait"] * 3))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        for one, other in zip(result, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.fixture
def bright_is_scenery(net, tmp_path):
    """A model that chooses by its own features of a white and of a black photo."""
    net.eval()
    photos = [np.full((48, 64, 3), level, np.uint8) for level in (0, 255)]
    with torch.inference_mode():
        black, white = (
            torch.nn.functional.layer_norm(pooled, pooled.shape)
            for photo in photos
            for pooled in [net.encode(torch.from_numpy(prepare(photo, 64))[None])[-1].mean((0, 2, 3))]
        )
    with torch.no_grad():
        net.chooser.weight[DECODERS.index("scenery")] = white - black
        net.chooser.weight[DECODERS.index("portrait")] = black - white
    save_model(tmp_path / "chooses.safetensors", net, {"stage": "simple"})
    return tmp_path / "chooses.safetensors", photos


def test_where_no_category_is_known_the_model_chooses(bright_is_scenery):
    path, (black, white) = bright_is_scenery
    predictor = TorchPredictor(path, batch=2)
    assert predictor.choose([white, black, white]) == ["scenery", "portrait", "scenery"]
    assert decoders_for(predictor, [black, white, white, black], [None, "cards", "", "pets"]) == [
        "portrait", "saliency", "scenery", "saliency",
    ]  # fmt: skip
    assert decoders_for(predictor, [], []) == predictor.choose([]) == []


def test_mm_predict_without_a_category_asks_the_model(bright_is_scenery, tmp_path):
    path, photos = bright_is_scenery
    layout, files = Layout(Settings.from_env(tmp_path / "ws")), []
    for name, photo in zip(("black", "white"), photos, strict=True):
        files.append(tmp_path / f"{name}.png")
        cv2.imwrite(str(files[-1]), photo)

    def mattes(out, **options):
        report = predict_files(Run(Params(), layout), files, tmp_path / out, model=str(path), **options)
        return [row["decoder"] for row in report.tables["mattes"]], [
            (tmp_path / out / file.name).read_bytes() for file in files
        ]

    decoders, chosen = mattes("chosen")
    assert decoders == ["portrait", "scenery"]
    _, portrait = mattes("portrait", category="portrait")
    named, scenery = mattes("scenery", category="scenery")
    assert named == ["scenery", "scenery"]
    assert chosen == [portrait[0], scenery[1]] and portrait != scenery
