"""Packaging a folder of photos as a drop."""

import csv
import os
import unicodedata
from pathlib import Path

import pytest

from mm_core.core.errors import InputError, MattingError
from mm_core.core.records import sha256_bytes
from mm_core.core.spellings import SUFFIXES
from mm_core.ingest.drop import package_folder, summarize_drop, write_manifest
from mm_core.ingest.manifest import read_manifest


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
    batch = package_folder(folder, tmp_path / "inbox", "pixel_labeled", "b1").path
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
    batch = package_folder(folder, tmp_path, "unlabeled", "b").path
    assert sorted((batch / row["image"]).read_bytes() for row in rows_of(batch)) == [b"a.jpg", b"a.webp", b"x/a.jpg"]


def test_captions_from_files_and_table(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder / "one.jpg")
    put(folder / "one.txt", b"a red cup\n")
    put(folder / "two.avif")
    put(folder / "captions.csv", '\ufeffimage,caption\ntwo.avif,"a cat, asleep"\n'.encode())
    rows = rows_of(package_folder(folder, tmp_path, "text_image", "b").path)
    assert [row["caption"] for row in rows] == ["a red cup", "a cat, asleep"]


@pytest.mark.parametrize(
    ("kind", "batch", "files", "message"),
    [
        ("labelled", "b", ["a.jpg"], r"--kind 'labelled' is unknown; use one of pixel_labeled"),
        ("unlabeled", "../b", ["a.jpg"], r"--batch: the folder's name '../b' is not safe to use: rename it"),
        ("unlabeled", "b", ["a.md"], r"no photos found; put \.jpg, \.png"),
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

    monkeypatch.setattr("mm_core.ingest.drop.shutil.copyfile", failing)
    with pytest.raises(OSError, match="disk full"):
        package_folder(tmp_path / "photos", tmp_path, "unlabeled", "b")
    assert not list(tmp_path.rglob("manifest.csv"))


def test_folders_in_any_spelling_give_the_category_and_others_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    spelled = {
        "Portrait": "portrait", "multi-person": "multi_person", "Multi Person": "multi_person", "PETS": "pets",
        "cards ": "cards", "Accessory": "accessories", "Deli cacy": "delicacy", "SCENERY": "scenery",
        "holiday": "", "New York/2026": "",
    }  # fmt: skip
    for number, name in enumerate(spelled):
        put(folder / name / f"{number}.jpg", b"%d" % number)
    made = package_folder(folder, tmp_path, "unlabeled", "b")
    found = {Path(row["image"]).parent.relative_to("images").as_posix(): row["category"] for row in rows_of(made.path)}
    assert found == spelled
    assert made.unknown_folders == {"holiday": 1, "New York/2026": 1}
    assert made.categories["multi_person"] == 2 and made.categories[""] == 2


@pytest.mark.parametrize(("name", "category"), [("PETS", "pets"), ("Multi-Person", "multi_person"), ("trip", "")])
def test_the_folder_itself_may_be_named_like_a_category(tmp_path: Path, name: str, category: str) -> None:
    put(tmp_path / name / "a.jpg")
    (row,) = rows_of(package_folder(tmp_path / name, tmp_path, "unlabeled", "b").path)
    assert row.get("category", "") == category


def test_hidden_and_system_files_are_left_out_and_counted(tmp_path: Path) -> None:
    """A camera folder holds photos that its owner deleted, and thumbnails of all of them."""
    folder = tmp_path / "DCIM"
    for name in ("a.jpg", "Camera/b.jpg"):
        put(folder / name, name.encode())
    hidden = [
        ".trashed-1700000000-c.jpg", ".thumbnails/d.jpg", "Camera/.thumbnails/e.jpg", "._a.jpg", "@eaDir/a.jpg/x.jpg",
        "__MACOSX/f.jpg", "Thumbs.db", "$RECYCLE.BIN/g.jpg", ".nomedia",
    ]  # fmt: skip
    for name in hidden:
        put(folder / name, name.encode())
    put(folder / "movie.MP4", b"m")
    put(folder / "raw.cr2", b"r")
    made = package_folder(folder, tmp_path, "unlabeled", "b")
    assert sorted(row["image"] for row in rows_of(made.path)) == ["images/Camera/b.jpg", "images/a.jpg"]
    assert made.hidden == len(hidden) and made.other_files == {".mp4": 1, ".cr2": 1}
    assert made.facts()["left_out"] == {"hidden or system files": len(hidden), ".mp4": 1, ".cr2": 1}


@pytest.mark.parametrize("suffix", [suffix for suffixes in SUFFIXES.values() for suffix in suffixes])
def test_every_suffix_of_a_format_is_a_photo(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "photos" / f"a{suffix}", b"1")
    put(tmp_path / "photos" / f"b{suffix.upper()}", b"2")
    assert package_folder(tmp_path / "photos", tmp_path, "unlabeled", "b").photos == 2


@pytest.mark.parametrize("name", ["alphas/a.tif", "a_alpha.webp", "a-matte.JPG", "a_Alpha.png", "sub/../a_MATTE.PNG"])
def test_mattes_of_any_format_are_found(tmp_path: Path, name: str) -> None:
    put(tmp_path / "photos" / "a.jpg", b"1")
    put(tmp_path / "photos" / Path(os.path.normpath(name)), b"2")
    (row,) = rows_of(package_folder(tmp_path / "photos", tmp_path, "pixel_labeled", "b").path)
    assert (tmp_path / "pixel_labeled" / "b" / row["alpha"]).read_bytes() == b"2"
    assert Path(row["alpha"]).suffix == Path(name).suffix.lower()


def test_a_photo_that_is_only_named_like_a_matte_is_a_photo(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "dog-matte.jpg", b"1")
    assert package_folder(tmp_path / "photos", tmp_path, "unlabeled", "b").photos == 1


@pytest.mark.parametrize(
    "caption", ["- a red cup (left)", "-5°C in the snow!", "=) a cat", "@home", "+1, he said", "'tis"]
)
def test_captions_are_escaped_in_the_csv_and_read_as_they_were(tmp_path: Path, caption: str) -> None:
    batch = tmp_path / "b"
    path = write_manifest(batch, [{"image": "a.jpg", "caption": caption}])
    (cell,) = [row["caption"] for row in rows_of(batch)]
    assert not cell.startswith(("=", "+", "-", "@")), "no spreadsheet runs it"
    assert [row.caption for row in read_manifest(path)] == [caption]


@pytest.mark.parametrize(
    ("photo", "matte"),
    [
        ("image/pets/rex.jpg", "mask/pets/rex.png"),
        ("images/pets/rex.jpg", "masks/pets/rex_mask.png"),
        ("pets/image/rex.jpg", "pets/mask/rex.png"),
        ("train/image/pets/rex.jpg", "train/mask/pets/rex.jpg"),
        ("pets/rex.jpg", "alpha/pets/rex.png"),
        ("pets/rex.jpg", "pets/alpha/rex.tif"),
        ("image/pets/rex.jpg", "mask/rex.png"),
        ("Image/pets/rex.jpg", "Matte/pets/REX.png"),
    ],
)
def test_published_layouts_of_photos_and_mattes_are_read(tmp_path: Path, photo: str, matte: str) -> None:
    put(tmp_path / "set" / photo, b"photo")
    put(tmp_path / "set" / matte, b"matte")
    made = package_folder(tmp_path / "set", tmp_path / "inbox", "pixel_labeled", "b")
    (row,) = rows_of(made.path)
    assert (made.path / row["alpha"]).read_bytes() == b"matte" and row["category"] == "pets"


def test_masks_of_two_splits_stay_apart_and_a_folder_of_masks_alone_is_photos(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / "set" / split / "image" / "1.jpg", split.encode())
        put(tmp_path / "set" / split / "mask" / "1.png", f"{split} matte".encode())
    made = package_folder(tmp_path / "set", tmp_path / "inbox", "pixel_labeled", "b")
    for row in rows_of(made.path):
        split = (made.path / row["image"]).read_bytes()
        assert (made.path / row["alpha"]).read_bytes() == split + b" matte"
    put(tmp_path / "costumes" / "mask" / "venice.jpg")
    assert package_folder(tmp_path / "costumes", tmp_path / "inbox", "unlabeled", "b").photos == 1


@pytest.mark.parametrize("name", ["a\rb.jpg", "a\nb.jpg", "a\r\nb.jpg", 'a"b,c.jpg', "=a.jpg", "a.. b.jpg"])
def test_the_manifest_reads_every_name_back(tmp_path: Path, name: str) -> None:
    put(tmp_path / "photos" / "x" / name)
    batch = package_folder(tmp_path / "photos", tmp_path / "inbox", "unlabeled", "b").path
    (row,) = read_manifest(batch / "manifest.csv")
    assert row.image == f"images/x/{name}" and (batch / row.image).is_file()


def test_captions_keep_their_line_breaks(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [{"image": "a.jpg", "caption": "one\rtwo\r\nthree\nfour"}])
    assert [row.caption for row in read_manifest(path)] == ["one\rtwo\r\nthree\nfour"]


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/a.jpg", b"a\\b.jpg", b" /a.jpg"])
def test_names_that_no_manifest_can_hold_are_refused_before_anything_is_written(tmp_path: Path, name: bytes) -> None:
    put(tmp_path / "photos" / "good.jpg")
    put(tmp_path / "photos" / os.fsdecode(name))
    with pytest.raises(InputError, match=r"is not UTF-8: rename|holds a backslash or ends in a space: rename"):
        package_folder(tmp_path / "photos", tmp_path / "inbox", "unlabeled", "b")
    assert not (tmp_path / "inbox").exists()


def test_the_longest_names_are_taken(tmp_path: Path) -> None:
    name = "ä" * 125  # 250 bytes: the suffix fits, a second one does not
    put(tmp_path / "photos" / f"{name}.jpg", b"photo")
    put(tmp_path / "photos" / "alphas" / f"{name}.png", b"matte")
    batch = package_folder(tmp_path / "photos", tmp_path / "inbox", "pixel_labeled", "b").path
    (row,) = read_manifest(batch / "manifest.csv")
    assert (batch / row.image).read_bytes() == b"photo" and (batch / row.alpha).read_bytes() == b"matte"


def test_links_and_special_files_that_are_left_out_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder / "a.jpg")
    put(tmp_path / "elsewhere" / "b.jpg")
    (folder / "pets").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    os.mkfifo(folder / "pipe.jpg")
    target = package_folder(folder, tmp_path / "inbox", "unlabeled", "b").path
    left_out = {entry["file"]: entry["reason"] for entry in summarize_drop(folder, target)["left_out"]}
    assert left_out == {"pets": "link to a folder", "gone.jpg": "link to nothing", "pipe.jpg": "not a file"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,a dog, with a ball", "'a.jpg' has too many fields: quote its caption"),
        ("a.jpg,a dog\na.jpg,a cat", "'a.jpg' has two captions"),
        ('a.jpg,"a\0dog"', "holds NUL bytes"),
    ],
)
def test_captions_that_would_be_cut_or_contradict_are_refused(tmp_path: Path, line: str, message: str) -> None:
    put(tmp_path / "photos" / "a.jpg")
    put(tmp_path / "photos" / "captions.csv", f"image,caption\n{line}\n".encode())
    with pytest.raises(MattingError, match=message):
        package_folder(tmp_path / "photos", tmp_path / "inbox", "text_image", "b")


def test_a_caption_file_with_nul_bytes_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.jpg")
    put(tmp_path / "photos" / "a.txt", b"a\0dog")
    with pytest.raises(InputError, match="holds NUL bytes"):
        package_folder(tmp_path / "photos", tmp_path / "inbox", "text_image", "b")


def test_captions_of_no_photo_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder / "pets" / "a.jpg")
    put(folder / "captions.csv", b"image,caption\na.jpg,a dog\npets/b.jpg,a cat\n,,\n")
    target = package_folder(folder, tmp_path / "inbox", "text_image", "b").path
    assert summarize_drop(folder, target)["left_out"] == [{"file": "pets/b.jpg", "reason": "caption without a photo"}]


def test_names_match_in_either_form_of_an_accent(tmp_path: Path) -> None:
    """macOS writes é as two characters; an archive may hold photos of one form and mattes or captions of the other."""
    one, other = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    put(tmp_path / "mattes" / f"{one}.jpg")
    put(tmp_path / "mattes" / "alphas" / f"{other}.png", b"matte")
    put(tmp_path / "notes" / f"{other}.jpg")
    put(tmp_path / "notes" / f"{one}.txt", b"a cup")
    put(tmp_path / "table" / f"{other}.jpg")
    put(tmp_path / "table" / "captions.csv", f"image,caption\n{one}.jpg,a cup\n".encode())
    (row,) = rows_of(package_folder(tmp_path / "mattes", tmp_path / "inbox", "pixel_labeled", "a").path)
    assert row["alpha"] == f"alphas/{one}.jpg.png"
    for name in ("notes", "table"):
        target = package_folder(tmp_path / name, tmp_path / "inbox", "text_image", name).path
        assert [row["caption"] for row in rows_of(target)] == ["a cup"]
        assert summarize_drop(tmp_path / name, target)["left_out"] == []


def test_a_caption_that_may_mean_several_photos_is_refused(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg"):
        put(tmp_path / "photos" / name, name.encode())
    put(tmp_path / "photos" / "captions.csv", b"image,caption\nx.jpg,one\n")
    with pytest.raises(InputError, match=r"captions\.csv: 'x\.jpg' names 2 photos: write their paths, such as a/x"):
        package_folder(tmp_path / "photos", tmp_path / "inbox", "text_image", "b")
    put(tmp_path / "photos" / "captions.csv", b"image,caption\na/x.jpg,one\nb/x.jpg,two\n")
    put(tmp_path / "photos" / "b" / "x.txt", b"three")
    with pytest.raises(InputError, match=r"b/x\.jpg: x\.txt and captions\.csv give two captions: keep one"):
        package_folder(tmp_path / "photos", tmp_path / "inbox", "text_image", "b")
    put(tmp_path / "photos" / "b" / "x.txt", b"two")
    rows = rows_of(package_folder(tmp_path / "photos", tmp_path / "inbox", "text_image", "b").path)
    assert [row["caption"] for row in rows] == ["one", "two"]


def test_a_matte_of_one_spelling_is_not_given_to_the_other(tmp_path: Path) -> None:
    for name in ("rex.jpg", "REX.jpg", "alphas/rex.png"):
        put(tmp_path / "photos" / name, name.encode())
    with pytest.raises(InputError, match=r"REX\.jpg: alpha is missing"):
        package_folder(tmp_path / "photos", tmp_path / "inbox", "pixel_labeled", "b")
    (tmp_path / "photos" / "rex.jpg").unlink()
    assert package_folder(tmp_path / "photos", tmp_path / "inbox", "pixel_labeled", "b").photos == 1
