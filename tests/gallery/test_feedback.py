"""What people say becomes a drop that ingest takes, and raises the routing score."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

from mm_core import stages
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.gallery.application import application
from mm_core.gallery.library import Library
from mm_core.imaging.images import encode_alpha, load_rgb
from mm_core.labeling.candidates import FEEDBACK
from mm_core.pinned_inputs import Run
from mm_core.storage.run import catalog_of

OURS = {"x-mm": "1"}


@pytest.fixture
def client(library: Library, layout: Layout) -> TestClient:
    app = application(library, catalog_of(layout), Path(layout.settings.inbox), Path("/nowhere"))
    return TestClient(app, base_url="http://127.0.0.1")


def say(client: TestClient, photo: str, said: str = "bad_cut", body: bytes = b"", **words: str):
    asked = {"photo": photo, "said": said, "consent": "yes", "group": "anna", "device": "Pixel 9"} | words
    return client.post("/api/feedback", params=asked, content=body, headers=OURS)


def test_a_bad_cut_is_one_drop_however_often_it_is_said(
    client: TestClient, made: SimpleNamespace, layout: Layout
) -> None:
    photo = made.told[0]["photos"][0]
    answers = [say(client, photo["id"]) for _ in range(3)]
    assert [a.status_code for a in answers] == [201, 200, 200]
    batch = answers[0].json()["batch"]
    folder = Path(layout.settings.inbox) / "unlabeled" / batch
    manifest = (folder / "manifest.csv").read_text()
    assert "anna" in manifest and "model small" in manifest and "Pixel 9" in manifest and "consent" in manifest
    assert (folder / "images" / f"{photo['id']}.jpg").read_bytes() == (made.gallery / photo["name"]).read_bytes()

    report = stages.ingest(Run(Params(), layout))
    assert report.metrics["ingest/accepted"] == 1 and report.metrics.get("ingest/quarantined", 0) == 0
    sample = catalog_of(layout).read("samples").iloc[0]
    assert (sample["id"], sample["batch"], sample["group"]) == (photo["id"], batch, "anna")
    rows = catalog_of(layout).read("features", filters=[("extractor", "=", FEEDBACK)])
    assert list(rows["sample_id"]) == [photo["id"]], "what routing reads"


def test_a_corrected_matte_is_a_label(client: TestClient, made, layout: Layout) -> None:
    photo = made.told[0]["photos"][1]
    size = load_rgb(made.gallery / photo["name"]).shape[:2]
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    matte = np.clip((0.6 - np.hypot(x, y)) * 8, 0, 1)
    assert say(client, photo["id"], "corrected", encode_alpha(matte)).status_code == 201
    suspect = {
        f"ingest.suspect.{n}": v for n, v in {"edge_match": -1, "edge_contrast": -99.0, "edge_width": 9.0}.items()
    }
    params = Params().with_values(**suspect)
    report = stages.ingest(Run(params, layout))
    assert report.metrics["ingest/accepted"] == 1, report
    labels = catalog_of(layout).read("labels")
    assert list(labels["sample_id"]) == [photo["id"]] and labels.iloc[0]["origin"] == "drop"


def test_a_matte_that_ingest_doubts_is_held_like_anyones(
    client: TestClient, made: SimpleNamespace, layout: Layout
) -> None:
    photo = made.told[0]["photos"][1]
    size = load_rgb(made.gallery / photo["name"]).shape[:2]
    noise = np.random.default_rng(0).random(size)
    assert say(client, photo["id"], "corrected", encode_alpha(noise)).status_code == 201
    report = stages.ingest(Run(Params(), layout))
    assert report.metrics["ingest/accepted"] == 0


@pytest.mark.parametrize(
    ("change", "status"),
    [({"consent": "no"}, 422), ({"said": "nice"}, 422), ({"photo": "x"}, 404), ({"group": "<b>"}, 400),
     ({"device": "=cmd|' /C calc'!A0"}, 400), ({"said": "corrected"}, 422), ({"group": "a" * 99}, 400)],
)  # fmt: skip
def test_what_is_not_right_leaves_nothing(
    client, made: SimpleNamespace, layout: Layout, change: dict, status: int
) -> None:
    refused = say(client, change.pop("photo", made.told[0]["photos"][0]["id"]), **change)
    assert refused.status_code == status and refused.json()["error"]
    assert not list(Path(layout.settings.inbox).rglob("manifest.csv"))


def test_a_matte_of_another_shape_or_none_is_refused(client: TestClient, made, layout: Layout) -> None:
    photo = made.told[0]["photos"][0]["id"]
    assert say(client, photo, "corrected", encode_alpha(np.ones((90, 30)))).status_code == 422
    assert say(client, photo, "corrected", BytesIO(b"no picture").read()).status_code == 422
    assert say(client, photo, "bad_cut", encode_alpha(np.ones((192, 256)))).status_code == 422
    assert not list(Path(layout.settings.inbox).rglob("manifest.csv"))
