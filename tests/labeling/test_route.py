"""Route on a real catalog: budgets, the first pass, need, feedback, guesses, a kill in between."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from routing_house import SIDE, House, cell, verdict

from mm_core.core.errors import InputError
from mm_core.core.params import RouteParams, SnapshotParams
from mm_core.imaging.images import load_rgb
from mm_core.ingest.placement import stable_share
from mm_core.labeling.candidates import candidates, first_pass, sent_today
from mm_core.labeling.need import MOST, UNSETTLED, category_need
from mm_core.labeling.rle import decode_rle
from mm_core.labeling.route import explain
from mm_core.labeling.starter import cold_start
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import fetch_blob

MONDAY = datetime(2026, 11, 2, 10, tzinfo=UTC)
EVAL_GROUP = next(f"n{n}" for n in range(99) if stable_share(f"n{n}", "eval") < SnapshotParams().eval_share)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.fixture
def champion(house, tmp_path):
    return house.crown(tmp_path / "m.safetensors")


def keys(tasks):
    return [task["data"]["key"] for task in tasks]


def test_the_budgets_of_the_day_hold_over_runs(house):
    for n in range(30):
        house.add(n, category=("pets", "cards")[n % 2])
    params = RouteParams(budget=4, per_day=10, per_category=6)
    counts = [house.route(params, now=MONDAY + timedelta(hours=h)).metrics["route/chosen"] for h in range(4)]
    assert counts == [4, 4, 2, 0]
    assert house.route(params, now=MONDAY + timedelta(days=1)).metrics["route/chosen"] == 4
    few = RouteParams(budget=4, per_day=10, per_category=3)
    report = house.route(few, now=MONDAY + timedelta(days=1, hours=1))
    assert report.metrics["route/sent_today_before"] == 4
    assert report.metrics["route/chosen"] == 2, "two of each category were sent, three may be"
    assert len(keys(house.tasks())) == len(set(keys(house.tasks()))) == 16


def test_every_task_says_why_and_the_catalog_holds_the_parts(house, champion):
    for n in range(6):
        house.add(n, category="pets")
    house.route(RouteParams(budget=3), now=MONDAY)
    rows = house.catalog.read("features").query("extractor == 'routed'").set_index("sample_id")
    for task in house.tasks():
        data, row = task["data"], rows.loc[task["data"]["key"]]
        numbers, texts = dict(row["numbers"]), dict(row["texts"])
        assert data["queue"] == texts["queue"] == "train"
        assert data["why"] == texts["why"] and data["why"].startswith("Chosen because ")
        parts = ("uncertainty", "difficulty", "diversity", "need", "feedback")
        assert np.prod([numbers[name] for name in parts]) == pytest.approx(numbers["score"])
        assert data["score"] == pytest.approx(numbers["score"], abs=1e-4)
        assert {"entropy", "tta_variance", "matte_difficulty"} < set(numbers)
        assert texts["model"].startswith("3:") and texts["category"] == "pets"


def test_the_same_catalog_and_seed_choose_the_same(tmp_path):
    chosen = []
    for place, order, seed in (("a", range(40), 0), ("b", reversed(range(40)), 0), ("c", range(40), 1)):
        house = House(tmp_path / place)
        for n in order:
            house.add(n)
            house.vector(n, np.eye(40)[n // 4])
        house.route(RouteParams(budget=5, look=8, seed=seed), now=MONDAY)
        chosen.append(keys(house.tasks()))
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_an_undeclared_burst_takes_one_place_and_labelled_scenes_none(house):
    burst = [house.add(n) for n in range(8)]
    others = [house.add(n) for n in range(20, 24)]
    old = house.add(50)
    house.catalog.add("labels", [{"id": old, "sample_id": old, "alpha_sha256": "a", "version": 1}])
    again = house.add(51)
    for n in range(8):
        house.vector(n, np.eye(8)[0] + 1e-3 * n)
    for n in range(20, 24):
        house.vector(n, np.eye(8)[n - 18])
    house.vector(50, np.eye(8)[1])
    house.vector(51, np.eye(8)[1] + 1e-3)
    house.route(RouteParams(budget=5), now=MONDAY)
    sent = set(keys(house.tasks()))
    assert set(others) < sent and len(sent & set(burst)) == 1 and again not in sent


def test_a_weak_category_gets_its_share_of_the_look_and_the_tasks(house):
    for n in range(40):
        house.add(n, category="portrait" if n else "cards")
    for n in range(40, 44):
        house.add(n, category="cards")
    house.judge(verdict([cell("cards", 0.2, "unclear"), cell("portrait", 0.02, "pass")]))
    report = house.route(RouteParams(budget=8, look=10), now=MONDAY)
    sent = [task["data"]["category"] for task in house.tasks()]
    assert sent.count("cards") == 5, "all there are: one in nine photos"
    assert report.tables["need"][0]["category"] == "cards"
    assert "result was unclear" in next(t["data"]["why"] for t in house.tasks() if t["data"]["category"] == "cards")


def test_eval_photos_and_their_groups_are_never_looked_at(house, champion):
    far = house.add(1)
    house.add(2, kind="pixel_labeled", category="pets", group=EVAL_GROUP)
    house.add(4, group=EVAL_GROUP)
    house.add(6, role="eval")
    report = house.route(RouteParams(), now=MONDAY)
    assert keys(house.tasks()) == [far] and report.metrics["route/looked_at"] == 1


def test_the_cost_of_a_look_does_not_grow_with_the_catalog(house):
    for n in range(60):
        house.add(n, group=f"g{n // 3}")
    report = house.route(RouteParams(budget=2, look=4), now=MONDAY)
    assert report.metrics["route/candidates"] == 60
    assert report.metrics["route/looked_at"] == 4


def test_a_photo_that_lost_once_does_not_keep_others_from_a_look(house):
    for n in range(60):
        house.add(n)
    params, seen = RouteParams(budget=1, look=2), set()
    for hour in range(9):
        found = candidates(house.catalog, SnapshotParams())
        looked = first_pass(params, house.catalog, found, {})
        again = first_pass(params, house.catalog, found, {})
        assert list(looked.table["sample_id"]) == list(again.table["sample_id"])
        seen |= set(looked.table["sample_id"])
        house.route(params, now=MONDAY + timedelta(hours=hour))
    assert len(seen) > 2 + 8, "one draw that only fills up would show ten"


def test_a_photo_that_users_complained_of_is_looked_at_and_comes_first(house):
    bad = [house.add(n) for n in range(30)][17]
    house.feature(bad, "feedback", {"reports": 1})
    report = house.route(RouteParams(budget=1, look=2), now=MONDAY)
    (task,) = house.tasks()
    assert task["data"]["key"] == bad and "users complained" in task["data"]["why"]
    assert report.tables["routed"][0]["feedback"] == 2


def test_a_guessed_category_counts_but_is_not_put_into_the_persons_mouth(house, champion):
    known, guessed = house.add(1, category="pets"), house.add(2)
    house.feature(guessed, "guess", {"confidence": 0.9}, {"category": "cards"})
    house.feature(guessed, "clip", {}, {"tags": "envelope; menu"})
    house.route(RouteParams(), now=MONDAY)
    tasks = {task["data"]["key"]: task for task in house.tasks()}
    assert tasks[known]["data"]["category"] == "pets" and "category" not in tasks[guessed]["data"]
    assert sent_today(house.catalog, MONDAY) == {"pets": 1, "cards": 1}
    assert tasks[guessed]["data"]["tags"] == "guessed cards, envelope, menu"
    assert [region["type"] for region in tasks[guessed]["predictions"][0]["result"]] == ["brushlabels"]


@pytest.mark.parametrize("moment", ["before the rows", "after the rows"])
def test_killed_in_between_the_day_is_counted_once(house, monkeypatch, moment):
    for n in range(9):
        house.add(n)
    params = RouteParams(budget=4, per_day=6)

    def dying(table, rows):
        if moment == "after the rows":
            Catalog(house.store.url).upsert(table, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(house.catalog, "upsert", dying)
        with pytest.raises(KeyboardInterrupt):
            house.route(params, now=MONDAY)
    for _ in range(3):
        house.route(params, now=MONDAY)
    sent = keys(house.tasks())
    assert len(sent) == len(set(sent)) == 6


# ── need ─────────────────────────────────────────────────────────────────────────────────────────


def test_need_follows_the_error_of_the_model_in_use_and_what_the_gate_left_open(house):
    assert category_need(house.layout, house.inputs) == {}
    cells = [cell("pets", 0.1, "pass"), cell("cards", 0.3, "unclear"), cell("delicacy", 0.02, "pass", candidate=0.5)]
    house.judge(verdict([*cells, cell("scenery", 9.0, "fail")]))
    need = category_need(house.layout, house.inputs)
    assert set(need) == {"pets", "cards", "delicacy"}, "scenery is not judged"
    mean = (0.1 + 0.3 + 0.02) / 3
    assert need["pets"].weight == pytest.approx(0.1 / mean)
    assert need["cards"].weight == pytest.approx(MOST * UNSETTLED)
    assert need["delicacy"].weight == 0.5, "the floor"
    assert need["cards"].why == "error 2.1 times the mean, the gate's result was unclear"
    house.judge(verdict([cell("pets", 0.102, "pass"), cell("cards", 0.1, "pass"), cell("delicacy", 0.098, "pass")]))
    assert {one.why for one in category_need(house.layout, house.inputs).values()} == {""}, "2 % is no reason"
    house.judge(verdict([*cells, cell("scenery", 9.0, "fail")]))
    # Promoted: the candidate is the model in use.
    house.inputs["champion"] = {"version": "9", "digest": "c" * 64, "files": {}}
    assert category_need(house.layout, house.inputs)["delicacy"].weight == pytest.approx(MOST)


def test_the_sentence_names_what_speaks_for_the_photo():
    row = {"category": "pets", "feedback": 1.0, "uncertainty": 0.96, "difficulty": 0.6, "diversity": 0.7}
    text = "Chosen because the model is less sure of it than of 92 % of pets; it is unlike the photos labelled so far."
    assert explain(row, None) == text
    row = {"category": None, "feedback": 1.0, "quality": 0.5, "diversity": 0.1}
    assert explain(row, None) == "Chosen because no better photo is left."


def test_tasks_are_json_that_says_nothing_of_this_machine(house):
    house.add(1)
    report = house.route(RouteParams(), now=MONDAY)
    text = Path(report.facts["tasks"]).read_text()
    assert str(house.layout.root) not in text and json.loads(text)


def test_before_a_champion_the_candidates_mattes_begin_the_tasks(house, tmp_path):
    house.add(1, category="pets")
    weights = house.layout.model("multimodal")
    weights.parent.mkdir(parents=True)
    house.crown(weights)
    house.inputs["champion"] = None
    house.route(RouteParams(), now=MONDAY)
    (task,) = house.tasks()
    (made,) = task["predictions"]
    assert made["model_version"].startswith("candidate:")
    assert [region["type"] for region in made["result"]] == ["brushlabels", "choices"]


def starter(path, ceiling=1.0, size=32):
    """An ONNX model whose map is the red channel as it is normalised, times `ceiling`."""
    import torch

    class Red(torch.nn.Module):
        def forward(self, image):
            return image[:, :1] * ceiling

    torch.onnx.export(Red(), (torch.zeros(1, 3, size, size),), str(path), input_names=["x"], dynamo=False)
    return str(path)


def test_any_onnx_model_named_in_params_begins_the_tasks(house, tmp_path):
    house.add(1)
    plain = {"starter_mean": (0.0, 0.0, 0.0), "starter_std": (1.0, 1.0, 1.0)}
    params = RouteParams(starter=starter(tmp_path / "red.onnx"), **plain)
    house.route(params, now=MONDAY)
    (task,) = house.tasks()
    (made,) = task["predictions"]
    assert made["model_version"].startswith("starter:red:")
    drawn = decode_rle(made["result"][0]["value"]["rle"], SIDE, SIDE)
    photo = load_rgb(fetch_blob(house.store, task["data"]["key"]))
    assert np.corrcoef(drawn.ravel(), photo[..., 0].ravel())[0, 1] > 0.5
    logits, name = cold_start(params.model_copy(update={"starter": starter(tmp_path / "l.onnx", 20.0)}), house.layout)
    half = np.full((8, 8, 3), 255, np.uint8)
    assert logits.predict([half], ["saliency"])[0].min() > 0.99 and name.startswith("starter:l:")


def test_what_is_wrong_with_a_starter_is_named(house, tmp_path):
    with pytest.raises(InputError, match=r"route\.starter: .*no such file"):
        cold_start(RouteParams(starter=str(tmp_path / "none.onnx")), house.layout)
    (tmp_path / "text.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot load it"):
        cold_start(RouteParams(starter=str(tmp_path / "text.onnx")), house.layout)
    assert cold_start(RouteParams(), house.layout) == (None, "none")
