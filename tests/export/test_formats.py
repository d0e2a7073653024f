"""Further formats: real files of the tiny network, and how the bundle takes such files in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_cycle import PARAMS, SIZE, stop_clocks

from mm_core import stages
from mm_core.core.errors import ReleaseRefused
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import DECODERS, sha256_file
from mm_core.export import bundle as b
from mm_core.export.bundle_costs import FileRun
from mm_core.export.float_reference import float_alphas
from mm_core.export.formats import convert as c
from mm_core.export.formats.run import SUFFIX, run_file
from mm_core.model.preprocess import prepare
from mm_core.pinned_inputs import Run
from mm_core.storage.run import StorageRun
from samplegen import generate

TOOLS = Path(__file__).resolve().parents[2] / ".tools"
WITH_EXECUTORCH = PARAMS.with_values(**{"export.formats": ["onnx", "executorch"]})


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_a_file_of_each_format_is_close_to_float_sound_and_kept(cycle, monkeypatch, name):
    python = TOOLS / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python} is missing: `make formats` installs it")
    model = cycle.model(TRAIN_STAGES[-1])
    whole = json.loads((cycle.quantised / "quantised.json").read_text())
    ids, row = whole["calibration"]["portrait"][:3], whole["decoders"]["portrait"]
    layout = Layout(cycle.settings.__class__(**vars(cycle.settings) | {f"{name}_python": python}))
    params = PARAMS.export.model_copy(update={"formats": ["onnx", name], "max_int8_mse": 1e-9})

    def made() -> dict[str, Any]:
        quantised = {"calibration": {"portrait": ids}, "decoders": {"portrait": row | {"steps": [0, 1, 2]}}}
        return c.convert(StorageRun(Params(export=params), layout), model, quantised)[name]["portrait"]

    record = made()
    file = layout.formats / f"portrait{SUFFIX[name]}"
    assert record["sha256"] == sha256_file(file)
    assert b"mm_core/" not in file.read_bytes(), "no paths of this machine's sources"
    assert record["float_convolutions"] in ([], [0], [0, 1]), "the closest of the plan"
    if name == "executorch":
        assert record["undelegated"] == 0

    photos = np.stack([prepare(generate("portrait", 700 + i, size=SIZE).image, SIZE) for i in range(4)])
    plain = float_alphas(model, "portrait", photos)
    alphas, cost = run_file(name, layout.settings, file, photos, ())
    assert np.var(plain) > 1e-4, "flat mattes would prove nothing"
    assert np.mean((alphas - plain) ** 2) < np.var(plain) / 100
    assert set(cost["versions"]) == ({"executorch"} if name == "executorch" else {"ai-edge-litert"})

    again: list[str] = []
    monkeypatch.setattr(c, "_make", lambda name, *a: again.append(name) or {"sha256": sha256_file(file), "bytes": 1})
    assert made() == record and not again
    data = file.read_bytes()
    for damage in (lambda: file.write_bytes(b"half"), file.with_name(f"{file.name}.json").unlink):
        damage()
        made()
        assert again.pop() == name and not again
        file.write_bytes(data)
    ids.pop()
    made()
    assert again == [name], "other photos, other ranges"


@pytest.fixture
def stand_ins(cycle: Layout, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files that claim to be ExecuTorch's, so that the bundle's part is tested without minutes of conversion."""
    stop_clocks(monkeypatch)
    said = {"undelegated": 0, "float_convolutions": [0, 1], "versions": {"executorch": "1.5.1"}}
    clocked = b.run_all

    def convert(run: StorageRun, model: Path, quantised: dict) -> dict:
        layout = run.layout
        records: dict[str, dict] = {name: {} for name in run.params.export.formats if name != "onnx"}
        layout.formats.mkdir(parents=True, exist_ok=True)
        for name, rows in records.items():
            for decoder in quantised["calibration"]:
                file = layout.formats / f"{decoder}{SUFFIX[name]}"
                file.write_bytes(f"{name} {decoder}".encode())
                rows[decoder] = said | {"file": file.name, "sha256": sha256_file(file)}
        return records

    def run_all(folder: Path, layout: Layout, store: Any, golden: dict, made: dict, calibration: dict) -> dict:
        runs = clocked(folder, layout, store, golden, made, calibration)
        for row in runs.values():
            for name in made:
                cost = {**row["onnx"].cost, "peak_mb": 321.0}
                row[name] = FileRun(cost, row["onnx"].golden, {"mse": 2e-6, "max": 0.01, "photos": 6})
        return runs

    monkeypatch.setattr(b, "convert", convert)
    monkeypatch.setattr(b, "run_all", run_all)
    return said


def test_the_bundle_takes_further_formats_in_when_asked_and_lets_them_go_again(cycle, stand_ins):
    report = stages.export(Run(WITH_EXECUTORCH, cycle))
    folder = Path(report.facts["bundle"])
    manifest = b.read_manifest(folder)
    for decoder in DECODERS:
        entry = manifest["decoders"][decoder]["formats"]["executorch"]
        assert manifest["files"][entry["file"]]["sha256"] == sha256_file(folder / entry["file"])
        assert entry["int8_against_float"]["mse"] == 2e-6 and entry["speedup"] == {"1": 1.0, "2": 1.0}
        assert f"| {decoder}.int8.pte |" in (folder / "MODEL_CARD.md").read_text()
    assert "| 321 MB | 2.0e-06, 0.01 | 2 |" in (folder / "MODEL_CARD.md").read_text()
    assert {f"{d}_executorch_alpha" for d in DECODERS} < set(np.load(folder / "golden.npz").files)
    shown = [row["file"] for row in report.tables["bundle"]]
    assert shown == [f"{d}{SUFFIX[name]}" for name in ("onnx", "executorch") for d in sorted(DECODERS)]

    stages.export(Run(PARAMS, cycle))
    assert not list(folder.glob("*.pte")) and b.read_manifest(folder)["asked"]["formats"] == {}


def test_a_further_format_beyond_a_limit_refuses_the_whole_release(cycle, stand_ins):
    stand_ins["undelegated"] = 44
    with pytest.raises(ReleaseRefused, match="portrait.int8.pte leaves 44 operators"):
        stages.export(Run(WITH_EXECUTORCH, cycle))
    (folder,) = [path for path in cycle.bundles.iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert b.checked_manifest(folder)["key"] and not list(folder.glob("*.pte")), "the bundle before it stays whole"
