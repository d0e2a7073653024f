"""No command destroys what it was given: outputs are checked against inputs before the first is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from mm_core import operations
from mm_core.cli.compare import compare_models
from mm_core.cli.predict import plan_jobs, predict_files
from mm_core.core import outputs
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.outputs import check_outputs, ignores_case
from mm_core.core.params import ModelParams, Params
from mm_core.core.progress import quiet
from mm_core.core.records import Report, write_bytes
from mm_core.core.settings import Settings
from mm_core.export.signature import make_keys
from mm_core.ingest.drop import package_folder
from mm_core.ingest.export_data import export_pools
from mm_core.model.files import save_model
from mm_core.model.network import build_model
from mm_core.pinned_inputs import Run
from mm_core.services import backup


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(
        path,
        build_model(ModelParams(pretrained="", encoder="test_efficientnet", size=64, width=8), 0),
        {"stage": "simple"},
    )
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with photos of every suffix in question, in sub-folders too."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    for name in ("beach.jpg", "holiday.png", "trip/beach.jpg", ".trashed-1.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / name), pixels)
    return tmp_path / "photos"


def layout_at(root: Path) -> Layout:
    return Layout(Settings.from_env(root / "data"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("given", "out", "cutout", "words"),
    [
        (["holiday.png"], ".", False, "holiday.png is one of the files given"),
        (["beach.jpg", "holiday.png"], ".", False, "holiday.png is one of the files given"),
        (["linked.jpg"], ".", False, "linked.png is one of the files given"),
        (["holiday.jpg"], ".", False, "holiday.png is there already and was not made by this command"),
        (["."], ".", False, "holiday.png is one of the files given"),
        (["beach.jpg", "trip/beach.jpg"], "../out", False, "beach.png would be written twice"),
        (["twice"], "../out", True, "a.cutout.png would be written twice"),
        (["suffixes"], "../out", False, "b.png would be written twice"),
        (["beach.jpg", "to-beach.jpg"], "../linked", False, "beach.png would be written twice"),
        (["holiday.png"], "../linked", False, "holiday.png is one of the files given"),
        (["beach.jpg"], "taken", False, "beach.png is there already and was not made by this command"),
        (["beach.jpg"], "holiday.png", False, "holiday.png is a file and no folder"),
    ],
)
def test_predict_refuses_a_collision_before_it_writes(
    photos: Path, model: str, given: list[str], out: str, cutout: bool, words: str
) -> None:
    os.link(photos / "holiday.png", photos / "linked.png")
    (photos / "linked.jpg").symlink_to(photos / "linked.png")
    (photos / "holiday.jpg").write_bytes((photos / "beach.jpg").read_bytes())
    (photos / "twice").mkdir()
    for name in ("a.cutout.jpg", "a.jpg"):
        (photos / "twice" / name).write_bytes((photos / "beach.jpg").read_bytes())
    for name in ("suffixes/b.jpg", "suffixes/b.jpeg", "links/beach.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes((photos / "beach.jpg").read_bytes())
    (photos / "to-beach.jpg").symlink_to(photos / "links")
    (photos.parent / "linked").symlink_to(photos)
    (photos / "taken" / "beach.png").mkdir(parents=True)
    before = contents(photos)
    with pytest.raises(InputError, match=words):
        predict_files(
            Run(Params(), layout_at(photos.parent)),
            [photos / name for name in given],
            photos / out,
            model=model,
            cutout=cutout,
        )
    assert contents(photos) == before and not (photos.parent / "out").exists()


def test_predict_takes_a_folder_and_leaves_its_own_mattes_out(photos: Path, model: str) -> None:
    layout = layout_at(photos.parent)
    (photos / "holiday.png").rename(photos / "holiday.jpeg")
    for _ in range(2):  # repeating it replaces its own files and takes none of them for a photo
        report = predict_files(Run(Params(), layout), [photos], photos, model=model, cutout=True)
        assert report.metrics == {"predict/mattes": 3, "predict/unreadable": 0}
    made = {name for name in contents(photos) if name.endswith(".png")}
    names = ("beach", "holiday", "trip/beach")
    assert made == {f"{name}.png" for name in names} | {f"{name}.cutout.png" for name in names}
    matte = cv2.imread(str(photos / "trip" / "beach.png"), cv2.IMREAD_UNCHANGED)
    assert matte is not None and matte.shape == (20, 30)
    cutout = cv2.imread(str(photos / "beach.cutout.png"), cv2.IMREAD_UNCHANGED)
    assert cutout is not None and cutout.shape == (20, 30, 4)


def test_predict_into_a_folder_below_the_photos(photos: Path, model: str) -> None:
    for _ in range(2):
        report = predict_files(Run(Params(), layout_at(photos.parent)), [photos], photos / "mattes", model=model)
        assert report.metrics["predict/mattes"] == 3
    assert (photos / "mattes" / "trip" / "beach.png").is_file()
    for _ in range(2):  # and into one above them
        report = predict_files(Run(Params(), layout_at(photos.parent)), [photos / "trip"], photos, model=model)
        assert report.metrics["predict/mattes"] == 1 and (photos / "beach.png").is_file()


def test_one_bad_file_of_many_is_told_and_the_rest_is_done(photos: Path, model: str, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "beach.jpg").read_bytes()[:100])
    report = predict_files(Run(Params(), layout_at(tmp_path)), [photos], tmp_path / "out", model=model)
    assert report.metrics == {"predict/mattes": 3, "predict/unreadable": 1}
    (row,) = report.tables["unreadable"]
    assert row["image"].endswith("broken.jpg") and "broken.jpg" in row["reason"]
    with pytest.raises(InputError, match=r"no photo could be read: .*broken.jpg"):
        predict_files(Run(Params(), layout_at(tmp_path)), [photos / "broken.jpg"], tmp_path / "out", model=model)


def test_empty_files_and_folders_with_a_photos_name(photos: Path, model: str, tmp_path: Path) -> None:
    """A file of 0 bytes is unreadable, a folder `x.jpg` is a folder, a dangling link is no photo."""
    (photos / "empty.jpg").touch()
    (photos / "trip").rename(photos / "x.jpg")
    (photos / "nowhere.jpg").symlink_to(photos / "none.jpg")
    run, out = Run(Params(), layout_at(tmp_path)), tmp_path / "out"
    report = predict_files(run, [photos], out, model=model)
    assert [Path(row["image"]).name for row in report.tables["unreadable"]] == ["empty.jpg"]
    assert set(contents(out)) == {"beach.png", "holiday.png", "x.jpg/beach.png"}
    assert set(contents(photos)) == {"beach.jpg", "holiday.png", "x.jpg/beach.jpg", ".trashed-1.jpg", "empty.jpg"}
    with pytest.raises(InputError, match=r"nowhere.jpg: no such file or folder"):
        predict_files(run, [photos / "nowhere.jpg"], out, model=model)


def test_outputs_that_differ_in_case_alone_are_one_where_the_file_system_ignores_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the file system is set, because this one may be of either kind."""
    both, accents = (
        [tmp_path / "new" / name for name in ("IMG.png", "img.png")],
        [tmp_path / "\xe9", tmp_path / "e\u0301"],
    )
    monkeypatch.setattr(outputs, "ignores_case", lambda folder: False)
    check_outputs([*both, *accents], [])
    monkeypatch.setattr(outputs, "ignores_case", lambda folder: folder == tmp_path)
    for pair in (both, accents):
        with pytest.raises(InputError, match="are one file there, which ignores case: give the files apart"):
            check_outputs(pair, [])
    monkeypatch.undo()
    assert ignores_case(tmp_path) == tmp_path.with_name(tmp_path.name.swapcase()).exists()
    assert list(tmp_path.iterdir()) == [] and not ignores_case(tmp_path / "none")


def test_predict_names_what_is_not_there(photos: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    absent = "no such file or folder"
    for path, words in (
        (tmp_path / "none.jpg", absent),
        (tmp_path / ("x" * 5000), absent),
        (tmp_path / "empty", "no photos found"),
    ):
        with pytest.raises(InputError, match=words):
            predict_files(Run(Params(), layout_at(tmp_path)), [path], tmp_path / "out", model=model)


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="no such file or folder"):
        plan_jobs([tmp_path / "pipe.jpg"], tmp_path / "out")


def test_a_folder_above_an_input_is_no_output(photos: Path) -> None:
    with pytest.raises(InputError, match="holds files that were given"):
        check_outputs([photos / "trip"], [photos / "trip" / "beach.jpg"], is_ours=lambda _: True)


@pytest.mark.parametrize("out", ["photos", "photos/made"])
def test_moments_are_not_written_into_the_gallery(photos: Path, out: str) -> None:
    before = contents(photos)
    with pytest.raises(InputError, match="lies in the gallery"):
        operations.moments(Run(Params(), layout_at(photos.parent)), photos, photos.parent / out, model="none")
    assert contents(photos) == before


@pytest.mark.parametrize("foreign", ["undated/diary.txt", "moments.json"])
@pytest.mark.parametrize("content", ["mine", "1"])
def test_moments_replace_no_folder_and_no_file_of_the_users(tmp_path: Path, foreign: str, content: str) -> None:
    """A folder of that name, `undated` say, was removed with all that was in it."""
    rng = np.random.default_rng(1)
    for number in range(4):
        (tmp_path / "gallery").mkdir(exist_ok=True)
        pixels = cv2.resize(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8), (64, 64))
        cv2.imwrite(str(tmp_path / "gallery" / f"{number}.jpg"), pixels)
    out = tmp_path / "out"
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text(content)
    params = Params().with_values(**{"structure.ocr": [], "moments.least": 2})
    with pytest.raises(InputError, match="is there already and was not made by this command"):
        operations.moments(Run(params, layout_at(tmp_path)), tmp_path / "gallery", out, model="none")
    assert contents(out) == {foreign: content.encode()}
    (out / foreign).unlink()
    for _ in range(2):
        report = operations.moments(Run(params, layout_at(tmp_path)), tmp_path / "gallery", out, model="none")
    assert report.metrics["moments/moments"] == 1 and (out / "undated" / "moment.json").is_file()


def test_a_drop_is_not_packaged_from_itself(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "inbox" / "unlabeled" / "week"
    target.parent.mkdir(parents=True)
    photos.rename(target)
    before = contents(target)
    for folder in (target, tmp_path / "inbox"):
        with pytest.raises(InputError, match="lie in one another"):
            package_folder(folder, tmp_path / "inbox", "unlabeled", "week")
    assert contents(target) == before


@pytest.mark.parametrize("output", ["lost/a.png", "a.png"])
def test_a_link_that_leads_nowhere_is_no_place_for_an_output(tmp_path: Path, output: str) -> None:
    """The work was done, and only then the folder could not be made; a link of the user's was replaced by a file."""
    (tmp_path / Path(output).parts[0]).symlink_to("gone")
    with pytest.raises(InputError, match="is a link to gone, where nothing is: choose another folder"):
        check_outputs([tmp_path / output], [])
    with pytest.raises(InputError, match="is there already"):
        make_keys(tmp_path / Path(output).parts[0])


def test_keys_replace_neither_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "key.pem.pub").write_text("somebody's")
    with pytest.raises(InputError, match=r"key.pem.pub is there already"):
        make_keys(tmp_path / "key.pem")
    assert contents(tmp_path) == {"key.pem.pub": b"somebody's"}


def test_moments_keep_what_the_user_put_into_a_moment(tmp_path: Path) -> None:
    """A moment that changes is written anew, one that is no more is removed; neither with a file of the user's."""
    rng = np.random.default_rng(1)
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    gallery.mkdir()
    for number in range(5):
        pixels = cv2.resize(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8), (64, 64))
        cv2.imwrite(str(gallery / f"{number}.jpg"), pixels)
    params = Params().with_values(**{"structure.ocr": [], "moments.least": 2})
    layout = layout_at(tmp_path)
    operations.moments(Run(params, layout), gallery, out, model="none")
    (out / "undated" / "diary.txt").write_text("mine")
    operations.moments(Run(params, layout), gallery, out, model="none")
    (gallery / "4.jpg").unlink()
    with pytest.raises(InputError, match="undated is there already and was not made by this command"):
        operations.moments(Run(params, layout), gallery, out, model="none")
    operations.moments(Run(params.with_values(**{"moments.least": 5}), layout), gallery, out, model="none")
    assert (out / "undated" / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("there", ["manifest.parquet", "images/beach.jpg"])
def test_a_drop_that_somebody_writes_is_not_replaced(photos: Path, tmp_path: Path, there: str) -> None:
    file = tmp_path / "inbox" / "unlabeled" / "week" / there
    file.parent.mkdir(parents=True)
    file.write_bytes(b"somebody's")
    with pytest.raises(InputError, match="already"):
        package_folder(photos, tmp_path / "inbox", "unlabeled", "week")
    assert contents(tmp_path / "inbox") == {f"unlabeled/week/{there}": b"somebody's"}
    file.write_bytes((photos / "beach.jpg").read_bytes())
    if there != "manifest.parquet":
        assert package_folder(photos, tmp_path / "inbox", "unlabeled", "week").photos == 3, "as a killed run left it"


def test_a_backup_is_not_written_into_a_store_and_deletes_nobodys_files(tmp_path: Path) -> None:
    layout, other = layout_at(tmp_path), tmp_path / "other"
    (layout.root).mkdir()
    layout.inputs.write_text("{}")
    for name in ("catalog/samples/x.parquet", "blobs/ab/cd/photo"):
        (other / name).parent.mkdir(parents=True)
        (other / name).write_bytes(b"a photo")
    back_up = lambda: backup.back_up(layout.settings, str(other), Report("backup"), keep=1, progress=quiet)  # noqa: E731
    before = contents(other)
    with pytest.raises(InputError, match="is a store of photos"):
        back_up()
    assert contents(other) == before
    (other / "catalog" / "samples" / "x.parquet").unlink()
    (other / "catalog" / "samples").rmdir()
    (other / "catalog").rmdir()
    (other / "backups").mkdir()
    (other / "backups" / "zip of mine").write_bytes(b"mine")
    for _ in range(2):
        back_up()
    left = contents(other)
    assert left["blobs/ab/cd/photo"] == b"a photo" and left["backups/zip of mine"] == b"mine"
    assert len([name for name in left if name.startswith("backups/2")]) == 1


def test_two_workspaces_may_keep_their_backups_in_one_place(tmp_path: Path) -> None:
    """`--keep 1` of the one deleted the only backup of the other."""
    for name in ("one", "other", "one"):
        layout = layout_at(tmp_path / name)
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.inputs.write_text(f'{{"of": "{name}"}}')
        backup.back_up(layout.settings, str(tmp_path / "place"), Report("backup"), keep=1, progress=quiet)
    kept = [json.loads(path.read_text())["workspace"] for path in sorted((tmp_path / "place" / "backups").iterdir())]
    assert kept == [str(tmp_path / "other" / "data"), str(tmp_path / "one" / "data")]


def test_names_that_no_file_can_have_are_refused_and_the_longest_ones_written(tmp_path: Path) -> None:
    check_outputs([tmp_path / ("a" * 255)], [])
    with pytest.raises(InputError, match="a name of 256 bytes, at most 255 are possible"):
        check_outputs([tmp_path / ("ä" * 128)], [])
    for name in ("a" * 255, "ä" * 127):
        write_bytes(tmp_path / name, b"x")
        assert [path.name for path in tmp_path.iterdir()] == [name], "no temporary file is left"
        (tmp_path / name).unlink()


@pytest.mark.parametrize("place", ["store/mine", "inbox/unlabeled/mine", "cycle", "bundle/mine", "linked/mine"])
def test_no_command_writes_results_into_a_folder_of_the_system(tmp_path: Path, photos: Path, place: str) -> None:
    """A producer's drop, the store and the cycle are no places for exports, mattes, moments, pages and keys."""
    layout = layout_at(tmp_path / "w")
    (layout.root / "store").mkdir(parents=True)
    (layout.root / "linked").symlink_to(layout.root / "store")
    run, out = Run(Params(), layout), layout.root / place
    doors = [
        lambda: export_pools(run, out, Report("export-data"), form="folders"),
        lambda: predict_files(run, [photos], out, model="none"),
        lambda: operations.moments(run, photos, out, model="none"),
        lambda: compare_models(run, ("a", "b"), [photos], out / "page.html", shown=1),
    ]
    for door in doors:
        with pytest.raises(InputError, match="holds files of the system"):
            door()
    assert not out.exists()
