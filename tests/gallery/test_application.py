"""The server: what it shows, what it refuses."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.records import sha256_bytes
from mm_core.export.runtime import OnnxPredictor
from mm_core.export.signature import make_keys, sign_file
from mm_core.gallery.application import COOKIE, application
from mm_core.gallery.library import UPLOAD_BYTES, Library
from mm_core.moments.moments_file import read_moments
from mm_core.storage.run import catalog_of
from samplegen import generate
from samplegen.gallery import jpeg

OURS = {"x-mm": "1"}


@pytest.fixture
def client(library: Library, layout: Layout) -> TestClient:
    inbox = Path(layout.settings.inbox)
    app = application(library, catalog_of(layout), inbox, Path("/nowhere"))
    return TestClient(app, base_url="http://127.0.0.1")


def first(made: SimpleNamespace) -> dict:
    return made.told[0]["photos"][0]


def test_the_page_shows_moments_photos_and_pieces(client: TestClient, made: SimpleNamespace) -> None:
    about = client.get("/api/about").json()
    assert [m["title"] for m in about["moments"]] == [m["title"] for m in made.told]
    assert len(about["photos"]) == 6 and about["runtime"] is False
    shown = client.get(f"/photo/{first(made)['id']}/320")
    assert Image.open(BytesIO(shown.content)).size == (256, 192)
    for piece in made.told[0]["pieces"]:
        assert client.get(f"/piece/{piece['file']}").status_code == 200
    for file in about["model"]["decoders"].values():
        assert sha256_bytes(client.get(f"/model/{file}").content) == about["model"]["sha256"][file]
    assert "text/html" in client.get("/").headers["content-type"]
    for name in ("page.js", "matting.js", "guided.js", "effects.js", "sky.js", "eraser.js", "page.css"):
        assert client.get(f"/static/{name}").status_code == 200


def test_every_answer_has_the_policy_and_photos_lose_their_metadata(client: TestClient, made: SimpleNamespace) -> None:
    for path in ("/", "/api/about", f"/photo/{first(made)['id']}/2048", "/static/page.js", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert "<script>" not in page and "style=" not in page and "http" not in page.replace("http-equiv", "")
    assert not Image.open(BytesIO(client.get(f"/photo/{first(made)['id']}/2048").content)).getexif()


@pytest.mark.parametrize(
    "path",
    ["/piece/../moments.json", "/piece/moments.json", "/piece/%2e%2e/%2e%2e/etc/passwd", "/model/manifest.json",
     "/model/..%2fgolden.npz", "/static/../application.py", "/static/%2e%2e/application.py", "/photo/x/320",
     "/golden/none", "/sky/none", "/sky/..%2fclear", "/photo/../../x/320"],
)  # fmt: skip
def test_paths_lead_nowhere(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 405)


def test_an_odd_size_of_a_photo_is_not_made(client: TestClient, made: SimpleNamespace) -> None:
    assert client.get(f"/photo/{first(made)['id']}/99999").status_code == 404


def test_the_servers_matte_and_functions(client: TestClient, made: SimpleNamespace, library: Library) -> None:
    photo = first(made)["id"]
    matte = client.post(f"/api/matte/{photo}?decoder=portrait", headers=OURS)
    assert Image.open(BytesIO(matte.content)).size == (256, 192)
    for function, choice in (("splash", ""), ("blur", ""), ("stylise", "noir"), ("cutout", "")):
        done = client.post(f"/api/apply/{photo}?function={function}&choice={choice}&x=0.5&y=0.5", headers=OURS)
        assert done.status_code == 200, (function, done.text)
        Image.open(BytesIO(done.content)).load()
    erased = client.post(f"/api/apply/{photo}?function=eraser&x=0.5&y=0.5", headers=OURS)
    assert Image.open(BytesIO(erased.content)).size == (256, 192)
    assert client.post(f"/api/apply/{photo}?function=rm&choice=-rf", headers=OURS).status_code == 422
    for x, y in (("nan1", "2"), ("nan", "0.5"), ("0.5", "inf"), ("-inf", "nan"), ("1e999", "0")):
        assert client.post(f"/api/apply/{photo}?function=blur&x={x}&y={y}", headers=OURS).status_code == 400


def test_a_photo_that_is_sent_joins_and_stays(
    client: TestClient, library: Library, made: SimpleNamespace, bundle
) -> None:
    data = jpeg(generate("pets", 77, size=96).image, None, None)
    told = client.post("/api/photos", content=data, headers=OURS)
    assert told.status_code == 201 and told.json()["id"] == sha256_bytes(data)
    assert client.get(f"/photo/{told.json()['id']}/320").status_code == 200
    again = Library(made.gallery, made.moments, bundle, library.uploads, 12_000_000)
    assert sha256_bytes(data) in again.photos


def png_bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def gif() -> bytes:
    stream = BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "GIF")
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"#!/bin/sh\nrm -rf /\n", b"<svg onload='alert(1)'/>", b"%!PS-Adobe-3.0 EPSF", b"%PDF-1.7", gif(), png_bomb(),
     jpeg(np.zeros((96, 96, 3), np.uint8), None, None)[:400], jpeg(np.zeros((16, 16, 3), np.uint8), None, None)],
    ids=["empty", "script", "svg", "eps", "pdf", "gif", "bomb", "cut off", "tiny"],
)  # fmt: skip
def test_hostile_files_are_refused_and_nothing_is_kept(client: TestClient, library: Library, data: bytes) -> None:
    refused = client.post("/api/photos", content=data, headers=OURS)
    assert refused.status_code == 422 and refused.json()["error"]
    assert str(library.uploads) not in refused.text, "no path of the server"
    assert not library.uploads.exists() or not list(library.uploads.iterdir())


def test_a_file_that_is_too_long_is_refused_while_it_is_read(client: TestClient) -> None:
    def endless():
        for _ in range(UPLOAD_BYTES // 1_000_000 + 2):
            yield b"\xff" * 1_000_000

    assert client.post("/api/photos", content=endless(), headers=OURS).status_code == 413


def test_script_in_metadata_is_not_passed_on(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x010E] = "<script>alert(1)</script>"
    stream = BytesIO()
    Image.fromarray(generate("pets", 5, size=96).image).save(stream, "JPEG", exif=exif)
    told = client.post("/api/photos?name=../../<script>", content=stream.getvalue(), headers=OURS).json()
    assert "script" not in told["name"]
    assert b"script" not in client.get(f"/photo/{told['id']}/320").content


def test_foreign_pages_and_names_are_refused(client: TestClient, made: SimpleNamespace) -> None:
    photo = first(made)["id"]
    assert client.post("/api/photos", content=b"x").status_code == 403
    assert client.post(f"/api/matte/{photo}?decoder=portrait").status_code == 403
    assert client.get("/api/about", headers={"host": "evil.example"}).status_code == 400


def test_beyond_this_machine_nothing_is_shown_without_the_token(library: Library, layout: Layout) -> None:
    app = application(library, catalog_of(layout), Path(layout.settings.inbox), Path("/nowhere"), "s3cret")
    stranger = TestClient(app, base_url="http://192.168.1.5:8090", follow_redirects=False)
    for path in ("/", "/api/about", "/static/page.js", "/?token=wrong", "/api/about?token=s3cret"):
        assert stranger.get(path).status_code == 401
    assert stranger.post("/api/photos", content=b"x", headers=OURS).status_code == 401
    door = stranger.get("/?token=s3cret")
    assert door.status_code == 303 and "s3cret" not in door.headers["location"]
    cookie = door.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    guest = TestClient(app, base_url="http://192.168.1.5:8090", cookies={COOKIE: "s3cret"})
    assert guest.get("/api/about").status_code == 200


def test_a_gallery_without_moments_says_what_to_run(made: SimpleNamespace, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mm moments"):
        Library(made.gallery, tmp_path, bundle, tmp_path / "u", 1)


def test_a_photo_that_was_replaced_is_not_shown(
    own_gallery: Path, made: SimpleNamespace, bundle: Path, tmp_path
) -> None:
    photo = first(made)
    (own_gallery / photo["name"]).write_bytes(jpeg(generate("pets", 1, size=64).image, None, None))
    library = Library(own_gallery, made.moments, bundle, tmp_path / "u", 12_000_000)
    assert photo["id"] not in library.photos and len(library.photos) == 5


def test_a_model_file_that_the_manifest_does_not_list_is_not_loaded(
    made: SimpleNamespace, bundle: Path, layout: Layout, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = json.loads((own / "manifest.json").read_text())
    del manifest["decoders"]["scenery"], manifest["files"]["scenery.int8.onnx"]
    (own / "manifest.json").write_text(json.dumps(manifest))
    library = Library(made.gallery, made.moments, own, layout.root / "gallery-uploads", 12_000_000)
    assert sorted(library.predictor.files) == ["portrait", "saliency"]
    with pytest.raises(InputError, match="no file for decoder 'scenery'"):
        OnnxPredictor.of_folder(own).predict([np.zeros((8, 8, 3), np.uint8)], ["scenery"])
    data = bytearray((own / "portrait.int8.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (own / "portrait.int8.onnx").write_bytes(data)
    with pytest.raises(InputError, match="portrait.int8.onnx: not the file"):
        OnnxPredictor.of_folder(own)


def test_where_there_is_a_key_the_bundle_must_be_signed_by_it(
    made: SimpleNamespace, bundle: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))

    def opened() -> Library:
        return Library(made.gallery, made.moments, own, layout.root / "gallery-uploads", 12_000_000)

    assert opened().signed_by is None
    signer = make_keys(tmp_path / "key")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
    with pytest.raises(InputError, match="no signature"):
        opened()
    sign_file(own / "manifest.json")
    assert opened().signed_by == signer
    make_keys(tmp_path / "other")
    monkeypatch.setenv("MM_VERIFY_KEY", str(tmp_path / "other.pub"))
    with pytest.raises(InputError, match="not by the trusted key"):
        opened()


PIECE = {"file": "m/a.png", "function": "blur", "why": "x"}


@pytest.mark.parametrize(
    "change",
    [
        {"pieces": [PIECE | {"file": "../../../../etc/passwd"}]},
        {"pieces": [PIECE | {"file": "/etc/passwd"}]},
        {"pieces": [PIECE | {"file": "a\n.png"}]},
        {"pieces": [PIECE | {"file": "out/passwd"}]},
        {"pieces": "all"},
        {"photos": [{"id": "../../x", "name": "a", "category": None}]},
        {"photos": [{"id": 1, "name": "a", "category": None}]},
        {"title": {"toString": 1}},
        {"best": None},
        {"repeated": float("nan")},
    ],
)
def test_moments_of_another_hand_are_refused_in_one_line(
    made: SimpleNamespace, bundle: Path, layout: Layout, tmp_path: Path, change: dict[str, object]
) -> None:
    own = Path(shutil.copytree(made.moments, tmp_path / "moments"))
    (own / "out").symlink_to("/etc")
    told = json.loads((own / "moments.json").read_text())
    told["moments"][0] |= change
    (own / "moments.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"moments\.json: .*run `mm moments` again") as error:
        Library(made.gallery, own, bundle, layout.root / "gallery-uploads", 12_000_000)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"\xff", b"[]", b"{}", b'{"moments": 1}', b'{"moments": [], "a": 1e999}']
)
def test_what_is_no_moments_file_is_told(made: SimpleNamespace, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "moments.json").write_bytes(text)
    with pytest.raises(InputError, match=r"moments\.json: .*run `mm moments` again"):
        read_moments(tmp_path / "moments.json")
