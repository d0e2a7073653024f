"""`mm bench-bundle` on a real bundle of all formats: the tiny trained network through every runtime of this machine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from export_cycle import PARAMS

from mm_core import stages
from mm_core.core.layout import Layout
from mm_core.core.records import DECODERS
from mm_core.core.settings import Settings
from mm_core.export.bench import RUNTIMES, WEB, bench_bundle
from mm_core.export.signature import make_keys
from mm_core.pinned_inputs import Run

TOOLS = Settings.from_env(Path("unused"))
MISSING = [python for python in (TOOLS.executorch_python, TOOLS.litert_python) if not python.is_file()]


@pytest.mark.skipif(bool(MISSING), reason=f"{[str(p) for p in MISSING]} missing: `make formats` installs them")
@pytest.mark.timeout(1800)  # two converters, each with its own torch
def test_a_signed_bundle_of_all_formats_runs_in_every_runtime(cycle: Layout, tmp_path: Path, monkeypatch) -> None:
    tools = ("executorch_python", "litert_python", "onnxruntime_web")
    layout = Layout(replace(cycle.settings, **{name: getattr(TOOLS, name) for name in tools}))
    params = PARAMS.with_values(**{"export.formats": ["onnx", "executorch", "litert"]})
    make_keys(tmp_path / "key")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
    shutil.rmtree(layout.bundles)
    bundle = Path(stages.export(Run(params, layout)).facts["bundle"])

    report = bench_bundle(layout, bundle, params.export.limits, threads=(1, 2))
    in_browser = (layout.settings.onnxruntime_web / "ort.wasm.min.mjs").is_file() and shutil.which("chromium")
    expected = [r for r in RUNTIMES if r != WEB or in_browser]
    rows = report.tables["runs"]
    assert {(r["decoder"], r["runtime"], r["threads"]) for r in rows} == {
        (decoder, runtime, threads) for decoder in DECODERS for runtime in expected for threads in (1, 2)
    }
    assert set(report.facts["left_out"]) == set(RUNTIMES) - set(expected)
    assert all(row["golden_mse"] < 1e-3 and row["beyond"] == [] for row in rows)
    for decoder, picked in report.facts["picked"].items():
        fastest = min(row["ms"] for row in rows if row["decoder"] == decoder)
        assert picked["ms"] <= 1.03 * fastest and report.facts["signed_by"]
