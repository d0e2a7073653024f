"""The Python API: `Matter` loads a bundle and predicts; the notebook's cells run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mm_core
from mm_core import Matter
from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.model.network import build_model
from samplegen import generate

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX files of a small untrained network, named as a bundle names them."""
    from mm_core.core.records import DECODERS

    folder = tmp_path_factory.mktemp("matter") / "bundle"
    folder.mkdir()
    net = build_model(ModelParams(pretrained="", encoder="test_efficientnet", size=64, width=8), 0).eval()
    for decoder in DECODERS:

        class One(torch.nn.Module):
            def __init__(self, name: str):
                super().__init__()
                self.name, self.net = name, net

            def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                features = self.net.encode(image)
                return self.net.decode(features, self.name)[0].sigmoid(), self.net.choice(features)

        torch.onnx.export(
            One(decoder),
            (torch.zeros(1, 3, 64, 64),),
            str(folder / f"{decoder}.int8.onnx"),
            input_names=["image"],
            output_names=["alpha", "decoder"],
            dynamo=False,
        )
    return folder


def test_an_array_a_file_and_a_pillow_image_give_one_matte_at_the_photos_size(bundle: Path, tmp_path: Path) -> None:
    matter = Matter.load(bundle)
    photo = np.ascontiguousarray(generate("pets", 3, size=96).image[:50, :80])
    alpha = matter.predict(photo)
    assert alpha.shape == (50, 80) and alpha.dtype == np.float32 and 0 <= alpha.min() <= alpha.max() <= 1
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert np.array_equal(matter.predict(tmp_path / "photo.png"), alpha)
    assert np.array_equal(matter.predict(Image.fromarray(photo)), alpha)
    assert matter.name == "bundle"


def test_a_photo_on_its_side_is_turned_upright(bundle: Path) -> None:
    image = Image.fromarray(generate("pets", 3, size=96).image[:50, :80])
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    assert Matter.load(bundle).predict(image).shape == (80, 50)


@pytest.mark.parametrize(
    ("photo", "category", "named"),
    [
        ("nothing.jpg", "", "nothing.jpg: no such file"),
        (np.zeros((4, 4), np.uint8), "", "uint8"),
        (np.zeros((4, 4, 3), np.float32), "", "float32"),
        (np.zeros((4, 4, 3), np.uint8), "dinosaur", "dinosaur"),
    ],
)
def test_what_is_no_photo_is_refused_by_name(bundle: Path, photo: object, category: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Matter.load(bundle).predict(photo, category)  # type: ignore[arg-type]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="champion"):
        Matter.load("champion", workspace=tmp_path)
    with pytest.raises(InputError, match="holds no"):
        Matter.load(tmp_path)
    with pytest.raises(InputError, match="none"):
        Matter.load("none", workspace=tmp_path)


def test_the_notebooks_cells_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATTER_MODEL", str(bundle))
    notebook = json.loads((PROJECT / "docs" / "predict.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 3 and not any(cell.get("outputs") for cell in notebook["cells"])
    code = "\n".join([*cells, "assert alpha.shape == (256, 256) and cutout.shape == (256, 256, 3)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_a_room_does_not_load_the_api() -> None:
    code = "import sys, mm_core.core.errors; print('mm_core.matter' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError):
        _ = mm_core.nothing  # type: ignore[attr-defined]
