"""Published data sets become drops, and a snapshot becomes a data set: COCO, FiftyOne, image/ + alpha/."""

from __future__ import annotations

import base64
import csv
import json
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as reference

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report, sha256_file
from mm_core.core.settings import Settings
from mm_core.imaging.images import encode_alpha, load_alpha
from mm_core.ingest.coco import read_coco
from mm_core.ingest.datasets import labels_file, package_dataset, read_dataset
from mm_core.ingest.drop import package_folder
from mm_core.ingest.export_data import export_pools, photo_name
from mm_core.ingest.fiftyone_json import read_fiftyone
from mm_core.ingest.manifest import read_manifest
from mm_core.ingest.snapshot import build_snapshot
from mm_core.storage.run import StorageRun
from mm_core.storage.store import fetch_blob, put_blob
from samplegen import generate

HEIGHT, WIDTH = 24, 32
PERSON, DOG, PIZZA, CHAIR = 1, 18, 59, 62
CLASSES = [
    {"id": PERSON, "name": "person", "supercategory": "person"},
    {"id": DOG, "name": "dog", "supercategory": "animal"},
    {"id": PIZZA, "name": "pizza", "supercategory": "food"},
    {"id": CHAIR, "name": "chair", "supercategory": "furniture"},
]


def picture(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))
    return path


def box_mask(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def plain_rle(mask: np.ndarray) -> dict[str, Any]:
    """The uncompressed form, written from COCO's definition: runs of 0 and 1 in column order."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def packed_rle(mask: np.ndarray) -> dict[str, Any]:
    made = reference.encode(np.asfortranarray(mask))
    return {"size": made["size"], "counts": made["counts"].decode()}


def coco(folder: Path, annotations: list[dict[str, Any]], photos: int = 1, **images: Any) -> Path:
    listed = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} | images for n in range(photos)]
    for entry in listed:
        if ".." not in entry["file_name"]:
            picture(folder / "data" / entry["file_name"])
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": CLASSES}))
    return path


def on(image: int, kind: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": kind, "segmentation": segmentation, "iscrowd": 0} | more


def rows_of(drop: str | Path) -> dict[str, dict[str, str]]:
    with (Path(drop) / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def test_polygons_and_both_kinds_of_rle_become_mattes_of_the_subject(tmp_path: Path) -> None:
    first, second, dog = box_mask(2, 3, 12, 9), box_mask(4, 15, 20, 21), box_mask(1, 1, 3, 3)
    polygon = [10.0, 4.0, 24.0, 4.0, 24.0, 18.0, 10.0, 18.0]
    path = coco(
        tmp_path / "set",
        [
            on(0, PERSON, plain_rle(first), area=60),
            on(0, PERSON, packed_rle(second), area=96, iscrowd=1),
            on(0, DOG, packed_rle(dog), area=4),
            on(1, PIZZA, [polygon]),
            on(1, CHAIR, [[0, 0, 5, 0, 5, 5]], area=1e6),
            on(2, PERSON, packed_rle(first)),
            on(3, CHAIR, packed_rle(dog)),
        ],
        photos=5,
    )
    photos = read_coco(path)
    assert [photo.category for photo in photos] == ["multi_person", "delicacy", "portrait", "", ""]
    assert np.array_equal(photos[0].mask(), first | second), "the dog is background of the larger subject"
    expected = reference.decode(reference.merge(reference.frPyObjects([polygon], HEIGHT, WIDTH)))
    assert np.array_equal(photos[1].mask(), expected) and expected.sum() > 150
    summary = package_dataset(read_dataset(tmp_path / "set", path), tmp_path / "inbox", "pixel_labeled", "b")
    assert summary["photos"] == 4 and summary["left_out"] == [{"file": "data/4.png", "reason": "no matte"}]
    assert summary["categories"]["multi_person"] == {"photos": 1, "mattes": 1} and "(none)" in summary["categories"]
    row = rows_of(summary["drop"])["images/data/0.png"]
    assert row["category"] == "multi_person" and row["sha256"] == sha256_file(tmp_path / "set" / "data" / "0.png")
    assert np.array_equal(load_alpha(Path(summary["drop"]) / row["alpha"]), first | second)


def test_captions_of_coco_become_a_drop_of_texts(tmp_path: Path) -> None:
    path = coco(tmp_path, [{"image_id": 0, "caption": " a red cup "}, {"image_id": 0, "caption": "other"}], photos=2)
    summary = package_dataset(read_dataset(tmp_path, path), tmp_path / "inbox", "text_image", "b")
    assert [row["caption"] for row in rows_of(summary["drop"]).values()] == ["a red cup"]
    assert summary["left_out"][0]["reason"] == "no caption"


@pytest.mark.parametrize(
    ("segmentation", "named"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": [5, 10**9]}, "do not cover"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}, "do not cover"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x7f\x7f"}, "compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 400}, "RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "5220003"}, "do not cover"),
        ({"size": [9999, 9999], "counts": [9999**2]}, "size"),
        ([[1, 2, 3]], "neither polygons"),
        ("text", "neither polygons"),
    ],
)
def test_malformed_masks_are_refused_and_leave_no_drop(tmp_path: Path, segmentation: Any, named: str) -> None:
    path = coco(tmp_path / "set", [on(0, DOG, segmentation)])
    with pytest.raises(InputError, match=named):
        package_dataset(read_dataset(tmp_path / "set", path), tmp_path / "inbox", "pixel_labeled", "b")
    assert not [entry for entry in (tmp_path / "inbox").rglob("*") if entry.is_file()]


def test_huge_and_negative_coordinates_stay_in_the_picture(tmp_path: Path) -> None:
    (photo,) = read_coco(coco(tmp_path, [on(0, DOG, [[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]])]))
    assert photo.mask().min() == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": [{"id": 1}]}, r"images\[0\]: 'file_name' is missing"),
        ({"images": [{"id": 1, "file_name": "a", "width": 1, "height": "x"}]}, "height must be a number of pixels"),
        ({"images": [{"id": 1, "file_name": "a", "width": 1 << 20, "height": 1 << 20}]}, "too many"),
        ({"annotations": [{"image_id": 9}]}, "image_id 9 is not in `images`"),
        ({"annotations": [{"image_id": 0, "category_id": 77, "segmentation": [[1]]}]}, "category_id 77"),
        ({"annotations": {}}, "no COCO file"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = coco(tmp_path, [])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=named):
        read_coco(path)


def test_no_file_outside_of_the_folder_is_taken(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    path = coco(tmp_path / "set", [], file_name="../secret.png") if (tmp_path / "set").mkdir() is None else None
    with pytest.raises(InputError, match="outside"):
        read_dataset(tmp_path / "set", path or tmp_path)


def in_json(array: np.ndarray) -> dict[str, Any]:
    """An array as FiftyOne writes it: a .npy file, compressed, in base64."""
    stream = BytesIO()
    np.save(stream, array)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(stream.getvalue())).decode(), "subType": "00"}}


def fiftyone(folder: Path, *samples: dict[str, Any]) -> Path:
    listed = [{"filepath": f"data/{n}.png", "tags": []} | sample for n, sample in enumerate(samples)]
    for sample in listed:
        picture(folder / sample["filepath"])
    (folder / "samples.json").write_text(json.dumps({"samples": listed}))
    return folder


def test_fiftyones_labels_become_mattes(tmp_path: Path) -> None:
    soft = np.tile(np.linspace(0, 255, WIDTH, dtype=np.uint8), (HEIGHT, 1))
    classes = box_mask(2, 2, 9, 9) * 7
    folder = tmp_path / "set"
    (folder / "fields").mkdir(parents=True)
    cv2.imwrite(str(folder / "fields" / "soft.png"), soft)
    cv2.imwrite(str(folder / "fields" / "classes.png"), classes)
    detection = {"label": "pets", "bounding_box": [0.25, 0.25, 0.5, 0.5], "mask": in_json(np.ones((3, 4), bool))}
    fiftyone(
        folder,
        {"ground_truth": {"_cls": "Heatmap", "map_path": "fields/soft.png"}, "category": "Portraits", "group": "g"},
        {"ground_truth": {"_cls": "Heatmap", "map": in_json(soft.astype(np.float32)), "range": [0, 255]}},
        {"ground_truth": {"_cls": "Segmentation", "mask_path": "fields/classes.png"}, "tags": ["cards"]},
        {"ground_truth": {"_cls": "Segmentation", "mask": in_json(classes)}, "guess": {"_cls": "Heatmap", "map": "x"}},
        {"ground_truth": {"_cls": "Detections", "detections": [detection]}},
        {"caption": "no label"},
    )
    summary = package_dataset(read_dataset(folder, folder / "samples.json"), tmp_path / "inbox", "pixel_labeled", "b")
    rows = list(rows_of(summary["drop"]).values())
    mattes = [load_alpha(Path(summary["drop"]) / row["alpha"]) for row in rows]
    assert [row["category"] for row in rows] == ["portrait", "", "cards", "", "pets"] and rows[0]["group"] == "g"
    assert np.allclose(mattes[0], soft / 255, atol=1e-6) and np.allclose(mattes[1], soft / 255, atol=1e-6)
    assert np.array_equal(mattes[2], classes > 0) and np.array_equal(mattes[3], classes > 0)
    assert mattes[4][6:18, 8:24].all() and mattes[4].sum() == 12 * 16
    assert summary["left_out"] == [{"file": "data/5.png", "reason": "no matte"}]


def test_two_fields_of_mattes_need_a_name_and_bad_ones_a_repair(tmp_path: Path) -> None:
    heat = {"_cls": "Heatmap", "map": in_json(np.zeros((2, 2), np.float32))}
    folder = fiftyone(tmp_path / "two", {"a": heat, "b": heat})
    with pytest.raises(InputError, match=r"several fields hold mattes \(a, b\): name one with --field"):
        read_fiftyone(folder)
    assert read_fiftyone(folder, "b")[0].label
    with pytest.raises(InputError, match="no field 'c'"):
        read_fiftyone(folder, "c")
    for data in ("x", {"$binary": {}}, in_json(np.zeros(3)), {"$binary": {"base64": base64.b64encode(b"no").decode()}}):
        broken = fiftyone(tmp_path / "bad", {"a": {"_cls": "Segmentation", "mask": data}})
        with pytest.raises(InputError, match="mask in the json"):
            read_fiftyone(broken)[0].matte(broken, (2, 2))
    outside = fiftyone(tmp_path / "out", {"a": {"_cls": "Heatmap", "map_path": "../../secret.png"}})
    with pytest.raises(InputError, match="outside"):
        read_fiftyone(outside)[0].matte(outside, (2, 2))


def test_a_folder_says_itself_what_it_is(tmp_path: Path) -> None:
    assert labels_file(fiftyone(tmp_path / "f", {}), None) == tmp_path / "f" / "samples.json"
    coco_file = coco(tmp_path / "c", []) if (tmp_path / "c").mkdir() is None else None
    assert labels_file(tmp_path / "c", None) == coco_file
    (tmp_path / "c" / "labels.json").write_text("{}")
    assert labels_file(tmp_path / "c", None) is None


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A snapshot of six labelled photos, two of one name, and a captioned one."""
    root = tmp_path_factory.mktemp("frozen")
    settings = Settings(root, str(root / "inbox"), str(root / "store"), "", root / "params.yaml", "cpu")
    run = StorageRun(Params(), Layout(settings))
    store, catalog = run.store, run.catalog
    samples, labels = [], []
    for seed in range(7):
        drawn = generate("pets" if seed % 2 else "cards", seed, size=48)
        sample = put_blob(store, cv2.imencode(".png", drawn.image[..., ::-1])[1].tobytes())
        captioned = seed == 6
        samples.append(
            {"id": sample, "kind": "text_image" if captioned else "pixel_labeled", "batch": "b", "width": 48}
            | {"height": 48, "format": "PNG", "name": "images/same.png" if seed < 4 else f"images/{seed}.png"}
            | {"category": None if captioned else drawn.category, "group": f"g{seed}", "role": "train"}
            | {"license": "CC0-1.0", "caption": "=a photo, of a card" if captioned else None}
        )
        if not captioned:
            alpha = put_blob(store, encode_alpha(drawn.alpha, sixteen_bit=seed == 0))
            labels.append(
                {"id": str(seed), "sample_id": sample, "alpha_sha256": alpha, "version": 1, "created_at": "1"}
            )
    catalog.add("samples", samples)
    catalog.add("labels", labels)
    versions = {name: catalog.version(name) for name in ("samples", "labels")}
    inputs: Any = {"catalog": versions | {"features": 0}, "champion": None, "anchor": None}
    build_snapshot(run.params.snapshot, catalog, inputs, run.layout.snapshot, Report("snapshot"))
    return run, {row["sample_id"]: row["alpha_sha256"] for row in labels}


def export(frozen: Any, out: Path, form: str) -> Report:
    return export_pools(frozen[0], out, Report("x"), form=form)


@pytest.mark.parametrize("form", ["folders", "coco", "fiftyone"])
def test_a_snapshot_comes_back_as_the_same_photos_mattes_and_categories(frozen: Any, tmp_path: Path, form: str) -> None:
    run, alphas = frozen
    samples, store = run.catalog.read("samples"), run.store
    report = export(frozen, tmp_path / "out", form)
    counts = {row["pool"]: (row["photos"], row["mattes"]) for row in report.tables["pools"]}
    assert counts == {"train_labeled": (6, 6), "train_text_image": (1, 0)}
    drops = {}
    for pool, kind in (("train_labeled", "pixel_labeled"), ("train_text_image", "text_image")):
        folder = tmp_path / "out" / pool
        listed = labels_file(folder, None)
        assert bool(listed) == (form != "folders")
        if listed:
            drops[kind] = Path(package_dataset(read_dataset(folder, listed), tmp_path / "in", kind, "b")["drop"])
        else:
            drops[kind] = package_folder(folder, tmp_path / "in", kind, "b").path
    known = samples.set_index("id")
    rows = [(drops["pixel_labeled"], row) for row in rows_of(drops["pixel_labeled"]).values()]
    assert {row["sha256"] for _, row in rows} == set(alphas)
    for drop, row in rows:
        assert sha256_file(drop / row["image"]) == row["sha256"] and row["category"] == known.category[row["sha256"]]
        before, after = load_alpha(fetch_blob(store, alphas[row["sha256"]])), load_alpha(drop / row["alpha"])
        assert np.array_equal(after, before >= 0.5 if form == "coco" else before)
        if form != "folders":
            assert (row["group"], row["role"], row["license"]) == (known.group[row["sha256"]], "train", "CC0-1.0")
    (text,) = rows_of(drops["text_image"]).values()
    assert text["caption"].lstrip("'") == "=a photo, of a card" and not text.get("category")


def test_an_export_into_the_present_folder_or_a_linked_one(
    frozen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mm export-data .` ended in a traceback, and a link to an empty folder in an error after all the work."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("there")
    monkeypatch.chdir(tmp_path / "here")
    export(frozen, Path(), "folders")
    export(frozen, tmp_path / "link", "folders")
    assert (tmp_path / "here" / "train_labeled").is_dir() and (tmp_path / "there" / "train_labeled").is_dir()
    assert (tmp_path / "link").is_symlink()


def test_exports_go_into_new_folders_only_and_mistakes_are_named(frozen: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="is there already"):
        export(frozen, tmp_path / "full", "folders")
    with pytest.raises(InputError, match="--as zip: unknown"):
        export(frozen, tmp_path / "new", "zip")
    with pytest.raises(InputError, match="--pool test: unknown"):
        export_pools(frozen[0], tmp_path / "new", Report("x"), form="coco", pools=["test"])
    with pytest.raises(InputError, match="no photos in eval"):
        export_pools(frozen[0], tmp_path / "new", Report("x"), form="coco", pools=["eval"])
    assert not (tmp_path / "new").exists()


def test_names_of_exported_photos_are_safe_and_different() -> None:
    taken: set[str] = set()
    sample = "a" * 64
    assert photo_name("images/Rex.jpg", sample, "JPEG", taken) == "Rex.jpg"
    assert photo_name("other/rex.PNG", sample, "PNG", taken) == f"rex-{sample[:12]}.PNG"
    assert photo_name("../../.hidden", sample, "WEBP", taken) == "hidden.webp"
    assert photo_name("a\\b\\c:d.jpg", sample, "JPEG", taken) == "c_d.jpg"


def test_a_photo_that_a_data_set_lists_twice_keeps_both_mattes(tmp_path: Path) -> None:
    """Ingest compares them and names the conflict; none of them is lost before that."""
    masks = [box_mask(2, 2, 12, 12), box_mask(8, 8, 20, 28)]
    labels = coco(tmp_path / "set", [on(n, DOG, plain_rle(mask)) for n, mask in enumerate(masks)], 2, file_name="a.png")
    package_dataset(read_dataset(tmp_path / "set", labels), tmp_path / "inbox", "pixel_labeled", "b")
    batch = tmp_path / "inbox" / "pixel_labeled" / "b"
    rows = list(read_manifest(batch / "manifest.csv"))
    assert [row.image for row in rows] == ["images/data/a.png"] * 2
    assert [load_alpha(batch / row.alpha).sum() for row in rows] == [mask.sum() for mask in masks]
