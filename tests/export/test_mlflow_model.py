"""The registered version is an MLflow model: another process loads and serves it by MLflow's own means alone."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from export_cycle import PARAMS, clone
from mlflow import MlflowClient
from PIL import Image

from mm_core import Matter, stages
from mm_core.core import processes
from mm_core.core.code_digest import first_party_closure, source_path
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.export.mlflow_model import MattingModel
from mm_core.export.runtime import OnnxPredictor
from mm_core.model.files import load_model
from mm_core.pinned_inputs import Run
from samplegen import generate

LOAD = """
import base64, json, sys
import mlflow, numpy as np
from mlflow.pyfunc import scoring_server
from PIL import Image
from starlette.testclient import TestClient

model = mlflow.pyfunc.load_model("models:/matting@champion")
photo = np.load(sys.argv[1])
np.save(sys.argv[2], model.predict(photo))
picture = open(sys.argv[3], "rb").read()
forms = [sys.argv[3], Image.open(sys.argv[3]), base64.b64encode(picture).decode(), photo.tolist()]
same = [bool(np.array_equal(model.predict(form), model.predict(photo))) for form in forms]
client = TestClient(scoring_server.init(model))
served = client.post("/invocations", json={"inputs": photo.tolist(), "params": {"category": "portrait"}})
schema = model.metadata.signature.to_dict()
example = model.metadata.load_input_example()
print(json.dumps({"status": served.status_code, "served": served.json(), "schema": schema, "example": np.shape(example),
                  "torch": "torch" in sys.modules, "same": same,
                  "imported": [name for name in sys.modules if "." not in name]}))
"""


@pytest.fixture(scope="module")
def promoted(exported: Layout, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = clone(exported, tmp_path_factory.mktemp("mlflow_model") / "data")
    stages.promote(Run(PARAMS, layout))
    return layout


def bundle_of(layout: Layout) -> Path:
    (manifest,) = layout.bundles.glob("*/manifest.json")
    return manifest.parent


def test_another_process_loads_and_serves_the_champion_at_the_photos_size(promoted: Layout, tmp_path: Path) -> None:
    photo = np.ascontiguousarray(generate("pets", 3, size=96).image[:50, :80])
    np.save(tmp_path / "photo.npy", photo)
    (tmp_path / "photo.png").write_bytes(png(photo))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "photo.npy", tmp_path / "alpha.npy", tmp_path / "photo.png"],
        env=environment | {"MLFLOW_TRACKING_URI": promoted.settings.mlflow_uri, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alpha = np.load(tmp_path / "alpha.npy")
    assert alpha.shape == (50, 80) and alpha.dtype == np.float32
    shipped = OnnxPredictor.of_folder(bundle_of(promoted), guided=True)
    assert np.array_equal(alpha, shipped.predict([photo], shipped.choose([photo]))[0])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == 200
    served = np.array(told["served"]["predictions"], np.float32)
    assert np.allclose(served, shipped.predict([photo], ["portrait"])[0], atol=1e-6)
    assert "uint8" in told["schema"]["inputs"] and "category" in told["schema"]["params"]
    assert told["example"] == [32, 32, 3]
    assert told["same"] == [True] * 4, "path, Pillow image, base64 and lists are the same photo"
    # The bundle alone predicts: who serves it needs no torch.
    assert told["torch"] is False
    # All packages that our own code imported there come with the model's requirements.
    lines = (folder_of(promoted) / "requirements.txt").read_text().splitlines()
    packages = metadata.packages_distributions()
    needed = {packages[name][0] for name in set(told["imported"]) & own_imports() if name in packages}
    assert {"onnxruntime", "pillow-heif"} <= {canonical(name) for name in needed}
    missing = {canonical(name) for name in needed} - brought_by([line.split("==")[0] for line in lines])
    assert missing <= {"matting-moments"}


def own_imports() -> set[str]:
    """Top-level names that the model's code imports anywhere."""
    names: set[str] = set()
    for module in first_party_closure("mm_core.export.mlflow_model"):
        for node in ast.walk(ast.parse(source_path(module).read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def brought_by(names: list[str]) -> set[str]:
    """Distributions that pip installs for these ones."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonical(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[^A-Za-z0-9._-]", need)[0] for need in needs if "extra ==" not in need]
    return seen


def png(photo: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    return stream.getvalue()


def folder_of(layout: Layout) -> Path:
    """The champion's MLflow model."""
    client = MlflowClient(tracking_uri=layout.settings.mlflow_uri, registry_uri=layout.settings.mlflow_uri)
    return Path(str(client.get_model_version_by_alias("matting", "champion").source).removeprefix("file://"))


def post(url: str, body: dict[str, Any]) -> tuple[int, str]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def is_up(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_mlflow_models_serve_answers_with_the_alpha_of_matter(promoted: Layout, tmp_path: Path) -> None:
    photo = np.ascontiguousarray(generate("pets", 5, size=96).image[:40, :72])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", "models:/matting@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "MLFLOW_", "PYTHONPATH"))}
    environment = kept | {"MLFLOW_TRACKING_URI": promoted.settings.mlflow_uri, "PATH": paths, "OMP_NUM_THREADS": "1"}
    said = tmp_path / "server.txt"
    with said.open("w") as stream:
        server = processes.start(command, env=environment, cwd=tmp_path, stdout=stream, stderr=stream)
    try:
        while not is_up(f"{address}/ping"):
            assert server.poll() is None, said.read_text()
            time.sleep(0.2)
        status, text = post(f"{address}/invocations", {"inputs": base64.b64encode(png(photo)).decode()})
        assert status == 200, text
        matter = Matter.load("champion", promoted.root)
        expected = matter.predict(photo)
        assert expected.shape == (40, 72)
        assert np.allclose(np.array(json.loads(text)["predictions"]), expected, atol=1e-6)
        body = {"inputs": base64.b64encode(png(photo)).decode(), "params": {"category": "portrait", "output": "png"}}
        status, text = post(f"{address}/invocations", body)
        assert status == 200, text
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(json.loads(text)["predictions"]))))
        assert np.abs(picture / 255 - matter.predict(photo, "portrait")).max() <= 0.5 / 255 + 1e-6
        # A path would be a file of the server's machine.
        (tmp_path / "photo.png").write_bytes(png(photo))
        status, text = post(f"{address}/invocations", {"inputs": str(tmp_path / "photo.png")})
        assert status == 400 and "no path" in text
    finally:
        processes.end([server], signal.SIGINT, 10)


def test_float_weights_lie_beside_the_bundle_and_requirements_are_pinned(promoted: Layout) -> None:
    folder = folder_of(promoted)
    net, _ = load_model(folder / "data" / "matting" / "model.safetensors", "cpu")
    assert net.config.size == 64
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    assert {line.split("==")[0] for line in lines} >= {"onnxruntime", "numpy", "mlflow"}
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle")]


@pytest.mark.parametrize(
    ("photo", "params", "named"),
    [
        (np.zeros((4, 4), np.uint8), {}, "uint8"),
        (np.zeros((4, 4, 3), np.float32), {}, "float32"),
        (np.zeros((4, 4, 3), np.uint8), {"category": "dinosaur"}, "dinosaur"),
        (np.zeros((4, 4, 3), np.uint8), {"output": "gif"}, "alpha, png"),
        ("no-such-photo.jpg", {}, "no-such-photo.jpg: no such file"),
        (base64.b64encode(b"no photo").decode(), {}, "not a picture"),
        ("x" * 100_001, {}, "x…: no such file"),
        ([[1, 2], [3]], {}, "differ in length"),
        ([[[0, 0, 300]]], {}, "int64"),
        ({"image": 1}, {}, "dict"),
    ],
)
def test_what_is_no_photo_is_refused_by_name(exported: Layout, photo: Any, params: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        MattingModel(bundle_of(exported)).predict(photo, params)
