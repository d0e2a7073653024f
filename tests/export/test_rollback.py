"""Back to an earlier champion, and a person's word against the gate's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_cycle import PARAMS, clone, seal_evaluation, stop_clocks, verdict_of, write_models

from mm_core import operations, stages
from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import sha256_file, write_json
from mm_core.eval.evaluate import _write_parquet
from mm_core.eval.evidence import read_scores
from mm_core.eval.ratchet import read_best
from mm_core.export.override import PREFIX, write_override
from mm_core.export.registry import Registry
from mm_core.export.signature import make_keys
from mm_core.model.files import load_model
from mm_core.pinned_inputs import Run, read_inputs, recorded_verdict
from mm_core.storage.run import store_of


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MM_VERIFY_KEY", raising=False)
    make_keys(tmp_path / "key.pem")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key.pem"))
    return tmp_path / "key.pem"


@pytest.fixture(autouse=True)
def stopwatch_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clocks(monkeypatch)


@pytest.fixture(scope="module")
def first(exported: Layout, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = clone(exported, tmp_path_factory.mktemp("first") / "data")
    stages.promote(Run(PARAMS, layout))
    return layout


def next_candidate(layout: Layout, seed: int, decision: str = "PROMOTE") -> None:
    """Another candidate (the first's weights under another name), judged against the champion."""
    champion = Registry(layout.settings).pin("champion")
    net, _ = load_model(layout.model(TRAIN_STAGES[-1]))
    write_models(layout, net, seed=seed)
    record = json.loads((layout.quantised / "quantised.json").read_text())
    write_json(layout.quantised / "quantised.json", record | {"model": sha256_file(layout.model(TRAIN_STAGES[-1]))})
    seal_evaluation(layout)
    verdict_of(layout, decision, champion=champion["digest"] if champion else None)


@pytest.fixture(scope="module")
def three_promoted(first: Layout, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Three champions, one after another; read-only."""
    layout = clone(first, tmp_path_factory.mktemp("three") / "data")
    with pytest.MonkeyPatch.context() as patch:
        stop_clocks(patch)
        for seed in (1, 2):
            next_candidate(layout, seed)
            stages.export(Run(PARAMS, layout))
            stages.promote(Run(PARAMS, layout))
    return layout


@pytest.fixture
def three(three_promoted: Layout, tmp_path: Path) -> Layout:
    """A copy of three champions to write to."""
    return clone(three_promoted, tmp_path / "data")


def champion(layout: Layout) -> str:
    pin = Registry(layout.settings).pin("champion")
    assert pin is not None
    return pin["version"]


def test_rollback_goes_back_one_reign_each_time(three: Layout) -> None:
    assert champion(three) == "3"
    report = operations.rollback(Run(PARAMS, three), reason="halos on glass")
    assert champion(three) == "2" and report.facts["move"]["why"] == "halos on glass"
    operations.rollback(Run(PARAMS, three))
    assert champion(three) == "1"
    with pytest.raises(InputError, match="nothing to go back to"):
        operations.rollback(Run(PARAMS, three))
    moves = Registry(three.settings).history()
    assert [(m["kind"], m["from"], m["to"]) for m in moves[3:]] == [("rollback", "3", "2"), ("rollback", "2", "1")]
    assert (read_inputs(three)["champion"] or {})["version"] == "1", "the next cycle starts from it"


def test_rollback_to_a_named_version_is_idempotent(three: Layout) -> None:
    for _ in range(2):
        operations.rollback(Run(PARAMS, three), "1")
    assert len(Registry(three.settings).history()) == 4 and champion(three) == "1"
    with pytest.raises(InputError, match="never champion; promoted were 1, 2, 3"):
        operations.rollback(Run(PARAMS, three), "9")


def test_nothing_to_roll_back(exported: Layout, tmp_path: Path) -> None:
    layout = clone(exported, tmp_path / "data")
    with pytest.raises(InputError, match="nothing to"):
        operations.rollback(Run(PARAMS, layout))


def test_what_was_rolled_back_does_not_return_by_a_repeated_promotion(three: Layout, key: Path) -> None:
    """A Dagster retry or `dvc repro` repeats the promote stage with the old PROMOTE verdict."""
    operations.rollback(Run(PARAMS, three), reason="halos")
    with pytest.raises(ReleaseRefused, match=r"version 3 was rolled back.*halos.*--override"):
        stages.promote(Run(PARAMS, three))
    assert champion(three) == "2"
    stages.override(Run(PARAMS, three), "3", reason="it was the viewer", days=1)
    assert champion(three) == "3"
    last = Registry(three.settings).history()[-1]
    assert last["kind"] == "override" and "it was the viewer" in last["why"]


def test_what_was_rolled_back_is_no_longer_the_best_so_far(three: Layout, key: Path) -> None:
    """The ratchet compares with models that stand; one that is reinstated takes its places again."""
    registry, store = Registry(three.settings), store_of(three)
    scores, about = read_scores(three)
    next_candidate(three, 3)
    candidate = recorded_verdict(three).candidate
    _write_parquet(three.per_image, scores.assign(mse=scores["mse"] / 4), about)
    seal_evaluation(three)
    stages.export(Run(PARAMS, three))
    assert "mse" in stages.promote(Run(PARAMS, three)).facts["best"]["pets"]

    def holder() -> str:
        return read_best(registry.ratchet(store, registry.pin("anchor")))["pets"]["mse"]

    assert holder() == candidate == (registry.pin("4") or {})["digest"]
    operations.rollback(Run(PARAMS, three), reason="halos on glass")
    assert holder() in {(registry.pin(version) or {})["digest"] for version in "123"}
    assert registry.ratchet(store, registry.pin("anchor")).fallen == {candidate}
    stages.override(Run(PARAMS, three), "4", reason="it was the viewer", days=1)
    assert holder() == candidate


def test_killed_in_a_rollback_the_next_call_completes_it(three: Layout, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    for number, name in enumerate(("set_registered_model_tag", "set_registered_model_alias")):
        layout = clone(three, tmp_path / f"killed{number}")

        def die(*arguments, **options):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MlflowClient, name, die)
            with pytest.raises(KeyboardInterrupt):
                operations.rollback(Run(PARAMS, layout), "1")
        operations.rollback(Run(PARAMS, layout), "1")
        moves = Registry(layout.settings).history()
        assert champion(layout) == "1" and [m["to"] for m in moves] == ["1", "2", "3", "1"]


def test_the_anchor_moves_only_to_a_champion_with_a_reason_and_once(three: Layout, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    registry = Registry(three.settings)
    assert (registry.pin("anchor") or {})["version"] == "1" and registry.anchor_history() == []
    with pytest.raises(InputError, match="--reason"):
        operations.anchor(Run(PARAMS, three), "2", reason=" ")
    with pytest.raises(InputError, match="never champion; promoted were 1, 2, 3"):
        operations.anchor(Run(PARAMS, three), "9", reason="typo")

    def die(*arguments, **options):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            operations.anchor(Run(PARAMS, three), "2", reason="new eval set")
    assert (registry.pin("anchor") or {})["version"] == "1"
    for _ in range(2):
        operations.anchor(Run(PARAMS, three), "2", reason="new eval set")
    (move,) = registry.anchor_history()
    assert (move["from"], move["to"], move["why"], move["kind"]) == ("1", "2", "new eval set", "anchor")
    assert champion(three) == "3" and len(registry.history()) == 3, "the champion's history is its own"
    assert (read_inputs(three)["anchor"] or {})["version"] == "2", "the next cycle is compared with it"


def test_override_releases_a_refused_candidate(first: Layout, tmp_path: Path, key: Path) -> None:
    layout = clone(first, tmp_path / "data")
    next_candidate(layout, 5, "REJECT")
    with pytest.raises(ReleaseRefused, match="the gate said REJECT"):
        stages.export(Run(PARAMS, layout))
    report = stages.override(Run(PARAMS, layout), "candidate", reason="fixes a crash on night photos", days=2)
    assert champion(layout) == "2" == report.facts["version"]
    last = Registry(layout.settings).history()[-1]
    assert last["kind"] == "override" and "of REJECT: fixes a crash on night photos" in last["why"]
    tags = Registry(layout.settings).tags("champion")
    assert tags is not None and tags["verdict"] == "REJECT"


def test_an_override_needs_a_reason_a_key_and_expires(first: Layout, tmp_path: Path, key: Path, monkeypatch) -> None:
    layout = clone(first, tmp_path / "data")
    next_candidate(layout, 6, "INCONCLUSIVE")
    with pytest.raises(InputError, match="needs a reason"):
        stages.override(Run(PARAMS, layout), "candidate", reason="  ", days=1)
    store, model = store_of(layout), recorded_verdict(layout).candidate
    write_override(store, model, "yesterday's", "INCONCLUSIVE", -1)
    with pytest.raises(ReleaseRefused, match="INCONCLUSIVE"):
        stages.promote(Run(PARAMS, layout))
    # A record that somebody wrote into the store by hand is not trusted.
    record = write_override(store, model, "good for a day", "INCONCLUSIVE", 1)
    forged = record | {"reason": "good for ever", "expires": "2999-01-01T00:00:00+00:00", "when": "2998-01-01"}
    store.put(f"{PREFIX}/{model[:32]}/forged.json", json.dumps(forged).encode())
    with pytest.raises(InputError, match="not by the trusted key"):
        stages.export(Run(PARAMS, layout))
    monkeypatch.delenv("MM_SIGNING_KEY")
    with pytest.raises(InputError, match="must be signed"):
        stages.override(Run(PARAMS, layout), "candidate", reason="please", days=1)


def test_bundles_are_signed_and_verified(first: Layout, tmp_path: Path, key: Path, monkeypatch) -> None:
    from mm_core.export.signature import check_file

    layout = clone(first, tmp_path / "data")
    next_candidate(layout, 7)
    report = stages.export(Run(PARAMS, layout))
    manifest = Path(report.facts["bundle"]) / "manifest.json"
    assert check_file(manifest) in report.facts["signature"]
    manifest.write_bytes(manifest.read_bytes().replace(b'"scale"', b'"scalf"'))
    with pytest.raises(InputError, match="not by the trusted key"):
        check_file(manifest)
    monkeypatch.delenv("MM_SIGNING_KEY")
    next_candidate(layout, 8)
    assert stages.export(Run(PARAMS, layout)).facts["signature"].startswith("UNSIGNED")
