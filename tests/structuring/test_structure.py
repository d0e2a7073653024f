import io

import numpy as np
import pytest
from PIL import Image
from shapes import disk, hair, painted

from mm_core.catalog import Catalog
from mm_core.data.images import encode_alpha
from mm_core.data.snapshot import newest_labels
from mm_core.records import Report
from mm_core.store import LocalStore, blob_key, put_blob
from mm_core.structuring import structure
from mm_core.structuring.structure import difficulty_of, structure_new


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
    report = structure_new(catalog, store, Report("structure"), progress=lambda *step: seen.append(step))
    return report, seen


def test_every_photo_and_label_is_measured_once(catalog, store):
    labelled = add_photo(catalog, store, disk())
    add_label(catalog, store, labelled, disk())
    add_photo(catalog, store, hair(), category=None)
    report, seen = run(catalog, store)
    assert report.metrics == {
        "structure/samples": 2, "structure/photos": 2, "structure/labels": 1, "structure/unreadable": 0
    }  # fmt: skip
    assert seen[-1] == ("structure", 2, 2)
    features = catalog.read("features")
    assert sorted(features["extractor"]) == ["difficulty", "photo", "photo"]
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
        structure_new(catalog, store, Report("structure"), progress=kill)
    assert len(catalog.read("features")) == 8
    report, _ = run(catalog, store)
    assert report.metrics["structure/photos"] == 4
    assert len(catalog.read("features")) == 12


def test_a_lost_blob_is_reported_and_tried_again(catalog, store):
    sample, other = add_photo(catalog, store, disk()), add_photo(catalog, store, hair())
    kept = store.fetch(blob_key(sample)).read_bytes()
    store.delete(blob_key(sample))
    report, _ = run(catalog, store)
    assert [row["sample_id"] for row in report.tables["unreadable"]] == [sample]
    assert list(catalog.read("features")["sample_id"]) == [other]
    store.put(blob_key(sample), kept)
    report, _ = run(catalog, store)
    assert report.metrics["structure/photos"] == 1


def test_an_empty_catalog_is_no_error(catalog, store):
    report, _ = run(catalog, store)
    assert report.metrics["structure/samples"] == 0
