"""A bundle is whole or absent, says what was judged, and checks itself; nothing leaves without a PROMOTE."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from export_cycle import PARAMS, stop_clocks, verdict_of
from typer.testing import CliRunner

from mm_core import stages
from mm_core.cli.app import app
from mm_core.core.errors import InputError, MattingError, ReleaseRefused
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import DECODERS, Report, sha256_file
from mm_core.export import bundle as b
from mm_core.export import bundle_manifest as m
from mm_core.export.signature import make_keys, sign_file
from mm_core.pinned_inputs import Run, recorded_verdict
from mm_core.storage.run import StorageRun


def bundle_of(layout: Layout):
    return layout.bundles / json.loads((layout.cycle_bundle / "export.json").read_text())["bundle"]


def test_the_manifest_says_what_was_judged_and_every_digest_holds(exported):
    folder = bundle_of(exported)
    manifest = b.read_manifest(folder)
    assert folder.name == manifest["version"] == sha256_file(exported.model(TRAIN_STAGES[-1]))[:12]
    assert {p.name for p in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, file in manifest["files"].items():
        assert file == {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
    for decoder in DECODERS:
        name = manifest["decoders"][decoder]["file"]
        assert sha256_file(folder / name) == sha256_file(exported.quantised / name)
        assert set(manifest["decoders"][decoder]["latency_ms"]) == {"1", "2"}
    scores = json.loads((exported.evaluation / "metrics.json").read_text())
    assert manifest["metrics"]["pets"]["int8"] == scores["multimodal.int8"]["pets"]
    assert manifest["metrics"]["pets"]["float"] == scores["multimodal"]["pets"]
    assert manifest["metrics"]["pets"]["blind"] == scores["blind"]["pets"]
    assert manifest["input"]["shape"] == [1, 3, 64, 64] and manifest["input"]["mean"] == [0.0, 0.0, 0.0]
    assert sorted(r["license"] for r in manifest["data"]["sources"]) == ["CC0-1.0", "not stated"]
    training = sum(len(b.read_pool(exported.snapshot, pool)) for pool in b.TRAINING)
    assert sum(r["photos"] for r in manifest["data"]["sources"]) == training
    assert manifest["verdict"]["decision"] == "PROMOTE" and manifest["opset"] >= 17
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| portrait | int8 |" in card and "| portrait | blind |" in card and "CC0-1.0" in card


@pytest.mark.parametrize("golden_of", ["alpha", "choice"])
def test_a_bundle_checks_itself_anywhere_and_notices_changed_files(exported, tmp_path, golden_of):
    folder = tmp_path / "on a phone"
    shutil.copytree(bundle_of(exported), folder)
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "selfcheck.py")], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert said["ok"] and not said["torch_imported"]
    assert all(row["max"] < 1e-3 and row["choice"] < 1e-3 for row in said["decoders"].values())

    golden = dict(np.load(folder / "golden.npz"))
    golden[f"saliency_{golden_of}"] = 0.2 - 2 * golden[f"saliency_{golden_of}"]
    np.savez_compressed(folder / "golden.npz", **golden)
    with pytest.raises(MattingError, match="golden.npz"):
        b.verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / "golden.npz"
    manifest["files"][path.name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MattingError, match='"ok": false'):
        b.verify(folder)


def test_no_code_of_a_bundle_is_run_and_no_file_beside_it_is_named(exported, tmp_path, monkeypatch):
    """By `mm verify`, even of a bundle whose manifest is signed."""
    make_keys(tmp_path / "key")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_of(exported), folder)
    sign_file(folder / "manifest.json")
    ran = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    assert json.loads(ran.stdout)["ok"] and not ran.stderr, ran.output
    with monkeypatch.context() as patch:
        patch.delenv("MM_SIGNING_KEY")
        loud = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    assert json.loads(loud.stdout)["ok"] and json.loads(loud.stdout)["signed_by"] is None
    assert "WARNING: SIGNATURE NOT CHECKED" in loud.stderr
    own = (folder / "selfcheck.py").read_text()
    (folder / "selfcheck.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused = CliRunner().invoke(app, ["verify", str(folder)])
    assert isinstance(refused.exception, InputError) and "selfcheck.py: not the file" in str(refused.exception)
    with pytest.raises(MattingError, match=r"selfcheck.py: not the file"):
        b.verify(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "selfcheck.py").write_text(own)

    manifest = json.loads((folder / "manifest.json").read_text())
    key = {"sha256": sha256_file(tmp_path / "key"), "bytes": (tmp_path / "key").stat().st_size}
    for name in ("../key", str(tmp_path / "key")):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": manifest["files"] | {name: key}}))
        with pytest.raises(InputError, match="not a file of the bundle"):
            m.checked_manifest(folder)
    golden = {"golden": manifest["golden"] | {"file": "../key"}}
    (folder / "manifest.json").write_text(json.dumps(manifest | golden))
    with pytest.raises(InputError, match="not a file of the bundle"):
        m.checked_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "golden.npz").rename(tmp_path / "golden.npz")
    (folder / "golden.npz").symlink_to(tmp_path / "golden.npz")
    with pytest.raises(InputError, match="not a file of the bundle"):
        m.checked_manifest(folder)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"files": 1}', "[" * 100_000, '{"files": {}}',
                                  '{"files": {"a": {"bytes": Infinity, "sha256": "0"}}}',
                                  '{"files": {}, "decoders": {}, "golden": {"file": "a"}, "size": 1e999}'])  # fmt: skip
def test_what_is_no_manifest_is_told(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="not a bundle's manifest"):
        m.checked_manifest(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(m.MANIFEST_BYTES + 1)
    with pytest.raises(InputError, match="at most"):
        m.read_manifest(tmp_path)


def test_a_finished_bundle_is_kept_a_damaged_one_made_again(cycle, unmeasured):
    folder = bundle_of(cycle)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    stages.export(Run(PARAMS, cycle))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    verdict = verdict_of(cycle).model_copy(update={"reasons": ["looked at again"]})
    with pytest.raises(InputError, match="mm export"):
        b.exported_bundle(cycle, verdict)
    for name, content in (("portrait.int8.onnx", b"damaged"), ("manifest.json", b"[]")):
        (folder / name).write_bytes(content)
        stages.export(Run(PARAMS, cycle))
        assert m.checked_manifest(folder)["key"]


class Killed(BaseException):
    """What no `except` catches, as a kill is."""


@pytest.fixture
def unmeasured(monkeypatch):
    """Spares the stopwatch, which the shared bundle has shown at work."""
    stop_clocks(monkeypatch)


@pytest.mark.parametrize("place", ["_write_golden", "torch_latencies", "write_json", "verify", "_move_in"])
def test_killed_anywhere_there_is_no_half_bundle_and_the_next_run_completes_it(cycle, monkeypatch, unmeasured, place):
    folder = bundle_of(cycle)
    shutil.rmtree(folder)
    real = getattr(b, place)

    def dies(*arguments, **options):
        if place in ("verify", "_move_in"):
            raise Killed
        real(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(b, place, dies)
        with pytest.raises(Killed):
            stages.export(Run(PARAMS, cycle))
    assert not folder.exists()
    stages.export(Run(PARAMS, cycle))
    assert b.checked_manifest(folder)["key"]
    assert [p.name for p in cycle.bundles.iterdir() if p.name != ".lock"] == [folder.name], "nothing is left over"


def test_killed_between_the_two_moves_of_a_renewal(cycle, monkeypatch, unmeasured):
    folder = bundle_of(cycle)
    (folder / "portrait.int8.onnx").write_bytes(b"damaged")
    rename = b.Path.rename

    def dies(path, target):
        rename(path, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(b.Path, "rename", dies)
        with pytest.raises(Killed):
            stages.export(Run(PARAMS, cycle))
    stages.export(Run(PARAMS, cycle))
    assert b.checked_manifest(folder)["key"]
    assert [p.name for p in cycle.bundles.iterdir() if p.name != ".lock"] == [folder.name]


def test_export_and_promote_refuse_without_a_promote_for_this_very_model(cycle):
    verdict_of(cycle, "REJECT")
    for stage in (stages.export, stages.promote):
        with pytest.raises(ReleaseRefused, match="REJECT"):
            stage(Run(PARAMS, cycle))
    verdict_of(cycle, "INCONCLUSIVE")
    with pytest.raises(ReleaseRefused, match="INCONCLUSIVE"):
        stages.promote(Run(PARAMS, cycle))
    verdict_of(cycle)
    with cycle.model(TRAIN_STAGES[-1]).open("ab") as stream:
        stream.write(b" ")
    for stage in (stages.export, stages.promote):
        with pytest.raises(ReleaseRefused, match="mm gate"):
            stage(Run(PARAMS, cycle))
    cycle.verdict.unlink()
    with pytest.raises(InputError, match="mm gate"):
        stages.export(Run(PARAMS, cycle))


def test_files_that_were_not_judged_do_not_ship(cycle):
    verdict = recorded_verdict(cycle)
    (cycle.quantised / "portrait.int8.onnx").write_bytes((cycle.quantised / "scenery.int8.onnx").read_bytes())
    with pytest.raises(ReleaseRefused, match="portrait.int8.onnx"):
        b.write_bundle(StorageRun(PARAMS, cycle), verdict, Report("export"))
