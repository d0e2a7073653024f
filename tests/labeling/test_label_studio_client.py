"""Push, people and pull against a real Label Studio server."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from annotator import NAME, SimulatedAnnotator, add_account, annotate, edit
from label_house import LabelHouse, server_of
from PIL import Image

from mm_core.core.errors import LabelServerError
from mm_core.core.params import LabelParams
from mm_core.labeling import label_studio_client
from mm_core.labeling.apply_annotations import REFUSED
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import brush_region, choice_region
from mm_core.labeling.label_studio_local import LocalServer, read_account
from mm_core.labeling.rle import decode_rle

PASSWORD = "simulated-people-only"


def person(local: LocalServer, title: str, name: str) -> Server:
    """A server handle of an account of its own, made on first use."""
    made = local.__dict__.setdefault("accounts", {})
    if name not in made:
        made[name] = add_account(server_of(local, title), f"{name}@localhost.example", PASSWORD)
    return server_of(local, title, made[name])


def decoded(region: dict) -> np.ndarray:
    return decode_rle(region["value"]["rle"], region["original_width"], region["original_height"])


def test_only_pictures_and_imports_bypass_the_sdk() -> None:
    """A request for projects, tasks, annotations, webhooks or users outside of label-studio-sdk fails here."""
    labeling = Path(label_studio_client.__file__).parent
    client = ast.parse((labeling / "label_studio_client.py").read_text())
    (server,) = [node for node in client.body if isinstance(node, ast.ClassDef) and node.name == "Server"]
    plain = {
        method.name
        for method in server.body
        if isinstance(method, ast.FunctionDef)
        and any(isinstance(node, ast.Attribute) and node.attr in ("_call", "_http") for node in ast.walk(method))
    }
    assert plain == {"__init__", "close", "_call", "uploads", "upload", "import_tasks", "remove_uploads"}
    http = re.compile(r"^\s*(?:import|from) (?:httpx|requests|aiohttp|urllib3|urllib\.request|http\.client)\b", re.M)
    assert {path.stem for path in labeling.glob("*.py") if http.search(path.read_text())} == {
        "label_studio_http",  # the client of the two, and of the SDK
        "label_studio_local",  # asks whether the local server has started
    }
    assert {path.stem for path in labeling.parent.rglob("*.py") if "PatientClient(" in path.read_text()} == {
        "label_studio_http", "label_studio_client"
    }  # fmt: skip


def test_the_whole_loop(tmp_path, label_studio, title):
    house = LabelHouse(tmp_path, 24)
    house.route(24)
    server = server_of(label_studio, title)
    assert house.push(server)["push/tasks"] == 24
    keys = sorted(house.truth)

    # What people see: the sent mattes bit for bit, an upright photo of their size, scores to sort by.
    tasks = server.tasks_of(keys)
    assert sorted(tasks) == keys and all(len(found) == 1 for found in tasks.values())
    sent = house.sent_mattes()
    for key, (task,) in tasks.items():
        (prediction,) = server.sdk.predictions.list(task=task["id"])
        assert np.array_equal(decoded(prediction.result[0]), sent[key])
        assert (prediction.model_version or "").startswith("3:") and 0 <= (prediction.score or 0) <= 1
        picture = server._http.get(task["data"]["image"])
        (tmp_path / "shown.jpg").write_bytes(picture.content)
        assert Image.open(tmp_path / "shown.jpg").size == sent[key].shape[::-1]

    # Again, with the memory of what was delivered and without: no second task, no second upload.
    assert house.push(server)["push/batches"] == 0
    (house.layout.labels / "delivered.json").unlink()
    assert house.push(server)["push/already_there"] == 24
    assert sorted(map(len, server.tasks_of(keys).values())) == [1] * 24
    assert sorted(map(len, server.uploads().values())) == [1] * 24

    # 20 are finished, 2 skipped, 2 left open; nothing has to wait for these.
    annotator = SimulatedAnnotator(person(label_studio, title, NAME), house.truth)
    done, skipped = keys[:20], keys[20:22]
    numbers = annotator.work(done)
    annotator.skip(skipped)
    taken = house.pull(server)
    assert (taken.counts["new_labels"], taken.counts["cancelled"], taken.refused) == (20, 2, [])
    assert set(house.labels().index) == set(done)
    label = house.labels().loc[done[0]]
    assert label["annotator"] == f"{NAME}@localhost.example" and label["prediction"].startswith("3:")
    assert label["task"] == server.link(tasks[done[0]][0]["id"]) and label["created_at"].startswith("20")
    errors = [np.square(house.matte(key) / 255.0 - house.truth[key].alpha).mean() for key in done]
    assert np.mean(errors) < 0.02

    # Three are done again, one is deleted.
    for key in done[:3]:
        annotator.edit(key, numbers[key], attempt=1)
    server.sdk.annotations.delete(id=numbers[done[3]])
    taken = house.pull(server)
    assert (taken.counts["new_labels"], taken.counts["withdrawn"]) == (3, 1)
    assert set(house.labels().index) == {*done[:3], *done[4:]}
    assert dict(house.labels()["version"]) == {key: 2 if key in done[:3] else 1 for key in [*done[:3], *done[4:]]}
    history = house.catalog.read("labels")
    assert len(history) == 23 and history["withdrawn_at"].notna().sum() == 1

    # And again: nothing moves, whether the cursor is there or lost.
    versions = house.catalog.versions()
    assert house.pull(server).counts["annotations"] <= 4  # within the overlap of the cursor
    (house.layout.labels / "pulled.json").unlink()
    taken = house.pull(server)
    assert taken.counts["annotations"] == 19 and taken.counts["unchanged"] == 19
    assert house.catalog.versions() == versions

    summary = server.summary()
    assert (summary["tasks"], summary["finished"], summary["skipped"]) == (24, 19, 2)
    assert 0 <= summary["oldest_open_days"] < 1


def test_hostile_payloads_are_refused_one_by_one_and_the_rest_lands(tmp_path, label_studio, title):
    house = LabelHouse(tmp_path, 6)
    house.route(6)
    server = server_of(label_studio, title)
    house.push(server)
    keys = sorted(house.truth)
    annotator = SimulatedAnnotator(server, house.truth)
    good = {key: annotator.answer(key) for key in keys}
    numbers = {key: tasks[0]["id"] for key, tasks in server.tasks_of(keys).items()}

    label, size, header, score, cut, fine = keys
    good[label][0]["value"]["brushlabels"] = ["Sky"]
    good[size][0].update(original_width=9999)
    good[header][0]["value"]["rle"][:4] = [255, 255, 255, 255]
    good[cut][0]["value"]["rle"] = good[cut][0]["value"]["rle"][:12]
    for key in (label, size, header, cut, fine):
        annotate(server, numbers[key], good[key])
    good[score][0]["score"] = float("nan")
    body = json.dumps({"result": good[score]})  # with a bare NaN, as JavaScript and JSON do not know it
    try:
        server._http.post(
            f"/api/tasks/{numbers[score]}/annotations/", content=body, headers={"Content-Type": "application/json"}
        )
        stored = True
    except LabelServerError:  # some servers and databases refuse it before we have to
        stored = False
    server.import_tasks([{"data": {"image": "/x.jpg", "key": "f" * 64}}, {"data": {"image": "/x.jpg", "key": ["a"]}}])
    strangers = [t["id"] for t in server.changed_since(None) if t["id"] not in numbers.values()]
    for number in strangers:
        annotate(server, number, good[fine])

    taken = house.pull(server)
    assert set(house.labels().index) == {fine} and taken.counts["new_labels"] == 1
    reasons = sorted(row["reason"] for row in taken.refused)
    assert len(reasons) == 6 + stored
    for part in (
        "labelled ['Sky']",
        "of size (9999",
        "claims 4294967295",
        "rle ends before",
        "not a photo that was sent",
    ):
        assert any(part in reason for reason in reasons), part
    assert not stored or any("score nan" in reason for reason in reasons)
    assert house.pull(server).counts["new_labels"] == 0


def test_two_people_agree_or_a_third_is_asked(tmp_path, label_studio, title):
    house = LabelHouse(tmp_path, 3)
    house.route(3)
    server = server_of(label_studio, title)
    house.push(server)
    agreed, disputed, deleted = sorted(house.truth)
    people = [person(label_studio, title, name) for name in (NAME, "second", "third")]
    tasks = {key: found[0]["id"] for key, found in server.tasks_of(house.truth).items()}
    params = LabelParams(agree_mse=0.02, agree_iou=0.5)

    def answer(who: Server, key: str, alpha: np.ndarray) -> int:
        regions = [brush_region(alpha), choice_region("category", house.truth[key].category)]
        return annotate(who, tasks[key], regions)

    matte = {key: np.rint(255 * truth.alpha).astype(np.uint8) for key, truth in house.truth.items()}
    whole = np.full_like(matte[disputed], 255)
    for key in house.truth:
        answer(people[0], key, matte[key])
    house.pull(server, params)
    assert len(house.labels()) == 3
    near = matte[agreed].copy()
    near[:2] = 40
    rolled = np.roll(matte[deleted], 12, axis=0)
    answer(people[1], agreed, near)
    answer(people[1], disputed, whole)
    number = answer(people[1], deleted, rolled)

    taken = house.pull(server, params)
    mean = np.rint((matte[agreed].astype(float) + near) / 2)
    assert np.array_equal(house.matte(agreed), mean)
    assert house.labels().loc[agreed, "annotator"].count("@") == 2
    row = next(row for row in taken.disagreements if row["key"] == disputed)
    assert not row["settled"] and row["mse"] > 0.02
    assert disputed not in house.labels().index  # in doubt: neither of the two
    task = server.tasks_of([disputed])[disputed][0]
    assert (task["is_labeled"], task["overlap"]) == (False, 3) and "disagree" in task["data"]["disagreement"]

    # The third agrees with the first; the second takes an answer back elsewhere.
    answer(people[2], disputed, matte[disputed])
    server.sdk.annotations.delete(id=number)
    house.pull(server, params)
    assert np.array_equal(house.matte(disputed), matte[disputed])
    assert "second" not in house.labels().loc[disputed, "annotator"]
    assert np.array_equal(house.matte(deleted), matte[deleted])
    versions = house.catalog.versions()
    (house.layout.labels / "pulled.json").unlink()
    house.pull(server, params)
    assert house.catalog.versions() == versions


def test_a_refused_photo_gets_a_reason_and_loses_its_label(tmp_path, label_studio, title):
    house = LabelHouse(tmp_path, 2)
    house.route(2)
    server = server_of(label_studio, title)
    house.push(server)
    kept, private = sorted(house.truth)
    annotator = SimulatedAnnotator(server, house.truth)
    numbers = annotator.work([kept, private])
    house.pull(server)
    edit(server, numbers[private], [choice_region("reject", "private")])
    taken = house.pull(server)
    assert [row["reason"] for row in taken.photos_refused] == ["private"]
    assert set(house.labels().index) == {kept}
    rows = house.catalog.read("features", filters=[("extractor", "=", REFUSED)])
    assert rows["sample_id"].tolist() == [private] and rows["texts"].iloc[0]["reason"] == "private"


def test_a_project_is_found_again_and_its_config_renewed(label_studio, title):
    first = server_of(label_studio, title)
    number = first.project
    first.sdk.projects.update(number, label_config="<View><Image name='a' value='$b'/></View>")
    assert server_of(label_studio, title).project == number
    assert "Unknown" in first._call("GET", f"/api/projects/{number}")["label_config"]


def test_projects_tasks_and_webhooks_of_the_sdk(label_studio, title):
    """A title within another title is another project; tasks are found by key; what is gone may go again."""
    server = server_of(label_studio, title)
    assert server.project != server_of(label_studio, title.removesuffix(title[-2:])).project
    server.import_tasks([{"data": {"image": "/x.jpg", "key": str(n) * 64}} for n in range(3)])
    found = server.tasks_of(["0" * 64, "9" * 64])
    assert list(found) == ["0" * 64]
    (task,) = found["0" * 64]
    # Times are text in the server's form, in which they sort.
    assert task["updated_at"].endswith("Z") and len(task["updated_at"]) == len("2026-01-01T00:00:00.000000Z")
    assert [one["id"] for one in server.changed_since(server.newest_change())] == []
    for _ in range(2):
        server.remove_task(task["id"])
        server.hook("http://127.0.0.1:8081/", {"X": "y"})
    assert server.tasks_of(["0" * 64]) == {} and server.summary()["tasks"] == 2
    assert [hook.url for hook in server.sdk.webhooks.list(project=str(server.project))] == ["http://127.0.0.1:8081/"]


def test_a_page_in_place_of_the_interface_is_told():
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<p>another server</p>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as other:
        Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises(LabelServerError, match="not JSON: is LABEL_STUDIO_URL"):
            _ = Server(f"http://127.0.0.1:{other.server_port}", "k", "x").project
        other.shutdown()


def test_a_wrong_key_and_a_wrong_address_are_told_without_the_key(label_studio, monkeypatch):
    secret = "5ec2e7" * 7
    with pytest.raises(LabelServerError, match="LABEL_STUDIO_API_KEY") as caught:
        _ = server_of(label_studio, "x", secret).project
    assert secret not in str(caught.value)
    monkeypatch.setattr("mm_core.labeling.label_studio_http.TRIES", 1)
    with pytest.raises(LabelServerError, match="LABEL_STUDIO_URL"):
        _ = Server("http://127.0.0.1:9", secret, "x").project


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(label_studio, title, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert server_of(label_studio, title).project > 0


def test_a_personal_access_token_works_too(label_studio, title):
    server = server_of(label_studio, title)
    server._call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": True})
    token = server._call("POST", "/api/token/", json={})["token"]
    assert token.count(".") == 2
    assert server_of(label_studio, title, token).project == server.project


def test_a_commit_of_another_connection_blocks_no_reader(label_studio, title):
    server = server_of(label_studio, title)
    page = f"{label_studio.url}/api/projects/{server.project}"
    key = {"Authorization": f"Token {read_account(label_studio.folder)['token']}"}
    with closing(sqlite3.connect(label_studio.folder / "data" / "label_studio.sqlite3")) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert httpx.get(page, headers=key, timeout=60).status_code == 200
