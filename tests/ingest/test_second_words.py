"""Further cases of a producer's second word: refused rows, several drops with one matte, unsafe names, spreadsheets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm_core.core.errors import InputError
from mm_core.ingest.csv_text import csv_bytes, escaped, unescaped
from mm_core.ingest.drop import package_folder
from mm_core.ingest.manifest import read_manifest
from mm_core.ingest.mattes import is_photo_itself
from mm_core.ingest.placement import newest_labels
from mm_core.ingest.quarantine import retry
from mm_core.ingest.truths import read_truths


def labelled_names(shop: Any) -> set[str]:
    """Names of the photos that have a label which counts."""
    names = shop.catalog.read("samples").set_index("id")["name"]
    return set(names[newest_labels(shop.catalog.read("labels"))["sample_id"]])


@pytest.mark.parametrize("fault", [{"sha256": "0" * 64}, {"category": "spoons"}, {"image_bytes": b"<html>"}])
def test_a_row_that_was_refused_in_between_is_withdrawn_once_it_is_removed(
    workshop: Any, make: Any, fault: dict[str, Any]
) -> None:
    rows = [make.row(n) for n in range(1, 5)]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    workshop.drop("pixel_labeled", "a", [*rows[:3], rows[3] | fault])
    report = workshop.ingest()
    assert report.metrics["ingest/quarantined"] == 1 and report.tables["removed"] == []
    assert len(labelled_names(workshop)) == 4, "a refused correction changes nothing"
    workshop.drop("pixel_labeled", "a", rows[:3])
    assert [row["image"] for row in workshop.ingest().tables["removed"]] == ["images/4.jpg"]
    assert labelled_names(workshop) == {"images/1.jpg", "images/2.jpg", "images/3.jpg"}


def test_a_refused_row_that_is_repaired_says_nothing_new(workshop: Any, make: Any) -> None:
    rows = [make.row(n) for n in range(1, 5)]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    before = workshop.tables()["labels"]
    workshop.drop("pixel_labeled", "a", [*rows[:3], rows[3] | {"sha256": "0" * 64}])
    workshop.ingest()
    workshop.drop("pixel_labeled", "b", [rows[3] | {"category": "cards"}])
    workshop.ingest()
    workshop.drop("pixel_labeled", "a", [*rows[:3], rows[3] | {"sha256": ""}])
    assert workshop.ingest().tables["updates"] == [], "the newer word of the other drop stays"
    assert workshop.tables()["labels"] == before


def test_a_matte_that_another_drop_states_too_stays(workshop: Any, make: Any) -> None:
    """Until that drop takes its row back as well."""
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2)])
    workshop.drop("pixel_labeled", "b", [make.row(1), make.row(3)])
    workshop.ingest()
    workshop.drop("pixel_labeled", "a", [make.row(2)])
    (removed,) = workshop.ingest().tables["removed"]
    assert removed["image"] == "images/1.jpg" and removed["old"] == ""
    assert labelled_names(workshop) == {"images/1.jpg", "images/2.jpg", "images/3.jpg"}
    workshop.drop("pixel_labeled", "b", [make.row(3)])
    (removed,) = workshop.ingest().tables["removed"]
    assert removed["old"] and labelled_names(workshop) == {"images/2.jpg", "images/3.jpg"}


@pytest.mark.parametrize("name", ["a\\b", "pixel_labeled/a\\b"])
def test_an_unsafe_name_is_named_where_a_person_asks_for_it(workshop: Any, make: Any, name: str) -> None:
    with pytest.raises(InputError, match=r"no drop of this name lies at .*is not safe to use"):
        workshop.ingest(batch=name)
    workshop.drop("pixel_labeled", "a\\b", [make.row(1)])
    workshop.drop("pixel_labeled", "c", [make.row(2)])
    (line,) = workshop.ingest(batch=name).tables["batches"]
    assert line["state"] == "held" and "is not safe to use" in line["reason"]
    report = retry(workshop.run, name)
    assert report.metrics["ingest/held"] == 1


@pytest.mark.parametrize(
    "text", ["-5°C", "'-5°C", "''=1", "'t is", "=1+1", "plain", "@home", "'", "\t=1", "＝1", "'\n-"]
)
def test_what_is_escaped_for_spreadsheets_comes_back(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert not escaped(text).lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert escaped(text) in csv_bytes([["x", text]]).decode(), "every CSV file of ours is escaped"


def test_an_apostrophe_in_a_parquet_manifest_is_part_of_the_text(tmp_path: Path) -> None:
    """No spreadsheet opens that file, so nobody escapes it."""
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": ["'-5 degrees', it says"]}), path)
    assert [row.caption for row in read_manifest(path)] == ["'-5 degrees', it says"]


def test_a_manifest_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(",,\n\n Image ,CATEGORY,,\na.jpg,Pets,,,,\n,,,\nb.jpg,multi person,,x\n", encoding="utf-8-sig")
    rows = [(row.image, row.category, row.extra_fields) for row in read_manifest(path)]
    assert rows == [("a.jpg", "pets", 0), ("b.jpg", "multi_person", 0)]
    path.write_text("\ufeffimage,category\na.jpg,pets\n", encoding="utf-8-sig")
    assert [row.image for row in read_manifest(path)] == ["a.jpg"], "two byte order marks"
    path.write_text("image,category\na.jpg,pets,,x,\n")
    assert [row.extra_fields for row in read_manifest(path)] == [2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("hint", [False, True])
def test_every_door_reads_tables_as_excel_saves_them(
    tmp_path: Path, make: Any, encoding: str, sign: str, hint: bool
) -> None:
    """Byte order marks and delimiters that the file states; the same for manifests, truths and captions."""
    head = f"sep={sign}\r\n" if hint else ""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    rows = [["image", "alpha", "caption", "category"], ["b é.png", "b é.png", '"one; two,\tthree"', "multi person"]]
    text = "".join(sign.join(row) + "\r\n" for row in [*rows, ["", "", "", ""]])
    (folder := tmp_path / "photos").mkdir()
    manifest = folder / "manifest.csv"
    manifest.write_bytes((mark + head + text).encode(encoding))
    (row,) = read_manifest(manifest)
    assert (row.image, row.caption, row.category) == ("b é.png", "one; two,\tthree", "multi_person")
    (folder / "b é.png").write_bytes(make.encoded(make.photo(1), "PNG"))
    assert [truth.alpha.name for truth in read_truths(manifest)] == ["b é.png"]
    manifest.rename(folder / "captions.csv")
    path = package_folder(folder, tmp_path / "inbox", "text_image", "a").path
    assert [row.caption for row in read_manifest(path / "manifest.csv")] == ["one; two,\tthree"]


def test_captions_of_a_folder_are_read_as_manifests_are(tmp_path: Path, make: Any) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, name in enumerate(("a.jpg", "b.jpg")):
        (folder / name).write_bytes(make.encoded(make.photo(n)))
    table = folder / "captions.csv"
    table.write_text("Caption , IMAGE,\n\n'-5°C in the snow!,a.jpg,\n", encoding="utf-8-sig")
    (folder / "b.txt").write_bytes("A café.".encode("latin-1"))
    with pytest.raises(InputError, match=r"photos/b.txt: not UTF-8 at byte 5: .* 'é'"):
        package_folder(folder, tmp_path / "inbox", "text_image", "a")
    (folder / "b.txt").write_text("A café.", encoding="utf-16")
    path = package_folder(folder, tmp_path / "inbox", "text_image", "b").path
    assert [row.caption for row in read_manifest(path / "manifest.csv")] == ["-5°C in the snow!", "A café."]
    table.write_bytes(b"image,caption\n\xff\n")
    with pytest.raises(InputError, match=r"captions.csv: not UTF-8"):
        package_folder(folder, tmp_path / "inbox", "text_image", "c")


@pytest.mark.parametrize("change", ["inverted", "gamma", "stretched"])
def test_the_photo_in_another_contrast_is_no_matte(make: Any, change: str) -> None:
    photo = make.photo(1)
    grey = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    alpha = {"inverted": 1 - grey, "gamma": grey**2.2, "stretched": (grey - grey.min()) / np.ptp(grey)}[change]
    assert is_photo_itself(alpha, photo)
    assert not is_photo_itself(make.matte(1).astype(np.float32) / 255, photo)


@pytest.mark.parametrize("way", ["time kept", "link"])
def test_a_matte_replaced_where_names_and_times_say_nothing(workshop: Any, make: Any, way: str) -> None:
    """By a copy of the same size that keeps the time; or behind a link."""
    rows = [make.row(n, alpha_bytes=make.encoded(make.matte(n), "BMP")) for n in (1, 2)]
    folder = workshop.drop("pixel_labeled", "a", rows)
    matte = folder / "alphas" / "1.png"
    if way == "link":
        matte = matte.rename(folder / "kept.png")
        (folder / "alphas" / "1.png").symlink_to("../kept.png")
    workshop.ingest()
    status = matte.stat()
    matte.write_bytes(make.encoded(make.matte(5), "BMP"))
    if way == "time kept":
        os.utime(matte, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [row["image"] for row in workshop.ingest().tables["updates"]] == ["images/1.jpg"]
    assert workshop.ingest().tables["batches"] == []


@pytest.mark.parametrize("way", ["in place", "with another word", "under another name"])
def test_a_photo_that_is_saved_again_does_not_lose_its_label(workshop: Any, make: Any, way: str) -> None:
    """The new bytes are a near-duplicate of the photo that they replace, so the photo must not count as removed."""
    rows = [make.row(n) for n in (1, 2, 3)]
    folder = workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    again = rows[0] | {"image_bytes": make.encoded(make.photo(1), quality=70)}
    if way == "in place":
        (folder / again["image"]).write_bytes(again["image_bytes"])
    else:
        again |= {"category": "cards"} if way == "with another word" else {"image": "images/1b.jpg"}
        workshop.drop("pixel_labeled", "a", [again, *rows[1:]])
    names = {"images/1.jpg", "images/2.jpg", "images/3.jpg"}
    report = workshop.ingest()
    assert report.tables["removed"] == [] and report.metrics["ingest/duplicates"] == 1
    assert labelled_names(workshop) == names
    assert "saved again: to correct it, send that file" in workshop.catalog.read("rejects")["detail"].iloc[0]
    assert workshop.ingest().tables["batches"] == []
    # What replaced it stands for it: without its row the label is withdrawn.
    workshop.drop("pixel_labeled", "a", rows[1:])
    assert [row["image"] for row in workshop.ingest().tables["removed"]] == ["images/1.jpg"]
    assert labelled_names(workshop) == names - {"images/1.jpg"}


def test_a_copy_beside_a_photo_does_not_keep_its_label(workshop: Any, make: Any) -> None:
    copy = make.row(1, image="images/copy.jpg", image_bytes=make.encoded(make.photo(1), quality=70))
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2), copy])
    workshop.ingest()
    workshop.drop("pixel_labeled", "a", [make.row(2), copy])
    assert [row["image"] for row in workshop.ingest().tables["removed"]] == ["images/1.jpg"]
    assert labelled_names(workshop) == {"images/2.jpg"}


def test_two_manifests_of_one_drop_are_held_until_one_is_gone(any_workshop: Any, make: Any) -> None:
    """A correction as manifest.parquet beside manifest.csv was passed over without a word."""
    shop, rows = any_workshop, [make.row(1), make.row(2)]
    shop.drop("pixel_labeled", "a", rows)
    shop.ingest()
    second = shop.root / "manifest.parquet"
    table = {
        "image": [row["image"] for row in rows],
        "alpha": [row["alpha"] for row in rows],
        "category": ["cards"] * 2,
    }
    pq.write_table(pa.table(table), second)
    for _ in range(2):
        shop.inbox.put("pixel_labeled/a/manifest.parquet", second)
        (line,) = shop.ingest().tables["batches"]
        assert line["state"] == "held" and "manifest.csv and manifest.parquet lie there" in line["reason"]
        assert shop.ingest().tables["batches"] == []
        assert set(shop.catalog.read("samples")["category"]) == {"pets"}
        shop.inbox.delete("pixel_labeled/a/manifest.parquet")
        shop.ingest()
    shop.inbox.put("pixel_labeled/a/manifest.parquet", second)
    shop.inbox.delete("pixel_labeled/a/manifest.csv")
    assert len(shop.ingest().tables["updates"]) == 2
    assert set(shop.catalog.read("samples")["category"]) == {"cards"}


def test_one_matte_file_for_two_photos_is_a_conflict_until_each_has_its_own(workshop: Any, make: Any) -> None:
    """At 64 px no edge tells which photo the matte belongs to. A brighter copy of a photo may share its matte."""
    rows = [make.row(n) for n in range(1, 5)]
    shared = rows[1] | {"alpha": "alphas\\1.png"}
    copy = make.row(3, image="images/brighter.jpg", image_bytes=make.encoded(make.photo(3) // 2 + 90), group="g")
    workshop.drop("pixel_labeled", "a", [rows[0], shared, rows[2] | {"group": "g"}, copy, rows[3]])
    report = workshop.ingest()
    assert [(row["image"], row["verdict"], row["reason"]) for row in report.tables["rejects"]] == [
        (f"images/{n}.jpg", "conflict", "one matte for several photos") for n in (1, 2)
    ]
    assert "rows 0 (images/1.jpg) and 1 (images/2.jpg)" in report.tables["rejects"][0]["detail"]
    workshop.drop("pixel_labeled", "a", [*rows[:2], rows[2] | {"group": "g"}, copy, rows[3]])
    workshop.ingest()
    assert {f"images/{n}.jpg" for n in range(1, 5)} < labelled_names(workshop)


def test_a_photo_replaced_beside_another_one_with_its_matte_is_a_conflict(workshop: Any, make: Any) -> None:
    """First both names hold one photo; then the file of one is replaced by another photo."""
    rows = [make.row(1), make.row(1, image="images/b.jpg"), make.row(3)]
    folder = workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    (folder / "images" / "b.jpg").write_bytes(make.encoded(make.photo(2)))
    report = workshop.ingest()
    assert [row["verdict"] for row in report.tables["rejects"]] == ["conflict", "conflict"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("2026:05:01 9:30:00", "2026-05-01T09:30:00"),
        ("2026/05/01 09:30", "2026-05-01T09:30:00"),
        ("2026-05-01T09:30:00.250+0200", "2026-05-01T09:30:00+02:00"),
        ("2026-05-01 09:30:00Z", "2026-05-01T09:30:00+00:00"),
        ("20260501", "2026-05-01"),
        ("0000:00:00 00:00:00", ""),
        ("    :  :     :  :  ", ""),
        ("1970-01-01T00:00:00Z", ""),
        ("2026-02-30", None),
        ("2026-05-01T25:00", None),
        ("2026-05-01T09:30+25:00", None),
        ("01/05/2026", None),
        ("2226-05-01", None),
        ("1777623600", None),
        ("yesterday", None),
        ("2026-05-01 09:30 CEST", None),
    ],
)
def test_the_time_of_a_photo_is_read_right_or_refused(workshop: Any, make: Any, text: str, kept: str | None) -> None:
    workshop.drop("unlabeled", "a", [make.row(1, taken_at=text), make.row(2), make.row(3)])
    report = workshop.ingest()
    samples = workshop.catalog.read("samples").set_index("name")
    if kept is None:
        (row,) = report.tables["rejects"]
        assert row["reason"] == "impossible time" and repr(text) in row["detail"]
    else:
        assert samples.loc["images/1.jpg", "taken_at"] == kept
