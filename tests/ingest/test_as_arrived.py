"""What a cycle was free to train on never judges later, whatever is corrected, withdrawn or given back since."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mm_core.core.params import SnapshotParams
from mm_core.ingest.as_arrived import READ
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.inbox import ready_batches
from mm_core.ingest.ingest import Ingest
from mm_core.ingest.placement import TRAINING, read_placement
from mm_core.ingest.snapshot import place
from tests.ingest.snapshot_rows import PARAMS, eval_group, label, sample, train_group, train_groups

CATEGORIES = ("pets", "cards", None)


@dataclass
class Catalog:
    """Rows that change as ingest changes them."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    corrections: list[dict[str, Any]] = field(default_factory=list)
    now: str = ""

    def arrive(self, number: int, **values: Any) -> None:
        row = sample(number, accepted_at=self.now, **values)
        self.samples.append(row)
        if row["kind"] == "pixel_labeled":
            self.labels.append(label(row, created_at=self.now, withdrawn_at=None))

    def correct(self, row: dict[str, Any], column: str, new: str | None) -> None:
        self._record(row, column, "update", row[column], new)
        row[column] = new

    def withdraw(self, row: dict[str, Any]) -> None:
        """The drop no longer lists the photo."""
        for one in self.labels:
            if one["sample_id"] == row["id"] and not one["withdrawn_at"]:
                one["withdrawn_at"] = self.now
                self._record(row, "alpha", "removed", one["alpha_sha256"], None)

    def give_back(self, row: dict[str, Any], *, same: bool) -> None:
        """A drop lists it again, with the same matte or another one; the row of the same one is written over."""
        mine = [one for one in self.labels if one["sample_id"] == row["id"]]
        version = len(mine) + 1
        if same and mine:
            mine[0] |= {"version": version, "created_at": self.now, "withdrawn_at": None}
        else:
            self.labels.append(label(row, version, created_at=self.now, withdrawn_at=None))
        self._record(row, "alpha", "update", None, "matte")

    def _record(self, row: dict[str, Any], column: str, verdict: str, old: str | None, new: str | None) -> None:
        values = (row["id"], column, verdict, old, new, "drop", self.now)
        self.corrections.append(dict(zip(READ, values, strict=True)))

    def place(self, params: SnapshotParams) -> pd.DataFrame:
        labels = pd.DataFrame(self.labels, columns=[*label(sample(0)), "withdrawn_at"])
        corrections = pd.DataFrame(self.corrections, columns=list(READ))
        return place(params, pd.DataFrame(self.samples), labels, corrections).set_index("sample_id")


def change_one(catalog: Catalog, rng: np.random.Generator) -> None:
    row = catalog.samples[int(rng.integers(len(catalog.samples)))]
    mine = [one for one in catalog.labels if one["sample_id"] == row["id"]]
    match int(rng.integers(6)):
        case 0:
            other = catalog.samples[int(rng.integers(len(catalog.samples)))]["group"]
            catalog.correct(row, "group", str(rng.choice([other or "", "", f"new{rng.integers(9)}"])))
        case 1:
            catalog.correct(row, "category", CATEGORIES[int(rng.integers(3))])
        case 2:
            catalog.correct(row, "role", str(rng.choice(["", "eval", "train"])))
        case 3 | 4 if any(not one["withdrawn_at"] for one in mine):
            catalog.withdraw(row)
        case _ if mine and all(one["withdrawn_at"] for one in mine):
            catalog.give_back(row, same=bool(rng.integers(2)))
        case _:
            pass


def test_what_was_free_to_be_trained_on_is_never_held_out_later() -> None:
    """Random weeks: changes, a snapshot, a drop, a snapshot. Held-out photos stay so, unless they lose their label."""
    params = SnapshotParams(eval_share=0.1, eval_least=6, validation_share=0.5)
    judged = validated = 0
    for seed in range(8):
        rng, catalog, trained, held = np.random.default_rng(seed), Catalog(), set(), set()
        hashes = [f"{int(rng.integers(2**63)):016x}" for _ in range(8)]
        for step in range(8):
            catalog.now = f"2026-01-{step + 1:02d}T00:00:00"
            if step % 2:
                for _ in range(8):
                    change_one(catalog, rng)
            else:
                for _ in range(int(rng.integers(4, 40))):
                    near = rng.choice([row["id"] for row in catalog.samples], 1) if len(catalog.samples) else []
                    catalog.arrive(
                        len(catalog.samples),
                        kind=str(rng.choice(["pixel_labeled", "unlabeled"], p=[0.9, 0.1])),
                        category=CATEGORIES[int(rng.choice(3, p=[0.7, 0.25, 0.05]))],
                        group=str(rng.choice([f"scene{rng.integers(90)}", "new1", ""], p=[0.7, 0.02, 0.28])),
                        role=str(rng.choice(["", "eval", "train"], p=[0.8, 0.1, 0.1])),
                        near=list(near) if rng.random() < 0.1 else None,
                        **({"phash": str(rng.choice(hashes))} if rng.random() < 0.1 else {}),
                    )
            table = catalog.place(params)
            judges, validates = (set(table.query(pool).index) for pool in ("eval", "validation"))
            assert not trained & (judges | validates), f"seed {seed}, step {step}"
            trained |= set(table.query(" or ".join(TRAINING)).index)
            usable = set(table.query("alpha_sha256.notna() and category.notna() and role != 'train'").index)
            assert (held - trained) & usable <= judges, f"seed {seed}, step {step}"
            held |= judges
            judged, validated = judged + len(judges), validated + len(validates)
    assert judged > 300 and validated > 100, "the weeks hold photos out"


def weeks(*arriving: list[tuple[int, str]]) -> Catalog:
    """A drop of labelled pets per week, each photo with its number and group; the last week is the present one."""
    catalog = Catalog()
    for week, drop in enumerate(arriving):
        catalog.now = f"2026-01-{2 * week + 1:02d}T00:00:00"
        for number, group in drop:
            catalog.arrive(number, group=group)
    return catalog


def next_week(catalog: Catalog) -> None:
    catalog.now = f"2026-01-{int(catalog.now[8:10]) + 1:02d}T00:00:00"


def test_what_joins_a_scene_that_was_trained_on_does_not_judge() -> None:
    catalog, group = weeks([(1, train_group())]), eval_group()
    next_week(catalog)
    catalog.correct(catalog.samples[0], "group", group)
    next_week(catalog)
    catalog.arrive(2, group=group)
    table = catalog.place(PARAMS)
    assert table["train_labeled"].all() and not table["eval"].any()
    apart = weeks([(1, train_group())], [(2, group)]).place(PARAMS)
    assert apart["eval"].tolist() == [False, True]


@pytest.mark.parametrize("again", ["", "eval"])
def test_a_photo_that_was_freed_for_training_never_judges_again_nor_does_its_scene(again: str) -> None:
    catalog, group = weeks([(1, eval_group())]), eval_group()
    assert catalog.place(PARAMS)["eval"].all()
    next_week(catalog)
    catalog.correct(catalog.samples[0], "role", "train")
    assert catalog.place(PARAMS)["train_labeled"].all()
    catalog.correct(catalog.samples[0], "role", again)
    next_week(catalog)
    catalog.arrive(2, group=group)
    table = catalog.place(PARAMS)
    assert not table["eval"].any() and table["train_labeled"].tolist() == [not again, True]


@pytest.mark.parametrize("way", ["matte", "category"])
def test_what_took_the_place_of_a_judge_keeps_it(way: str) -> None:
    """Of 24 photos 8 judge. One is lost, and an arriving one takes its place; then the lost one comes back."""
    names = train_groups(40)
    catalog = weeks([*enumerate(names[:24])])
    before = set(catalog.place(PARAMS).query("eval").index)
    lost = next(row for row in catalog.samples if row["id"] in before)
    next_week(catalog)
    if way == "matte":
        catalog.withdraw(lost)
    else:
        catalog.correct(lost, "category", "cards")
    next_week(catalog)
    for number, name in enumerate(names[24:], 24):
        catalog.arrive(number, group=name)
    after = set(catalog.place(PARAMS).query("eval and category == 'pets'").index)
    assert len(before) == len(after) == 8 and len(after - before) == 1
    next_week(catalog)
    if way == "matte":
        catalog.give_back(lost, same=True)
    else:
        catalog.correct(lost, "category", "pets")
    assert set(catalog.place(PARAMS).query("eval").index) == before | after


def test_a_validation_photo_without_its_matte_is_not_trained_on() -> None:
    params = SnapshotParams(eval_share=1e-9, eval_least=0, validation_share=0.5)
    catalog = weeks([*enumerate(train_groups(20))])
    validating = catalog.place(params).query("validation").index
    assert len(validating) == 10
    catalog.withdraw(next(row for row in catalog.samples if row["id"] == validating[0]))
    table = catalog.place(params)
    assert table["validation"].sum() == 9 and table.loc[validating[0], "dropped"] == "near a validation photo"
    assert table["train_unlabeled"].sum() == 0


def corrected(way: str) -> list[dict[str, str]]:
    """What the producer states of five or six photos, pets but for a card, and its correction of one of them.

    Two of five or six labelled groups of a category judge, one of four: each correction would draw another photo.
    """
    last = {"group": {"group": eval_group()}, "category": {"category": "pets"}, "role": {"role": "train"}}[way]
    first = [{"group": name, "category": "pets"} for name in train_groups(6 if way == "role" else 5)]
    first[4]["category"] = "cards" if way == "category" else "pets"
    return [*first, last]


@pytest.mark.parametrize("way", ["group", "category", "role"])
def test_a_corrected_manifest_makes_no_judge_of_what_was_trained_on(workshop: Any, make: Any, way: str) -> None:
    *stated, last = corrected(way)
    rows = [make.row(n + 1, **values) for n, values in enumerate(stated)]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    pinned, before = workshop.catalog.versions(), read_placement(PARAMS, workshop.catalog)
    trained = before.pools["train_labeled"]
    assert before.pools["eval"].sum() == (1 if way == "category" else 2)
    ids = before.samples["id"].to_pylist()
    names = workshop.catalog.read("samples").set_index("id")["name"]
    # A trained photo gets another group; the only card turns out a pet; a judge is given to training.
    chosen = {"group": trained, "category": ~before.pools["eval"], "role": before.pools["eval"]}[way]
    image = "images/5.jpg" if way == "category" else names[ids[int(np.flatnonzero(chosen)[0])]]
    rows = [row | last if row["image"] == image else row for row in rows]
    workshop.drop("pixel_labeled", "a", rows)
    assert workshop.ingest().tables["updates"]
    after = read_placement(PARAMS, workshop.catalog)
    assert not (trained & (after.pools["eval"] | after.pools["validation"])).any()
    assert after.pools["eval"].sum() == before.pools["eval"].sum() - (way == "role")
    again = read_placement(PARAMS, workshop.catalog, pinned)
    assert all(np.array_equal(again.pools[pool], chosen) for pool, chosen in before.pools.items())


def test_a_drop_that_is_measured_for_longer_than_a_later_one_arrives_after_it(workshop: Any, make: Any) -> None:
    """A cycle between the two trains on the later drop; the earlier one must not change what it was decided on."""
    workshop.drop("pixel_labeled", "slow", [make.row(n, group=f"s{n}") for n in (1, 2)])
    batch = ready_batches(workshop.run)[0]
    slow = Ingest(workshop.run, batch, DataDocs(workshop.run.layout.data_docs))
    workshop.drop("pixel_labeled", "fast", [make.row(n, group=f"f{n}") for n in (3, 4, 5)])
    workshop.ingest("fast")
    slow.run()
    arrived = workshop.catalog.read("samples").groupby("batch")["accepted_at"].agg(["min", "max"])
    assert arrived.loc["fast", "max"] < arrived.loc["slow", "min"]
