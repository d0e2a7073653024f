import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapes import disk, hair, painted

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.imaging.images import encode_alpha
from mm_core.ingest.placement import newest_labels
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, blob_key, put_blob
from mm_core.structuring import run_extractors, structure
from mm_core.structuring.decode import DECODE_SIDE, decode
from mm_core.structuring.embedding import DIM
from mm_core.structuring.structure import difficulty_of, structure_new

PARAMS = Params().with_values(**{"structure.ocr": ()})


def layout_of(store):
    return Layout(Settings.from_env(Path(store.url).parent))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def catalog(store):
    return Catalog(store.url)


def add_photo(catalog, store, alpha, category="pets", colour=(200, 60, 40)):
    stream = io.BytesIO()
    Image.fromarray(painted(alpha, inside=colour)).save(stream, "PNG")
    sample = put_blob(store, stream.getvalue())
    catalog.add("samples", [{"id": sample, "kind": "pixel_labeled", "category": category, "group": sample}])
    return sample


def add_label(catalog, store, sample, alpha, version=1):
    digest = put_blob(store, encode_alpha(alpha))
    row = {"id": f"{sample}{digest}", "sample_id": sample, "alpha_sha256": digest, "version": version}
    catalog.add("labels", [row | {"created_at": "2026-01-01"}])
    return digest


def run(catalog, store):
    seen = []
    report = Report("structure")
    structure_new(StorageRun(PARAMS, layout_of(store), lambda *step: seen.append(step)), report)
    return report, seen


def test_every_photo_and_label_is_measured_once(catalog, store):
    labelled = add_photo(catalog, store, disk())
    add_label(catalog, store, labelled, disk())
    add_photo(catalog, store, hair(), category=None)
    report, seen = run(catalog, store)
    assert report.metrics == {
        "structure/samples": 2, "structure/photos": 2, "structure/labels": 1, "structure/unreadable": 0,
        "structure/classifier": 2, "structure/guesses": 0, "structure/guesses_withheld": 1,
    }  # fmt: skip
    assert seen[-1] == ("structure", 2, 2)
    features = catalog.read("features")
    assert sorted(features["extractor"]) == ["classifier", "classifier", "difficulty", "guess", "photo", "photo"]
    assert report.tables["difficulty"][0]["category"] == "pets"
    before = catalog.version("features")
    report, _ = run(catalog, store)
    assert report.metrics["structure/photos"] == report.metrics["structure/labels"] == 0
    assert catalog.version("features") == before


def test_a_new_label_version_is_scored_again(catalog, store):
    sample = add_photo(catalog, store, disk())
    add_label(catalog, store, sample, disk())
    run(catalog, store)
    first = difficulty_of(newest_labels(catalog.read("labels")), catalog.read("features"))[sample]
    add_label(catalog, store, sample, hair(), version=2)
    labels = newest_labels(catalog.read("labels"))
    assert np.isnan(difficulty_of(labels, catalog.read("features"))[sample])
    report, _ = run(catalog, store)
    assert (report.metrics["structure/photos"], report.metrics["structure/labels"]) == (0, 1)
    assert difficulty_of(labels, catalog.read("features"))[sample] > first


def test_a_killed_run_keeps_its_chunks_and_the_next_goes_on(catalog, store, monkeypatch):
    monkeypatch.setattr(structure, "CHUNK", 4)
    for step in range(12):
        add_photo(catalog, store, disk(20), colour=(step, 100, 100))

    def kill(_what, done, _total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        structure_new(StorageRun(PARAMS, layout_of(store), kill), Report("structure"))
    assert catalog.read("features")["sample_id"].nunique() == 8
    report, _ = run(catalog, store)
    assert report.metrics["structure/photos"] == 4
    assert catalog.read("features").groupby("extractor").size().to_dict() == {"classifier": 12, "photo": 12}


def test_a_lost_blob_is_reported_and_tried_again(catalog, store):
    sample, other = add_photo(catalog, store, disk()), add_photo(catalog, store, hair())
    kept = store.fetch(blob_key(sample)).read_bytes()
    store.delete(blob_key(sample))
    report, _ = run(catalog, store)
    assert [row["sample_id"] for row in report.tables["unreadable"]] == [sample]
    assert set(catalog.read("features")["sample_id"]) == {other}
    store.put(blob_key(sample), kept)
    report, _ = run(catalog, store)
    assert report.metrics["structure/photos"] == 1


def test_what_is_not_there_is_said_and_nothing_is_made_up(catalog, store):
    add_photo(catalog, store, disk(), category="cards")
    params = PARAMS.with_values(**{"structure.ocr": (), "structure.classifier": ""})
    report = Report("structure")
    assert structure_new(StorageRun(params, layout_of(store)), report)[0] == "embedding"
    assert set(report.facts["left_out"]) == {"clip", "classifier", "ocr"}
    assert "structure.ocr" in report.facts["left_out"]["ocr"] and "pretrained" in report.facts["left_out"]["clip"]
    features = catalog.read("features").set_index("extractor")
    assert set(features.index) == {"photo", "embedding"}
    assert len(features.loc["embedding", "vector"]) == DIM


def test_a_photo_is_decoded_once_for_all_that_look_at_it(catalog, store, monkeypatch):
    sample = add_photo(catalog, store, disk())
    add_label(catalog, store, sample, disk())
    decoded = []

    def counting(path):
        decoded.append(path)
        return decode(path)

    monkeypatch.setattr(run_extractors, "decode", counting)
    run(catalog, store)
    rows = catalog.read("features").set_index("extractor")
    assert set(rows.index) == {"photo", "classifier", "difficulty"} and len(decoded) == 1
    assert rows.loc["photo", "texts"]["path"] == blob_key(sample)
    assert 0 < rows.loc["photo", "numbers"]["aesthetic"] < 1
    assert len(rows.loc["classifier", "vector"]) == 1280 and rows.loc["classifier", "texts"]["tags"]


@pytest.mark.parametrize("width", [300, DECODE_SIDE + 40, 2 * DECODE_SIDE + 40])
def test_the_decode_is_no_larger_than_asked_and_no_smaller_than_it_was(tmp_path, width):
    left = np.where(np.arange(width)[None, :, None] < width // 2, (200, 40, 40), (40, 40, 200))
    Image.fromarray(np.broadcast_to(left, (80, width, 3)).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    rgb = decode(tmp_path / "a.jpg")
    assert rgb.shape[1] == min(width, DECODE_SIDE) and rgb.dtype == np.uint8
    assert (
        np.abs(rgb[:, 20].mean(0) - (200, 40, 40)).max() < 8 and np.abs(rgb[:, -20].mean(0) - (40, 40, 200)).max() < 8
    )


def test_an_empty_catalog_is_no_error(catalog, store):
    report, _ = run(catalog, store)
    assert report.metrics["structure/samples"] == 0
