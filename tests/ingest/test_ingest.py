"""Drops become the catalog: once, whole, whatever happens in between."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mm_core.core.errors import InputError, StoreError
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.ingest.csv_text import escaped
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.ingest import Ingest, ready_batches
from mm_core.storage.store import fetch_blob

MIXED_VERDICTS = {
    "images/copy.jpg": ("duplicate", "duplicate"),
    "images/again.jpg": ("duplicate", "near-duplicate"),
    "images/3.jpg": ("quarantine", "not an image"),
    "images/1.jpg": ("duplicate", "listed twice"),
}


def test_a_drop_ends_in_the_catalog(any_workshop: Any, make: Any) -> None:
    shop = any_workshop
    shop.drop("pixel_labeled", "a", make.mixed())
    assert [b.name for b in ready_batches(shop.run)] == ["pixel_labeled/a"]
    report = shop.ingest()
    assert report.metrics == {
        "ingest/batches": 1,
        "ingest/held": 0,
        "ingest/accepted": 4,
        "ingest/updated": 0,
        "ingest/quarantined": 1,
        "ingest/duplicates": 3,
        "ingest/conflicts": 0,
    }
    assert shop.verdicts() == MIXED_VERDICTS
    assert [row["row"] for row in report.tables["rejects"]] == [2, 3, 4, 5]
    assert {r["name"]: r["unexpected"] for r in report.tables["expectations"]}["image_is_an_image"] == 1
    assert Path(report.facts["data_docs"]).is_file()
    assert ready_batches(shop.run) == []

    samples = shop.catalog.read("samples").set_index("name")
    labels = shop.catalog.read("labels").set_index("sample_id")
    assert sorted(samples.index) == ["images/1.jpg", "images/2.jpg", "images/7.jpg", "images/8.jpg"]
    for name, seed in (("images/1.jpg", 1), ("images/2.jpg", 2)):
        row = samples.loc[name]
        assert fetch_blob(shop.store, row["id"]).read_bytes() == make.row(seed)["image_bytes"], "bytes as they are"
        assert load_rgb(fetch_blob(shop.store, row["id"])).shape == (row["height"], row["width"], 3)
        label = labels.loc[row["id"]]
        assert (label["version"], label["origin"], label["binary"]) == (1, "drop", False)
        alpha = load_alpha(fetch_blob(shop.store, label["alpha_sha256"]))
        assert np.array_equal(np.rint(alpha * 255), make.matte(seed))
        assert row["group"] == row["id"], "a photo of no group is one of its own"
    assert set(samples.loc[["images/7.jpg", "images/8.jpg"], "group"]) == {"burst"}, "a burst is kept whole"


def test_again_changes_nothing(any_workshop: Any, make: Any) -> None:
    shop = any_workshop
    shop.drop("pixel_labeled", "a", make.mixed())
    first = shop.ingest(batch="a")
    versions, tables = shop.catalog.versions(), shop.tables()
    objects = [(e.key, e.size) for e in shop.store.list("blobs")]
    assert shop.ingest().metrics["ingest/batches"] == 0
    again = shop.ingest(batch="pixel_labeled/a")
    assert (again.metrics, again.tables) == (first.metrics, first.tables), "a batch that is done is only reported"
    assert (shop.catalog.versions(), shop.tables()) == (versions, tables)
    assert [(e.key, e.size) for e in shop.store.list("blobs")] == objects


def test_an_unknown_batch_is_an_input_error(workshop: Any) -> None:
    with pytest.raises(InputError, match="nowhere"):
        workshop.ingest(batch="nowhere")


def test_folders_without_manifest_wait(workshop: Any, make: Any) -> None:
    folder = workshop.drop("unlabeled", "a", [make.row(1)])
    (folder / "manifest.csv").rename(folder / "manifest.part")
    (folder.parent / ".hidden").mkdir()
    (folder.parent / ".hidden" / "manifest.csv").write_text("image\nx\n")
    assert ready_batches(workshop.run) == []


def test_a_known_photo_brings_what_the_catalog_lacks(workshop: Any, make: Any) -> None:
    """Unlabelled, then captioned twice, then labelled, then labelled better; each again adds nothing."""
    photo = {"image": "x.jpg", "image_bytes": make.encoded(make.photo(1)), "category": ""}
    labelled = photo | {"alpha": "x.png", "category": "cards"}
    drops = [
        ("unlabeled", "a", photo, 1),
        ("unlabeled", "b", photo, 0),
        ("text_image", "c", photo | {"caption": "A playing card."}, 1),
        ("text_image", "d", photo | {"caption": "Something else."}, 1),
        ("pixel_labeled", "e", labelled | {"alpha_bytes": make.encoded(make.matte(1), "PNG")}, 1),
        ("pixel_labeled", "f", labelled | {"alpha_bytes": make.encoded(make.matte(1), "PNG")}, 0),
        ("pixel_labeled", "g", labelled | {"alpha_bytes": make.encoded(make.matte(2), "PNG")}, 1),
    ]
    for kind, batch, row, accepted in drops:
        workshop.drop(kind, batch, [row])
        assert workshop.ingest(batch=batch).metrics["ingest/accepted"] == accepted, batch
    (sample,) = workshop.catalog.read("samples").to_dict("records")
    assert (sample["kind"], sample["batch"]) == ("unlabeled", "a")
    assert (sample["caption"], sample["category"]) == ("Something else.", "cards")
    labels = workshop.catalog.read("labels").sort_values("version")
    assert list(zip(labels["version"], labels["batch"], strict=True)) == [(1, "e"), (2, "g")]


def test_near_duplicates_across_batches_and_groups(workshop: Any, make: Any) -> None:
    again = {s: make.encoded(make.photo(s), quality=50) for s in range(1, 5)}
    workshop.drop("unlabeled", "a", [make.row(s, group=g) for s, g in ((1, ""), (2, "g"), (3, "g"), (4, ""))])
    workshop.ingest()
    rows = [make.row(s, image_bytes=again[s], group=g) for s, g in ((1, ""), (2, "g"), (3, "other"), (4, "g"))]
    workshop.drop("unlabeled", "b", rows)
    workshop.ingest()
    near = ("duplicate", "near-duplicate")
    assert workshop.verdicts() == {"images/1.jpg": near, "images/3.jpg": near, "images/4.jpg": near}
    rejects = workshop.catalog.read("rejects").set_index("image")
    assert (rejects["sample_id"].isin(workshop.catalog.read("samples")["id"])).all()


def test_edited_copies_join_one_group_within_a_drop_and_across_drops(workshop: Any, make: Any) -> None:
    """Accepted, but never on the other side of train and eval than the photo that they are of."""

    def row(name: str, seed: int, left: int = 0, top: int = 0, **more: Any) -> dict[str, Any]:
        shown = make.scene(seed)[top:, left:]
        return {"image": name, "image_bytes": make.encoded(shown, quality=85), "category": "pets"} | more

    workshop.drop("unlabeled", "a", [row("1.jpg", 1), row("1cut.jpg", 1, left=20), row("2.jpg", 2, group="burst")])
    workshop.ingest()
    later = [row("1cut.jpg", 1, top=16), row("2cut.jpg", 2, left=18, group="other"), row("3.jpg", 3)]
    workshop.drop("text_image", "b", [one | {"caption": "A pet."} for one in later])
    workshop.ingest()
    assert workshop.verdicts() == {}
    samples = workshop.catalog.read("samples")
    by = {(row["batch"], row["name"]): row for row in samples.to_dict("records")}
    first, cut, second = by["a", "1.jpg"], by["a", "1cut.jpg"], by["a", "2.jpg"]
    assert first["near"] is None and first["group"] == first["id"] == cut["group"] == by["b", "1cut.jpg"]["group"]
    assert list(cut["near"]) == [first["id"]]
    assert len(by["b", "1cut.jpg"]["near"]) == 1, "one of each group says it"
    assert (by["b", "2cut.jpg"]["group"], list(by["b", "2cut.jpg"]["near"])) == ("other", [second["id"]])
    assert by["b", "3.jpg"]["near"] is None and by["b", "3.jpg"]["group"] == by["b", "3.jpg"]["id"]


def test_a_drop_of_mostly_bad_rows_is_held(workshop: Any, make: Any) -> None:
    rows = [make.row(1), *(make.row(n, image_bytes=b"") for n in range(2, 7))]
    workshop.drop("pixel_labeled", "a", rows)
    report = workshop.ingest()
    (line,) = report.tables["batches"]
    assert line["state"] == "held" and "5 of 6" in line["reason"] and "empty file" in line["reason"]
    assert workshop.catalog.read("samples").empty and workshop.catalog.read("labels").empty
    assert len(report.tables["rejects"]) == 5
    failed = [r["name"] for r in report.tables["expectations"] if not r["success"] and r["severity"] == "critical"]
    assert failed == ["few_bad_rows"]
    assert ready_batches(workshop.run) == [], "held is decided; it does not come up again"


def test_files_of_more_bytes_than_allowed_are_not_read(any_workshop: Any, make: Any) -> None:
    """On S3 they are not even fetched; a limit that lets them pass takes them."""
    workshop = any_workshop
    photos = [make.row(1), make.row(2, image_bytes=make.encoded(make.photo(2, 480, 360), "PNG")), make.row(3)]
    rough = np.random.default_rng(0).integers(0, 256, (360, 480), np.uint8)
    photos[2] |= {"image_bytes": make.encoded(make.photo(3, 480, 360)), "alpha_bytes": make.encoded(rough, "PNG")}
    sizes = [max(len(row[part]) for part in ("image_bytes", "alpha_bytes")) for row in photos]
    assert sizes[0] < 50_000 < min(sizes[1:]) and len(photos[2]["image_bytes"]) < 50_000
    workshop.params = workshop.params.model_copy(update={"max_bytes": 50_000})
    workshop.drop("pixel_labeled", "a", photos)
    report = workshop.ingest()
    assert workshop.verdicts() == {row["image"]: ("quarantine", "file too large") for row in photos[1:]}
    details = [row["detail"] for row in report.tables["rejects"]]
    assert details == [f"{sizes[1]} bytes", f"alpha: {sizes[2]} bytes"]
    assert len(workshop.catalog.read("samples")) == 1
    cache = workshop.root / "cache" / "inbox"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 50_000]


def test_a_corrected_manifest_is_a_new_arrival(workshop: Any, make: Any) -> None:
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2, category="dinosaur")])
    workshop.ingest()
    assert workshop.verdicts() == {"images/2.jpg": ("quarantine", "unknown category")}
    workshop.drop("pixel_labeled", "a", [make.row(1), make.row(2), make.row(3)])
    report = workshop.ingest()
    assert report.metrics["ingest/accepted"] == 3 and workshop.verdicts() == {}
    assert len(workshop.catalog.read("samples")) == 3 and len(workshop.catalog.read("batches")) == 2


# ── manifests ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no column `image`"),
        (b"photo,alpha\na.jpg,b.png\n", "no column `image` (found: photo, alpha)"),
        (b"image;alpha,role\na.jpg;b.png,eval\n", "separated by commas"),
        (b"sep=|\nimage|alpha\na.jpg|b.png\n", "names the delimiter '|'"),
        (b"image\n", "lists no images"),
        (b"image\n\xff\xfe.jpg\n", "not UTF-8 at byte 6"),
        (
            b"image,caption\na.jpg,caf\xe9\n",
            "probably Windows-1252, as Excel's plain CSV, where that byte is 'é': save",
        ),
        ("image\na.jpg\n".encode("utf-16-le"), "looks like UTF-16, without a byte order mark: save it as UTF-8"),
        ("image\na.jpg\n".encode("utf-32"), "its encoding is UTF-32: save it as UTF-8"),
        ("image\na.jpg\n".encode("utf-16")[:-1], "not UTF-16 at byte"),
        (b"image\na\0.jpg\n", "NUL"),
        (b'image\n"a.jpg\n', "line 2"),
        (b"image,image\na,b\n", "there twice"),
        (b"image," + b",".join(b"c%d" % n for n in range(500)) + b"\na\n", "501 columns"),
        (b"image\n" + b"x" * 200_000 + b"\n", "field larger"),
        (b"image\n" + b"a.jpg\n" * 200_001, "more than 200000 rows"),
    ],
)
def test_a_manifest_that_cannot_be_taken_holds_its_drop_alone(
    workshop: Any, make: Any, content: bytes, reason: str
) -> None:
    bad = workshop.inbox.root / "unlabeled" / "bad"
    bad.mkdir(parents=True)
    (bad / "manifest.csv").write_bytes(content)
    workshop.drop("unlabeled", "good", [make.row(1)])
    workshop.ingest()
    lines = workshop.catalog.read("batches").set_index("batch")
    assert lines.loc["bad", "state"] == "held" and reason in lines.loc["bad", "reason"]
    assert lines.loc["good", "state"] == "ingested"


def test_a_manifest_of_more_bytes_than_are_read_holds_its_drop_alone(
    any_workshop: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On S3 it is not even fetched, however often one looks; a smaller one is a new arrival."""
    for module in ("inbox", "ingest", "manifest"):
        monkeypatch.setattr(f"mm_core.ingest.{module}.MAX_BYTES", 400)
    many = [make.row(n, caption="words " * 20) for n in range(4)]
    folder = any_workshop.drop("text_image", "long", many)
    any_workshop.drop("unlabeled", "good", [make.row(9)])
    any_workshop.ingest()
    lines = any_workshop.catalog.read("batches").set_index("batch")
    assert lines.loc["long", "state"] == "held" and "at most 400 are read: split" in lines.loc["long", "reason"]
    assert lines.loc["good", "state"] == "ingested"
    assert ready_batches(any_workshop.run) == []
    fetched = (any_workshop.root / "cache" / "inbox").rglob("manifest.csv")
    assert (
        not [path for path in fetched if path.stat().st_size > 400] and (folder / "manifest.csv").stat().st_size > 400
    )
    any_workshop.drop("text_image", "long", many[:2])
    assert any_workshop.ingest().metrics["ingest/accepted"] == 2


def test_no_text_is_refused_because_a_spreadsheet_would_run_it(workshop: Any, make: Any) -> None:
    """A caption is a text; CSV files that leave the system escape it."""
    texts = ["=cmd|'/C calc'!A0", "@SUM(A1:A9)", "+1+cmd|x!A0", "- a dog, asleep", "=D so happy", "-SALE(50%)"]
    texts += ['=HYPERLINK("x")', "- a red cup (left)", "-5°C in the snow!", "=) a cat | a dog!", "'-5°C', it says"]
    workshop.drop("text_image", "a", [make.row(n, caption=escaped(text)) for n, text in enumerate(texts)])
    workshop.drop("unlabeled", "b", [make.row(20, image="=1.jpg", source="-x"), make.row(21, group="@home")])
    workshop.ingest()
    assert workshop.verdicts() == {}
    assert set(workshop.catalog.read("samples")["caption"].dropna()) == set(texts)


def test_a_drop_again_under_another_name_brings_nothing(any_workshop: Any, make: Any) -> None:
    """Renamed, and uploaded once more with its files renamed: duplicates, no sample, label or blob more."""
    rows = [make.row(n) for n in range(3)]
    any_workshop.drop("pixel_labeled", "a", rows)
    any_workshop.ingest()
    before, blobs = any_workshop.tables(), [e.key for e in any_workshop.store.list("blobs")]
    any_workshop.drop("pixel_labeled", "renamed", rows)
    any_workshop.drop("pixel_labeled", "b", [make.row(n, image=f"other/{n}.jpg", alpha=f"m/{n}.png") for n in range(3)])
    report = any_workshop.ingest()
    assert report.metrics["ingest/accepted"] == 0 and report.metrics["ingest/duplicates"] == 6
    after = any_workshop.tables()
    assert (after["samples"], after["labels"]) == (before["samples"], before["labels"])
    assert [e.key for e in any_workshop.store.list("blobs")] == blobs


def test_columns_in_any_order_blank_lines_and_loose_spelling(workshop: Any, make: Any) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(n) for n in range(3)])
    (folder / "manifest.csv").write_bytes(
        "\ufeffnotes, Category ,ALPHA,Image\r\n"
        "x, Multi-Person ,alphas/0.png,images/0.jpg\r\n\r\n"
        'x,"","alphas/1.png"," images/1.jpg "\r\n'
        "x,cards,alphas/2.png,images/2.jpg,a caption, with a comma\r\n".encode()
    )
    workshop.ingest()
    samples = workshop.catalog.read("samples").set_index("name")
    assert samples.loc["images/0.jpg", "category"] == "multi_person"
    assert pd.isna(samples.loc["images/1.jpg", "category"])
    assert workshop.verdicts() == {"images/2.jpg": ("quarantine", "malformed manifest row")}


def test_a_parquet_manifest(workshop: Any, make: Any) -> None:
    folder = workshop.drop("text_image", "a", [make.row(n) for n in range(2)])
    (folder / "manifest.csv").unlink()
    frame = pd.DataFrame({"caption": ["A dog.", None], "image": ["images/0.jpg", "images/1.jpg"], "size": [1, 2]})
    frame.to_parquet(folder / "manifest.parquet")
    workshop.ingest()
    assert workshop.verdicts() == {"images/1.jpg": ("quarantine", "missing caption")}
    assert list(workshop.catalog.read("samples")["caption"]) == ["A dog."]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (None, "not a parquet"),
        (pd.DataFrame({"image": [b"a"]}), "write text"),
        (pd.DataFrame({"x": ["a"]}), "no column"),
    ],
)
def test_a_parquet_manifest_that_cannot_be_taken(workshop: Any, frame: Any, reason: str) -> None:
    folder = workshop.inbox.root / "unlabeled" / "a"
    folder.mkdir(parents=True)
    if frame is None:
        (folder / "manifest.parquet").write_bytes(b"PAR1 nothing")
    else:
        frame.to_parquet(folder / "manifest.parquet")
    (line,) = workshop.ingest().tables["batches"]
    assert line["state"] == "held" and reason in line["reason"]


# ── real drops ───────────────────────────────────────────────────────────────────────────────────


def test_the_real_drops(shared_data: Path, workshop_at: Callable[..., Any]) -> None:
    """318 photos: none is bad, none is taken for a copy of another, video frames included."""
    shop = workshop_at(inbox=shared_data / "inbox")
    rows = sum(
        len(list(csv.DictReader(p.open(encoding="utf-8-sig")))) for p in shared_data.glob("inbox/*/*/manifest.csv")
    )
    report = shop.ingest()
    assert report.metrics["ingest/accepted"] == rows == len(shop.catalog.read("samples"))
    assert report.tables["rejects"] == []


def test_a_drop_of_another_mix_is_reported_and_taken(workshop: Any, make: Any) -> None:
    """The catalog's mix is what earlier drops left; sizes stay the same all along."""

    def warned(batch: str, seed: int, categories: tuple[str, ...], light: float = 1.0) -> set[str]:
        photos = {s: (make.photo(s) * light).astype(np.uint8) for s in range(seed, seed + 24)}
        rows = [
            {
                "image": f"{s}.png",
                "image_bytes": make.encoded(photo, "PNG"),
                "category": categories[s % len(categories)],
            }
            for s, photo in photos.items()
        ]
        workshop.drop("unlabeled", batch, rows)
        report = workshop.ingest()
        assert report.metrics["ingest/accepted"] == 24, "a warning holds nothing back"
        lines = {line["name"]: line for line in report.tables["expectations"] if line["name"].endswith("_mix")}
        assert len(lines) == (0 if batch == "first" else 3), "nothing came before the first"
        return {name for name, line in lines.items() if not line["success"]}

    assert warned("first", 100, ("pets", "portrait", "cards")) == set()
    assert warned("like", 200, ("portrait", "cards", "pets")) == set()
    assert warned("dark, other", 300, ("scenery", "delicacy"), light=0.3) == {"category_mix", "brightness_mix"}


def test_a_drop_taken_in_pieces_ends_in_the_same_catalog(
    workshop_at: Callable[..., Any], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies and edits are found across pieces, and every refused row is told."""
    whole, pieces = workshop_at(store=tmp_path / "whole"), workshop_at(store=tmp_path / "pieces")
    rows = [*make.mixed(), *(make.row(n) for n in range(20, 26)), make.row(40, image_bytes=b"<html>")]
    whole.drop("pixel_labeled", "a", rows)
    report = whole.ingest()
    for place in ("mm_core.ingest.ingest.PIECE", "mm_core.ingest.row_decisions.ASKED"):
        monkeypatch.setattr(place, 2)
    again = pieces.ingest()
    assert pieces.tables() == whole.tables()
    assert again.metrics == report.metrics
    assert again.tables["expectations"] == report.tables["expectations"]


def test_a_manifest_replaced_while_it_is_read_is_said(workshop: Any, make: Any) -> None:
    folder = workshop.drop("unlabeled", "a", [make.row(1)])
    (ready,) = ready_batches(workshop.run)
    (folder / "manifest.csv").write_text("image\nother.jpg\n")
    work = Ingest(workshop.run, ready, DataDocs(workshop.root / "docs"))
    with pytest.raises(StoreError, match="manifest.csv changed while it was read: run again"):
        work.run()
    assert workshop.catalog.read("batches").empty
