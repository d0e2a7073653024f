"""A photo that a cycle has learnt from never judges again, even with other params or after `mm forget`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from mm_core import operations, pinned_inputs, stages
from mm_core.core.errors import NothingToTrainOn
from mm_core.core.layout import Layout
from mm_core.core.params import Params, SnapshotParams
from mm_core.core.pins import news_of, read_snapshot
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.ingest.as_arrived import READ
from mm_core.ingest.learnt import Learnt, mark_scenes, read_learnt, record_learnt, uses_of
from mm_core.ingest.placement import POOLS, TRAINING, read_placement
from mm_core.ingest.snapshot import build_snapshot, place, read_pool
from mm_core.pinned_inputs import Run, inputs_now, read_inputs
from mm_core.services.check import check
from mm_core.storage.catalog import Catalog
from mm_core.storage.schemas import SCHEMAS
from mm_core.training import stage as training
from tests.ingest.snapshot_rows import PARAMS, eval_group, label, sample, train_groups
from tests.ingest.test_as_arrived import CATEGORIES, change_one
from tests.ingest.test_as_arrived import Catalog as FakeCatalog

NO_SHARE = SnapshotParams(eval_share=1e-9, eval_least=8, validation_share=0.4)
"""Evaluation is drawn by its least number alone."""


class Killed(BaseException):
    """The process ends here."""


def pool_ids(placed: pd.DataFrame, *pools: str) -> set[str]:
    return set(placed.index[placed[list(pools)].any(axis=1)])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def frames(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"sample_id": list(ids)})


class Cycles:
    """Rows of a catalog that change as ingest changes them, and the photos that past cycles have learnt from."""

    def __init__(self) -> None:
        self.catalog = FakeCatalog()
        self.trained: set[str] = set()
        self.validated: set[str] = set()
        self.groups: tuple[set[str], set[str]] = set(), set()

    def place(self, params: SnapshotParams) -> pd.DataFrame:
        labels = pd.DataFrame(self.catalog.labels, columns=[*label(sample(0)), "withdrawn_at"])
        corrections = pd.DataFrame(self.catalog.corrections, columns=list(READ))
        trained, validated = (pa.array(sorted(known), pa.string()) for known in (self.trained, self.validated))
        learnt = Learnt(trained, validated, *self.groups)
        return place(params, pd.DataFrame(self.catalog.samples), labels, corrections, learnt).set_index("sample_id")

    def train(self, placed: pd.DataFrame) -> None:
        self.trained |= pool_ids(placed, *TRAINING)
        self.validated |= pool_ids(placed, "validation")

    def forget(self, row: dict[str, Any]) -> None:
        for known, groups in zip((self.trained, self.validated), self.groups, strict=True):
            if row["id"] in known:
                known.remove(row["id"])
                groups.add(row["group"] or row["id"])
        self.catalog.samples.remove(row)
        for rows in (self.catalog.labels, self.catalog.corrections):
            rows[:] = [one for one in rows if one["sample_id"] != row["id"]]


def random_params(rng: np.random.Generator) -> SnapshotParams:
    return SnapshotParams(
        eval_share=float(rng.choice([0.05, 0.2, 0.5])),
        eval_least=int(rng.choice([2, 8, 20])),
        validation_share=float(rng.choice([0.1, 0.3, 0.5])),
        near_duplicate_bits=int(rng.choice([0, 3, 8])),
    )


def arrive(catalog: FakeCatalog, rng: np.random.Generator, centres: np.ndarray) -> None:
    for _ in range(int(rng.integers(4, 40))):
        phash = int(rng.choice(centres)) ^ (1 << int(rng.integers(63)))
        catalog.arrive(
            len(catalog.samples) + 1000 * int(catalog.now[8:10]),
            kind=str(rng.choice(["pixel_labeled", "unlabeled"], p=[0.9, 0.1])),
            category=CATEGORIES[int(rng.choice(3, p=[0.7, 0.25, 0.05]))],
            group=str(rng.choice([f"scene{rng.integers(90)}", ""], p=[0.7, 0.3])),
            role=str(rng.choice(["", "eval", "train"], p=[0.84, 0.08, 0.08])),
            **({"phash": f"{phash:016x}"} if rng.random() < 0.2 else {}),
        )


def test_no_change_of_params_and_no_forgotten_photo_turns_a_learnt_photo_into_a_judge() -> None:
    """Random weeks: a drop, changes or forgotten photos, other params, and a training on each snapshot."""
    judged = validated = 0
    for seed in range(6):
        rng, cycles = np.random.default_rng(seed), Cycles()
        centres = rng.integers(0, 2**62, 8)
        for step in range(10):
            cycles.catalog.now = f"2026-01-{step + 1:02d}T00:00:00"
            if step % 2:
                for _ in range(3):
                    change_one(cycles.catalog, rng)
                    cycles.forget(cycles.catalog.samples[int(rng.integers(len(cycles.catalog.samples)))])
            else:
                arrive(cycles.catalog, rng, centres)
            placed = cycles.place(random_params(rng))
            judges, validates = pool_ids(placed, "eval"), pool_ids(placed, "validation")
            assert not judges & (cycles.trained | cycles.validated), f"seed {seed}, step {step}"
            assert not validates & cycles.trained, f"seed {seed}, step {step}"
            cycles.train(placed)
            judged, validated = judged + len(judges), validated + len(validates)
    assert judged > 200 and validated > 50, "the weeks hold photos out"


def test_the_record_of_a_cycle_does_not_change_its_own_snapshot() -> None:
    """A killed training is resumed on the same photos, although it has recorded them in the meantime."""
    for seed in range(12):
        rng, cycles = np.random.default_rng(seed), Cycles()
        centres, params = rng.integers(0, 2**62, 8), random_params(rng)
        for step in range(4):
            cycles.catalog.now = f"2026-01-{step + 1:02d}T00:00:00"
            arrive(cycles.catalog, rng, centres)
            before = cycles.place(params)
            cycles.train(before)
            assert cycles.place(params).equals(before), f"seed {seed}, step {step}"


def stable_row(number: int, group: str, week: int = 0, **values: Any) -> dict[str, Any]:
    return sample(number, id=f"{number:064x}", group=group, accepted_at=f"2026-01-{week + 1:02d}T00:00:00", **values)


def add_drop(catalog: Catalog, rows: list[dict[str, Any]]) -> None:
    catalog.add("samples", rows)
    catalog.add("labels", [label(row) for row in rows if row["kind"] == "pixel_labeled"])


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[SnapshotParams], Run]:
    """A workspace whose training stages stop before the first step."""
    layout = Layout(Settings.from_env(tmp_path / "data"))
    monkeypatch.setattr(pinned_inputs, "tracked", lambda *_, **__: nullcontext(lambda report: None))
    monkeypatch.setattr(training, "train_stage", lambda stage, run, report, start: report)
    monkeypatch.setattr(stages, "require_start", lambda stage, layout: layout.root)
    return lambda params: Run(Params(snapshot=params), layout)


def cycle(run: Run) -> dict[str, set[str]]:
    """Pin, freeze and train; return the ids of each pool."""
    stages.pin_inputs(run)
    stages.snapshot(run)
    pools = {pool: set(read_pool(run.layout.snapshot, pool)["sample_id"]) for pool in POOLS}
    stages.train_multimodal(run)
    return pools


def test_three_cycles_with_other_params_and_a_forgotten_photo_in_between(run_of: Callable[..., Run]) -> None:
    """The share of evaluation is raised, then a judge is forgotten; each would draw other photos of the first drop."""
    names = train_groups(120)
    run = run_of(NO_SHARE)
    rows = [stable_row(n, name) for n, name in enumerate(names[:60])]
    rows += [stable_row(100 + n, f"u{n}", kind="unlabeled") for n in range(4)]
    add_drop(run.catalog, rows)
    first = cycle(run)
    assert len(first["eval"]) == 8 and len(first["validation"]) == 20 and len(first["train_unlabeled"]) == 4
    # The second week arrives, and a larger share is to judge from now on.
    more = SnapshotParams(eval_share=0.4, eval_least=8, validation_share=0.1)
    add_drop(run.catalog, [stable_row(200 + n, name, 1) for n, name in enumerate(names[60:90])])
    free = read_placement(more, run.catalog, {"learnt": -1})
    judges_without = set(free.frame("eval")["sample_id"].to_pylist())
    assert judges_without & first["train_labeled"], "the replay alone would draw photos that were trained on"
    second = cycle(run_of(more))
    operations.forget(run, [sorted(first["eval"])[0]])
    add_drop(run.catalog, [stable_row(300 + n, name, 2) for n, name in enumerate(names[90:])])
    third = cycle(run_of(more))
    learnt: set[str] = set()
    trained: set[str] = set()
    for pools in (first, second, third):
        assert not pools["eval"] & learnt and not pools["validation"] & trained
        trained |= {i for pool in TRAINING for i in pools[pool]}
        learnt |= trained | pools["validation"]
    assert len(second["eval"]) > 20 and len(third["eval"]) > len(second["eval"]), "arriving photos judge"
    assert first["eval"] <= second["eval"], "who judges goes on"


def test_a_training_records_its_photos_once_and_is_no_news(
    run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(NO_SHARE)
    layout = run.layout
    add_drop(run.catalog, [stable_row(n, name) for n, name in enumerate(train_groups(60))])
    stages.pin_inputs(run)
    stages.snapshot(run)
    pins, frozen = layout.inputs.read_bytes(), content(layout.snapshot)

    def die(*arguments: object, **options: object) -> Report:
        assert len(read_learnt(run.catalog).training) == 32, "recorded before the first step"
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "train_stage", die)
        stages.train_semi(run)
    version = run.catalog.version("learnt")
    stages.train_semi(run)
    stages.train_multimodal(run)
    assert run.catalog.version("learnt") == version, "nothing is recorded twice"
    assert len(run.catalog.read("learnt")) == 32 + 20
    # The resumed cycle pins and freezes again: byte by byte the same.
    stages.pin_inputs(run)
    stages.snapshot(run)
    assert layout.inputs.read_bytes() == pins and content(layout.snapshot) == frozen
    assert news_of(read_snapshot(layout)["catalog"]) == read_inputs(layout)["catalog"] == inputs_now(layout)["catalog"]
    operations.compact(run)
    assert not [fault for fault in check(layout, Report("check"), progress=run.progress) if "learnt" in str(fault)]
    assert len(read_learnt(run.catalog).training) == 32


def test_a_new_share_excludes_what_was_learnt_with_the_pins_of_before_too(run_of: Callable[..., Run]) -> None:
    """`dvc repro` freezes again after a change of the params, and does not pin again."""
    run, more = run_of(NO_SHARE), SnapshotParams(eval_share=0.5, eval_least=8, validation_share=0.1)
    add_drop(run.catalog, [stable_row(n, name) for n, name in enumerate(train_groups(60))])
    first = cycle(run)
    pins = run.layout.inputs.read_bytes()
    stages.snapshot(run_of(more))
    judges = set(read_pool(run.layout.snapshot, "eval")["sample_id"])
    assert run.layout.inputs.read_bytes() == pins and judges == first["eval"]
    facts = read_snapshot(run.layout)
    assert facts["catalog"]["learnt"] == run.catalog.version("learnt") > 0
    # Its own record gives the same snapshot later, whatever was learnt since.
    record_learnt(run.catalog, [frames(*judges)], frames())
    again = build_snapshot(more, run.catalog, facts, run.layout.root / "again", Report("snapshot"))
    assert again.facts["digest"] == facts["digest"]


def test_a_training_without_labels_records_nothing(run_of: Callable[..., Run]) -> None:
    run = run_of(NO_SHARE)
    add_drop(run.catalog, [stable_row(n, f"u{n}", kind="unlabeled") for n in range(4)])
    stages.pin_inputs(run)
    stages.snapshot(run)
    with pytest.raises(NothingToTrainOn):
        stages.train_semi(run)
    assert run.catalog.version("learnt") == -1


def small(catalog: Catalog, learnt: str, **mate: Any) -> list[dict[str, Any]]:
    """A pet that was trained on, and a mate of its scene that arrived after that training."""
    rows = [stable_row(1, learnt, phash="00000000ffff0000"), stable_row(2, "mate", 1, role="eval") | mate]
    add_drop(catalog, rows)
    record_learnt(catalog, [frames(rows[0]["id"])], frames())
    return rows


@pytest.mark.parametrize("mate", [{"group": "trip"}, {"phash": "00000000ffff0001"}, {"near": [f"{1:064x}"]}])
def test_the_scene_of_a_forgotten_photo_stays_learnt(run_of: Callable[..., Run], mate: dict[str, Any]) -> None:
    run = run_of(PARAMS)
    first, second = small(run.catalog, "trip", **mate)
    assert not read_placement(PARAMS, run.catalog).pools["eval"].any()
    operations.forget(run, [first["id"]])
    assert uses_of(run.catalog, [first["id"], second["id"]]) == {second["id"]: "training"}
    assert not read_placement(PARAMS, run.catalog).pools["eval"].any()
    # Nothing is left of the scene now; its declared group is remembered.
    operations.forget(run, [second["id"]])
    assert run.catalog.count("learnt") == 0 and set(run.catalog.read("forgotten")["learnt"]) == {"training"}
    add_drop(run.catalog, [stable_row(3, "trip", 2, role="eval"), stable_row(4, "other", 2, role="eval")])
    assert read_placement(PARAMS, run.catalog).pools["eval"].tolist() == [False, True]


def test_a_photo_that_judged_and_is_forgotten_leaves_no_trace(run_of: Callable[..., Run]) -> None:
    run = run_of(PARAMS)
    add_drop(run.catalog, [stable_row(n, "trip", role="eval") for n in (1, 2)])
    assert mark_scenes(run.catalog, [f"{1:064x}"], 8) == 0
    operations.forget(run, [f"{1:064x}"])
    assert run.catalog.version("learnt") == -1
    assert read_placement(PARAMS, run.catalog).pools["eval"].all()


def test_a_catalog_of_before_the_table(tmp_path: Path) -> None:
    """It has no table `learnt`, and its table `forgotten` lacks the column."""
    catalog = Catalog(str(tmp_path))
    schema = pa.schema([field for field in SCHEMAS["forgotten"] if field.name != "learnt"])
    old = {"id": "f" * 64, "group": "trip", "alphas": "", "forgotten_at": "2026-01-01"}
    write_deltalake(f"{catalog.url}/forgotten", pa.Table.from_pylist([old], schema=schema))
    add_drop(catalog, [stable_row(1, "trip", role="eval")])
    assert not len(read_learnt(catalog).training) and not read_learnt(catalog).training_groups
    assert read_placement(PARAMS, catalog).pools["eval"].all()
    record_learnt(catalog, [frames("a")], frames("b"))
    catalog.upsert(
        "forgotten", [{"id": "e" * 64, "group": "x", "alphas": "", "forgotten_at": "", "learnt": "training"}]
    )
    assert read_learnt(catalog).training_groups == {"x"} and len(catalog.read("forgotten")) == 2
    assert DeltaTable(f"{catalog.url}/learnt").version() == 1


@pytest.mark.parametrize("change", [{"group": eval_group()}, {"category": "cards"}])
def test_a_snapshot_between_the_writes_of_an_ingest_makes_no_judge_later(
    workshop: Any, make: Any, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between `samples` and `corrections` a snapshot takes a corrected value for that of the arrival.

    Two of five pets judge, one of four. The changed value draws other photos than the value of the arrival.
    """
    rows = [make.row(n + 1, group=name) for n, name in enumerate(train_groups(5))]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    before = read_placement(PARAMS, workshop.catalog)
    names = workshop.catalog.read("samples").set_index("id")["name"]
    image = names[before.frame("train_labeled")["sample_id"][0].as_py()]
    workshop.drop("pixel_labeled", "a", [row | change if row["image"] == image else row for row in rows])
    real = Catalog.add

    def stop(self: Catalog, table: str, *arguments: Any, **options: Any) -> int:
        if table == "corrections":
            raise Killed
        return real(self, table, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Catalog, "add", stop)
        workshop.ingest()
    assert not workshop.catalog.count("corrections"), "stopped between the two writes"
    between = read_placement(PARAMS, workshop.catalog)
    trained = set(between.frame("train_labeled")["sample_id"].to_pylist())
    record_learnt(workshop.catalog, [frames(*trained)], frames())
    workshop.ingest()
    assert workshop.catalog.count("corrections")
    after, alone = (read_placement(PARAMS, workshop.catalog, pins) for pins in ({}, {"learnt": -1}))
    assert not trained & set(after.frame("eval")["sample_id"].to_pylist())
    assert trained & set(alone.frame("eval")["sample_id"].to_pylist()), "the table is what prevents it"
