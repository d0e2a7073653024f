"""Initial mattes before there is a champion, so that people never start from an empty canvas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import RouteParams
from mm_core.core.records import DECODERS, sha256_file
from mm_core.model.predict import TorchPredictor
from mm_core.model.preprocess import resize
from mm_core.model.upsample import guided_upsample

if TYPE_CHECKING:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore

    from mm_core.model.predict import Predictor
else:
    onnxruntime = Deferred("onnxruntime")
    state = Deferred("onnxruntime.capi.onnxruntime_pybind11_state")


def cold_start(params: RouteParams, layout: Layout) -> tuple[Predictor | None, str]:
    """Return the model for initial mattes without a champion, and its version for the tasks.

    The model that params name comes first: somebody chose it. Otherwise it is the candidate of the last cycle, whatever
    the gate says of it. Without either the predictor is None and the version `none`.

    Args:
        params: `starter` and its input.
        layout: The workspace.

    Raises:
        InputError: The file of `route.starter` is missing or is no such model.
    """
    if params.starter:
        path = Path(params.starter).expanduser()
        return OnnxStarter(path, params), f"starter:{path.stem}:{sha256_file(path)[:12]}"
    weights = layout.model(TRAIN_STAGES[-1])
    if has_file(weights):
        return TorchPredictor(weights, layout.settings.device), f"candidate:{sha256_file(weights)[:12]}"
    return None, "none"


class OnnxStarter:
    """A `Predictor` from an ONNX file that maps a colour picture to one map of the subject.

    The first input is float32 (1, 3, S, S). The first output is the map, in [0, 1] or as logits.
    """

    def __init__(self, path: Path, params: RouteParams) -> None:
        if not path.is_file():
            raise InputError(f"route.starter: {path}: no such file; name an ONNX model, or leave it empty")
        self.path, self._params = path, params
        self._session = _open(path)
        shape = self._session.get_inputs()[0].shape
        if len(shape) != 4 or shape[1] not in (3, None) and not isinstance(shape[1], str):
            raise InputError(f"route.starter: {path}: its input has shape {shape}, not (1, 3, height, width)")
        # A name or None stands for a side that the file leaves open.
        self._size = tuple(side if isinstance(side, int) else params.starter_size for side in shape[2:])

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Return a matte per photo, float32 (H, W) in [0, 1]; the file has one decoder for all.

        Raises:
            InputError: The output is no single map.
        """
        return [self._matte(photo) for photo in photos]

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """Return a decoder per photo; it has no effect."""
        return [DECODERS[0]] * len(photos)

    def _matte(self, photo: np.ndarray) -> np.ndarray:
        colours = resize(photo, *self._size).astype(np.float32) / 255
        mean, std = (np.array(v, np.float32) for v in (self._params.starter_mean, self._params.starter_std))
        normalised = (colours - mean) / std
        source = self._session.get_inputs()[0].name
        target = self._session.get_outputs()[0].name
        (output,) = self._session.run([target], {source: np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])})
        found = np.asarray(output, np.float32)
        shape, found = found.shape, found.squeeze()
        if found.ndim != 2 or not np.isfinite(found).all():
            raise InputError(f"route.starter: {self.path}: its first output has shape {shape}, not one map of numbers")
        # Logits leave [0, 1]; a map of probabilities does not.
        if found.min() < -0.01 or found.max() > 1.01:
            found = 1 / (1 + np.exp(-np.clip(found, -30, 30)))
        return guided_upsample(np.clip(found, 0, 1), photo)


def _open(path: Path) -> onnxruntime.InferenceSession:
    # onnxruntime has one exception class per status code, without a common base.
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except tuple(getattr(state, name) for name in names) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"route.starter: {path}: onnxruntime cannot load it ({reason})") from None
