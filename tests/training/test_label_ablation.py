"""Routed against random photos: who is in each arm, what it costs the cycle, and a known answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.experiments.label_ablation import compare_labels, draw_arms
from mm_core.imaging.images import encode_alpha, load_alpha
from mm_core.ingest.placement import SCHEMA
from mm_core.ingest.snapshot import write_frames
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, fetch_blob, put_blob
from tests.tiny import snapshot_facts


class House:
    """The workspace of this room with an eval set, and a catalog that says where each label comes from."""

    def __init__(self, layout: Layout, store: LocalStore, frame: Any, eval_frame: Any):
        self.layout, self.store, self.catalog = layout, store, Catalog(store.url)
        of = {origin: frame.loc[frame["origin"] == origin] for origin in ("known", "routed", "suspect", "drop")}
        self.ids = {origin: set(rows["sample_id"]) for origin, rows in of.items()}
        self.learned = dict(of["known"][["sample_id", "alpha_sha256"]].itertuples(index=False, name=None))
        self.eval_ids = set(eval_frame["sample_id"])
        people = frame["origin"].isin(["routed", "suspect"])
        rows = frame.assign(id=frame["sample_id"] + "-1", version=1, origin=np.where(people, "label_studio", "drop"))
        self.catalog.add("labels", rows[["id", "sample_id", "alpha_sha256", "version", "origin"]].to_dict("records"))
        queues = {i: queue for origin, queue in (("routed", "train"), ("suspect", "suspect")) for i in self.ids[origin]}
        common = {"extractor": "routed", "version": "1", "numbers": {}, "computed_at": "2026-11-01T00:00:00+00:00"}
        asked = [common | {"sample_id": i, "texts": {"queue": queue}, "vector": None} for i, queue in queues.items()]
        self.catalog.add("features", asked)
        pools = {"train_labeled": frame, "eval": eval_frame, "validation": eval_frame.head(0)}
        write_frames(layout.snapshot, {n: f[SCHEMA.names] for n, f in pools.items()}, SCHEMA, snapshot_facts("5" * 64))
        self.trained: dict[str, pd.DataFrame] = {}
        self.steps: list[int] = []

    def compare(self, params: Params, seeds: int = 1, stop_at: str = "") -> Report:
        """Takes what each arm is trained on from its folder, while it trains."""

        def progress(what: str, done: int, total: int) -> None:
            for path in (self.layout.root / "scratch").glob("*/*/cycle/split/simple.parquet"):
                self.trained[path.parts[-4]] = pd.read_parquet(path)
            if what == "train simple":
                self.steps.append(done)
            if what == "train simple" and stop_at in self.trained:
                raise KeyboardInterrupt

        report = Report("label-compare")
        run = StorageRun(params, self.layout, progress)
        return compare_labels(run, self.learned, report, start=None, seeds=seeds)

    def arm(self, name: str) -> set[str]:
        found = list(self.trained[name]["sample_id"])
        assert len(set(found)) == len(found)
        assert self.ids["known"] <= set(found)
        return set(found) - self.ids["known"]

    def cycle_files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.layout.cycle.rglob("*") if path.is_file()}


@pytest.fixture
def house(workspace: Layout, store: LocalStore, draw) -> House:
    """Of 3 categories each: 2 known, 1 routed, 1 reviewed, 2 dropped photos; 2 to judge on."""
    origins = ("known", "known", "routed", "suspect", "drop", "drop")
    frame = draw(6, 1).assign(origin=origins * 3)
    return House(workspace, store, frame, draw(2, 6))


def test_both_arms_are_what_they_should_be_and_the_cycle_stays_as_it_was(house: House, params: Params) -> None:
    before = house.cycle_files()
    report = house.compare(params, seeds=2)
    assert house.cycle_files() == before and not list((house.layout.root / "scratch").iterdir())
    assert sorted(house.trained) == ["1-random", "1-routed", "2-random", "2-routed"]
    unchosen = house.ids["drop"] | house.ids["suspect"]
    for seed in (1, 2):
        assert house.arm(f"{seed}-routed") == house.ids["routed"], "all three"
        assert len(house.arm(f"{seed}-random")) == 3 and house.arm(f"{seed}-random") <= unchosen
    assert house.arm("1-random") != house.arm("2-random"), "drawn anew"
    assert not any(house.eval_ids & set(frame["sample_id"]) for frame in house.trained.values())
    assert report.facts["photos_per_arm"] == 3 and report.facts["base"] == 6
    assert report.facts["available"] == {"routed": 3, "random": 9}

    rows = {row["category"]: row for row in report.tables["compare"]}
    assert set(rows) == {"portrait", "pets", "scenery", "macro"}
    drawn: Any = pd.concat([house.trained["1-random"], house.trained["2-random"]])
    for category in ("portrait", "pets", "scenery"):
        row = rows[category]
        here = set(drawn.loc[drawn["category"] == category, "sample_id"]) & unchosen
        assert row["routed"] == 1 and row["eval_photos"] == 2
        count = drawn["sample_id"].isin([*here]).sum() / 2
        assert row["random"] == count
        gains = [row["gain 1"], row["gain 2"]]
        assert row["gain"] == pytest.approx(row["mse_random"] - row["mse_routed"]) == pytest.approx(np.mean(gains))
        assert row["spread"] == pytest.approx(np.std(gains, ddof=1)) and row["spread"] > 0
    assert report.metrics["compare/pets/gain"] == rows["pets"]["gain"]


def test_killed_between_two_trainings_it_goes_on_to_the_same_result(house: House, params: Params) -> None:
    whole = house.compare(params)
    assert whole.tables["compare"][0]["spread"] is None, "one seed says nothing of chance"
    house.trained.clear()
    house.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        house.compare(params, stop_at="1-random")
    assert house.steps.count(1) == 2, "both had begun"
    house.steps.clear()
    again = house.compare(params)
    assert house.steps.count(1) == 1, "the finished one is not trained again"
    assert again.tables == whole.tables and again.metrics == whole.metrics


def test_photos_that_teach_wrong_mattes_lose_to_those_that_teach_right_ones(house: House, params: Params) -> None:
    """The unchosen ones say that the background is the subject: the routed ones must win in every category."""
    path = house.layout.snapshot / "train_labeled.parquet"
    frame: Any = pd.read_parquet(path)
    house.learned = dict(list(house.learned.items())[:1])  # more would outvote the arms
    right = frame["sample_id"].isin([*house.ids["routed"], *house.learned])
    inverted = [
        put_blob(house.store, encode_alpha(1 - load_alpha(fetch_blob(house.store, a)))) for a in frame["alpha_sha256"]
    ]
    frame["alpha_sha256"] = frame["alpha_sha256"].where(right, pd.Series(inverted))
    write_frames(
        house.layout.snapshot,
        {"train_labeled": frame, "eval": pd.read_parquet(house.layout.snapshot / "eval.parquet")},
        SCHEMA,
        snapshot_facts("6" * 64),
    )
    report = house.compare(params.with_values(**{"train.simple.steps": 60}))
    assert [row["gain"] > 0 for row in report.tables["compare"]] == [True] * 4, report.tables["compare"]


def test_the_arms_take_the_steps_that_the_report_names(house: House, params: Params) -> None:
    """Steps that grew with an arm's photos would be more than the share of the cycle that is allowed."""
    report = house.compare(params.with_values(**{"train.simple.steps": 2, "train.simple.photos": 1}))
    assert max(house.steps) == report.facts["steps"] == 2


def test_more_routed_photos_than_others_are_drawn_too() -> None:
    source = {f"r{i}": "routed" for i in range(9)} | {"a": "dropped", "b": "suspect"}
    arms = draw_arms(source, seed=3)
    assert arms["random"] == ["a", "b"]
    assert len(arms["routed"]) == 2 and all(sample.startswith("r") for sample in arms["routed"])
    assert draw_arms(dict(reversed(source.items())), seed=3) == arms, "the order of rows does not matter"
    assert len({tuple(draw_arms(source, seed)["routed"]) for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("source", "said"), [({"a": "dropped"}, "mm label push"), ({"a": "routed"}, "drop photos"), ({}, "mm label push")]
)
def test_an_empty_side_is_refused_with_what_to_do(source: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw_arms(source, seed=0)


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(house: House, params: Params) -> None:
    for values, seeds, said in (({"train.simple.steps": 0}, 1, "steps is 0"), ({}, 0, "--seeds 0")):
        with pytest.raises(InputError, match=said):
            house.compare(params.with_values(**values), seeds=seeds)
    assert not (house.layout.root / "scratch").exists()
