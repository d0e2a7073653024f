"""A second word of a producer: what is said last counts, what is said twice adds nothing, nothing is lost silently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mm_core.ingest import ingest as ingest_module
from mm_core.ingest.ingest import Ingest, ready_batches
from mm_core.ingest.placement import newest_labels
from mm_core.ingest.probe import Prober
from mm_core.ingest.quarantine import retry
from mm_core.storage.store import LocalStore

COLUMNS = {
    "category": ("pets", "cards"),
    "caption": ("A cat.", "A card."),
    "group": ("burst", "scene"),
    "role": ("train", "eval"),
    "source": ("ours", "theirs"),
    "license": ("CC0", "CC-BY"),
    "taken_at": ("2026-01-01", "2026-02-02"),
}


def sample(shop: Any) -> dict[str, Any]:
    (row,) = shop.catalog.read("samples").to_dict("records")
    return row


def counting(shop: Any) -> dict[str, Any]:
    """The labels that count, by sample id."""
    labels = newest_labels(shop.catalog.read("labels"))
    return {row["sample_id"]: row for row in labels.to_dict("records")}


def png(make: Any, seed: int) -> bytes:
    return make.encoded(make.matte(seed), "PNG")


def again(shop: Any, batch: str = "a") -> Any:
    return retry(shop.run, batch)


@pytest.mark.parametrize("batch", ["a", "b"])
def test_every_column_of_a_known_photo_is_updated(workshop: Any, make: Any, batch: str) -> None:
    """By the same batch's manifest corrected, and by a new batch; each photo has one column changed."""
    columns = dict(enumerate(COLUMNS, 1))
    workshop.drop("pixel_labeled", "a", [make.row(n, **{c: COLUMNS[c][0]}) for n, c in columns.items()])
    workshop.ingest()
    workshop.drop("pixel_labeled", batch, [make.row(n, **{c: COLUMNS[c][1]}) for n, c in columns.items()])
    report = workshop.ingest()
    assert [
        (u["verdict"], u["kind"], u["batch"], u["row"], u["image"], u["column"], u["old"], u["new"])
        for u in report.tables["updates"]
    ] == [
        ("update", "pixel_labeled", batch, n - 1, f"images/{n}.jpg", column, *COLUMNS[column])
        for n, column in columns.items()
    ]
    assert report.metrics["ingest/updated"] == report.metrics["ingest/accepted"] == len(COLUMNS)
    samples = workshop.catalog.read("samples").set_index("name")
    for n, column in columns.items():
        assert samples.loc[f"images/{n}.jpg", column] == COLUMNS[column][1]
    assert workshop.ingest(batch=batch).tables == report.tables, "it is only reported then"


def test_an_empty_cell_says_nothing(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1, **{name: old for name, (old, _) in COLUMNS.items()})])
    workshop.ingest()
    before = workshop.tables()
    workshop.drop("pixel_labeled", "b", [make.row(1, category="")])
    assert workshop.ingest().tables["updates"] == []
    assert workshop.tables()["samples"] == before["samples"]


@pytest.mark.parametrize("names", ["abc", "aaa"])
def test_a_correction_that_is_taken_back(any_workshop: Any, make: Any, names: str) -> None:
    """Matte and category A, then B, then A again: as three drops, and as three manifests of one."""
    digests = []
    for name, seed, category in zip(names, (1, 2, 1), ("pets", "cards", "pets"), strict=True):
        row = make.row(1, alpha=f"m{seed}.png", alpha_bytes=png(make, seed), category=category)
        any_workshop.drop("pixel_labeled", name, [row])
        report = any_workshop.ingest()
        (label,) = counting(any_workshop).values()
        digests.append(label["alpha_sha256"])
        assert sample(any_workshop)["category"] == category
    assert digests[0] == digests[2] != digests[1]
    assert report.metrics["ingest/updated"] == 1 and label["version"] == 3
    told = any_workshop.catalog.read("corrections").sort_values("stated_at")
    mattes = told[told["column"] == "alpha"]
    assert list(zip(mattes["old"], mattes["new"], strict=True)) == [tuple(digests[:2]), tuple(digests[1:])]
    assert list(told[told["column"] == "category"]["new"]) == ["cards", "pets"]
    before = any_workshop.tables()
    any_workshop.ingest()
    assert any_workshop.tables() == before


def test_a_corrected_manifest_restates_nothing(workshop: Any, make: Any) -> None:
    """Its untouched rows take back no newer word of another drop."""
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(1, category="cards", alpha="n.png", alpha_bytes=png(make, 4))])
    workshop.ingest()
    before = counting(workshop)
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2, category="delicacy")])
    report = workshop.ingest()
    assert [(row["image"], row["old"], row["new"]) for row in report.tables["updates"]] == [
        ("images/2.jpg", "pets", "delicacy")
    ]
    assert report.metrics["ingest/accepted"] == 2
    samples = workshop.catalog.read("samples").set_index("name")["category"].to_dict()
    assert samples == {"images/1.jpg": "cards", "images/2.jpg": "delicacy"}
    assert counting(workshop) == before


def touched(path: Path, data: bytes) -> None:
    """Another content; of the same size the time tells, as it does for a producer."""
    time = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(time + 10**9, time + 10**9))


@pytest.mark.parametrize("way", ["ingest", "retry"])
@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_a_matte_replaced_in_place(workshop: Any, make: Any, way: str, format: str) -> None:
    """BMP: the same size to the byte."""
    rows = [make.row(n, alpha_bytes=make.encoded(make.matte(n), format)) for n in (1, 2)]
    folder = workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    before = counting(workshop)
    touched(folder / "alphas" / "1.png", make.encoded(make.matte(5), format))
    if way == "ingest":
        assert [one.name for one in ready_batches(workshop.run)] == ["pixel_labeled/a"]
        report = workshop.ingest()
    else:
        report = again(workshop)
    (update,) = report.tables["updates"]
    assert (update["column"], update["image"]) == ("alpha", "images/1.jpg")
    after = counting(workshop)
    changed = [i for i in after if after[i]["alpha_sha256"] != before[i]["alpha_sha256"]]
    assert changed == [update["sample_id"]] and after[changed[0]]["alpha_sha256"] == update["new"]
    assert ready_batches(workshop.run) == []
    assert len(workshop.catalog.read("batches")) == 1


def test_a_matte_replaced_on_s3(any_workshop: Any, make: Any) -> None:
    folder = any_workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    any_workshop.ingest()
    if isinstance(any_workshop.inbox, LocalStore):
        touched(folder / "alphas" / "1.png", png(make, 5))
    else:
        any_workshop.inbox.put("pixel_labeled/a/alphas/1.png", png(make, 5))
    assert len(any_workshop.ingest().tables["updates"]) == 1


def test_files_written_again_or_tidied_up_change_nothing(workshop: Any, make: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    before = workshop.catalog.read("labels").to_dict("records")
    touched(folder / "alphas" / "1.png", png(make, 1))
    (folder / "images" / "2.jpg").unlink()
    report = workshop.ingest()
    assert report.tables["updates"] == report.tables["removed"] == []
    assert workshop.catalog.read("labels").to_dict("records") == before
    assert ready_batches(workshop.run) == []


def test_a_repaired_file_is_seen_without_retry(workshop: Any, make: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2, image_bytes=b""), make.row(3)])
    workshop.ingest()
    touched(folder / "images" / "2.jpg", make.row(2)["image_bytes"])
    assert workshop.ingest().metrics["ingest/accepted"] == 3
    assert workshop.verdicts() == {}


def test_a_photo_replaced_in_place_is_another_photo(workshop: Any, make: Any) -> None:
    """The new one is taken; what the drop said of the old one is withdrawn and said."""
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    touched(folder / "images" / "1.jpg", make.row(9)["image_bytes"])
    touched(folder / "alphas" / "1.png", png(make, 9))
    report = workshop.ingest()
    (removed,) = report.tables["removed"]
    assert removed["image"] == "images/1.jpg" and removed["sample_id"] not in counting(workshop)
    assert len(workshop.catalog.read("samples")) == 3 and len(counting(workshop)) == 2


@pytest.mark.parametrize("same_name", [True, False])
def test_a_photo_listed_twice_with_different_words(workshop: Any, make: Any, same_name: bool) -> None:
    """One photo for each column, and one for the matte: neither row is used until they agree, and both are named."""
    ones = [make.row(n, **{column: COLUMNS[column][0]}) for n, column in enumerate(COLUMNS)] + [make.row(7)]
    others = [one | ({} if same_name else {"image": f"copies/{n}.jpg"}) for n, one in enumerate(ones)]
    wrong = [other | {column: COLUMNS[column][1]} for other, column in zip(others, COLUMNS, strict=False)]
    wrong.append(others[7] | {"alpha": "o.png", "alpha_bytes": png(make, 5)})
    workshop.drop("pixel_labeled", "a", [*ones, *wrong, make.row(30)])
    report = workshop.ingest()
    assert (report.metrics["ingest/conflicts"], report.metrics["ingest/accepted"]) == (16, 1)
    refused = report.tables["rejects"]
    assert [(row["row"], row["verdict"]) for row in refused] == [(n, "conflict") for n in range(16)]
    for row in refused:
        n = row["row"] % 8
        assert f"{n} ({ones[n]['image']})" in row["detail"] and f"{n + 8} ({others[n]['image']})" in row["detail"]
        assert n == 7 or repr(COLUMNS[list(COLUMNS)[n]][1]) in row["detail"]
    assert list(workshop.catalog.read("samples")["name"]) == ["images/30.jpg"]
    workshop.drop("pixel_labeled", "a", [*ones, *others, make.row(30)])
    settled = workshop.ingest()
    assert settled.metrics["ingest/conflicts"] == 0 and settled.metrics["ingest/duplicates"] == 8
    assert len(workshop.catalog.read("samples")) == 9


def test_a_conflict_about_a_known_photo_leaves_it_alone(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1)])
    workshop.ingest()
    before = (sample(workshop), counting(workshop))
    folder = workshop.drop(
        "pixel_labeled", "b", [make.row(1), make.row(1, image="c.jpg", alpha="o.png", alpha_bytes=png(make, 5))]
    )
    assert workshop.ingest().metrics["ingest/conflicts"] == 2
    assert (sample(workshop), counting(workshop)) == before
    touched(folder / "alphas" / "1.png", png(make, 5))
    assert workshop.ingest().metrics["ingest/conflicts"] == 0, "the files agree now"
    assert len(counting(workshop)) == 1 and counting(workshop) != before[1]


def test_rows_of_one_photo_that_complete_each_other(workshop: Any, make: Any) -> None:
    one = {"image": "a.jpg", "image_bytes": make.row(1)["image_bytes"], "category": "pets"}
    workshop.drop("unlabeled", "a", [one, one | {"image": "b.jpg", "category": "", "caption": "A cat."}])
    assert workshop.ingest().metrics["ingest/duplicates"] == 1
    assert (sample(workshop)["category"], sample(workshop)["caption"]) == ("pets", "A cat.")


def test_a_removed_row_is_said_and_its_label_withdrawn(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [make.row(2, alpha="n.png", alpha_bytes=png(make, 5)), make.row(3)])
    workshop.ingest()
    first = {row["version"]: row["alpha_sha256"] for row in workshop.catalog.read("labels").to_dict("records")}
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    report = workshop.ingest()
    (removed,) = report.tables["removed"]
    assert (removed["verdict"], removed["image"], removed["old"]) == ("removed", "images/2.jpg", first[2])
    labels = workshop.catalog.read("labels")
    (gone,) = labels[labels["withdrawn_at"].notna()].to_dict("records")
    assert gone["alpha_sha256"] == first[2] and "pixel_labeled/b" in gone["withdrawn_why"]
    assert {row["version"] for row in counting(workshop).values()} == {1}, "what counted before counts again"
    workshop.drop("pixel_labeled", "b", [make.row(2, alpha="n.png", alpha_bytes=png(make, 5)), make.row(3)])
    assert len(workshop.ingest().tables["updates"]) == 1
    assert counting(workshop)[removed["sample_id"]]["version"] == 3, "listed again, it counts again"


def test_a_row_that_cannot_be_read_now_is_not_removed(workshop: Any, make: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2), make.row(3)])
    workshop.ingest()
    (folder / "images" / "2.jpg").unlink()
    workshop.drop("pixel_labeled", "a", [make.row(1), {"image": "images/2.jpg", "alpha": "alphas/2.png"}])
    report = workshop.ingest()
    assert [row["image"] for row in report.tables["removed"]] == ["images/3.jpg"]
    assert len(counting(workshop)) == 2


def test_a_held_correction_changes_nothing(workshop: Any, make: Any) -> None:
    """And what the drop said before it still counts as said."""
    rows = [make.row(n) for n in range(1, 5)]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    before = (workshop.tables()["samples"], workshop.tables()["labels"])
    workshop.drop(
        "pixel_labeled", "a", [make.row(1, category="cards"), *(make.row(n, sha256="0" * 64) for n in (2, 3, 4))]
    )
    report = workshop.ingest()
    assert report.metrics["ingest/held"] == 1 and report.tables["removed"] == report.tables["updates"] == []
    assert (workshop.tables()["samples"], workshop.tables()["labels"]) == before
    workshop.drop("pixel_labeled", "a", rows[:3])
    assert [row["image"] for row in workshop.ingest().tables["removed"]] == ["images/4.jpg"]


@pytest.mark.parametrize("moment", ["listed", "read", "stored", "changed"])
def test_a_drop_that_vanishes_does_not_stop_the_others(
    workshop: Any, make: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.drop("pixel_labeled", "b", [make.row(3)])

    def away() -> None:
        if moment == "changed" and folder.exists():
            (folder / "manifest.csv").write_text("image\nother.jpg\n")
        elif folder.exists():
            folder.rename(workshop.root / "away")

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def first(*args: Any, **more: Any) -> Any:
            away()
            return real(*args, **more)

        monkeypatch.setattr(owner, name, first)

    owner: Any
    owner, name = {
        "listed": (Ingest, "run"),
        "changed": (Ingest, "run"),
        "read": (Prober, "__call__"),
        "stored": (ingest_module, "decide"),
    }[moment]
    before(owner, name)
    report = workshop.ingest()
    (vanished,) = report.tables["vanished"]
    assert (vanished["kind"], vanished["batch"]) == ("pixel_labeled", "a") and vanished["reason"]
    assert list(workshop.catalog.read("batches")["batch"]) == ["b"]
    monkeypatch.undo()
    if moment != "changed":
        (workshop.root / "away").rename(folder)
        assert workshop.ingest(batch="a").metrics["ingest/accepted"] == 2


def test_an_unreadable_manifest_holds_its_drop_alone(workshop: Any, make: Any) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is unreadable for root")
    folder = workshop.drop("unlabeled", "a", [make.row(1)])
    workshop.drop("unlabeled", "b", [make.row(2)])
    (folder / "manifest.csv").chmod(0)
    workshop.ingest()
    states = workshop.catalog.read("batches").set_index("batch")["state"].to_dict()
    assert states == {"a": "held", "b": "ingested"}
    (folder / "manifest.csv").chmod(0o644)
    assert workshop.ingest().metrics["ingest/accepted"] == 1
