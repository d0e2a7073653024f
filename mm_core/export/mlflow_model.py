"""Write a released bundle as an MLflow model, so that MLflow's own tools load and serve it.

    model = mlflow.pyfunc.load_model("models:/matting@champion")
    alpha = model.predict("holiday.jpg")        # or a Pillow image, an array, base64; float32 (H, W) in [0, 1]

`mlflow models serve` answers `POST /invocations` with the photo in base64:

    {"inputs": "<base64 of a JPEG or PNG>", "params": {"category": "portrait", "output": "png"}}

The model folder holds the released int8 bundle (`data/matting/bundle`), its float weights
(`data/matting/model.safetensors`, for `mm predict --model FILE`), the code that runs it, and pinned requirements. It
contains no pickle.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES
from mm_core.export.runtime import OnnxPredictor
from mm_core.imaging.images import encode_alpha
from mm_core.imaging.photo_input import Photo, is_file, read_base64, read_photo
from mm_core.model.predict import decoders_for

if TYPE_CHECKING:
    from mlflow import models, pyfunc, types
else:
    models = Deferred("mlflow.models")
    pyfunc = Deferred("mlflow.pyfunc")
    types = Deferred("mlflow.types")

DATA = "matting"
"""Folder name within `data/` of the MLflow model."""
REQUIREMENTS = ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "pillow-heif", "pydantic")
"""Packages needed for prediction, pinned to the versions of the releasing environment."""
EXAMPLE_SIDE = 32
"""Side of the example photo in pixels."""
OUTPUTS = ("alpha", "png")
"""Forms of the result: numbers, or a PNG in base64."""
_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""Environment variable that MLflow's scoring server sets."""


class MattingModel:
    """The object in `mlflow.pyfunc.load_model`: int8 ONNX files in onnxruntime."""

    def __init__(self, bundle: Path) -> None:
        """Open the bundle in a folder; raise InputError if it holds none."""
        self._predictor = OnnxPredictor.of_folder(bundle, guided=True)

    def predict(self, model_input: object, params: dict[str, str] | None = None) -> np.ndarray | str:
        """Return the alpha matte of one photo at the photo's own size.

        Args:
            model_input: A path, a Pillow image, uint8 (H, W, 3) in sRGB as array or nested lists, or the bytes of a
                photo file in base64. A server refuses paths, because they would be files of its own machine.
            params: `category` selects the decoder; without it the model selects one. `output` is `alpha` or `png`.

        Returns:
            float32 (H, W) in [0, 1]. For the output `png`: the base64 text of a grey PNG of 8 bits, which is many times
            smaller than the numbers as JSON.

        Raises:
            InputError: The input is not a photo, or the category or output is unknown.
        """
        options = params or {}
        # An empty category lets the model select the decoder.
        category, output = options.get("category") or "", options.get("output") or "alpha"
        if category and category not in ALL_CATEGORIES:
            raise InputError(f"category {category!r} is unknown; one of {', '.join(ALL_CATEGORIES)}")
        if output not in OUTPUTS:
            raise InputError(f"output {output!r} is unknown; one of {', '.join(OUTPUTS)}")
        photo = _pixels_of(model_input)
        decoders = decoders_for(self._predictor, [photo], [category])
        alpha = self._predictor.predict([photo], decoders)[0].astype(np.float32)
        return base64.b64encode(encode_alpha(alpha)).decode() if output == "png" else alpha


def _pixels_of(model_input: object) -> np.ndarray:
    """Return the photo of a call or a request as uint8 (H, W, 3)."""
    served = bool(os.environ.get(_SERVING))
    # A name of an existing file is a path, even if its letters could be base64.
    if isinstance(model_input, str) and (served or not is_file(model_input)):
        if (photo := read_base64(model_input)) is not None:
            return photo
        if served:
            raise InputError("a served model takes the photo as base64 text or nested lists, no path")
    # JSON has no integer types, so that nested lists arrive as 64-bit integers.
    if isinstance(model_input, list):
        values = _array_of(model_input)
        whole = np.issubdtype(values.dtype, np.integer) and values.size and values.min() >= 0 and values.max() <= 255
        return read_photo(values.astype(np.uint8) if whole else values)
    # `read_photo` itself refuses other types.
    return read_photo(cast(Photo, model_input))


def _array_of(rows: list[object]) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError:
        raise InputError("a photo in lists is height × width × 3 numbers; the rows differ in length") from None


def _load_pyfunc(data_path: str) -> MattingModel:
    """Return the model in MLflow's data folder; MLflow calls this function by its name."""
    return MattingModel(Path(data_path) / "bundle")


def save_mlflow_model(bundle: Path, weights: Path, target: Path, run: str) -> None:
    """Write the folder of an MLflow model.

    Args:
        bundle: folder of the released bundle.
        weights: the float weights, a .safetensors file.
        target: the folder to write; it must not exist. Its name is the artifact's in the run.
        run: id of the MLflow run that made the model.
    """
    # MLflow records the versions that it finds; it must not try to look up any others.
    os.environ.setdefault("MLFLOW_REQUIREMENTS_INFERENCE_RAISE_ERRORS", "false")
    # Any photo size; the category is an optional parameter.
    signature = models.ModelSignature(
        inputs=types.Schema([types.TensorSpec(np.dtype(np.uint8), (-1, -1, 3))]),
        outputs=types.Schema([types.TensorSpec(np.dtype(np.float32), (-1, -1))]),
        params=types.ParamSchema(
            [types.ParamSpec("category", "string", ""), types.ParamSpec("output", "string", "alpha")]
        ),
    )
    # MLflow's check of inputs knows no Pillow image, path or base64. This mark passes them on to `predict`, which
    # checks them itself. MLflow has no public way to set it for a model without type hints.
    signature._is_signature_from_type_hint = True
    # A synthetic gradient serves as example, so that no photo enters the registry.
    example = np.linspace(0, 255, EXAMPLE_SIDE**2 * 3).astype(np.uint8).reshape(EXAMPLE_SIDE, EXAMPLE_SIDE, 3)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        data = Path(folder) / DATA
        shutil.copytree(bundle, data / "bundle")
        shutil.copyfile(weights, data / "model.safetensors")
        pyfunc.save_model(
            target,
            mlflow_model=models.Model(artifact_path=target.name, run_id=run),
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(Path(__file__).resolve().parent.parent)],
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
            metadata={"bundle": bundle.name},
        )
