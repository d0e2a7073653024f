"""Answers that are worked out by several threads come to what one thread comes to, in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from annotator import SimulatedAnnotator
from label_house import LabelHouse

from mm_core.core.params import Params
from mm_core.labeling import apply_annotations
from mm_core.labeling.apply_annotations import Taken, Work, take
from mm_core.storage.run import StorageRun
from mm_core.storage.store import BlobNotFound, fetch_blob


def works_of(house: LabelHouse) -> list[Work]:
    """Every photo answered with an Unknown band by one or two people; every third answer is broken."""
    works = []
    for index, key in enumerate(sorted(house.truth)):
        annotations: list[dict[str, Any]] = []
        for person in range(1 + index % 2):
            painter = SimulatedAnnotator(cast(Any, None), house.truth, seed=person)
            result = painter.answer(key)
            if (index + person) % 3 == 2:
                result[0]["value"]["brushlabels"] = ["Sky"]
            when = f"2026-11-02T10:00:{person:02}Z"
            annotations.append({"id": index, "completed_by": person + 1, "updated_at": when, "result": result})
        works.append(Work(key, annotations))
    return [*works, Work("nobody", [{"id": 99}])]


def taken_by(threads: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Taken, list[tuple], list[Work]]:
    house = LabelHouse(root, 9)
    house.route(9)
    works = works_of(house)
    monkeypatch.setattr(apply_annotations, "THREADS", threads)
    taken = Taken()
    disputed = take(StorageRun(Params(), house.layout), works, taken)
    rows = house.catalog.read("labels")[["id", "sample_id", "alpha_sha256", "version", "annotator", "created_at"]]
    return taken, sorted(rows.itertuples(index=False, name=None)), disputed


def test_threads_change_neither_the_labels_nor_the_order_of_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, labels, disputed = taken_by(1, tmp_path / "one", monkeypatch)
    four, same_labels, same_disputed = taken_by(4, tmp_path / "four", monkeypatch)
    assert one == four and labels == same_labels
    assert [work.key for work in disputed] == [work.key for work in same_disputed]
    assert one.counts["solved"] > 4 and one.counts["refused"] > 3 and len(labels) > 3
    assert [row["task"] for row in one.refused] == sorted(row["task"] for row in one.refused[:-1]) + ["nobody"]


def test_a_photo_that_is_gone_fails_the_call_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    house = LabelHouse(tmp_path, 4)
    house.route(4)
    works = works_of(house)
    fetch_blob(house.store, works[1].key).unlink()
    before = threading.active_count()
    with pytest.raises(BlobNotFound):
        take(StorageRun(Params(), house.layout), works, Taken())
    assert threading.active_count() == before and house.catalog.read("labels").empty
