"""A file beyond a hard limit does not leave, and the refusal says what was measured and what to do."""

from __future__ import annotations

import shutil

import pytest
from export_cycle import PARAMS, stop_clocks

from mm_core import stages
from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.params import LimitParams, Params
from mm_core.export import bundle as b
from mm_core.export.formats.run import call, run_file
from mm_core.export.limits import require_within
from mm_core.pinned_inputs import Run

ENTRY = {"speedup": {"1": 2.0}, "peak_mb": 300.0, "int8_against_float": {"mse": 1e-5}}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_bytes": 999}, "1000 bytes, export.limits.max_bytes is 999: choose"),
        ({"max_latency_ratio": 0.4}, "0.50 .*max_latency_ratio is 0.4: choose a model.encoder"),
        ({"max_peak_mb": 299.0}, "300 MB, export.limits.max_peak_mb is 299: lower"),
        ({"max_diff_mse": 1e-6}, "1e-05 .*max_diff_mse is 1e-06: raise"),
    ],
)
def test_each_limit_refuses_with_measure_and_remedy(limits, said):
    require_within(LimitParams(), {"portrait.int8.pte": ENTRY}, {"portrait.int8.pte": 1000})
    with pytest.raises(ReleaseRefused, match=f"portrait.int8.pte .*?{said}"):
        require_within(LimitParams(**limits), {"portrait.int8.pte": ENTRY}, {"portrait.int8.pte": 1000})


def test_only_what_the_gate_did_not_judge_is_held_to_its_difference_and_nothing_may_stay_undelegated():
    far = ENTRY | {"int8_against_float": {"mse": float("nan")}}
    require_within(LimitParams(), {"portrait.int8.onnx": far}, {"portrait.int8.onnx": 1000})
    with pytest.raises(ReleaseRefused, match="strays nan"):
        require_within(LimitParams(), {"portrait.int8.tflite": far}, {"portrait.int8.tflite": 1000})
    with pytest.raises(ReleaseRefused, match="3 operators"):
        require_within(LimitParams(), {"p.int8.pte": ENTRY | {"undelegated": 3}}, {"p.int8.pte": 1})


def test_a_stricter_limit_is_checked_again_and_the_old_bundle_stays_whole(cycle, monkeypatch):
    stop_clocks(monkeypatch)
    (folder,) = [path for path in cycle.bundles.iterdir() if path.is_dir()]
    key = b.checked_manifest(folder)["key"]
    strict = PARAMS.with_values(**{"export.limits.max_bytes": 10})
    with pytest.raises(ReleaseRefused, match="portrait.int8.onnx has .* bytes"):
        stages.export(Run(strict, cycle))
    assert b.checked_manifest(folder)["key"] == key
    shutil.rmtree(folder)
    with pytest.raises(ReleaseRefused, match="max_bytes"):
        stages.export(Run(strict, cycle))
    assert not folder.exists()


def test_memory_is_the_runtimes_own_not_that_of_who_started_it(base):
    """getrusage would give at least this process's peak, torch and all, handed down through exec."""
    image = b.resize(b.generate("pets", 0, size=64).image, 64, 64)
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    _, cost = run_file("onnx", base.settings, base.quantised / "portrait.int8.onnx", prepared(image), ())
    assert 0 < cost["model_mb"] < cost["peak_mb"] < 300
    assert cost["versions"].keys() == {"onnxruntime"}


def prepared(image):
    from mm_core.model.preprocess import prepare

    return prepare(image, 64)[None]


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_without_its_tools_a_format_is_refused_with_the_remedy_before_anything_is_made(cycle, name):
    settings = cycle.settings.__class__(**{**vars(cycle.settings), f"{name}_python": cycle.root / "nowhere" / "python"})
    layout = cycle.__class__(settings)
    (folder,) = [path for path in cycle.bundles.iterdir() if path.is_dir()]
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=f"export.formats: {name} .*make formats"):
        stages.export(Run(PARAMS.with_values(**{"export.formats": ["onnx", name]}), layout))
    assert not folder.exists() and not layout.formats.exists()


def test_a_program_that_fails_is_quoted(base, tmp_path):
    with pytest.raises(b.MattingError, match="run_onnx.py failed .*nothing.npy"):
        call("onnx", base.settings, "run_onnx.py", [tmp_path / "x", tmp_path / "nothing.npy", tmp_path / "out"])


@pytest.mark.parametrize("formats", [[], ["litert"], ["onnx", "onnx"], ["onnx", "coreml"]])
def test_the_list_of_formats_always_has_what_is_judged(formats):
    with pytest.raises(ValueError, match="formats"):
        Params().with_values(**{"export.formats": formats})
