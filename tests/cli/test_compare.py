"""`mm compare`: one page with two models side by side, complete without a network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser
from typer.testing import CliRunner, Result

from mm_core.cli.app import app
from mm_core.core.layout import Layout
from mm_core.core.params import ModelParams
from mm_core.core.records import CATEGORIES
from mm_core.core.settings import Settings
from mm_core.eval.compare import PLAIN, over_plain, signed_difference
from mm_core.eval.metrics import TruthMatte
from mm_core.imaging.images import encode_alpha, load_rgb
from mm_core.matter import Matter
from mm_core.model.files import save_model
from mm_core.model.network import build_model
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import open_store, put_blob
from samplegen import generate

SIZE = 64


def mm(*arguments: object, workspace: Path) -> Result:
    environment = {"MM_WORKSPACE": str(workspace), "MM_INBOX": "", "MM_STORE": "", "MLFLOW_TRACKING_URI": ""}
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env=environment | {"MM_DEVICE": "cpu"})


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained models, five photos, two of them with a matte beside them, and an empty workspace."""
    root = tmp_path_factory.mktemp("compare")
    params = ModelParams(pretrained="", encoder="test_efficientnet", size=SIZE, width=8)
    for seed, name in enumerate(("old", "new")):
        save_model(root / f"{name}.safetensors", build_model(params, seed).eval(), {"stage": "semi", "params": {}})
    for seed, category in enumerate(CATEGORIES[:5]):
        drawn = generate(category, seed, size=SIZE)
        photo = root / "photos" / category / f"{seed}.png"
        photo.parent.mkdir(parents=True)
        Image.fromarray(drawn.image).save(photo)
        if seed < 2:
            matte = root / "photos" / "alphas" / category / f"{seed}.png"
            matte.parent.mkdir(parents=True)
            matte.write_bytes(encode_alpha(drawn.alpha))
    return root


def test_the_page_shows_both_models_and_their_metrics_where_a_truth_is_at_hand(house: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = mm(
        house / "old.safetensors", house / "new.safetensors", house / "photos", "-o", page, "--json",
        workspace=tmp_path / "data",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    rows = {Path(row["image"]).name: row for row in report["tables"]["per_image"]}
    assert set(rows) == {f"{n}.png" for n in range(5)}, "mattes are no photos"
    assert {name for name, row in rows.items() if "mse_a" in row} == {"0.png", "1.png"}
    assert rows["0.png"]["category"] == CATEGORIES[0]
    # The numbers are those of the models themselves.
    photo = load_rgb(house / "photos" / CATEGORIES[0] / "0.png")
    truth = TruthMatte(generate(CATEGORIES[0], 0, size=SIZE).alpha)
    for letter, name in (("a", "old"), ("b", "new")):
        alpha = Matter.load(house / f"{name}.safetensors").predict(photo, CATEGORIES[0])
        assert rows["0.png"][f"mse_{letter}"] == pytest.approx(float(truth.score(alpha)["mse"]), abs=1e-5)
    assert {row["metric"]: row["photos"] for row in report["tables"]["summary"]} == dict.fromkeys(
        ("mse", "maxf", "biou", "conn"), 2
    )
    text = page.read_text()
    assert f"<b>{house / 'photos' / CATEGORIES[0] / '0.png'}</b>" in text and "Over the 2 photos" in text
    # The largest difference comes first.
    order = re.findall(r"difference (\d\.\d{4})", text)[:5]
    assert order == sorted(order, reverse=True)


def test_the_page_needs_no_network_and_runs_nothing(house: Path, tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    done = mm(house / "old.safetensors", house / "new.safetensors", house / "photos", "-o", page, workspace=tmp_path)
    assert done.exit_code == 0 and f"page: {page}" in done.stdout and "better_a" in done.stdout
    text = page.read_text()
    assert "default-src 'none'" in text and "<script" not in text and "://" not in text
    with browser.new_context() as context:
        opened, asked, complaints = context.new_page(), [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("console", lambda message: complaints.append(message.text))
        opened.goto(page.as_uri())
        # Five photos with photo, A, B and difference; two have a truth too.
        sizes = opened.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert sizes == [SIZE] * 22 and not complaints
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_the_truth_of_a_photo_in_the_catalog_is_found_by_its_bytes(house: Path, tmp_path: Path) -> None:
    photo = house / "photos" / CATEGORIES[2] / "2.png"
    store, catalog = open_store(str(tmp_path / "store"), tmp_path / "cache"), Catalog(str(tmp_path / "store"))
    sample = put_blob(store, photo.read_bytes())
    alpha = put_blob(store, encode_alpha(generate(CATEGORIES[2], 2, size=SIZE).alpha))
    catalog.add("samples", [{"id": sample, "kind": "pixel_labeled", "batch": "b", "category": "pets", "name": "x"}])
    catalog.add("labels", [{"id": "1", "sample_id": sample, "alpha_sha256": alpha, "version": 1, "created_at": "2026"}])
    model = house / "old.safetensors"
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(photo.read_bytes())
    done = mm(model, model, moved, "--json", workspace=tmp_path)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["tables"]["per_image"]
    assert row["category"] == "pets" and row["difference"] == 0 and row["mse_a"] == row["mse_b"] > 0
    assert (tmp_path / "reports" / "compare.html").is_file(), "where `mm ui` serves it"


def test_the_candidate_is_the_last_cycles_model_whether_promoted_or_not(house: Path, tmp_path: Path) -> None:
    weights = Layout(Settings.from_env(tmp_path)).model("multimodal")
    weights.parent.mkdir(parents=True)
    weights.write_bytes((house / "new.safetensors").read_bytes())
    photo = house / "photos" / CATEGORIES[0] / "0.png"
    done = mm("@candidate", house / "new.safetensors", photo, "--json", workspace=tmp_path)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["facts"]["a"] == "candidate" and report["tables"]["per_image"][0]["difference"] == 0


def test_what_is_not_there_is_named_and_no_foreign_file_is_replaced(house: Path, tmp_path: Path) -> None:
    model, photos = house / "old.safetensors", house / "photos"
    os.mkfifo(tmp_path / "pipe")
    for arguments, named in (
        ((model, model, photos, "-o", tmp_path / "pipe"), "is a pipe or a device"),
        (("@3", model, photos), "--model 3: no such version or alias: the registry"),
        ((model, model, "nothing.jpg"), "nothing.jpg: no such file or folder"),
        ((model, model, photos, "-o", photos / CATEGORIES[0] / "0.png"), "is one of the photos"),
        ((model, model, photos, "-o", model), "was not made by this command"),
        ((model, model, photos, "-o", photos), "is a folder"),
    ):
        done = mm(*arguments, workspace=tmp_path)
        assert done.exit_code and named in str(done.exception), (arguments, done.output)


def test_a_broken_photo_stops_no_other(house: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "p" / "good.png", tmp_path / "p" / "bad.png"
    good.parent.mkdir()
    good.write_bytes((house / "photos" / CATEGORIES[0] / "0.png").read_bytes())
    bad.write_bytes(good.read_bytes()[:300])
    model = house / "old.safetensors"
    done = mm(model, model, tmp_path / "p", workspace=tmp_path)
    assert done.exit_code == 0 and "not read:" in done.stdout and "bad.png" in done.stdout


def test_pictures_say_what_they_mean() -> None:
    first, second = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    first[0, 0], second[0, 1] = 1, 1
    shown = signed_difference(first, second)
    assert shown[0, 0].tolist() == [255, 0, 0] and shown[0, 1].tolist() == [0, 0, 255]
    assert shown[1, 2].tolist() == [255, 255, 255]
    photo = np.full((2, 3, 3), 10, np.uint8)
    assert over_plain(photo, first)[0, 0].tolist() == [10, 10, 10]
    assert over_plain(photo, first)[1, 1].tolist() == list(PLAIN)
