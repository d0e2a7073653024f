"""Packaging a folder of photos as a drop."""

import csv
from pathlib import Path

import pytest

from mm_core.data.drop import package_folder, write_manifest
from mm_core.errors import InputError
from mm_core.records import sha256_bytes


def rows_of(batch: Path) -> list[dict[str, str]]:
    with (batch / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_manifest_keeps_only_used_columns_in_order_and_unicode(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path / "b", [{"caption": "café, „gut“", "image": "images/ä.jpg", "role": ""}, {"image": "images/b.jpg"}]
    )
    assert path.read_text(encoding="utf-8") == 'image,caption\nimages/ä.jpg,"café, „gut“"\nimages/b.jpg,\n'
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["manifest.csv"], "no temporary file is left"


def test_manifest_refuses_nothing_and_unknown_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to put"):
        write_manifest(tmp_path, [])
    with pytest.raises(InputError, match="column 'colour' is unknown"):
        write_manifest(tmp_path, [{"image": "a.jpg", "colour": "red"}])


def test_labelled_folder_pairs_alphas_in_every_place(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder / "one.jpg", b"1")
    put(folder / "alphas" / "one.png", b"a1")
    put(folder / "pets" / "two.JPG", b"2")
    put(folder / "pets" / "two_alpha.png", b"a2")
    put(folder / "cards" / "three.png", b"3")
    put(folder / "cards" / "three-matte.png", b"a3")
    put(folder / "notes.md")
    batch = package_folder(folder, tmp_path / "inbox", "pixel_labeled", "b1")
    assert batch == tmp_path / "inbox" / "pixel_labeled" / "b1"
    rows = {row["image"]: row for row in rows_of(batch)}
    assert {name: row["category"] for name, row in rows.items()} == {
        "images/one.jpg": "",
        "images/pets/two.JPG": "pets",
        "images/cards/three.png": "cards",
    }
    assert [(batch / row["alpha"]).read_bytes() for row in rows.values()] == [b"a3", b"a1", b"a2"]
    assert rows["images/one.jpg"]["sha256"] == sha256_bytes(b"1")
    assert "caption" not in rows["images/one.jpg"]


def test_photos_that_differ_only_in_extension_or_folder_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "a.webp", "x/a.jpg"):
        put(folder / name, name.encode())
    batch = package_folder(folder, tmp_path, "unlabeled", "b")
    assert sorted((batch / row["image"]).read_bytes() for row in rows_of(batch)) == [b"a.jpg", b"a.webp", b"x/a.jpg"]


def test_captions_from_files_and_table(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder / "one.jpg")
    put(folder / "one.txt", b"a red cup\n")
    put(folder / "two.avif")
    put(folder / "captions.csv", '\ufeffimage,caption\ntwo.avif,"a cat, asleep"\n'.encode())
    rows = rows_of(package_folder(folder, tmp_path, "text_image", "b"))
    assert [row["caption"] for row in rows] == ["a red cup", "a cat, asleep"]


@pytest.mark.parametrize(
    ("kind", "batch", "files", "message"),
    [
        ("labelled", "b", ["a.jpg"], r"--kind 'labelled' is unknown; use one of pixel_labeled"),
        ("unlabeled", "../b", ["a.jpg"], r"--batch: the folder's name '../b' is not safe to use: rename it"),
        ("unlabeled", "b", ["a.md"], r"no photos found; put .*\.jpg"),
        (
            "pixel_labeled",
            "b",
            ["a.jpg", "b.jpg", "alphas/a.png"],
            r"b\.jpg: alpha is missing; add .*b\.png or b_alpha\.png",
        ),
        (
            "text_image",
            "b",
            ["a.jpg"],
            r"a\.jpg: caption is missing; write it to a\.txt or to a line of .*captions\.csv",
        ),
        ("text_image", "b", ["a.jpg", "captions.csv"], r"captions\.csv: column 'caption' is missing"),
    ],
)
def test_bad_folders_are_refused_before_anything_is_written(
    tmp_path: Path, kind: str, batch: str, files: list[str], message: str
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in files:
        put(folder / name)
    with pytest.raises(InputError, match=message):
        package_folder(folder, tmp_path / "inbox", kind, batch)
    assert not (tmp_path / "inbox").exists()


def test_missing_folder_and_existing_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        package_folder(tmp_path / "nowhere", tmp_path, "unlabeled", "b")
    put(tmp_path / "photos" / "a.jpg")
    package_folder(tmp_path / "photos", tmp_path, "unlabeled", "b")
    with pytest.raises(InputError, match="already exists; choose another"):
        package_folder(tmp_path / "photos", tmp_path, "unlabeled", "b")


def test_a_crash_while_copying_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "photos" / "a.jpg")

    def failing(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mm_core.data.drop.shutil.copyfile", failing)
    with pytest.raises(OSError, match="disk full"):
        package_folder(tmp_path / "photos", tmp_path, "unlabeled", "b")
    assert not list(tmp_path.rglob("manifest.csv"))
