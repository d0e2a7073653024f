"""Refused rows can be listed, looked at, and tried again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_core.core.errors import InputError
from mm_core.imaging.images import load_rgb
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.expectations import SUSPECT
from mm_core.ingest.quarantine import FAULT_COLOUR, accept, list_rejects, retry, show, side_by_side


@pytest.fixture
def shop(workshop: Any, make: Any) -> Any:
    half = make.row(2)["image_bytes"][:400]
    rows = [make.row(1), make.row(2, image_bytes=half), make.row(1, image="copy.jpg"), make.row(3, category="dinosaur")]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.ingest()
    return workshop


def again(shop: Any, batch: str = "a") -> Any:
    return retry(shop.run, batch)


def test_list_and_show(shop: Any, make: Any, tmp_path: Path) -> None:
    rejects = list_rejects(shop.catalog)
    assert list(rejects["image"]) == ["images/2.jpg", "copy.jpg", "images/3.jpg"]
    assert not rejects.isna().any(axis=None)
    key = rejects["key"][0]
    row = show(shop.catalog, shop.store, key[:12], tmp_path)
    assert row["reason"] == "truncated or corrupt image" and row["key"] == key
    assert Path(row["file"]).read_bytes() == make.row(2)["image_bytes"][:400], "kept for people to look at"
    assert json.loads(json.dumps(row)) == row
    copy = show(shop.catalog, shop.store, rejects["key"][1], tmp_path)
    assert Path(copy["file"]).read_bytes() == make.row(1)["image_bytes"], "the photo that it repeats"
    for key in ("", "no such key"):
        with pytest.raises(InputError, match="no refused row has the key .*`mm quarantine list`"):
            show(shop.catalog, shop.store, key, tmp_path)


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


def suspect_rows(make: Any) -> list[dict[str, Any]]:
    """Three inverted mattes among five."""
    inverted = {n: make.encoded(255 - make.matte(n), "PNG") for n in (1, 2, 3)}
    return [*(make.row(n, alpha_bytes=data) for n, data in inverted.items()), make.row(4), make.row(5), make.row(6)]


def taken_as_they_are(shop: Any, *keys: str) -> Any:
    how = {"reviewer": "ana", "why": "a window frame"}
    return accept(shop.run, keys, **how)


def test_a_suspect_matte_is_shown_taken_and_remembered(any_workshop: Any, make: Any, tmp_path: Path) -> None:
    shop = any_workshop
    shop.drop("pixel_labeled", "a", suspect_rows(make))
    report = shop.ingest()
    assert report.metrics["ingest/accepted"] == 3 and report.metrics["ingest/held"] == 0
    rejects = list_rejects(shop.catalog)
    assert set(rejects["reason"]) == {"suspect matte: inverted"} and "inversion 0.6" in rejects["detail"][0]
    shown = show(shop.catalog, shop.store, rejects["key"][0], tmp_path / "views")
    assert load_rgb(Path(shown["view"])).shape == (48, 3 * 64, 3) and Path(shown["matte"]).is_file()
    done = taken_as_they_are(shop, *rejects["key"][:2])
    assert done.facts["reviewed"] == 2 and done.facts["waiting"] == []
    assert len(shop.catalog.read("samples")) == 5 == len(shop.catalog.read("labels"))
    assert list(list_rejects(shop.catalog)["image"]) == ["images/3.jpg"]
    with pytest.raises(InputError, match="an accepted row is not in it"):
        taken_as_they_are(shop, rejects["key"][0])
    again(shop)
    assert list(list_rejects(shop.catalog)["image"]) == ["images/3.jpg"]
    shop.drop("pixel_labeled", "again", suspect_rows(make))
    shop.ingest()
    assert shop.verdicts() | {"images/3.jpg": ()} == {
        **{f"images/{n}.jpg": ("duplicate", "duplicate") for n in (1, 2, 4, 5, 6)},
        "images/3.jpg": (),
    }, "the drop sent again holds none of those that were taken"
    (first, _) = shop.catalog.read("reviews").to_dict("records")
    assert (first["reviewer"], first["why"], first["reason"]) == ("ana", "a window frame", "suspect matte: inverted")


def test_a_review_outlives_a_kill_and_an_empty_inbox(workshop: Any, make: Any, monkeypatch: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", suspect_rows(make))
    workshop.ingest()
    key = list_rejects(workshop.catalog)["key"][0]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mm_core.ingest.quarantine.Ingest.run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        taken_as_they_are(workshop, key)
    manifest = folder / "manifest.csv"
    manifest.rename(folder / "away")
    assert taken_as_they_are(workshop, key).facts["waiting"] == ["images/1.jpg"]
    (folder / "away").rename(manifest)
    again(workshop)
    assert sorted(list_rejects(workshop.catalog)["image"]) == ["images/2.jpg", "images/3.jpg"]
    assert len(workshop.catalog.read("reviews")) == 1


def test_only_suspects_are_accepted_on_sight(shop: Any) -> None:
    key = list_rejects(shop.catalog)["key"][0]
    with pytest.raises(InputError, match="not suspected: repair it"):
        taken_as_they_are(shop, key)


def test_a_drop_of_mostly_suspects_is_held_until_they_are_reviewed(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", suspect_rows(make)[:4])
    (line,) = workshop.ingest().tables["batches"]
    assert line["state"] == "held" and line["reason"].startswith("too many suspect mattes: 3 of 4")
    taken_as_they_are(workshop, *list_rejects(workshop.catalog)["key"][:2])
    (line,) = workshop.catalog.read("batches").to_dict("records")
    assert (line["state"], line["accepted"], line["quarantined"]) == ("ingested", 3, 1)


def test_a_held_drop_with_repaired_files_on_s3(workshop_at: Any, bucket: str, make: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(DataDocs, "build", lambda self: None)
    shop = workshop_at(f"{bucket}/drops", f"{bucket}/store")
    bad = [make.row(n, image_bytes=b"") for n in (2, 3, 4)]
    shop.drop("pixel_labeled", "a", [make.row(1), *bad])
    (line,) = shop.ingest().tables["batches"]
    assert line["state"] == "held" and "3 of 4, most often 'empty file'" in line["reason"]
    for n in (2, 3):
        shop.inbox.put(f"pixel_labeled/a/images/{n}.jpg", make.row(n)["image_bytes"])
    (line,) = again(shop).tables["batches"]
    assert (line["state"], line["accepted"], line["quarantined"]) == ("ingested", 3, 1)
    assert shop.verdicts() == {"images/4.jpg": ("quarantine", "empty file")}


def disc(size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A plain photo with a disc, and its matte."""
    down, right = np.mgrid[:size, :size]
    alpha = (np.hypot(down - size / 2, right - size / 2) < size / 3).astype(np.float32)
    rgb = np.where(alpha[..., None] > 0, (200, 60, 60), (30, 90, 60)).astype(np.uint8)
    return rgb, alpha


def marks(view: np.ndarray) -> np.ndarray:
    """Where the third picture of a view has the colour of marks."""
    third = view[:, 2 * view.shape[1] // 3 :]
    return (third == FAULT_COLOUR).all(axis=2)


def test_the_view_marks_the_place_of_the_fault() -> None:
    rgb, alpha = disc()
    alpha[88:92, 78:82] = 0
    found = np.argwhere(marks(side_by_side(rgb, alpha, f"{SUSPECT}: holes")))
    assert len(found) and np.abs(found.mean(axis=0) - (89.5, 79.5)).max() < 2, "a circle around the hole"
    assert not (found == (90, 80)).all(axis=1).any(), "the hole itself stays visible"
    rgb, alpha = disc()
    alpha[10:14, 20:24] = 1
    found = np.argwhere(marks(side_by_side(rgb, alpha, f"{SUSPECT}: speckles")))
    assert len(found) and np.abs(found.mean(axis=0) - (11.5, 21.5)).max() < 2
    rgb, alpha = disc()
    alpha[150:190, 20:180] = 0.5
    found = marks(side_by_side(rgb, alpha, f"{SUSPECT}: a trimap"))
    assert found[170, 100] and not found[20, 20]
    assert not marks(side_by_side(rgb, 1 - alpha, f"{SUSPECT}: inverted")).any(), "a fault of the whole matte"
