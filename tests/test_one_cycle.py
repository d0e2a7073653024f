"""One cycle at a time: pins that stay while it works, and a gate that knows what the models were trained on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mm_core import operations, stages
from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.layout import Layout
from mm_core.core.pins import parse_inputs
from mm_core.core.progress import Progress
from mm_core.core.records import ALL_CATEGORIES, Report, digest_of, sha256_file
from mm_core.core.settings import Settings
from mm_core.export.lineage import lineage
from mm_core.export.registry import NAME, Registry
from mm_core.export.signature import make_keys
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.model.files import read_meta
from mm_core.pinned_inputs import Run, frozen_inputs, inputs_now, pin_when_idle, read_inputs, recorded_verdict
from mm_core.storage.run import catalog_of
from samplegen import write_drop
from tests.tiny import ONE_STEP as TINY


def drop(inbox: Path, batch: str, each: int, seed: int, role: str) -> None:
    counts: dict[str, int] = dict.fromkeys(ALL_CATEGORIES, each)
    write_drop(inbox, "pixel_labeled", batch, counts, seed=seed, size=64, role=role, burst_share=0)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path]) -> Layout:
    """A workspace after its first cycle, which promoted; read-only."""
    layout = Layout(Settings.from_env(with_tables(tmp_path_factory.mktemp("first") / "data")))
    drop(Path(layout.settings.inbox), "eval", 5, 1, "eval")
    drop(Path(layout.settings.inbox), "train", 3, 50, "train")
    reports = stages.run_cycle(Run(TINY, layout))
    assert reports["gate"].facts["decision"] == "PROMOTE", reports["gate"].facts["reasons"]
    return layout


@pytest.fixture
def workspace(first: Layout, tmp_path: Path) -> Layout:
    """A copy of it to write to."""
    shutil.copytree(first.root, tmp_path / "data")
    return Layout(Settings.from_env(tmp_path / "data"))


def in_another_thread(work: Callable[[], object]) -> None:
    """The cycle lock is re-entrant within a thread alone: another thread stands for another process."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def once_while_training(work: Callable[[], object]) -> Progress:
    """A progress that does `work` elsewhere at the first sign of training."""
    todo = [work]

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("train ") and todo:
            in_another_thread(todo.pop())

    return progress


def photos_of(layout: Layout, pools: tuple[str, ...] = POOLS) -> set[str]:
    return {i for pool in pools for i in read_pool(layout.snapshot, pool)["sample_id"]}


def test_a_drop_that_comes_while_a_cycle_trains_is_seen_by_the_next_one(workspace: Layout) -> None:
    """Its photos were in the catalog and in no pool, for good: the gate stored the later pins as seen."""
    pinned: list[bytes] = []

    def arrive() -> None:
        before = workspace.inputs.read_bytes()
        drop(Path(workspace.settings.inbox), "late", 3, 90, "train")
        stages.ingest(Run(TINY, workspace))
        stages.structure(Run(TINY, workspace))
        facts = pin_when_idle(Run(TINY, workspace))
        assert "until `mm run`" in facts["pins"]
        assert workspace.inputs.read_bytes() == before, "the pins of a running cycle do not move"
        pinned.append(before)

    reports = stages.run_cycle(Run(TINY, workspace, once_while_training(arrive)), again=True)
    assert pinned and reports["gate"].facts["inputs"] == digest_of(frozen_inputs(workspace))
    assert parse_inputs(pinned[0]) == frozen_inputs(workspace), "it was judged on what it froze"
    assert read_inputs(workspace)["catalog"] == inputs_now(workspace)["catalog"], "pinned at its end"
    seen = photos_of(workspace)
    reports = stages.run_cycle(Run(TINY, workspace))
    assert "nothing_new" not in reports["pin_inputs"].facts
    late = set(catalog_of(workspace).read("samples", filters=[("batch", "=", "late")])["id"])
    assert late and not late & seen
    assert late <= photos_of(workspace), "every one of them is in a pool"
    assert "nothing_new" in stages.run_cycle(Run(TINY, workspace))["pin_inputs"].facts


def test_a_second_run_waits_and_finds_nothing_new(workspace: Layout) -> None:
    second: list[dict[str, Report]] = []
    threads: list[threading.Thread] = []

    def start() -> None:
        threads.append(threading.Thread(target=lambda: second.append(stages.run_cycle(Run(TINY, workspace)))))
        threads[0].start()

    drop(Path(workspace.settings.inbox), "more", 2, 300, "train")
    reports = stages.run_cycle(Run(TINY, workspace, once_while_training(start)))
    threads[0].join()
    assert reports["gate"].facts["decision"] in ("PROMOTE", "REJECT", "INCONCLUSIVE")
    assert list(second[0]) == ["ingest", "structure", "pin_inputs"]
    assert "nothing_new" in second[0]["pin_inputs"].facts


def test_pins_that_a_killed_cycle_left_undone_are_made_by_the_next_snapshot(workspace: Layout) -> None:
    class Killed(BaseException): ...

    def die() -> None:
        drop(Path(workspace.settings.inbox), "late", 1, 120, "train")
        stages.ingest(Run(TINY, workspace))
        stages.structure(Run(TINY, workspace))
        pin_when_idle(Run(TINY, workspace))
        raise Killed

    with pytest.raises(Killed):
        stages.run_cycle(Run(TINY, workspace, once_while_training(die)), again=True)
    assert read_inputs(workspace)["catalog"] != inputs_now(workspace)["catalog"]
    stages.snapshot(Run(TINY, workspace))
    assert read_inputs(workspace)["catalog"] == inputs_now(workspace)["catalog"]
    late = set(catalog_of(workspace).read("samples", filters=[("batch", "=", "late")])["id"])
    assert late and late <= photos_of(workspace)


def test_a_photo_is_forgotten_after_the_cycle_that_trains_on_it_and_its_model_is_named(workspace: Layout) -> None:
    """`mm forget` beside a cycle answered that no model had learned from the photo, and the cycle then promoted one."""
    answers: list[Report] = []
    threads: list[threading.Thread] = []
    one = read_pool(workspace.snapshot, "train_labeled")["sample_id"].iloc[0]

    def forget() -> None:
        threads.append(threading.Thread(target=lambda: answers.append(operations.forget(Run(TINY, workspace), [one]))))
        threads[0].start()
        threads[0].join(0.3)
        assert not answers, "it waits"

    stages.run_cycle(Run(TINY, workspace, once_while_training(forget)), again=True)
    threads[0].join()
    assert [row["version"] for row in answers[0].tables["models"]] == Registry(workspace.settings).versions()


def test_a_rollback_beside_a_cycle_lets_it_begin_again_from_that_champion(
    workspace: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that was not compared with the present champion is not promoted; here, with none at all."""
    make_keys(tmp_path / "key.pem")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key.pem"))
    registry = Registry(workspace.settings)
    stages.run_cycle(Run(TINY.with_values(seed=1), workspace), again=True)
    if registry.versions() == ["1"]:
        stages.override(Run(TINY, workspace), "candidate", reason="a second champion", days=1)
    # Without a champion the gate promotes on its floors alone.
    uri = workspace.settings.mlflow_uri
    MlflowClient(tracking_uri=uri, registry_uri=uri).delete_registered_model_alias(NAME, "champion")
    trained: list[Any] = []
    go_back = once_while_training(lambda: operations.rollback(Run(TINY, workspace), reason="halos"))

    def progress(what: str, done: int, total: int) -> None:
        if what == "train simple" and done == total:
            trained.append(frozen_inputs(workspace)["champion"])
        go_back(what, done, total)

    stages.run_cycle(Run(TINY.with_values(seed=2), workspace, progress), again=True)
    first_champion = registry.tags("1")
    assert first_champion is not None
    assert trained[0] is None and trained[-1]["version"] == "1"
    assert recorded_verdict(workspace).champion == first_champion["model_digest"]
    moves = [(move["kind"], move["to"]) for move in registry.history()]
    assert ("rollback", "1") in moves[2:], "the candidate of the first attempt was not promoted before it"


def test_the_registry_and_the_champions_own_record_name_one_snapshot(first: Layout) -> None:
    told = lineage(first.settings, "champion")
    assert told["snapshot"]["digest"] == read_meta(first.model("multimodal"))["snapshot"]
    assert told["model"] == sha256_file(first.model("multimodal"))


def other_snapshot(layout: Layout) -> None:
    drop(Path(layout.settings.inbox), "other", 2, 700, "train")
    stages.ingest(Run(TINY, layout))
    stages.structure(Run(TINY, layout))
    stages.pin_inputs(Run(TINY, layout))
    stages.snapshot(Run(TINY, layout))


def other_split(layout: Layout) -> None:
    stages.split(Run(TINY.with_values(**{"split.hard_share": 0.6}), layout))


def other_stage(layout: Layout) -> None:
    stages.train_hard(Run(TINY.with_values(**{"train.hard.steps": 2}), layout))


def other_start(layout: Layout) -> None:
    stages.pin_inputs(Run(TINY, layout), again=True)
    stages.snapshot(Run(TINY, layout))  # the same rows; it freezes the champion, and the models began from scratch


def forgotten_photo(layout: Layout) -> None:
    operations.forget(Run(TINY, layout), [read_pool(layout.snapshot, "train_labeled")["sample_id"].iloc[0]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_snapshot, "another snapshot"),
        (other_split, "was trained on other rows than its snapshot and split hold"),
        (other_stage, "was trained from other weights than those of the stage before"),
        (other_start, "from other weights than those that the snapshot froze"),
        (forgotten_photo, "1 photos that were forgotten since"),
    ],
)
def test_what_was_not_trained_on_the_present_cycle_is_not_judged_and_not_released(
    workspace: Layout, change: Callable[[Layout], None], words: str
) -> None:
    change(workspace)
    verdict = workspace.verdict.read_bytes()
    with pytest.raises(InputError, match=f"{words}.*run `mm run`"):
        stages.gate(Run(TINY, workspace))
    assert workspace.verdict.read_bytes() == verdict
    for stage in (stages.evaluate, stages.export, stages.promote):
        with pytest.raises((InputError, ReleaseRefused), match="run `mm run`"):
            stage(Run(TINY, workspace))
    assert "nothing_new" not in stages.pin_inputs(Run(TINY, workspace)).facts, "the next `mm run` does what is missing"


@pytest.mark.parametrize(("stage", "remedy"), [("simple", "mm split"), ("hard", "mm split"), ("semi", "mm train-hard")])
def test_a_stage_does_not_start_from_another_snapshots_work(workspace: Layout, stage: str, remedy: str) -> None:
    other_snapshot(workspace)
    with pytest.raises(InputError, match=f"run `{remedy}` before `mm train-{stage}`"):
        stages.TRAIN[stage](Run(TINY, workspace))
