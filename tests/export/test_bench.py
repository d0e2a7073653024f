"""`mm bench-bundle` on a small real bundle of ONNX files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mm_core.core.errors import InputError
from mm_core.core.headless import chromium
from mm_core.core.layout import Layout
from mm_core.core.params import LimitParams
from mm_core.core.records import sha256_file, write_json
from mm_core.core.settings import Settings
from mm_core.export.bench import WEB, _picked, bench_bundle
from mm_core.export.bundle_manifest import GOLDEN_BYTES
from mm_core.export.formats.run import SUFFIX
from mm_core.export.runtime import OnnxPredictor
from mm_core.export.signature import make_keys, sign_file

SIDE = 16
RUNTIME = Settings.from_env(Path("unused")).onnxruntime_web


def small_bundle(folder: Path) -> Path:
    """A bundle of one decoder whose network is `sigmoid(mean of the channels)`, in the form that `mm export` writes."""
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sigmoid", ["mean"], ["alpha"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("alpha", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "portrait.int8.onnx")
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    alpha = 1 / (1 + np.exp(-(image.astype(np.float32) / 255).mean(2)))
    np.savez(folder / "golden.npz", portrait_image=image, portrait_alpha=alpha)
    names = ("portrait.int8.onnx", "golden.npz")
    manifest = {
        "schema_version": 2,
        "version": "small",
        "decoders": {"portrait": {"file": "portrait.int8.onnx", "formats": {}}},
        "input": {"name": "image", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "shape": [1, 3, SIDE, SIDE]},
        "golden": {"file": "golden.npz", "tolerance": {"mse": 1e-4, "max": 0.1}},
        "files": {n: {"sha256": sha256_file(folder / n), "bytes": (folder / n).stat().st_size} for n in names},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Settings.from_env(tmp_path / "data"))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = small_bundle(tmp_path / "bundle")
    make_keys(tmp_path / "key")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
    sign_file(made / "manifest.json")
    return made


def test_a_signed_bundle_is_measured_and_a_runtime_picked(layout: Layout, bundle: Path) -> None:
    report = bench_bundle(layout, bundle, LimitParams(), runtimes=SUFFIX, threads=(1, 2))
    assert {(r["runtime"], r["threads"]) for r in report.tables["runs"]} == {("onnx", 1), ("onnx", 2)}
    assert report.facts["picked"]["portrait"]["runtime"] == "onnx" and report.facts["signed_by"]
    assert set(report.facts["left_out"]) == {"executorch", "litert"}
    assert all(row["ms"] > 0 and row["peak_mb"] > 10 and not row["beyond"] for row in report.tables["runs"])
    tight = bench_bundle(layout, bundle, LimitParams(max_bytes=10), runtimes=("onnx",), threads=(1,))
    (said,) = tight.facts["picked"]["portrait"]["beyond"]
    assert "export.limits.max_bytes is 10" in said, "beyond a limit it is still told, and says so"


@pytest.mark.skipif(not RUNTIME.is_dir(), reason="onnxruntime-web is missing: run `make gallery`")
def test_in_a_browser_it_is_measured_with_threads(layout: Layout, bundle: Path) -> None:
    try:
        chromium()
    except InputError as error:
        pytest.skip(str(error))
    report = bench_bundle(layout, bundle, LimitParams(), runtimes=(WEB,), threads=(1, 2))
    rows = report.tables["runs"]
    assert [(r["runtime"], r["threads"]) for r in rows] == [(WEB, 1), (WEB, 2)]
    assert all(row["ms"] > 0 and row["golden_mse"] < 1e-9 for row in rows)
    assert all(50 < row["peak_mb"] < 1500 for row in rows), "the page's process, its Chromium included"


def test_a_runtime_that_is_absent_says_why(layout: Layout, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Layout(layout.settings.__class__(**vars(layout.settings) | {"onnxruntime_web": bundle / "none"}))
    report = bench_bundle(bare, bundle, LimitParams(), runtimes=("onnx", WEB), threads=(1,))
    assert "make gallery" in report.facts["left_out"][WEB]
    if RUNTIME.is_dir():
        monkeypatch.setenv("PATH", str(bundle))
        monkeypatch.delenv("MM_CHROMIUM", raising=False)
        report = bench_bundle(layout, bundle, LimitParams(), runtimes=("onnx", WEB), threads=(1,))
        assert "no Chromium here" in report.facts["left_out"][WEB]


def test_what_may_not_be_trusted_is_not_run(layout: Layout, bundle: Path) -> None:
    with (bundle / "portrait.int8.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match="fetch the bundle again"):
        bench_bundle(layout, bundle, LimitParams())
    (bundle / "manifest.json.sig").unlink()
    with pytest.raises(InputError, match="no signature"):
        bench_bundle(layout, bundle, LimitParams())


def test_mattes_that_are_not_the_golden_ones_are_left_out(layout: Layout, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    golden = dict(np.load(bundle / "golden.npz"))
    np.savez(bundle / "golden.npz", **golden | {"portrait_alpha": golden["portrait_alpha"] * 0.5})
    manifest["files"]["golden.npz"]["sha256"] = sha256_file(bundle / "golden.npz")
    write_json(bundle / "manifest.json", manifest)
    sign_file(bundle / "manifest.json")
    with pytest.raises(InputError, match="not the golden ones"):
        bench_bundle(layout, bundle, LimitParams(), runtimes=("onnx",), threads=(1,))


def rewrite(bundle: Path, path: str, value: object) -> None:
    """Set (or, with None, remove) one value of the manifest, with the digests of the present files, and sign it."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    *above, name = path.split("/")
    place = manifest
    for step in above:
        place = place[step]
    place[name] = value
    if value is None:
        del place[name]
    for file, entry in manifest["files"].items() if path != "files" else ():
        if isinstance(entry, dict) and (bundle / file).is_file() and path != f"files/{file}":
            entry |= {"sha256": sha256_file(bundle / file), "bytes": (bundle / file).stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    sign_file(bundle / "manifest.json")


WRONG_VALUES: list[tuple[str, object]] = [
    *((path, None) for path in ("version", "decoders", "input", "input/std", "golden", "golden/tolerance", "files")),
    *((f"input/{name}", value) for name in ("mean", "std") for value in ([0.0] * 2, ["a"] * 3, 1, [float("nan")] * 3)),
    ("input/std", [1.0, 0.0, 1.0]),
    ("golden/tolerance", {"mse": float("nan"), "max": 0.1}),
    ("golden/tolerance", {"mse": -1, "max": 0.1}),
    ("golden/tolerance", []),
    ("decoders/other", {"file": "portrait.int8.onnx", "formats": {}}),
    ("decoders/portrait", {"file": ["portrait.int8.onnx"], "formats": {}}),
    ("decoders/portrait/formats", [1]),
    ("version", 3),
    ("files/portrait.int8.onnx", "x"),
    *((f"files/{name}", {"sha256": "0" * 64, "bytes": 1}) for name in ("..", "", "a\0b", "\ud800", "none.onnx")),
]


@pytest.mark.parametrize(("path", "value"), WRONG_VALUES)
def test_a_signed_manifest_with_wrong_values_is_refused_in_one_line(
    layout: Layout, bundle: Path, path: str, value: object
) -> None:
    """Whoever signed it: no reader computes with a value that is missing, no number, or names another file."""
    rewrite(bundle, path, value)
    for read in (OnnxPredictor.of_folder, lambda folder: bench_bundle(layout, folder, LimitParams())):
        with pytest.raises(InputError, match=r"^[^\n]*(not a bundle's manifest|not a file of|not the file)[^\n]*$"):
            read(bundle)


@pytest.mark.parametrize("kind", ["text", "empty", "object", "missing", "shape", "bomb"])
def test_golden_pairs_of_another_form_are_refused(layout: Layout, bundle: Path, kind: str) -> None:
    file, pairs = bundle / "golden.npz", dict(np.load(bundle / "golden.npz"))
    if kind in ("text", "empty"):
        file.write_bytes(b"" if kind == "empty" else b"no archive")
    elif kind == "bomb":
        np.savez_compressed(file, **pairs | {"big": np.zeros(GOLDEN_BYTES, np.uint8)})
    else:
        other = {
            "object": pairs | {"portrait_alpha": np.array([{}], object)},
            "missing": {"portrait_image": pairs["portrait_image"]},
            "shape": pairs | {"portrait_alpha": pairs["portrait_alpha"][1:]},
        }
        np.savez(file, **other[kind])
    rewrite(bundle, "version", "other")
    with pytest.raises(InputError, match=r"golden.npz: (not the golden pairs|\d+ bytes, at most)"):
        bench_bundle(layout, bundle, LimitParams(), runtimes=("onnx",), threads=(1,))


def test_files_that_the_manifest_does_not_list_are_not_loaded(bundle: Path) -> None:
    shutil.copy(bundle / "portrait.int8.onnx", bundle / "scenery.int8.onnx")
    assert set(OnnxPredictor.of_folder(bundle).files) == {"portrait"}


def test_unknown_runtimes_are_named_and_unsigned_bundles_taken_only_if_said(layout: Layout, tmp_path: Path) -> None:
    made = small_bundle(tmp_path / "plain")
    with pytest.raises(InputError, match="onnx, executorch, litert, onnxruntime-web"):
        bench_bundle(layout, made, LimitParams(), runtimes=("tflite",))
    assert (
        bench_bundle(layout, made, LimitParams(), runtimes=("onnx",), threads=(1,), unsigned=True).facts["signed_by"]
        is None
    )
    shutil.rmtree(made)


@pytest.mark.parametrize("signed", [False, True])
def test_without_a_key_a_bundle_is_checked_and_the_missing_word_is_loud(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    made = small_bundle(tmp_path / "plain")
    for name in ("MM_SIGNING_KEY", "MM_VERIFY_KEY"):
        monkeypatch.delenv(name, raising=False)
    if signed:
        make_keys(tmp_path / "key")
        with monkeypatch.context() as patch:
            patch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
            sign_file(made / "manifest.json")
    report = bench_bundle(layout, made, LimitParams(), runtimes=("onnx",), threads=(1,))
    assert report.facts["signed_by"] is None
    assert report.facts["warning"].startswith("SIGNATURE NOT CHECKED" if signed else "UNSIGNED")
    with (made / "portrait.int8.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match="fetch the bundle again"):
        bench_bundle(layout, made, LimitParams(), runtimes=("onnx",), threads=(1,))


def test_where_a_key_is_named_an_unsigned_bundle_needs_a_word(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_bundle(tmp_path / "plain")
    make_keys(tmp_path / "key")
    monkeypatch.setenv("MM_VERIFY_KEY", str(tmp_path / "key.pub"))
    with pytest.raises(InputError, match="no signature"):
        bench_bundle(layout, made, LimitParams(), runtimes=("onnx",), threads=(1,))
    report = bench_bundle(layout, made, LimitParams(), runtimes=("onnx",), threads=(1,), unsigned=True)
    assert report.facts["warning"].startswith("UNSIGNED")


def test_of_runs_about_as_fast_the_one_with_fewer_threads_is_picked() -> None:
    def row(threads: int, ms: float, beyond: tuple[str, ...] = (), runtime: str = "onnx") -> dict:
        return {"decoder": "portrait", "runtime": runtime, "threads": threads, "ms": ms, "beyond": list(beyond)}

    assert _picked([row(1, 10.2), row(2, 10.0), row(4, 11.0)])["portrait"]["threads"] == 1
    assert _picked([row(1, 14.0), row(2, 10.0)])["portrait"]["threads"] == 2
    assert _picked([row(1, 5.0, ("too large",), "litert"), row(1, 9.0)])["portrait"]["runtime"] == "onnx"
