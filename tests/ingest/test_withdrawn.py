"""A row that a drop no longer lists says nothing: matte, category and the other values are those before it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from mm_core.ingest.commit import Writes
from mm_core.ingest.placement import newest_labels


def photo(shop: Any, name: str = "images/1.jpg") -> Any:
    return shop.catalog.read("samples").set_index("name").loc[name]


def matte_of(shop: Any, name: str = "images/1.jpg") -> Any:
    return newest_labels(shop.catalog.read("labels")).set_index("sample_id").loc[photo(shop, name)["id"]]


def test_values_of_a_removed_row_are_taken_back(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.drop("pixel_labeled", "b", [make.row(1, category="cards", group="g", license="x"), make.row(3)])
    before = workshop.ingest("a") and photo(workshop)
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(1, category="delicacy", group="g", license="x"), make.row(3)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    removed = {row["column"]: (row["old"], row["new"]) for row in workshop.ingest().tables["removed"]}
    assert removed == {
        "alpha": ("", ""),
        "category": ("delicacy", "pets"),
        "group": ("g", before["id"]),
        "license": ("x", ""),
    }
    after = photo(workshop)
    assert (after["category"], after["group"], after["license"]) == ("pets", before["id"], before["license"])
    workshop.drop("pixel_labeled", "b", [make.row(1, category="delicacy"), make.row(3)])
    assert [row["new"] for row in workshop.ingest().tables["updates"]] == ["delicacy"], "and may be stated again"


def test_values_that_another_drop_states_too_or_that_came_with_the_photo_stay(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    for batch in ("b", "c"):
        workshop.drop("pixel_labeled", batch, [make.row(1, category="cards"), make.row(3)])
        workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    workshop.ingest()
    assert photo(workshop)["category"] == "cards"
    workshop.drop("pixel_labeled", "a", [make.row(2)])
    workshop.ingest()
    assert photo(workshop)["category"] == "cards"


def test_a_value_stated_since_stays(workshop: Any, make: Any) -> None:
    for batch, category in (("a", "pets"), ("b", "cards"), ("c", "delicacy")):
        workshop.drop("pixel_labeled", batch, [make.row(1, category=category), make.row(3)])
        workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    workshop.ingest()
    assert photo(workshop)["category"] == "delicacy"


def test_of_mattes_a_b_a_the_second_counts_once_the_third_is_taken_back(workshop: Any, make: Any) -> None:
    other = make.encoded(make.matte(5), "PNG")
    for batch, more in (("a", {}), ("b", {"alpha_bytes": other}), ("c", {})):
        workshop.drop("pixel_labeled", batch, [make.row(1, **more), make.row(3)])
        workshop.ingest()
    first = matte_of(workshop)["alpha_sha256"]
    workshop.drop("pixel_labeled", "c", [make.row(3)])
    workshop.ingest()
    second = matte_of(workshop)
    assert second["alpha_sha256"] != first and second["batch"] == "b"
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    workshop.ingest()
    assert (matte_of(workshop)["alpha_sha256"], matte_of(workshop)["batch"]) == (first, "a")


@pytest.mark.parametrize("table", ["corrections", "samples"])
def test_killed_while_values_are_taken_back(workshop: Any, make: Any, monkeypatch: Any, table: str) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(1, category="cards"), make.row(3)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    real = Writes._restore

    def killed(self: Writes, *given: Any) -> None:
        class Dying:
            def __getattr__(self, name: str) -> Any:
                return getattr(workshop.catalog, name)

            def add(self, *rows: Any) -> None:
                if table == "corrections":
                    raise KeyboardInterrupt
                workshop.catalog.add(*rows)

            def upsert(self, *_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

        self.catalog = Dying()  # type: ignore[assignment]
        real(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Writes, "_restore", killed)
        workshop.ingest()
    removed = [row["column"] for row in workshop.ingest().tables["removed"]]
    assert removed == ["alpha", "category"] and photo(workshop)["category"] == "pets"


def annotate(shop: Any) -> str:
    """Give the first photo a matte of a person; returns the matte's digest."""
    current, digest = matte_of(shop), "1" * 64
    row = {"id": "person", "sample_id": current.name, "alpha_sha256": digest, "binary": False}
    row |= {"version": int(current["version"]) + 1, "origin": "label_studio", "batch": None, "annotator": "ana"}
    shop.catalog.upsert("labels", [row | {"created_at": datetime.now(UTC).isoformat(timespec="microseconds")}])
    return digest


@pytest.mark.parametrize("batch", ["a", "b"])
def test_a_row_that_is_removed_and_sent_again_does_not_beat_a_newer_matte_of_a_person(
    workshop: Any, make: Any, batch: str
) -> None:
    """By the same drop or another one. Without the person's matte the drop's counts, with its first time."""
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    first, person = matte_of(workshop), annotate(workshop)
    workshop.drop("pixel_labeled", "a", [make.row(2)])
    workshop.ingest()
    workshop.drop("pixel_labeled", batch, [make.row(1), make.row(3)])
    assert workshop.ingest().tables["updates"] == [] and matte_of(workshop)["alpha_sha256"] == person
    workshop.catalog.delete("labels", "id", ["person"])
    again = matte_of(workshop)
    same = ["alpha_sha256", "version", "created_at"]
    assert again[same].tolist() == first[same].tolist() and again["batch"] == batch


def test_a_new_matte_in_a_row_that_was_removed_counts(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    annotate(workshop)
    workshop.drop("pixel_labeled", "a", [make.row(2)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "a", [make.row(1, alpha_bytes=make.encoded(make.matte(5), "PNG")), make.row(2)])
    assert [row["column"] for row in workshop.ingest().tables["updates"]] == ["alpha"]
    assert matte_of(workshop)["origin"] == "drop"


def test_a_category_that_is_taken_back_and_stated_again_does_not_beat_a_newer_one_of_a_person(
    workshop: Any, make: Any
) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.drop("pixel_labeled", "b", [make.row(1, category="cards"), make.row(3)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    workshop.ingest()
    sample = photo(workshop)
    change = {"key": "person", "arrival": "p", "sample_id": sample["id"], "verdict": "update", "column": "category"}
    change |= {"old": "pets", "new": "delicacy", "origin": "label_studio"}
    workshop.catalog.add("corrections", [change | {"stated_at": datetime.now(UTC).isoformat(timespec="microseconds")}])
    workshop.catalog.upsert("samples", [sample.to_dict() | {"category": "delicacy"}], columns=["category"])
    workshop.drop("pixel_labeled", "b", [make.row(1, category="cards"), make.row(3)])
    assert workshop.ingest().tables["updates"] == [] and photo(workshop)["category"] == "delicacy"
