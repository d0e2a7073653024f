import cv2
import numpy as np
import pandas as pd
import pytest

from mm_core.core.errors import InputError
from mm_core.core.params import SplitParams
from mm_core.core.records import Report
from mm_core.imaging.images import encode_alpha
from mm_core.ingest.snapshot import SCHEMA, read_pool, write_frames
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import LocalStore, put_blob
from mm_core.structuring.difficulty import EXTRACTOR, version_for
from mm_core.structuring.judged import judged, measure
from mm_core.structuring.split import hard_count, split_by_difficulty


@pytest.fixture
def catalog(tmp_path):
    return Catalog(str(tmp_path / "store"))


def prepare(catalog, tmp_path, scores):
    """A snapshot whose labelled pool holds `{(sample id, category): difficulty}`, scored in the catalog."""
    common = {"decoder": "saliency", "label_version": 1}
    rows = [
        common | {"sample_id": i, "category": category, "group": i, "alpha_sha256": f"alpha {i}"}
        for i, category in sorted(scores, key=lambda key: key[0])
    ]
    frame = pd.DataFrame(rows).reindex(columns=SCHEMA.names)
    frame["label_version"] = frame["label_version"].astype("Int32")
    write_frames(tmp_path / "snapshot", {"train_labeled": frame}, SCHEMA)
    features = [
        {"sample_id": i, "extractor": EXTRACTOR, "version": version_for(f"alpha {i}"), "numbers": {"score": score}}
        for (i, _), score in scores.items()
    ]
    catalog.add("features", features)
    return {"catalog": {"features": catalog.version("features")}}


def split(catalog, tmp_path, inputs, share=0.25, min_hard=0):
    params = SplitParams(hard_share=share, min_hard=min_hard)
    report = Report("split")
    split_by_difficulty(params, catalog, inputs, tmp_path / "snapshot", tmp_path / "split", report)
    return report, read_pool(tmp_path / "split", "simple"), read_pool(tmp_path / "split", "hard")


def test_the_hardest_of_each_category_are_hard(catalog, tmp_path):
    scores = {(f"p{n}", "pets"): n / 10 for n in range(8)} | {(f"c{n}", "cards"): 0.9 + n / 100 for n in range(4)}
    inputs = prepare(catalog, tmp_path, scores)
    report, simple, hard = split(catalog, tmp_path, inputs)
    assert set(hard["sample_id"]) == {"p6", "p7", "c3"}
    assert set(simple["sample_id"]) == {i for i, _ in scores} - {"p6", "p7", "c3"}
    assert list(simple.columns) == [*SCHEMA.names, "difficulty"]
    assert list(simple["sample_id"]) == sorted(simple["sample_id"])
    assert report.tables["split"] == [
        {"category": "cards", "simple": 3, "hard": 1, "threshold": 0.93, "mean_simple": 0.91, "mean_hard": 0.93},
        {"category": "pets", "simple": 6, "hard": 2, "threshold": 0.6, "mean_simple": 0.25, "mean_hard": 0.65},
    ]
    assert report.metrics == {"split/simple": 9, "split/hard": 3}


def test_too_few_hard_photos_are_learned_with_the_simple_ones(catalog, tmp_path):
    inputs = prepare(catalog, tmp_path, {(f"p{n}", "pets"): n / 10 for n in range(8)})
    report, simple, hard = split(catalog, tmp_path, inputs, min_hard=3)
    assert (len(simple), len(hard)) == (8, 0) and report.metrics == {"split/simple": 8, "split/hard": 0}
    assert "2 hard photos are fewer than split.min_hard 3" in report.facts["hard"]
    assert len(split(catalog, tmp_path, inputs, min_hard=2)[2]) == 2


def test_same_input_same_bytes_also_with_equal_scores(catalog, tmp_path):
    inputs = prepare(catalog, tmp_path, {(f"p{n}", "pets"): 0.5 for n in range(9)})
    _, _, hard = split(catalog, tmp_path, inputs)
    before = (tmp_path / "split" / "hard.parquet").read_bytes()
    split(catalog, tmp_path, inputs)
    assert (tmp_path / "split" / "hard.parquet").read_bytes() == before
    assert list(hard["sample_id"]) == ["p0", "p1"]


@pytest.mark.parametrize(
    ("count", "share", "hard"), [(1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.25, 2), (8, 0.25, 2)]
)
def test_one_at_least_on_each_side_where_there_are_two(count, share, hard):
    assert hard_count(count, share) == hard


def test_unknown_categories_form_one_of_their_own(catalog, tmp_path):
    inputs = prepare(catalog, tmp_path, {("a", None): 0.1, ("b", None): 0.2, ("c", "pets"): 0.9})
    _, simple, hard = split(catalog, tmp_path, inputs)
    assert list(hard["sample_id"]) == ["b"]
    assert simple["category"].isna().sum() == 1


def test_an_empty_pool_gives_empty_sets(catalog, tmp_path):
    write_frames(tmp_path / "snapshot", {"train_labeled": SCHEMA.empty_table().to_pandas()}, SCHEMA)
    _, simple, hard = split(catalog, tmp_path, {"catalog": {"features": -1}})
    assert len(simple) == len(hard) == 0


def test_a_label_that_was_not_scored_is_an_error_that_says_what_to_do(catalog, tmp_path):
    inputs = prepare(catalog, tmp_path, {("a", "pets"): 0.1, ("b", "pets"): 0.2})
    frame = read_pool(tmp_path / "snapshot", "train_labeled")
    frame.loc[0, "alpha_sha256"] = "a newer matte"
    write_frames(tmp_path / "snapshot", {"train_labeled": frame}, SCHEMA)
    with pytest.raises(InputError, match="1 of 2 labels.*mm ingest"):
        split(catalog, tmp_path, inputs)
    with pytest.raises(InputError, match="2 of 2 labels"):
        split(catalog, tmp_path, {"catalog": {"features": -1}})


class Sure:
    """A champion that takes everything for foreground; counts what it was asked."""

    def __init__(self):
        self.asked = []

    def predict(self, photos, decoders):
        self.asked += decoders
        return [np.ones(photo.shape[:2], np.float32) for photo in photos]

    def choose(self, photos):
        return ["portrait"] * len(photos)


def test_what_the_champion_gets_wrong_is_hard_where_it_has_a_say(catalog, tmp_path):
    """The label's own difficulty says the opposite; what was measured is kept per champion and label."""
    store = LocalStore(tmp_path / "store")
    grey = cv2.imencode(".png", np.full((40, 60, 3), 99, np.uint8))[1].tobytes()
    mattes = {}
    for n in range(4):
        alpha = np.zeros((40, 60), np.float32)
        alpha[:, 10 * n :] = 1
        alpha[:10] = 0.2 * n + 0.1
        mattes[n] = put_blob(store, encode_alpha(alpha))
    # Distinct files of one picture: what follows a PNG's end is not read.
    photos = sorted(put_blob(store, grey + bytes([n])) for n in range(4))
    inputs = prepare(catalog, tmp_path, {(photo, "pets" if n else None): n / 10 for n, photo in enumerate(photos)})
    frame = read_pool(tmp_path / "snapshot", "train_labeled").assign(alpha_sha256=[mattes[n] for n in range(4)])
    write_frames(tmp_path / "snapshot", {"train_labeled": frame}, SCHEMA)
    rows = [(p, version_for(mattes[n]), n / 10) for n, p in enumerate(photos)]
    catalog.add(
        "features",
        [{"sample_id": p, "extractor": EXTRACTOR, "version": v, "numbers": {"score": s}} for p, v, s in rows],
    )
    inputs = {"catalog": {"features": catalog.version("features")}}
    sure = Sure()

    def champion(digest):
        return lambda labels: judged(labels, digest, lambda: sure, catalog, store, lambda what, done, total: None)

    def hard(share, digest="c" * 64):
        params, report = SplitParams(hard_share=0.34, model_share=share, min_hard=0), Report("split")
        at = (tmp_path / "snapshot", tmp_path / "split", report)
        split_by_difficulty(params, catalog, inputs, *at, champion(digest))
        return read_pool(tmp_path / "split", "hard")["sample_id"].tolist(), report.metrics

    assert hard(0.0)[0] == [photos[3]] and not sure.asked
    found, metrics = hard(1.0)
    assert found == [photos[1]] and 0 < metrics["split/champion_error"] < 1
    assert sorted(sure.asked) == ["portrait", "saliency", "saliency", "saliency"]
    assert hard(1.0)[0] == found and len(sure.asked) == 4
    hard(1.0, "d" * 64)
    assert len(sure.asked) == 8
    kept = catalog.read("features", filters=[("extractor", "=", "judged")])
    assert len(kept) == 8 and set(dict(kept["numbers"][0])) == {"band", "error", "entropy"}


def test_the_signals_of_a_matte_against_its_label():
    truth = np.zeros((40, 40), np.float32)
    truth[:, 20:] = 1
    right, inverted, unsure = (measure(truth, matte) for matte in (truth, 1 - truth, np.full_like(truth, 0.5)))
    assert right["band"] == right["error"] == 0 and right["entropy"] < 1e-3
    assert inverted["band"] == inverted["error"] == 1
    assert unsure == {"band": 0.5, "error": 0.25, "entropy": pytest.approx(1)}
    shifted = np.roll(truth, 2, axis=1)
    shifted[:, :2] = 0
    assert measure(truth, shifted)["band"] == pytest.approx(2 / 6)  # two of the six columns around the edge
