"""Metrics against oracles: PySODMetrics for F, textbook definitions (`textbook.py`) for the rest."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from textbook import textbook_boundary_iou, textbook_connectivity, textbook_gradient

from mm_core.eval.metrics import TruthMatte, category_scores, connectivity_error, f_curve
from mm_core.imaging.images import load_alpha
from mm_core.model.preprocess import finish


def blob(seed: int, shape: tuple[int, int] = (61, 83), soft: float = 3.0, cut: float = 0.5) -> np.ndarray:
    """A smooth random matte with several parts, full range."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), soft)
    field = (field - field.min()) / (field.max() - field.min())
    return np.clip((field - cut) * 4 + 0.5, 0, 1)


def eight_bit(alpha: np.ndarray) -> np.ndarray:
    return np.round(alpha * 255) / 255


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    truth = eight_bit(blob(1))
    zeros, ones = np.zeros_like(truth), np.ones_like(truth)
    left, right = zeros.copy(), zeros.copy()
    left[:, :30], right[:, 50:] = 1, 1
    ties = np.random.default_rng(5).choice([0, 51, 102, 153, 204, 255, 25, 26, 76, 77, 178, 179], truth.shape) / 255
    found = {f"random{seed}": (eight_bit(blob(seed)), eight_bit(blob(seed + 100))) for seed in range(6)}
    found |= {f"float{seed}": (blob(seed, soft=1.2), blob(seed + 50, soft=2.0)) for seed in range(3)}
    noise = np.random.default_rng(9).random((2, 40, 57))
    return found | {
        "near": (np.clip(truth + 0.05 * np.sin(np.arange(truth.size)).reshape(truth.shape), 0, 1), truth),
        "same": (truth, truth),
        "all zero": (zeros, truth),
        "all one": (ones, truth),
        "truth zero": (truth, zeros),
        "truth one": (truth, ones),
        "zero zero": (zeros, zeros),
        "one one": (ones, ones),
        "apart": (left, right),
        "ties": (ties, np.roll(ties, 1, axis=1)),
        "ties of blobs": (np.round(truth * 5) / 5, np.round(blob(3) * 5) / 5),
        "noise": (noise[0], noise[1]),
        "float32": (truth.astype(np.float32), np.round(blob(4) * 255).astype(np.float32) / np.float32(255)),
        "one row": (truth[:1], np.roll(truth[:1], 2)),
    }


PAIRS = pairs()
each_pair = pytest.mark.parametrize("name", PAIRS)


def loop_f(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    levels, mask, curve = np.rint(prediction.astype(np.float64) * 255), truth > 0.5, []
    for threshold in range(256):
        taken = levels >= threshold
        hits = (taken & mask).sum()
        precision, recall = hits / max(1, taken.sum()), hits / max(1, mask.sum())
        curve.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
    return np.array(curve)


@each_pair
def test_against_textbook(name: str) -> None:
    prediction, truth = PAIRS[name]
    got = TruthMatte(truth).score(prediction)
    p, t = prediction.astype(np.float64), truth.astype(np.float64)
    assert got["mse"] == pytest.approx(np.mean((p - t) ** 2), abs=1e-12)
    assert got["sad"] == pytest.approx(np.abs(p - t).sum() / 1000, abs=1e-12)
    assert got["conn"] == pytest.approx(textbook_connectivity(prediction, truth), abs=1e-9)
    assert got["grad"] == pytest.approx(textbook_gradient(prediction, truth), abs=1e-9)
    assert got["biou"] == pytest.approx(textbook_boundary_iou(prediction, truth), abs=1e-12)
    np.testing.assert_allclose(got["fcurve"], loop_f(prediction, truth), atol=1e-12)
    assert got["maxf"] == pytest.approx(loop_f(prediction, truth).max(), abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 4), (40, 33)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_gradient_of_small_and_turned_mattes(shape: tuple[int, int], order: Literal["C", "F"]) -> None:
    truth, prediction = (np.asarray(np.random.default_rng(n).random(shape), order=order) for n in (0, 1))
    truth.flags.writeable = False  # as a memory-mapped one
    got = TruthMatte(truth).score(prediction)["grad"]
    assert got == pytest.approx(textbook_gradient(prediction, truth), abs=1e-12)


REAL = Path(os.environ.get("MM_REAL_PHOTOS", Path(__file__).parents[3] / "shared" / "data" / "inbox"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real photos: MM_REAL_PHOTOS names no folder of drops")
def test_against_textbook_on_real_mattes() -> None:
    files = sorted(REAL.glob("pixel_labeled/*/alphas/*.png"))[::25]
    assert len(files) > 3
    for file, other in zip(files, files[1:] + files[:1], strict=True):
        truth = finish(load_alpha(file), (120, 160))
        wrong = finish(load_alpha(other), (120, 160))
        noisy = eight_bit(np.clip(ndimage.gaussian_filter(truth, 1.5) * 0.8 + 0.2 * wrong, 0, 1))
        truth, got = truth.astype(np.float64), TruthMatte(truth).score(noisy)
        assert got["conn"] == pytest.approx(textbook_connectivity(noisy, truth), abs=1e-9), file.name
        assert got["grad"] == pytest.approx(textbook_gradient(noisy, truth), abs=1e-9), file.name
        assert got["biou"] == pytest.approx(textbook_boundary_iou(noisy, truth), abs=1e-12), file.name
        np.testing.assert_allclose(got["fcurve"], loop_f(noisy, truth), atol=1e-12, err_msg=file.name)


def test_many_parts_are_counted_exactly() -> None:
    """More parts than 16 bits hold; and the first of equal ones, in raster order, is the source region."""
    truth = np.zeros((600, 600))
    truth[::2, ::2] = 1
    assert connectivity_error(truth, truth) == 0
    predicted = truth * 0.55
    expected = textbook_connectivity(predicted, truth)
    assert expected > 0.1
    assert connectivity_error(predicted, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["random0", "random3", "ties", "ties of blobs", "same"])
def test_f_against_pysodmetrics(name: str) -> None:
    """8-bit predictions that span 0 … 255, so that PySODMetrics' min-max rescaling changes nothing."""
    import py_sod_metrics

    prediction, truth = (np.round(a * 255).astype(np.uint8) for a in PAIRS[name])
    prediction.flat[0], prediction.flat[1] = 0, 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = py_sod_metrics.Fmeasure()
    # rounding back after /255*255 would lose a level to truncation: lift it by less than one level
    oracle.step(pred=np.minimum(prediction / 255.0 + 1e-9, 1.0), gt=truth > 127, normalize=False)
    expected = oracle.get_results()["fm"]["curve"][::-1]
    np.testing.assert_allclose(f_curve(prediction / 255.0, truth > 127), expected, atol=1e-12)


def test_faint_prediction_is_not_rescaled() -> None:
    """A faint matte of 0.1 and 0.2: PySODMetrics' default stretches it to 0 and 1: perfect at every threshold."""
    truth = np.zeros((20, 20))
    truth[5:15, 5:15] = 1
    faint = 0.1 + 0.1 * truth
    curve = f_curve(faint, truth > 0.5)
    assert curve[51] == pytest.approx(1.0) and curve[128] == 0.0


def test_conn_float32_8bit_ties_match_float64() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (50, 50))
    other = np.random.default_rng(1).integers(0, 256, (50, 50))
    wide = connectivity_error(levels / 255, other / 255)
    narrow = TruthMatte((other / 255).astype(np.float32)).score((levels / 255).astype(np.float32))["conn"]
    assert narrow == pytest.approx(wide, abs=1e-6)


def test_all_zero_prediction_is_punished() -> None:
    """P3M's code skips images without a component, which gives an empty prediction a perfect score."""
    truth = blob(2)
    got = TruthMatte(truth).score(np.zeros_like(truth))["conn"]
    assert got == pytest.approx(np.where(truth >= 0.15, truth, 0).mean())


@each_pair
def test_properties(name: str) -> None:
    prediction, truth = PAIRS[name]
    perfect, given = TruthMatte(truth).score(truth), TruthMatte(truth).score(prediction)
    assert [perfect[m] for m in ("mse", "sad", "grad", "conn")] == pytest.approx([0, 0, 0, 0], abs=1e-30)
    assert perfect["biou"] == 1
    flipped = TruthMatte(truth[:, ::-1]).score(prediction[:, ::-1])
    for metric in ("mse", "sad", "grad", "biou", "maxf"):
        assert flipped[metric] == pytest.approx(given[metric], abs=1e-9)
    assert 0 <= given["biou"] <= 1 and 0 <= given["maxf"] <= 1 and 0 <= given["conn"] <= 1


def test_band_covers_soft_pixels_and_hard_edges() -> None:
    soft = blob(7)
    assert TruthMatte(soft).band[(soft > 0.05) & (soft < 0.95)].all()
    hard = np.zeros((100, 100))
    hard[:, 50:] = 1
    assert np.flatnonzero(TruthMatte(hard).band[0]).tolist() == [49, 50]
    assert np.isnan(TruthMatte(np.ones((10, 10))).score(np.ones((10, 10)))["mse_band"])


def test_bad_input() -> None:
    truth = TruthMatte(blob(0))
    with pytest.raises(ValueError, match="prediction is"):
        truth.score(np.zeros((3, 3)))
    broken = blob(0)
    broken[0, 0] = np.nan
    assert all(np.isnan(value).all() for value in truth.score(broken).values())
    with pytest.raises(ValueError, match="NaN"):
        TruthMatte(broken)


def test_category_scores() -> None:
    curves = [np.linspace(0, 1, 256), np.linspace(1, 0, 256), np.full(256, 0.3), np.full(256, 0.9)]
    frame = pd.DataFrame(
        {
            "category": ["portrait", "portrait", "pets", "scenery"],
            "fcurve": curves,
            "mse_band": [0.1, 0.3, np.nan, 0.0],
            **{m: [0.1, 0.3, 0.5, 9.0] for m in ("mse", "sad", "grad", "conn", "biou")},
        }
    )
    table = category_scores(frame)
    assert list(table.index) == ["portrait", "pets", "scenery", "macro", "weighted"]
    assert table.loc["portrait", "maxf"] == pytest.approx(0.5)  # the mean of per-image maxima would be 1
    assert table.loc["portrait", "mse"] == pytest.approx(0.2)
    assert table.loc["macro", "mse"] == pytest.approx(0.35)  # scenery is not of the six
    assert table.loc["weighted", "mse"] == pytest.approx(0.3)
    assert table.loc["weighted", "mse_band"] == pytest.approx(0.2)
    assert table.loc["weighted", "images"] == 3


def test_a_megapixel_is_quick() -> None:
    truth, prediction = blob(1, (1000, 1000), 20), blob(2, (1000, 1000), 20)
    start = time.perf_counter()
    TruthMatte(truth).score(prediction)
    assert time.perf_counter() - start < 3  # 0.2 s alone; the limit allows for a busy machine
