"""Write a released bundle as an MLflow model, so that MLflow's own tools load and serve it.

    model = mlflow.pyfunc.load_model("models:/matting@champion")
    alpha = model.predict(image)                                  # uint8 (H, W, 3) sRGB → float32 (H, W) in [0, 1]

The model folder holds the released int8 bundle (`data/matting/bundle`), its float weights
(`data/matting/model.safetensors`, for `mm predict --model FILE`), the code that runs it, and pinned requirements. It
contains no pickle.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES
from mm_core.export.runtime import OnnxPredictor
from mm_core.model.predict import decoders_for

DATA = "matting"
"""Folder name within `data/` of the MLflow model."""
REQUIREMENTS = ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "pydantic")
"""Packages needed for prediction, pinned to the versions of the releasing environment."""
EXAMPLE_SIDE = 32
"""Side of the example photo in pixels."""


class MattingModel:
    """The object in `mlflow.pyfunc.load_model`: int8 ONNX files in onnxruntime."""

    def __init__(self, bundle: Path) -> None:
        """Open the bundle in a folder; raise InputError if it holds none."""
        self._predictor = OnnxPredictor.of_folder(bundle, guided=True)

    def predict(self, model_input: Any, params: dict[str, str] | None = None) -> np.ndarray:
        """Return the alpha matte of one photo at the photo's own size.

        Args:
            model_input: uint8 (H, W, 3), sRGB, upright.
            params: `category` chooses the decoder; without it the model chooses.

        Returns:
            float32 (H, W) in [0, 1].

        Raises:
            InputError: the input is not a photo, or the category is unknown.
        """
        photo = np.asarray(model_input)
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise InputError(f"a photo is uint8 (height, width, 3), not {photo.dtype} {photo.shape}")
        # An empty category lets the model choose the decoder.
        category = (params or {}).get("category") or ""
        if category and category not in ALL_CATEGORIES:
            raise InputError(f"category {category!r} is unknown; one of {', '.join(ALL_CATEGORIES)}")
        decoders = decoders_for(self._predictor, [photo], [category])
        return self._predictor.predict([photo], decoders)[0].astype(np.float32)


def _load_pyfunc(data_path: str) -> MattingModel:
    """Return the model in MLflow's data folder; MLflow calls this function by its name."""
    return MattingModel(Path(data_path) / "bundle")


def save_mlflow_model(bundle: Path, weights: Path, target: Path, run: str) -> None:
    """Write the folder of an MLflow model.

    Args:
        bundle: folder of the released bundle.
        weights: the float weights, a .safetensors file.
        target: the folder to write; it must not exist. Its name is the artifact's in the run.
        run: id of the MLflow run that the folder is logged to.
    """
    # MLflow records the versions that it finds; it must not try to look up any others.
    os.environ.setdefault("MLFLOW_REQUIREMENTS_INFERENCE_RAISE_ERRORS", "false")
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    # Any photo size; the category is an optional parameter.
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
        params=ParamSchema([ParamSpec("category", "string", "")]),
    )
    # A synthetic gradient serves as example, so that no photo enters the registry.
    example = np.linspace(0, 255, EXAMPLE_SIDE**2 * 3).astype(np.uint8).reshape(EXAMPLE_SIDE, EXAMPLE_SIDE, 3)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        data = Path(folder) / DATA
        shutil.copytree(bundle, data / "bundle")
        shutil.copyfile(weights, data / "model.safetensors")
        save_model(
            target,
            mlflow_model=Model(artifact_path=target.name, run_id=run),
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(Path(__file__).resolve().parent.parent)],
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
            metadata={"bundle": bundle.name},
        )
