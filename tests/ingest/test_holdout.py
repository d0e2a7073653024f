"""Which arriving groups are held out for evaluation and validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.core.params import SnapshotParams
from mm_core.core.records import CATEGORIES
from mm_core.ingest.holdout import LEARNT, MIN_VALIDATION_PHOTOS
from mm_core.ingest.placement import POOLS, TRAINING, read_placement, stable_share
from mm_core.ingest.snapshot import assert_no_leak, eval_state
from tests.ingest.snapshot_rows import (
    PARAMS,
    eval_group,
    evaluated,
    label,
    later,
    placed,
    pools_of,
    sample,
    train_group,
    train_groups,
)


def test_a_category_that_chance_left_without_eval_gets_the_smallest_hashes_and_keeps_them():
    names = train_groups(4)
    rows = [sample(n, group=name) for n, name in enumerate(names)]
    assert evaluated(rows[:2]) == set(), "two fifths at most: the others train"
    lowest = min(names, key=lambda name: stable_share(name, "eval"))
    assert evaluated(rows) == {lowest}
    no_more_need = sample(100, group=eval_group(), **later(1))
    assert evaluated([*rows, no_more_need]) == {lowest, no_more_need["group"]}


def test_eval_is_filled_first_up_to_what_the_gate_needs_and_then_by_share():
    names = train_groups(90)
    category = ["cards"] * 15 + ["pets"] * 30 + ["portrait"] * 45
    rows = [sample(n, group=name, category=category[n]) for n, name in enumerate(names)]
    table = placed(rows).query("eval or validation or train_labeled").groupby("category")[list(POOLS)].sum()
    assert table["eval"].to_dict() == {"cards": 6, "pets": 8, "portrait": 9}
    assert (table["validation"] == 0).all()
    assert (table["train_labeled"] == [9, 22, 36]).all()
    more = SnapshotParams(eval_least=12)
    assert placed(rows, params=more).groupby("category")["eval"].sum().to_dict() == {
        "cards": 6, "pets": 12, "portrait": 12,
    }  # fmt: skip


def test_only_arriving_groups_are_held_out():
    """Eight weekly drops of three groups each: whatever is held out was held out from its first week on."""
    rows, learnt = [], set()
    names = train_groups(24)
    for week in range(1, 9):
        rows += [sample(n, group=names[n], **later(week)) for n in range(3 * week - 3, 3 * week)]
        table = placed(rows)
        held_out = set(table.index[table["eval"] | table["validation"]])
        assert not held_out & learnt
        learnt |= set(table.index[table["train_labeled"]])
    assert table["eval"].sum() >= 6


def test_role_eval_cannot_make_a_judge_of_what_was_learnt():
    """Edits, group members and near-duplicates of photos that arrived earlier for training are reported, not used."""
    names = train_groups(4)
    learnt = sample(1, group=names[1], role="train", phash="00000000ffff0000")
    seen_unlabelled = sample(2, group=names[2], kind="unlabeled")
    late = [
        sample(11, group=names[1], role="eval", **later(1)),
        sample(12, group="other", role="eval", near=[learnt["id"]], **later(1)),
        sample(13, group="else", role="eval", phash="00000000ffff0001", **later(1)),
        sample(14, group=names[2], role="eval", **later(1)),
        sample(15, group="fresh", role="eval", **later(1)),
    ]
    table = placed([learnt, seen_unlabelled, *late])
    assert set(table.index[table["eval"]]) == {"s00015"}
    for row in late[:4]:
        assert pools_of(table, row["id"]) == set(), "not trained on silently"
        assert table.loc[row["id"], "dropped"] == LEARNT
    assert pools_of(table, learnt["id"]) == {"train_labeled"}, "the photo that was learnt from stays a training photo"


@pytest.mark.parametrize("before", ["unlabeled", "train", "", "drawn", "eval"])
def test_a_role_that_a_known_photo_gets_later_cannot_make_a_judge_of_it(workshop: Any, make: Any, before: str):
    """Photos of an earlier drop come again with the role eval, some of them with their first matte."""
    group = {"drawn": eval_group()}.get(before, train_group())
    rows = [make.row(n, group=group, role={"train": "train", "eval": "eval"}.get(before, "")) for n in range(1, 4)]
    first = rows
    if before == "unlabeled":
        first = [{key: value for key, value in row.items() if not key.startswith("alpha")} for row in rows]
    workshop.drop("unlabeled" if before == "unlabeled" else "pixel_labeled", "a", first)
    workshop.ingest()
    pinned = workshop.catalog.versions()
    then = read_placement(PARAMS, workshop.catalog).pools
    workshop.drop("pixel_labeled", "b", [row | {"role": "eval"} for row in rows[:2]])
    workshop.ingest()
    pools = {pool: int(chosen.sum()) for pool, chosen in read_placement(PARAMS, workshop.catalog).pools.items()}
    state = eval_state(PARAMS, workshop.catalog, ["pixel_labeled/b"])
    if before in ("drawn", "eval"):
        assert pools["eval"] == 3 and not state["refused"], "it was held out from its arrival on"
        return
    assert pools["eval"] == pools["validation"] == 0
    assert pools["train_labeled"] + pools["train_unlabeled"] == 1, "not trained on silently"
    assert {row["image"] for row in state["refused"]} == {row["image"] for row in rows[:2]}
    assert f"2 photos cannot judge and are not trained on ({LEARNT})" in state["words"][-1]
    workshop.drop("pixel_labeled", "b", [row | {"role": "train"} for row in rows[:2]])
    workshop.ingest()
    table = read_placement(PARAMS, workshop.catalog)
    assert not table.pools["eval"].any() and not eval_state(PARAMS, workshop.catalog)["refused"]
    # A pinned cycle does not see what its tables learnt later.
    again = read_placement(PARAMS, workshop.catalog, pinned).pools
    assert all(np.array_equal(again[pool], chosen) for pool, chosen in then.items())


def test_what_arrives_near_a_learnt_photo_is_no_validation_photo():
    learnt = sample(1, kind="unlabeled", group=train_group())
    all_of_it = SnapshotParams(validation_share=0.89, eval_share=1e-9, eval_least=0)
    names = train_groups(13)[1:]
    edits = [sample(2 + n, group=name, near=[learnt["id"]], **later(1)) for n, name in enumerate(names)]
    assert placed([learnt, *edits], params=all_of_it).loc[[row["id"] for row in edits], "train_labeled"].all()
    alone = placed([row | {"near": None} for row in edits], params=all_of_it)
    assert alone["validation"].any()


def test_validation_begins_with_enough_photos_to_choose_and_all_at_once():
    """By a share of a tenth 8 photos need 80 groups outside evaluation: below that all of them are trained on."""
    names = train_groups(130)
    few = [sample(n, group=name, role="train") for n, name in enumerate(names[:79])]
    table = placed(few)
    assert not table["validation"].any() and table["train_labeled"].all()
    drop = [sample(100 + n, group=name, role="train", **later(1)) for n, name in enumerate(names[79:87])]
    grown = placed([*few, *drop])
    held = set(grown.index[grown["validation"]])
    assert len(held) == MIN_VALIDATION_PHOTOS == 8
    assert held <= {row["id"] for row in drop}, "the first week was trained on"
    more = [sample(200 + n, group=name, role="train", **later(2)) for n, name in enumerate(names[87:])]
    later_on = placed([*few, *drop, *more])
    assert held <= set(later_on.index[later_on["validation"]]) and later_on["validation"].sum() == 13


@pytest.mark.parametrize(("weeks", "expected"), [(13, 0), (14, 6)])
def test_drops_too_small_for_a_first_validation_set_gather_once_the_share_gives_twice_as_many(weeks, expected):
    """79 groups, then 6 a week: the first week in which a tenth is 16 holds its 6 out."""
    week = [0] * 79 + [1 + n // 6 for n in range(6 * weeks)]
    rows = [sample(n, group=name, role="train") for n, name in enumerate(train_groups(len(week)))]
    rows = [row | (later(number) if number else {}) for row, number in zip(rows, week, strict=True)]
    assert placed(rows)["validation"].sum() == expected
    assert not placed([row | {"accepted_at": "2026-01-01"} for row in rows[:79]])["validation"].any()


def test_each_category_begins_by_itself():
    rows = [sample(n, group=name, category="cards" if n < 95 else "pets") for n, name in enumerate(train_groups(130))]
    table = placed(rows, params=SnapshotParams(eval_share=1e-9, eval_least=0))
    assert table.groupby("category")["validation"].sum().to_dict() == {"cards": 9, "pets": 0}


def test_a_late_label_never_makes_a_validation_photo():
    rows = [sample(n, kind="unlabeled", group=name) for n, name in enumerate(train_groups(12))]
    table = placed(rows, [label(row) for row in rows], SnapshotParams(validation_share=0.89))
    assert table["train_labeled"].all()


def test_a_withdrawn_label_is_made_up_for_by_arriving_groups_alone():
    names = train_groups(40)
    rows = [sample(n, group=name) for n, name in enumerate(names[:24])]
    before = set(placed(rows).query("eval").index)
    gone = sorted(before)[0]
    labels = [label(row, withdrawn_at="2026-01-15T00:00:00" if row["id"] == gone else None) for row in rows]
    assert set(placed(rows, labels).query("eval").index) == before - {gone}
    new = [sample(100 + n, group=name, **later(1)) for n, name in enumerate(names[24:])]
    after = set(placed([*rows, *new], [*labels, *(label(row, withdrawn_at=None) for row in new)]).query("eval").index)
    assert before - {gone} < after and after - before <= {row["id"] for row in new}


def test_a_retried_row_of_an_old_batch_does_not_push_an_eval_photo_out():
    names = train_groups(7)
    names.sort(key=lambda name: stable_share(name, "eval"), reverse=True)
    rows = [sample(n, group=name) for n, name in enumerate(names[:5])]
    retried = sample(50, group=names[6], accepted_at="2026-03-01T00:00:00")
    assert evaluated(rows) <= evaluated([*rows, retried])


@settings(max_examples=30)
@given(st.data())
def test_eval_never_shrinks_and_nothing_leaks_as_batches_arrive(data):
    """The catalog grows batch by batch, with near-duplicates across groups; every eval photo stays one.

    What a week could train on is never held out later.
    """
    number = data.draw(st.integers(1, 4), label="batches")
    params = SnapshotParams(validation_share=data.draw(st.sampled_from([0.1, 0.89])))
    hashes = [f"{n * 0x0F0F0F0F:016x}" for n in range(6)]
    rows, before, count, learnt = [], set(), 0, set()
    for batch in range(number):
        for _ in range(data.draw(st.integers(1, 12))):
            kind = data.draw(st.sampled_from(["pixel_labeled", "pixel_labeled", "unlabeled", "text_image"]))
            values = {
                "group": data.draw(st.sampled_from(["", *(f"scene{n}" for n in range(20))])),
                "role": data.draw(st.sampled_from(["", "", "", "train", "eval"])),
                "category": data.draw(st.sampled_from(["pets", "cards"])),
            }
            if data.draw(st.booleans()):
                values["phash"] = data.draw(st.sampled_from(hashes))
            if rows and data.draw(st.booleans()):
                values["near"] = data.draw(st.lists(st.sampled_from([row["id"] for row in rows]), max_size=2))
            rows.append(sample(count, kind=kind, batch=f"b{batch}", accepted_at=f"2026-01-{batch + 1:02d}", **values))
            count += 1
        table = placed(rows, params=params)
        now = set(table.index[table["eval"]])
        assert before <= now
        before = now
        assert not learnt & (now | set(table.index[table["validation"]]))
        learnt |= set(table.index[table[list(TRAINING)].any(axis=1)])
    frames = {pool: table[table[pool]].reset_index() for pool in POOLS}
    assert_no_leak(frames, pd.DataFrame(rows), 3)


def test_a_photo_that_shows_an_earlier_one_again_is_never_drawn_for_eval():
    """The earlier one may have been learned from."""
    learned = sample(1, group=train_group())
    cropped = sample(2, batch="b1", group=eval_group(), near=[learned["id"]])
    table = placed([learned, cropped])
    assert not table.loc[cropped["id"], "eval"] and placed([cropped | {"near": None}]).loc[cropped["id"], "eval"]


def test_of_a_first_drop_of_212_labels_all_photos_judge_or_teach():
    """The default real drop: before, 15 of them were validation photos of six categories, too few to choose."""
    counts = dict(zip(CATEGORIES, [60, 30, 40, 26, 27, 29], strict=True))
    category = [name for name, count in counts.items() for _ in range(count)]
    rows = [sample(n, group=name, category=category[n]) for n, name in enumerate(train_groups(212))]
    table = placed(rows)
    assert not table["validation"].any()
    judging = table.groupby("category")["eval"].sum()
    assert (judging >= PARAMS.eval_least).all() and judging.sum() + table["train_labeled"].sum() == 212
