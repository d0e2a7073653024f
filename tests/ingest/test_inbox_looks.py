"""A repeated look finds what a full comparison finds, and opens only what may have changed."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings
from mm_core.ingest import inbox
from mm_core.ingest.inbox import named_batches, ready_batches
from mm_core.ingest.inbox_looks import FULL_EVERY, SETTLED, STAMPS_EVERY, YOUNG, Look, look_again
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore
from tests.ingest.test_changes import png, touched

SECOND = 1.0


class Drops:
    """An inbox of manifests without photos; the ledger is written by hand."""

    def __init__(self, root: Path) -> None:
        self.run = StorageRun(Params(), Layout(Settings.from_env(root / "workspace")))
        self.root = root / "inbox"
        vars(self.run).update(inbox=LocalStore(self.root), catalog=Catalog(str(root / "store")))
        self.time = 0

    def say(self, batch: str, length: int, name: str = "manifest.csv") -> None:
        folder = self.root / "unlabeled" / batch
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x" * length)

    def remove(self, batch: str) -> None:
        shutil.rmtree(self.root / "unlabeled" / batch, ignore_errors=True)

    def ingest(self, batch: str) -> None:
        with suppress(InputError):  # no drop has this unsafe name
            for one in named_batches(self.run.inbox, batch):
                self.time += 1
                row = {"key": one.key, "kind": one.kind, "batch": one.batch, "ingested_at": f"{self.time:09}"}
                self.run.catalog.upsert("batches", [row])

    def forget(self, batch: str) -> None:
        self.run.catalog.delete("batches", "batch", [batch])


BATCHES = st.sampled_from(["a", "b", "an unsafe  name"])
EVENTS = st.one_of(
    st.tuples(st.just("say"), BATCHES, st.integers(1, 3), st.sampled_from(["manifest.csv", "manifest.parquet"])),
    st.tuples(st.sampled_from(["remove", "ingest", "ingest", "forget"]), BATCHES),
)


@settings(max_examples=40, deadline=None)
@given(events=st.lists(st.tuples(EVENTS, st.sampled_from([SECOND, YOUNG, FULL_EVERY])), min_size=1, max_size=14))
@example(
    events=[
        (("say", "b", 1, "manifest.csv"), SECOND),
        (("ingest", "b"), SECOND),
        (("say", "b", 1, "manifest.parquet"), YOUNG),
    ]
)
def test_each_look_finds_what_a_full_comparison_finds(
    events: list[tuple[tuple[Any, ...], float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No drop is settled in this time."""
    drops, now = Drops(tmp_path_factory.mktemp("drops")), 0.0
    for (verb, *arguments), later in events:
        getattr(drops, verb)(*arguments)
        now += later
        assert look_again(drops.run, now) == ready_batches(drops.run)
        # The second look has the memory of this state.
        assert look_again(drops.run, now + YOUNG) == ready_batches(drops.run)


def test_settled_drops_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = Drops(tmp_path)
    for n in range(20):
        drops.say(f"b{n}", 5)
        drops.ingest(f"b{n}")
    opened: list[str] = []
    real = inbox._arrived
    monkeypatch.setattr(inbox, "_arrived", lambda store, kind, batch: opened.append(batch) or real(store, kind, batch))

    def looked_at(now: float) -> int:
        opened.clear()
        assert look_again(drops.run, now) == []
        every.update(opened)
        return len(opened)

    every: Counter[str] = Counter()

    assert looked_at(FULL_EVERY) == looked_at(FULL_EVERY + YOUNG - 1) == 20
    begin = FULL_EVERY + YOUNG
    every.clear()
    counts = [looked_at(begin + at) for at in range(0, int(FULL_EVERY), 60)]
    assert sum(counts) >= 18 and max(every.values()) == 1 and max(counts) < 10, "each drop once, not all at once"
    drops.say("b3", 6)
    drops.ingest("b3")
    every.clear()
    looked_at(begin + FULL_EVERY)
    looked_at(begin + FULL_EVERY + 1)
    assert every["b3"] == 2, "another manifest, then a young drop"
    assert every.total() - 2 < 5


def test_manifests_of_settled_drops_are_looked_at_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = Drops(tmp_path)
    for n in range(20):
        drops.say(f"b{n}", 5)
        drops.ingest(f"b{n}")
    asked: list[str] = []
    real = LocalStore.stamps
    monkeypatch.setattr(LocalStore, "stamps", lambda store, keys: asked.extend(keys) or real(store, keys))
    look_again(drops.run, 0)
    begin = SETTLED + FULL_EVERY
    look_again(drops.run, begin)
    asked.clear()
    counts = []
    for at in range(30, int(STAMPS_EVERY) + 1, 30):
        before = len(asked)
        assert look_again(drops.run, begin + at) == []
        # Both names of a drop's manifest are asked together.
        counts.append((len(asked) - before) / len(inbox.MANIFESTS))
    assert set(asked) == {f"unlabeled/b{n}/{name}" for n in range(20) for name in inbox.MANIFESTS}
    assert max(counts) < 10
    drops.say("b7", 6)
    found = [look_again(drops.run, begin + STAMPS_EVERY + at) for at in range(0, int(STAMPS_EVERY) + 1, 60)]
    assert [one.batch for one in found[-1]] == ["b7"] and found[-1] == ready_batches(drops.run)


def test_a_file_replaced_in_an_old_drop_is_found_within_the_period(any_workshop: Any, make: Any) -> None:
    folder = any_workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    any_workshop.ingest()
    run = any_workshop.run

    def replace(seed: int) -> None:
        if isinstance(any_workshop.inbox, LocalStore):
            touched(folder / "alphas" / "1.png", png(make, seed))
        else:
            any_workshop.inbox.put("pixel_labeled/a/alphas/1.png", png(make, seed))

    assert look_again(run, 0) == look_again(run, 1) == []
    replace(5)
    (young,) = look_again(run, 2)
    assert [young] == look_again(run, 3) == ready_batches(run), "it stays ready until it is ingested"
    any_workshop.ingest()
    assert look_again(run, 4) == look_again(run, 4 + YOUNG) == []
    replace(6)
    found = [look_again(run, 4 + YOUNG + at) for at in range(0, int(FULL_EVERY) + 300, 300)]
    assert [] in found and found[-1] == ready_batches(run) != []


@given(
    key=st.integers(0, 2**32 - 1),
    since=st.floats(0, 1e5),
    last=st.floats(1e5, 3e5),
    later=st.floats(0, 2 * FULL_EVERY),
)
def test_a_drop_that_is_due_is_also_asked(key: int, since: float, last: float, later: float) -> None:
    """A look skips the drops that are not asked, so it must not miss one that is due."""
    look = Look("unlabeled/a/manifest.csv", 1, "1", f"{key:08x}", since)
    assert look.is_asked(last, last + later) or not look.is_due(last, last + later)
