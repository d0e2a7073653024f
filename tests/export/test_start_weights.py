"""Before the first promotion, cycles continue from the last candidate instead of the pretrained encoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_core import operations, stages
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, Cell, Report, Verdict, sha256_file
from mm_core.core.settings import Settings
from mm_core.export.lineage import learnt_by, models_with
from mm_core.export.registry import Registry
from mm_core.export.start_weights import keep_start, kept_starts, newest_start, withdraw_starts
from mm_core.ingest.snapshot import read_pool
from mm_core.model.files import read_meta
from mm_core.pinned_inputs import Run, frozen_inputs, inputs_now, pin_when_idle, read_inputs
from mm_core.services.check import check
from samplegen import write_drop
from tests.tiny import ONE_STEP

# No model reaches this floor. Only the first stage trains.
TINY = ONE_STEP.with_values(
    **{
        "gate.floors": {"mse": 1e-9},
        "train.hard.steps": 0,
        "train.semi.steps": 0,
        "train.multimodal.steps": 0,
    }
)
FIRST = TRAIN_STAGES[0]


def drop(layout: Layout, batch: str, seed: int) -> None:
    for role, each in (("eval", 3), ("train", 3)):
        counts: dict[str, int] = dict.fromkeys(ALL_CATEGORIES, each)
        write_drop(
            Path(layout.settings.inbox),
            "pixel_labeled",
            f"{batch}-{role}",
            counts,
            seed=seed + len(role),
            size=64,
            role=role,
            burst_share=0,
        )


def cycle(layout: Layout, params: Params = TINY, *, again: bool = False) -> dict[str, Report]:
    return stages.run_cycle(Run(params, layout), again=again)


def copy_of(layout: Layout, root: Path) -> Layout:
    shutil.copytree(layout.root, root)
    return Layout(Settings.from_env(root))


@pytest.fixture(scope="module")
def one_cycle(tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path]) -> Layout:
    """A workspace after its first cycle, on the drop `one`; read-only."""
    layout = Layout(Settings.from_env(with_tables(tmp_path_factory.mktemp("one") / "data")))
    drop(layout, "one", 1)
    assert cycle(layout)["gate"].facts["decision"] != "PROMOTE"
    return layout


@pytest.fixture(scope="module")
def two_cycles(one_cycle: Layout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, dict[str, Report]]:
    """A workspace after its second cycle, which the drop `two` started, read-only; and that cycle's reports."""
    layout = copy_of(one_cycle, tmp_path_factory.mktemp("two") / "data")
    drop(layout, "two", 50)
    return layout, cycle(layout)


def train_first(layout: Layout, params: Params = TINY) -> Report:
    """Run a cycle up to its first training stage; returns that stage's report."""
    run = Run(params, layout)
    for stage in (stages.ingest, stages.structure, stages.pin_inputs, stages.snapshot, stages.split):
        stage(run)
    return stages.TRAIN[FIRST](run)


@pytest.fixture
def after_one(one_cycle: Layout, tmp_path: Path) -> Layout:
    return copy_of(one_cycle, tmp_path / "data")


@pytest.fixture
def after_two(two_cycles: tuple[Layout, dict[str, Report]], tmp_path: Path) -> Layout:
    return copy_of(two_cycles[0], tmp_path / "data")


def test_a_repeated_cycle_starts_from_what_it_started_from(after_one: Layout) -> None:
    layout = after_one
    assert read_meta(layout.model(FIRST)).get("start") is None
    # Nothing is new, so the kept candidate does not start a cycle of its own.
    assert "nothing_new" in cycle(layout)["pin_inputs"].facts
    assert cycle(layout, again=True)[f"train-{FIRST}"].facts["reused"]
    assert "start" not in frozen_inputs(layout)


def test_without_a_champion_each_cycle_goes_on_from_the_candidate_before(
    one_cycle: Layout, two_cycles: tuple[Layout, dict[str, Report]], after_two: Layout
) -> None:
    layout, first = after_two, sha256_file(one_cycle.model(TRAIN_STAGES[-1]))
    _, two = two_cycles
    assert read_meta(layout.model(FIRST)).get("start") == first
    assert two[f"train-{FIRST}"].facts["started_from"] == TRAIN_STAGES[-1]
    second = sha256_file(layout.model(TRAIN_STAGES[-1]))
    assert [start["digest"] for start in kept_starts(Run(TINY, layout).store)] == [first, second]
    assert Registry(layout.settings).versions() == [], "nothing is registered"

    # The first champion descends from both: what they learnt from can never judge it.
    drop(layout, "three", 90)
    three = cycle(layout, TINY.with_values(**{"gate.floors": {"mse": 1.0}, "gate.quantised_mse": 100.0}))
    assert three["gate"].facts["decision"] == "PROMOTE", three["gate"].facts["reasons"]
    assert "start" not in inputs_now(layout), "from now on cycles start from the champion"
    run = Run(TINY, layout)
    champion = inputs_now(layout)["champion"]
    assert champion
    learnt = learnt_by(layout.settings, run.store, [champion["digest"]])
    assert {text.split(" (")[0] for text in learnt.values()} == {"version 1"}, "later snapshots hold the earlier rows"
    alone = learnt_by(layout.settings, run.store, [second])
    assert alone and set(alone) < set(learnt), "the kept candidates can be traced too"
    assert check(layout, Report("check"), progress=run.progress) == []


def test_a_newer_catalog_with_the_same_photos_does_not_move_the_start(after_two: Layout) -> None:
    """The catalog is newer, the photos to learn from are the same: the cycle that lies there stays whole."""
    layout = after_two
    first, second = (start["digest"] for start in kept_starts(Run(TINY, layout).store))
    run = Run(TINY, layout)
    frozen = frozen_inputs(layout)
    assert run.catalog.compact("features")
    pin_when_idle(run)
    assert read_inputs(layout).get("start", {}).get("digest") == second
    stages.snapshot(run)
    assert frozen_inputs(layout)["catalog"] != frozen["catalog"]
    assert frozen_inputs(layout).get("start", {}).get("digest") == first
    stages.evaluate(run)


def test_from_scratch_means_every_cycle(after_one: Layout) -> None:
    """Though the first cycle's candidate is kept, and the default would start from it."""
    layout, params = after_one, TINY.with_values(**{"train.common.warm_start": "scratch"})
    drop(layout, "two", 50)
    assert "reused" not in train_first(layout, params).facts
    assert read_meta(layout.model(FIRST)).get("start") is None


def test_no_cycle_starts_from_weights_that_learnt_a_forgotten_photo(after_two: Layout) -> None:
    layout = after_two
    run = Run(TINY, layout)
    first, second = (start["digest"] for start in kept_starts(run.store))
    # This photo was trained on in both cycles.
    learnt = learnt_by(layout.settings, run.store, [first])
    photo = sorted(learnt)[0]
    named = [f"candidate {digest[:12]}" for digest in (first, second)]
    assert [model["version"] for model in models_with(layout.settings, [photo])] == named
    report = operations.forget(run, [photo])
    assert [model["version"] for model in report.tables["models"]] == named
    assert "start" not in inputs_now(layout)
    assert "reused" not in train_first(layout).facts
    assert read_meta(layout.model(FIRST)).get("start") is None


def test_a_candidate_that_never_learnt_the_forgotten_photo_stays_usable(one_cycle: Layout, after_two: Layout) -> None:
    """The photo came with `two`, after the first candidate."""
    layout = after_two
    (first,) = (start["digest"] for start in kept_starts(Run(TINY, one_cycle).store))
    before = set(read_pool(one_cycle.snapshot, "train_labeled")["sample_id"])
    new = sorted(set(read_pool(layout.snapshot, "train_labeled")["sample_id"]) - before)
    operations.forget(Run(TINY, layout), [new[0]])
    assert inputs_now(layout).get("start", {}).get("digest") == first


def test_candidates_after_a_withdrawn_one_are_withdrawn_with_it(after_two: Layout) -> None:
    """The weights of the second candidate descend from those of the first."""
    layout = after_two
    run = Run(TINY, layout)
    first, second = (start["digest"] for start in kept_starts(run.store))
    newer = {table: version + 1 for table, version in inputs_now(layout)["catalog"].items()}
    kept = newest_start(run.store, newer)
    assert kept and kept["digest"] == second
    withdraw_starts(run.store, [first])
    assert newest_start(run.store, newer) is None


@pytest.mark.parametrize(
    ("candidate", "champion", "decision", "kept"),
    [
        (0.05, None, "INCONCLUSIVE", True),
        (0.05, None, "REJECT", True),
        (0.05, None, "PROMOTE", False),
        (0.05, "c" * 64, "REJECT", False),
        (0.15, None, "REJECT", False),
        (None, None, "INCONCLUSIVE", False),
    ],
)
def test_only_a_candidate_that_sees_is_kept(
    after_one: Layout, candidate: float | None, champion: str | None, decision: str, kept: bool
) -> None:
    layout = after_one
    run = Run(TINY.with_values(**{"gate.beat_blind": True}), layout)
    (made,) = kept_starts(run.store)
    run.store.delete(f"gate/starts/{made['digest']}.json")
    verdict = Verdict.model_validate_json(layout.verdict.read_bytes())
    cells = [
        Cell(
            category=category,
            metric="mse",
            against="blind",
            role="superior",
            reference=0.1,
            candidate=candidate,
            gain=0.1 - candidate,
            bound=0.0,
            margin=0.0,
            images=9,
            groups=9,
            result="unclear",
        )
        for category in ALL_CATEGORIES
        if candidate is not None
    ]
    verdict = verdict.model_copy(update={"decision": decision, "champion": champion, "cells": cells})
    assert (keep_start(run, verdict) is None) == kept
    assert len(kept_starts(run.store)) == kept
