"""Refused rows can be listed, looked at, and tried again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mm_core.data.quarantine import list_rejects, retry, show
from mm_core.errors import InputError


@pytest.fixture
def shop(workshop: Any, make: Any) -> Any:
    half = make.row(2)["image_bytes"][:400]
    rows = [make.row(1), make.row(2, image_bytes=half), make.row(1, image="copy.jpg"), make.row(3, category="dinosaur")]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    return workshop


def again(shop: Any, batch: str = "a") -> Any:
    return retry(shop.params, shop.catalog, shop.store, shop.inbox, batch, shop.root / "docs", shop.root / "spool")


def test_list_and_show(shop: Any, make: Any) -> None:
    rejects = list_rejects(shop.catalog)
    assert list(rejects["image"]) == ["images/2.jpg", "copy.jpg", "images/3.jpg"]
    assert not rejects.isna().any(axis=None)
    key = rejects["key"][0]
    row = show(shop.catalog, shop.store, key[:12])
    assert row["reason"] == "truncated or corrupt image" and row["key"] == key
    assert Path(row["file"]).read_bytes() == make.row(2)["image_bytes"][:400], "kept for people to look at"
    assert json.loads(json.dumps(row)) == row
    copy = show(shop.catalog, shop.store, rejects["key"][1])
    assert Path(copy["file"]).read_bytes() == make.row(1)["image_bytes"], "the photo that it repeats"
    for key in ("", "no such key"):
        with pytest.raises(InputError, match="0 refused rows"):
            show(shop.catalog, shop.store, key)


def test_an_empty_quarantine(workshop: Any) -> None:
    assert list_rejects(workshop.catalog).empty


def test_a_repaired_file_leaves_quarantine(shop: Any, make: Any) -> None:
    folder = shop.inbox.root / "pixel_labeled" / "a"
    untouched = shop.tables()
    assert again(shop).metrics["ingest/quarantined"] == 2
    assert shop.tables() == untouched, "nothing was repaired, nothing changes"
    (folder / "images" / "2.jpg").write_bytes(make.row(2)["image_bytes"])
    (folder / "images" / "1.jpg").unlink()  # the inbox was tidied: what was accepted is not looked at again
    report = again(shop, "pixel_labeled/a")
    assert report.metrics["ingest/accepted"] == 2 and report.metrics["ingest/quarantined"] == 1
    assert shop.verdicts() == {
        "copy.jpg": ("duplicate", "duplicate"),
        "images/3.jpg": ("quarantine", "unknown category"),
    }
    assert len(shop.catalog.read("samples")) == 2 == len(shop.catalog.read("labels"))
    assert {r["name"] for r in report.tables["expectations"]} >= {"image_decodes", "few_bad_rows"}
    finished = shop.tables()
    again(shop)
    assert shop.tables() == finished


def test_a_repaired_copy_is_a_duplicate(shop: Any, make: Any) -> None:
    folder = shop.inbox.root / "pixel_labeled" / "a"
    (folder / "images" / "2.jpg").write_bytes(make.encoded(make.photo(1), quality=50))
    again(shop)
    assert shop.verdicts()["images/2.jpg"] == ("duplicate", "near-duplicate")


def test_a_held_drop_is_tried_whole(workshop: Any, make: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(1), *(make.row(n, image_bytes=b"") for n in (2, 3, 4))])
    workshop.ingest()
    assert list(workshop.catalog.read("batches")["state"]) == ["held"]
    (folder / "images" / "2.jpg").write_bytes(make.row(2)["image_bytes"])
    report = again(workshop)
    (line,) = report.tables["batches"]
    assert (line["state"], line["accepted"], line["quarantined"]) == ("ingested", 2, 2)
    assert len(workshop.catalog.read("samples")) == 2


def test_what_cannot_be_retried(shop: Any, make: Any) -> None:
    with pytest.raises(InputError, match="no manifest"):
        again(shop, "nowhere")
    shop.drop("unlabeled", "new", [make.row(9)])
    with pytest.raises(InputError, match="mm ingest"):
        again(shop, "new")
