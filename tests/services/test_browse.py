"""`mm browse`: what the FiftyOne App is given, who may ask it, and the App itself where it is installed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser as Chromium
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from typer.testing import CliRunner

from mm_core.cli.app import app
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params, SnapshotParams
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.eval.scoring import SCHEMA
from mm_core.imaging.images import encode_alpha, load_alpha
from mm_core.ingest.inbox import kept_matte
from mm_core.ingest.snapshot import build_snapshot
from mm_core.services.browse import Browser, environment, write_browse_folder
from mm_core.services.fiftyone_program import Guard
from mm_core.storage.run import StorageRun, catalog_of, store_of
from mm_core.storage.store import put_blob
from mm_core.structuring import difficulty
from samplegen import generate

PROJECT = Path(__file__).resolve().parents[2]
FIFTYONE = PROJECT / ".tools" / "fiftyone" / "bin" / "python"
PHOTOS = 9


def photo_bytes(seed: int, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, generate("pets", seed, size=48).image[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Nine labelled photos in a snapshot, an evaluation of two models, a later photo, and two refused rows."""
    root = tmp_path_factory.mktemp("browse")
    layout = Layout(
        Settings(root, str(root / "inbox"), str(root / "store"), f"sqlite:///{root}/m.db", root / "p", "cpu")
    )
    store, catalog = store_of(layout), catalog_of(layout)
    ids = []

    def take(seed: int, suffix: str = ".png") -> None:
        sample = put_blob(store, photo_bytes(seed, suffix))
        ids.append(sample)
        alpha = put_blob(store, encode_alpha(generate("pets", seed, size=48).alpha))
        about = {"kind": "pixel_labeled", "batch": "b", "category": "pets", "width": 48, "height": 48, "format": "PNG"}
        about |= {"id": sample, "name": f"images/rex{seed}{suffix}", "group": f"g{seed}"}
        catalog.add("samples", [about | {"role": "eval" if seed < 3 else "train", "accepted_at": str(seed)}])
        catalog.add("labels", [{"id": str(seed), "sample_id": sample, "alpha_sha256": alpha, "version": 1}])
        measured = {"sample_id": sample, "extractor": difficulty.EXTRACTOR, "version": difficulty.version_for(alpha)}
        catalog.add("features", [measured | {"numbers": {"score": seed / 10}}])

    for seed in range(PHOTOS):
        take(seed, ".tiff" if seed == 8 else ".png")
    versions = {name: catalog.version(name) for name in ("samples", "labels")}
    inputs: Any = {"catalog": versions | {"features": 0}, "champion": None, "anchor": None}
    build_snapshot(SnapshotParams(), catalog, inputs, layout.snapshot, Report("snapshot"))
    layout.split.mkdir(parents=True)
    for side, chosen in (("simple", ids[3:6]), ("hard", ids[6:])):
        pd.DataFrame({"sample_id": chosen}).to_parquet(layout.split / f"{side}.parquet")
    take(PHOTOS)
    rows = [
        {"model": model, "precision": "int8", "sample_id": ids[n], "mse": mse - n / 100}
        | {"maxf": 0.9, "biou": 0.5, "conn": 0.1}
        for model, mse in (("multimodal", 0.3), ("champion", 0.1))
        for n in range(3)
    ]
    layout.per_image.parent.mkdir(parents=True)
    frame = pd.DataFrame(rows, columns=SCHEMA.names).assign(fcurve=None)
    pq.write_table(pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False), layout.per_image)
    where = {"suspect": "quarantine/one.png", "broken": "quarantine/two.png"}
    (root / "one.png").write_bytes(photo_bytes(50))
    (root / "two.png").write_bytes(photo_bytes(51)[:100])
    (root / "matte.png").write_bytes(encode_alpha(generate("pets", 50, size=48).alpha))
    store.put(where["suspect"], root / "one.png")
    store.put(where["broken"], root / "two.png")
    store.put(kept_matte("a" * 64), root / "matte.png")
    common = {"kind": "pixel_labeled", "batch": "b", "verdict": "quarantine", "rejected_at": "1"}
    reason = "suspect matte: holes"
    catalog.add(
        "rejects",
        [
            common | {"key": "a" * 64, "row": 0, "image": "images/s.png", "reason": reason, "where": where["suspect"]},
            common | {"key": "b" * 64, "row": 1, "image": "x.png", "reason": "corrupt", "where": where["broken"]},
            common | {"key": "c" * 64, "row": 2, "image": "y.png", "reason": "file is missing"},
        ],
    )
    return layout


def flat(rgb: np.ndarray, category: str) -> np.ndarray:
    return np.full(rgb.shape[:2], 0.5 if category == "pets" else 0.0, np.float32)


@pytest.fixture(scope="module")
def folder(house: Layout) -> Path:
    path = house.cache / "browse"
    run = StorageRun(Params(), house)
    write_browse_folder(run, {"candidate": flat}, path, Report("browse"), most_predictions=2)
    return path


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return {row["name"]: row for row in rows}


def test_every_photo_has_its_name_matte_split_and_metrics(folder: Path) -> None:
    rows = rows_of(folder)
    assert set(rows) == {f"images/rex{n}.png" for n in range(10) if n != 8} | {
        "images/rex8.tiff",
        "images/s.png",
        "x.png",
    }
    first = rows["images/rex0.png"]
    assert first["tags"] == ["eval"] and first["category"] == "pets" and first["state"] == "accepted"
    assert Path(first["filepath"]).name == "rex0.png" and Path(first["filepath"]).read_bytes() == photo_bytes(0)
    assert first["sample_id"] == hashlib.sha256(photo_bytes(0)).hexdigest() and first["difficulty"] == 0
    assert [rows[f"images/rex{n}.png"]["split"] for n in (0, 3, 7)] == [None, "simple", "hard"]
    assert rows["images/rex7.png"]["difficulty"] == 0.7
    assert first["candidate_mse"] == 0.3 and first["champion_maxf"] == 0.9
    assert first["disagreement"] == pytest.approx(0.2)
    truth = load_alpha(Path(first["mattes"]["ground_truth"]))
    assert np.allclose(truth, generate("pets", 0, size=48).alpha, atol=1 / 255)
    # The worst ones, with which the saved views begin.
    predicted = [row for row in rows.values() if "candidate" in row["mattes"]]
    assert {row["name"] for row in predicted} == {"images/rex0.png", "images/rex1.png"}
    assert np.allclose(load_alpha(Path(predicted[0]["mattes"]["candidate"])), 0.5, atol=1 / 255)
    assert rows["images/rex9.png"]["change"] == "new photo" and first["change"] is None
    # Browsers show no TIFF.
    assert Path(rows["images/rex8.tiff"]["filepath"]).read_bytes()[:2] == b"\xff\xd8"


def test_refused_rows_stand_there_with_their_reasons(folder: Path) -> None:
    rows = rows_of(folder)
    assert rows["images/s.png"]["state"] == "suspect" and rows["images/s.png"]["reason"] == "suspect matte: holes"
    assert Path(rows["images/s.png"]["mattes"]["ground_truth"]).is_file()
    assert rows["x.png"]["state"] == "quarantine" and rows["x.png"]["mattes"] == {}
    views = {view["name"]: view for view in json.loads((folder / "about.json").read_text())["views"]}
    assert {"worst pets", "suspects", "disagreement", "difficult", "changed", "quarantine"} <= set(views)
    assert views["worst pets"]["match"] == {"category": ["pets"]} and views["worst pets"]["sort"] == "candidate_mse"


def test_an_empty_catalog_is_named_before_the_program_is_asked_for(house: Layout, tmp_path: Path) -> None:
    environment = {"MM_INBOX": "", "MM_STORE": "", "MLFLOW_TRACKING_URI": ""}
    environment["MM_FIFTYONE_PYTHON"] = str(tmp_path / "python")
    for options in (["--write-only", "--predictions", "0"], []):
        done = CliRunner().invoke(app, ["browse", *options], env=environment | {"MM_WORKSPACE": str(tmp_path)})
        assert isinstance(done.exception, InputError) and f"{tmp_path} has no photos yet" in str(done.exception)
    done = CliRunner().invoke(app, ["browse"], env=environment | {"MM_WORKSPACE": str(house.root)})
    assert isinstance(done.exception, InputError) and "run `make browse`" in str(done.exception)


def test_the_program_gets_no_secret_and_sends_nothing_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    given = environment(tmp_path)
    assert "secret" not in given.values() and given["FIFTYONE_DO_NOT_TRACK"] == "true"
    assert given["FIFTYONE_DEFAULT_APP_ADDRESS"] == "127.0.0.1" and Path(given["HOME"]).is_relative_to(tmp_path)


def test_only_this_machines_page_reads_and_only_the_browsed_files(tmp_path: Path) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("yes")

    guarded = Guard(Starlette(routes=[Route("/media", answer)]), 5151, [tmp_path])
    client = TestClient(guarded, base_url="http://127.0.0.1:5151")
    inside, outside = {"filepath": str(tmp_path / "a.png")}, {"filepath": "/etc/hostname"}
    allowed = client.get("/media", params=inside)
    assert allowed.text == "yes" and "default-src 'self'" in allowed.headers["content-security-policy"]
    assert client.get("/media", params=outside).status_code == 403
    assert client.get("/media", params={"filepath": str(tmp_path / ".." / "a.png")}).status_code == 403
    for headers in (
        {"host": "evil.example:5151"},
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"host": "127.0.0.1:80"},
    ):
        assert client.get("/media", params=inside, headers=headers).status_code == 403, headers


@pytest.fixture
def running(folder: Path) -> Iterator[Browser]:
    if not FIFTYONE.is_file():
        pytest.skip("FiftyOne is not installed (make browse)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown = Browser(FIFTYONE, folder, port)
    try:
        shown.wait_until_ready()
        yield shown
    finally:
        shown.end()


def test_the_app_shows_the_catalog_and_no_other_server_is_reached(running: Browser, browser: Chromium) -> None:
    with browser.new_context(viewport={"width": 1300, "height": 900}) as context:
        page, reached, failed = context.new_page(), [], []
        page.on("requestfinished", lambda request: reached.append(request.url))
        page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
        page.goto(running.url)
        page.get_by_text("12 samples").first.wait_for(timeout=90_000)
        # A saved view is opened by its name.
        page.goto(f"{running.url}?view=suspects")
        page.get_by_text("1 sample", exact=True).first.wait_for(timeout=90_000)
        if picture := os.environ.get("MM_SCREENSHOT"):
            page.goto(f"{running.url}?view=worst-pets")
            page.get_by_text("3 samples").first.wait_for(timeout=90_000)
            page.wait_for_timeout(3000)
            page.screenshot(path=picture)
        own = ("http://127.0.0.1:", "data:", "blob:")
        assert not [url for url in reached if not url.startswith(own)]
        # The App asks for fonts of another server; the policy stops that in the browser.
        assert {why for url, why in failed if not url.startswith(own)} <= {"csp"}
        refused = page.request.get(running.url.split("/datasets")[0] + "/media?filepath=/etc/hostname")
        assert refused.status == 403
