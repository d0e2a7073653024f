"""Suspect mattes and doubted eval labels go to people, and what people say of them comes to its place."""

import json

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from routing_house import House

from mm_core import stages
from mm_core.core.params import Params, RouteParams
from mm_core.core.records import write_json
from mm_core.imaging.images import load_alpha
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.placement import newest_labels
from mm_core.labeling.label_studio_format import brush_region, inbox
from mm_core.labeling.review import doubted_labels
from mm_core.labeling.rle import decode_rle
from mm_core.pinned_inputs import Run
from mm_core.storage.store import fetch_blob
from samplegen import write_drop

PARAMS = Params()
ROUTE = RouteParams(budget=0)


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    """Pages of Data Docs take longest and have tests of their own."""
    monkeypatch.setattr(DataDocs, "build", lambda self: None)


@pytest.fixture
def house(tmp_path):
    """A workspace into which a drop of six came, two of its mattes inverted."""
    house = House(tmp_path)
    folder = write_drop(tmp_path / "inbox", "pixel_labeled", "a", {"pets": 6}, seed=5, size=64, burst_share=0)
    for path in sorted((folder / "alphas").rglob("*.png"))[:2]:
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    stages.ingest(Run(PARAMS, house.layout))
    rejects = house.catalog.read("rejects")
    assert rejects["reason"].str.startswith("suspect matte").sum() == 2
    return house


def answer(task, alpha, when="2099-11-02T10:00:00Z", category="cards"):
    choice = {"type": "choices", "from_name": "category", "to_name": "image", "value": {"choices": [category]}}
    work = {"id": 1, "completed_by": 5, "updated_at": when, "result": [brush_region(alpha), choice]}
    return {**task, "annotations": [work]}


def shown(task):
    region = task["predictions"][0]["result"][0]
    return decode_rle(region["value"]["rle"], region["original_width"], region["original_height"])


def hand_in(house, tasks):
    inbox(house.layout).mkdir(parents=True, exist_ok=True)
    (inbox(house.layout) / "export.json").write_text(json.dumps(tasks))
    return stages.collect(Run(PARAMS, house.layout))


def current(house, sample):
    label = newest_labels(house.catalog.read("labels")).set_index("sample_id").loc[sample]
    return label, np.rint(load_alpha(fetch_blob(house.store, label["alpha_sha256"])) * 255).astype(np.uint8)


def test_suspect_mattes_are_sent_once_with_the_drops_matte(house):
    assert house.route(ROUTE.model_copy(update={"suspects": 1})).metrics["route/suspect"] == 1
    assert house.route(ROUTE).metrics["route/suspect"] == 1
    assert house.route(ROUTE).metrics["route/suspect"] == 0
    tasks = house.tasks()
    assert len({task["data"]["key"] for task in tasks}) == 2
    for task in tasks:
        assert task["data"]["queue"] == "suspect" and "suspect matte: inverted" in task["data"]["why"]
        assert shown(task).mean() > 127, "the inverted matte of the drop"
    assert house.catalog.read("samples")["id"].isin([task["data"]["key"] for task in tasks]).sum() == 0


def test_a_corrected_matte_enters_with_the_photo_and_counts(house):
    house.route(ROUTE)
    first, second = house.tasks()
    right = 255 - shown(first)
    report = hand_in(house, [answer(first, right), answer(second, shown(second))])
    assert sorted(report.facts["settled"]) == sorted([first["data"]["key"], second["data"]["key"]])
    assert house.catalog.read("rejects").empty
    label, alpha = current(house, first["data"]["key"])
    assert label["origin"] == "label_studio" and np.array_equal(alpha, right)
    _, kept = current(house, second["data"]["key"])
    assert np.array_equal(kept, shown(second)), "handed back as it was: taken as it is"
    sample = house.catalog.read("samples").set_index("id").loc[first["data"]["key"]]
    assert (sample["category"], sample["kind"]) == ("pets", "pixel_labeled"), "as the manifest says"
    before = house.catalog.versions()
    stages.collect(Run(PARAMS, house.layout))
    stages.ingest(Run(PARAMS, house.layout))
    assert house.catalog.versions() == before
    assert current(house, first["data"]["key"])[0]["origin"] == "label_studio"


def test_a_drop_that_left_the_inbox_is_waited_for(house):
    house.route(ROUTE)
    task = house.tasks()[0]
    key, right = task["data"]["key"], 255 - shown(task)
    manifest = house.layout.root / "inbox" / "pixel_labeled" / "a" / "manifest.csv"
    manifest.rename(manifest.with_name("away"))
    assert hand_in(house, [answer(task, right)]).facts["waiting"] == [key]
    manifest.with_name("away").rename(manifest)
    text = manifest.read_text()
    manifest.write_text(text + "\n")  # sent again: another manifest, so another arrival
    stages.ingest(Run(PARAMS, house.layout))
    stages.collect(Run(PARAMS, house.layout))
    assert np.array_equal(current(house, key)[1], right)


def test_killed_while_settling_the_next_pull_settles(house, monkeypatch):
    house.route(ROUTE)
    task = house.tasks()[0]
    right = 255 - shown(task)
    with monkeypatch.context() as patched:
        patched.setattr("mm_core.labeling.review._put_first", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            hand_in(house, [answer(task, right)])
    stages.collect(Run(PARAMS, house.layout))
    assert np.array_equal(current(house, task["data"]["key"])[1], right)


# ── eval ─────────────────────────────────────────────────────────────────────────────────────────


def judged(house, wrong, models=("simple", "hard", "semi", "multimodal", "champion"), digest="e", factor=9.0):
    """An eval set of the catalog's labelled photos, on which all models err as usual but for `wrong`."""
    stages.pin_inputs(Run(PARAMS, house.layout))
    stages.snapshot(Run(PARAMS.with_values(**{"snapshot.eval_share": 0.7}), house.layout))
    frame = pd.read_parquet(house.layout.snapshot / "eval.parquet")
    rng = np.random.default_rng(0)
    rows = [
        {"model": model, "precision": "float", "sample_id": row.sample_id, "category": row.category}
        | {"mse": 0.02 * rng.uniform(0.8, 1.2) * (factor if row.sample_id in wrong(frame) else 1)}
        for model in models
        for row in frame.itertuples()
    ]
    facts = json.loads((house.layout.snapshot / "snapshot.json").read_text())
    table = pa.Table.from_pandas(pd.DataFrame(rows)).replace_schema_metadata(
        {"mm": json.dumps({"eval_digest": digest})}
    )
    house.layout.per_image.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, house.layout.per_image)
    write_json(house.layout.snapshot / "snapshot.json", facts | {"eval_digest": "e"})
    return frame


def first_of(frame):
    return {frame["sample_id"].iloc[0]}


def test_a_label_that_all_models_contradict_is_asked_about_once(house):
    frame = judged(house, first_of)
    assert len(frame) >= 2
    assert list(doubted_labels(ROUTE, house.layout)["sample_id"]) == [frame["sample_id"].iloc[0]]
    report = house.route(RouteParams(budget=0, suspects=0))
    assert report.metrics["route/eval"] == 1
    (task,) = house.tasks()
    assert (task["data"]["queue"], task["data"]["key"]) == ("eval", frame["sample_id"].iloc[0])
    assert "has at least" in task["data"]["why"]
    assert np.array_equal(shown(task), current(house, task["data"]["key"])[1]), "its label is the start"
    assert house.route(RouteParams(budget=0, suspects=0)).metrics["route/eval"] == 0


def test_a_corrected_eval_label_changes_the_digest_but_not_the_membership(house):
    frame = judged(house, first_of)
    house.route(RouteParams(budget=0, suspects=0))
    (task,) = house.tasks()
    stages.snapshot(Run(PARAMS.with_values(**{"snapshot.eval_share": 0.7}), house.layout))
    before = json.loads((house.layout.snapshot / "snapshot.json").read_text())["eval_digest"]
    hand_in(house, [answer(task, 255 - shown(task))])
    assert house.catalog.read("samples").set_index("id").loc[task["data"]["key"], "category"] == "pets", "stays"
    stages.pin_inputs(Run(PARAMS, house.layout))
    stages.snapshot(Run(PARAMS.with_values(**{"snapshot.eval_share": 0.7}), house.layout))
    again = pd.read_parquet(house.layout.snapshot / "eval.parquet")
    assert list(again["sample_id"]) == list(frame["sample_id"])
    assert json.loads((house.layout.snapshot / "snapshot.json").read_text())["eval_digest"] != before
    # Judged anew and still contradicted: the new label has not been asked about.
    judged(house, first_of)
    assert house.route(RouteParams(budget=0, suspects=0)).metrics["route/eval"] == 1


@pytest.mark.parametrize(
    "how", [{"models": ("multimodal", "champion")}, {"digest": "another"}, {"factor": 3.0}], ids=str
)
def test_no_label_is_doubted_on_thin_evidence(house, how):
    judged(house, first_of, **how)
    assert doubted_labels(ROUTE, house.layout).empty


def test_one_model_that_agrees_with_the_label_saves_it(house):
    frame = judged(house, first_of)
    table = pq.read_table(house.layout.per_image)
    rows = table.to_pandas()
    mine = (rows["sample_id"] == frame["sample_id"].iloc[0]) & (rows["model"] == "champion")
    rows.loc[mine, "mse"] = 0.02
    pq.write_table(pa.Table.from_pandas(rows).replace_schema_metadata(table.schema.metadata), house.layout.per_image)
    assert doubted_labels(ROUTE, house.layout).empty
