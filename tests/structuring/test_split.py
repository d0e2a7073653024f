import pandas as pd
import pytest

from mm_core.core.errors import InputError
from mm_core.core.params import SplitParams
from mm_core.core.records import Report
from mm_core.ingest.placement import SCHEMA
from mm_core.ingest.snapshot import read_pool, write_frames
from mm_core.storage.catalog import Catalog
from mm_core.structuring.difficulty import EXTRACTOR, version_for
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
