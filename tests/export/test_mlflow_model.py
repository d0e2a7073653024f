"""The registered version is an MLflow model: another process loads and serves it by MLflow's own means alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_cycle import PARAMS, clone

from mm_core import stages
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.export.mlflow_model import MattingModel
from mm_core.export.runtime import OnnxPredictor
from mm_core.model.files import load_model
from mm_core.pinned_inputs import Run
from samplegen import generate

LOAD = """
import json, sys
import mlflow, numpy as np
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

model = mlflow.pyfunc.load_model("models:/matting@champion")
photo = np.load(sys.argv[1])
np.save(sys.argv[2], model.predict(photo))
client = TestClient(scoring_server.init(model))
served = client.post("/invocations", json={"inputs": photo.tolist(), "params": {"category": "portrait"}})
schema = model.metadata.signature.to_dict()
example = model.metadata.load_input_example()
print(json.dumps({"status": served.status_code, "served": served.json(), "schema": schema, "example": np.shape(example),
                  "torch": "torch" in sys.modules}))
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
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "photo.npy", tmp_path / "alpha.npy"],
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
    # The bundle alone predicts: who serves it needs no torch.
    assert told["torch"] is False


def test_float_weights_lie_beside_the_bundle_and_requirements_are_pinned(promoted: Layout) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=promoted.settings.mlflow_uri, registry_uri=promoted.settings.mlflow_uri)
    folder = Path(str(client.get_model_version_by_alias("matting", "champion").source).removeprefix("file://"))
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
    ],
)
def test_what_is_no_photo_is_refused_by_name(exported: Layout, photo: np.ndarray, params: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        MattingModel(bundle_of(exported)).predict(photo, params)
