"""One champion, one history: promotion repeated, interrupted anywhere, raced, or overtaken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from export_cycle import PARAMS, clone, layout_at, seal_evaluation, stop_clocks, verdict_of, write_models

from mm_core import operations, stages
from mm_core.cli.terminal import say
from mm_core.cli.words import lineage_report
from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import Report, Verdict, sha256_file, write_json
from mm_core.core.settings import Settings
from mm_core.export import bundle as b
from mm_core.export import registry as registry_module
from mm_core.export.alias_database import UnknownDatabase
from mm_core.export.lineage import lineage
from mm_core.export.registry import NAME, Registry
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.model.files import load_model
from mm_core.pinned_inputs import Run, read_inputs, recorded_verdict
from mm_core.storage.run import StorageRun, catalog_of, store_of
from mm_core.storage.store import LocalStore, fetch_blob

WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_registered_model_tag",
    "set_registered_model_alias",
    "log_artifacts",
    "create_run",
    "set_tag",
)


def pins_of_client(settings: Settings, names: Iterable[str]) -> dict[str, object]:
    """The pins that MLflow's own client gives: the database is then of no known form."""

    def unknown(*_: object) -> None:
        raise UnknownDatabase

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "read_pin", unknown)
        return {name: Registry(settings).pin(name) for name in names}


class Killed(BaseException):
    """What no `except` catches, as a kill is."""


def promote(layout: Layout):
    return stages.promote(Run(PARAMS, layout))


def state(layout: Layout) -> dict:
    """Everything that a promotion writes, but for the times and the code revision (a person may commit meanwhile)."""
    registry, moving = Registry(layout.settings), ("code_revision", "provenance")
    versions = registry._client.search_model_versions(f"name = '{NAME}'")
    return {
        "aliases": {a: str(v) for a, v in sorted(registry._model().aliases.items())},
        "versions": {str(v.version): {k: t for k, t in v.tags.items() if k not in moving} for v in versions},
        "moves": [{k: move[k] for k in ("n", "from", "to", "why")} for move in registry.history()],
        "bundles": sorted(p.name for p in layout.bundles.iterdir() if not p.name.startswith(".")),
    }


@pytest.fixture(scope="module")
def promoted(exported, tmp_path_factory) -> Layout:
    """The first model, promoted; read-only."""
    layout = clone(exported, tmp_path_factory.mktemp("promoted") / "data")
    promote(layout)
    return layout


@pytest.fixture(scope="module")
def second(promoted, tmp_path_factory) -> Layout:
    """A second candidate, judged against the first and exported, not promoted; read-only.

    Its weights are the first's under another name, so that the int8 files and scores at hand are its own too.
    """
    layout = clone(promoted, tmp_path_factory.mktemp("second") / "data")
    champion = sha256_file(layout.model(TRAIN_STAGES[-1]))
    net, _ = load_model(layout.model(TRAIN_STAGES[-1]))
    write_models(layout, net, seed=1)
    record = json.loads((layout.quantised / "quantised.json").read_text())
    write_json(layout.quantised / "quantised.json", record | {"model": sha256_file(layout.model(TRAIN_STAGES[-1]))})
    seal_evaluation(layout)
    export(layout, verdict_of(layout, champion=champion))
    return layout


def export(layout: Layout, verdict: Verdict) -> None:
    """With the stopwatch at rest."""
    with pytest.MonkeyPatch.context() as patch:
        stop_clocks(patch)
        b.write_bundle(StorageRun(PARAMS, layout), verdict, Report("export"))


def test_a_fresh_workspace_has_no_champion_and_asking_writes_nothing(tmp_path):
    layout = layout_at(tmp_path / "data")
    assert Registry(layout.settings).pin("champion") is None
    assert Registry(layout.settings).history() == []
    assert not layout.root.exists()
    with pytest.raises(InputError, match="the registry is empty; `mm run` registers"):
        lineage(layout.settings, "1")


def test_pins_from_the_database_are_those_of_the_client(second, tmp_path):
    """Also after moves outside of mm, which a copy of the aliases would miss."""
    layout = clone(second, tmp_path / "data")
    names = ("champion", "anchor", "candidate", "1", "2", "3", "nobody", "0")

    def pins() -> dict[str, object]:
        answers = {name: Registry(layout.settings).pin(name) for name in names}
        assert answers == pins_of_client(layout.settings, names)
        return answers

    before = pins()
    assert before["champion"] == before["1"] is not None and before["2"] is None
    promote(layout)
    after = pins()
    assert after["champion"] == after["2"] is not None and after["anchor"] == before["1"]
    client = Registry(layout.settings)._client
    client.set_registered_model_alias(NAME, "champion", "1")
    assert pins()["champion"] == before["1"]
    bare = client.create_model_version(NAME, source=str(tmp_path), await_creation_for=0)
    client.set_registered_model_alias(NAME, "candidate", bare.version)
    assert pins()["candidate"] is None, "a version without a digest"
    client.delete_model_version(NAME, "2")
    assert pins()["2"] is None
    client.delete_registered_model_alias(NAME, "champion")
    assert pins()["champion"] is None


def test_a_run_without_news_reads_pins_without_mlflow(promoted):
    code = "import sys; from mm_core.core.settings import Settings; from mm_core.export.registry import Registry\n"
    code += "print(Registry(Settings.from_env()).pin('champion')['version'], 'mlflow' in sys.modules)"
    environment = {**os.environ, "MM_WORKSPACE": str(promoted.root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1", "False"]


def test_a_pin_leads_to_the_very_files(promoted):
    registry, store = Registry(promoted.settings), store_of(promoted)
    pin = registry.pin("champion")
    assert pin is not None and pin["version"] == "1"
    assert pin == registry.pin("anchor") == registry.pin("candidate") == registry.pin("1")
    assert (
        pin["digest"] == sha256_file(promoted.model(TRAIN_STAGES[-1])) == sha256_file(fetch_blob(store, pin["digest"]))
    )
    assert {n: sha256_file(promoted.quantised / n) for n in pin["files"]} == pin["files"]
    assert all(sha256_file(fetch_blob(store, digest)) == digest for digest in pin["files"].values())
    assert registry.pin("7") is None and registry.pin("nobody") is None
    stages.pin_inputs(Run(PARAMS, promoted))
    assert read_inputs(promoted)["champion"] == pin
    tags = registry.tags("champion")
    assert tags is not None
    assert tags["verdict"] == "PROMOTE" and tags["snapshot"] == recorded_verdict(promoted).snapshot
    assert len(tags["code_revision"]) >= 40


def test_the_bundle_lies_with_the_logged_model_of_the_run(promoted):
    client = Registry(promoted.settings)._client
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    (output,) = client.get_run(version.run_id).outputs.model_outputs
    names = {item.path for item in client.list_logged_model_artifacts(output.model_id, "data/matting/bundle")}
    assert {Path(name).name for name in names} >= {"manifest.json", "MODEL_CARD.md", "portrait.int8.onnx"}
    parent = client.get_run(client.get_run(version.run_id).data.tags["mlflow.parentRunId"])
    assert parent.data.tags["mm.snapshot"] == version.tags["snapshot"]


def test_the_version_is_a_logged_model_of_the_promotions_run_and_the_cycles(promoted):
    client = Registry(promoted.settings)._client
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    stage = client.get_run(version.run_id)
    logged = client.get_logged_model(stage.outputs.model_outputs[0].model_id)
    assert str(logged.status) == "READY" and logged.artifact_location == version.source
    assert logged.tags["mm.model_digest"] == version.tags["model_digest"]
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": 1}]
    cycle = client.get_run(stage.data.tags["mlflow.parentRunId"])
    for run in (stage, cycle):
        assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
        assert run.info.status == "FINISHED"


def test_promoting_again_changes_nothing(promoted):
    before = state(promoted)
    blobs = sorted(entry.key for entry in LocalStore(promoted.root / "store").list("blobs"))
    report = promote(promoted)
    assert state(promoted) == before
    assert sorted(entry.key for entry in LocalStore(promoted.root / "store").list("blobs")) == blobs
    assert report.facts["version"] == "1"


def test_the_next_model_becomes_champion_and_the_anchor_stays(second, tmp_path):
    layout = clone(second, tmp_path / "data")
    promote(layout)
    found = state(layout)
    assert found["aliases"] == {"anchor": "1", "candidate": "2", "champion": "2"}
    assert [(m["from"], m["to"]) for m in found["moves"]] == [(None, "1"), ("1", "2")]
    moves = Registry(layout.settings).history()
    assert all(move["who"] and move["when"] and "gate: PROMOTE" in move["why"] for move in moves)
    assert found["bundles"] == sorted(tags["bundle"] for tags in found["versions"].values())


def test_a_verdict_about_an_old_champion_promotes_nobody(second, tmp_path):
    layout = clone(second, tmp_path / "data")
    export(layout, verdict_of(layout, champion="0" * 64))
    before = state(layout)
    with pytest.raises(ReleaseRefused, match="mm run"):
        promote(layout)
    assert state(layout) == before


def test_without_a_bundle_it_asks_for_one(promoted, tmp_path):
    layout = clone(promoted, tmp_path / "data")
    (layout.bundles / sha256_file(layout.model(TRAIN_STAGES[-1]))[:12] / "manifest.json").unlink()
    with pytest.raises(InputError, match="mm export"):
        promote(layout)


class Killer:
    """Dies at the n-th write to MLflow or the store, before or after it."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, after: bool):
        from mlflow import MlflowClient

        self.seen, self.at, self.after = [], at, after
        for owner, names in ((MlflowClient, WRITES), (LocalStore, ("put",))):
            for name in names:
                patch.setattr(owner, name, self.around(getattr(owner, name), name))

    def around(self, real, name):
        def write(*arguments, **options):
            self.seen.append(name)
            if len(self.seen) == self.at and not self.after:
                raise Killed
            result = real(*arguments, **options)
            if len(self.seen) == self.at:
                raise Killed
            return result

        return write


@pytest.mark.parametrize("which", ["exported", "second"])
def test_killed_at_every_write_the_next_call_completes_it(which, request, tmp_path):
    base = request.getfixturevalue(which)
    whole = clone(base, tmp_path / "counted")
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch, 0, False)
        promote(whole)
    wanted, seen = state(whole), killer.seen
    assert {"create_model_version", "set_registered_model_alias", "put"} <= set(seen)
    # Dying after a write is dying before the next one, but for the last. Of a row of blobs the last stands for all.
    places = [(at, False) for at in range(1, len(seen) + 1) if at == 1 or seen[at - 1 : at + 1] != ["put", "put"]]
    for at, after in [*places, (len(seen), True)]:
        layout = clone(base, tmp_path / f"killed-{at}-{after}")
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at, after)
            with pytest.raises(Killed):
                promote(layout)
        registry = Registry(layout.settings)
        champion = registry.pin("champion")
        assert champion is None or champion["version"] == registry.history()[-1]["to"], "history agrees even now"
        promote(layout)
        assert state(layout) == wanted, seen[at - 1]


def test_two_promoters_at_once_leave_one_version_and_one_move(exported, tmp_path):
    layout = clone(exported, tmp_path / "data")
    with ThreadPoolExecutor(3) as pool:
        reports = [future.result() for future in [pool.submit(promote, layout) for _ in range(3)]]
    assert {report.facts["version"] for report in reports} == {"1"}
    found = state(layout)
    assert list(found["versions"]) == ["1"] and len(found["moves"]) == 1


def test_a_hand_that_moves_the_alias_shows_in_the_history(second, tmp_path):
    layout = clone(second, tmp_path / "data")
    promote(layout)
    registry = Registry(layout.settings)
    registry._client.set_registered_model_alias(NAME, "champion", "1")
    moves = registry.history()
    assert [(m["from"], m["to"]) for m in moves] == [(None, "1"), ("1", "2"), ("2", "1")]
    assert "outside" in moves[-1]["why"]
    promote(layout)
    assert [m["to"] for m in registry.history()] == ["1", "2", "1", "2"]


def test_the_text_of_a_lineage_is_short_and_has_no_digest(promoted, capsys):
    record = lineage(promoted.settings, "champion")
    say(lineage_report(record), False)
    text = capsys.readouterr().out
    assert not re.search(r"[0-9a-f]{64}", text) and len(text.splitlines()) < 120
    assert "decision: PROMOTE" in text and all(f"\n{stage} " in text for stage in TRAIN_STAGES)
    assert all(f"photos/{pool}: {count}\n" in text for pool, count in record["counts"].items())


def test_lineage_names_every_sample_label_and_stage(promoted, second):
    told = lineage(promoted.settings, "champion")
    assert json.loads(json.dumps(told)) == told
    assert told["version"] == "1" and told["aliases"] == ["anchor", "candidate", "champion"]
    catalog = catalog_of(promoted)
    samples = catalog.read("samples").set_index("id")
    labels = catalog.read("labels").set_index("sample_id")
    assert {row["sample_id"] for row in told["samples"]} == set(samples.index)
    for row in told["samples"]:
        assert row["label_version"] == 1 and row["alpha_sha256"] == labels.loc[row["sample_id"], "alpha_sha256"]
        assert row["category"] == samples.loc[row["sample_id"], "category"]
    assert sum(told["counts"].values()) == len(samples)
    assert told["stages"]["multimodal"]["digest"] == told["model"] == told["verdict"]["candidate"]
    assert told["stages"]["simple"]["params"] == {"seed": 0}
    assert told["params"] == PARAMS.model_dump(mode="json")
    assert set(told["calibration"]) == {"saliency", "portrait", "scenery"}
    with pytest.raises(InputError, match="no version .*: the registry has 1"):
        lineage(second.settings, "9")


def test_forgetting_names_the_models_and_the_next_snapshot_is_without(promoted, tmp_path):
    layout = clone(promoted, tmp_path / "data")
    told = next(row for row in lineage(layout.settings, "1")["samples"] if row["pool"] == "train_labeled")
    one = told["sample_id"]
    layout.reports.mkdir(parents=True, exist_ok=True)
    (layout.reports / "week.html").write_text(f"<img alt='{one}'>")
    decoded = [layout.root / folder / "pixels" / "64" for folder in ("cache", "scratch/compare-1/1-routed/cache")]
    for folder in decoded:
        folder.mkdir(parents=True, exist_ok=True)
    report = operations.forget(Run(PARAMS, layout), [one])
    assert not any(folder.exists() for folder in decoded), "also what a killed training beside the cycle left"
    aliases = ["anchor", "candidate", "champion"]
    assert report.tables["models"] == [{"version": "1", "aliases": aliases, "pools": {"train_labeled": 1}}]
    assert report.tables["remaining"] == [{"what": "page", "where": str(layout.reports / "week.html")}]
    stages.pin_inputs(Run(PARAMS, layout))
    stages.snapshot(Run(PARAMS, layout))
    left = {i for pool in POOLS for i in read_pool(layout.snapshot, pool)["sample_id"]}
    assert one not in left and len(left) == len(lineage(layout.settings, "1")["samples"]) - 1
