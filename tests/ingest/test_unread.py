"""What a producer sends and nobody reads is named: folders, columns, mattes, pictures, files without rights."""

from __future__ import annotations

import math
import os
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm_core.ingest.inbox import ready_batches
from mm_core.ingest.manifest import read_manifest


def unread(report: Any) -> list[tuple[str, str, str]]:
    return [(row["kind"], row["batch"], row["reason"]) for row in report.tables["unread"]]


def test_columns_and_mattes_that_are_not_read_are_named(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1) | {"licence": "x", "Categorie": "pets"}, make.row(2)])
    workshop.drop("unlabeled", "b", [make.row(3)])
    report = workshop.ingest()
    assert report.metrics["ingest/accepted"] == 3
    columns, mattes = unread(report)
    assert columns[:2] == ("pixel_labeled", "a") and "columns that are not read: licence, categorie;" in columns[2]
    assert mattes == (
        "unlabeled",
        "b",
        "alpha is not read in a drop of kind unlabeled: send the 1 mattes as pixel_labeled",
    )
    assert unread(workshop.ingest()) == []


def test_a_row_that_a_stray_quote_swallowed_is_seen_by_its_picture(workshop: Any, make: Any) -> None:
    folder = workshop.drop(
        "unlabeled", "a", [{"image": f"{n}.jpg", "image_bytes": make.row(n)["image_bytes"]} for n in (1, 2, 3)]
    )
    (folder / ".thumbnail.jpg").write_bytes(b"")
    (folder / "manifest.csv").write_text('image,caption\n1.jpg,"nice\n2.jpg,other"\n3.jpg,\n')
    ((kind, batch, reason),) = unread(workshop.ingest())
    assert (kind, batch) == ("unlabeled", "a") and reason.startswith("1 pictures that no row names: 2.jpg: ")


def test_folders_of_the_inbox_that_are_no_drops_are_named(workshop: Any, make: Any) -> None:
    workshop.drop("unlabeled", "a", [make.row(1)])
    (workshop.drop("unlabeled", "b", [make.row(2)]) / "manifest.csv").rename(
        Path(workshop.inbox.url, "unlabeled/b/Manifest.CSV")
    )
    make.write_rows(Path(workshop.inbox.url, "Pixel-Labelled", "c"), [make.row(3)])
    make.write_rows(Path(workshop.inbox.url, "text_image"), [{"image": "4.jpg", "image_bytes": b"x"}])
    Path(workshop.inbox.url, "unlabeled", "half").mkdir()
    Path(workshop.inbox.url, "notes", "old").mkdir(parents=True)
    said = {(kind, batch): reason for kind, batch, reason in unread(workshop.ingest()) if "alpha" not in reason}
    assert set(said) == {("unlabeled", "b"), ("unlabeled", "half"), ("Pixel-Labelled", "c"), ("text_image", "")}
    assert "rename Manifest.CSV to manifest.csv" in said["unlabeled", "b"]
    assert "the kinds are pixel_labeled, unlabeled, text_image" in said["Pixel-Labelled", "c"]


@pytest.mark.parametrize("place", ["alphas/1.png", "images/1.jpg", "alphas", "", ".."])
def test_what_may_not_be_read_stops_no_other_drop(workshop: Any, make: Any, place: str) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(n) for n in range(1, 5)])
    workshop.drop("text_image", "b", [{k: v for k, v in make.row(8, caption="a").items() if "alpha" not in k}])
    path = (folder / place).resolve()
    path.chmod(0)
    try:
        if os.access(path, os.R_OK):
            pytest.skip("nothing is unreadable for this user")
        report = workshop.ingest()
        assert "b" in set(workshop.catalog.read("samples")["batch"])
        assert report.tables["rejects"] or "it cannot be read: change its rights" in unread(report)[0][2]
        path.chmod(0o755)
        workshop.ingest()
        assert len(workshop.catalog.read("labels")) == 4, "seen without another word, once it can be read"
    finally:
        path.chmod(0o755)


def test_a_link_to_itself_stops_no_drop(workshop: Any, make: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(n) for n in range(1, 5)])
    (folder / "alphas/1.png").unlink()
    (folder / "alphas/1.png").symlink_to("1.png")
    (folder.parent / "loop").symlink_to("loop")
    workshop.ingest()
    assert workshop.verdicts() == {"images/1.jpg": ("quarantine", "missing alpha")}


def test_of_two_new_drops_the_one_that_was_written_later_counts(any_workshop: Any, make: Any) -> None:
    shop = any_workshop
    shop.drop("pixel_labeled", "z", [make.row(1, category="cards"), make.row(2)])
    if isinstance(shop.inbox.url, str) and shop.inbox.url.startswith("s3:"):
        time.sleep(1.1)  # the times of S3 are whole seconds
    shop.drop("pixel_labeled", "a", [make.row(1, category="delicacy"), make.row(3)])
    assert [drop.batch for drop in ready_batches(shop.run)] == ["z", "a"]
    (change,) = shop.ingest().tables["updates"]
    assert (change["batch"], change["old"], change["new"]) == ("a", "cards", "delicacy")


def test_a_row_whose_file_becomes_another_rows_photo_is_a_conflict(workshop: Any, make: Any) -> None:
    """Only the rows with replaced files are measured again, and the rows of their new photos."""
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2, category="cards"), make.row(3)])
    workshop.ingest()
    (folder / "images/1.jpg").write_bytes(make.row(2)["image_bytes"])
    assert workshop.ingest().tables["updates"] == []
    conflict = ("conflict", "rows of one photo disagree")
    assert workshop.verdicts() == {"images/1.jpg": conflict, "images/2.jpg": conflict}


def test_of_two_names_that_differ_in_an_accents_form_both_are_watched(workshop: Any, make: Any) -> None:
    names = [unicodedata.normalize(form, "images/é.jpg") for form in ("NFC", "NFD")]
    folder = workshop.drop("pixel_labeled", "a", [make.row(n, image=name) for n, name in enumerate(names)])
    assert workshop.ingest().metrics["ingest/accepted"] == 2
    for n, name in enumerate(names, 5):
        (folder / name).write_bytes(make.row(n)["image_bytes"])
        assert workshop.ingest().metrics["ingest/accepted"] == 2
    assert len(workshop.catalog.read("samples")) == 4


def test_whole_numbers_of_a_parquet_file_are_no_fractions(workshop: Any, tmp_path: Path) -> None:
    table = pa.table({"image": ["a.jpg", "b.jpg", "c.jpg"], "group": [7.0, None, math.nan], "source": [1.5, 2.0, 3.0]})
    pq.write_table(table, path := tmp_path / "manifest.parquet")
    rows = [(row.group, row.source) for row in read_manifest(path)]
    assert rows == [("7", "1.5"), ("", "2"), ("", "3")]
