"""Predict mattes with any ONNX file that maps a colour picture to one map of the subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.model.preprocess import resize
from mm_core.model.upsample import guided_upsample

if TYPE_CHECKING:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore
else:
    onnxruntime = Deferred("onnxruntime")
    state = Deferred("onnxruntime.capi.onnxruntime_pybind11_state")


@dataclass(frozen=True)
class OnnxInput:
    """Size and normalisation of the input that a model expects."""

    size: int
    """Side of the square input in pixels, used if the file leaves it open."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue in [0, 1] that is subtracted."""
    std: tuple[float, float, float]
    """Standard deviations that the colours are divided by."""


class OnnxMatting:
    """A `Predictor` from an ONNX file.

    The first input is float32 (1, 3, S, S). The first output is the map, in [0, 1] or as logits.
    """

    def __init__(self, path: Path, field: str, expected: OnnxInput) -> None:
        """Open the file.

        Args:
            path: The ONNX file.
            field: Name of the parameter that names the file, for error messages.
            expected: Size and normalisation of the input.

        Raises:
            InputError: The file is missing or is no such model.
        """
        if not path.is_file():
            raise InputError(f"{field}: {path}: no such file; name an ONNX model, or leave it empty")
        self.path, self._field = path, field
        self._mean, self._std = np.array(expected.mean, np.float32), np.array(expected.std, np.float32)
        self._session = self._open()
        shape = self._session.get_inputs()[0].shape
        if len(shape) != 4 or shape[1] not in (3, None) and not isinstance(shape[1], str):
            raise InputError(f"{field}: {path}: its input has shape {shape}, not (1, 3, height, width)")
        # A name or None stands for a side that the file leaves open.
        self._size = tuple(side if isinstance(side, int) else expected.size for side in shape[2:])

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
        normalised = (resize(photo, *self._size).astype(np.float32) / 255 - self._mean) / self._std
        source = self._session.get_inputs()[0].name
        target = self._session.get_outputs()[0].name
        (output,) = self._session.run([target], {source: np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])})
        matte = np.asarray(output, np.float32)
        shape, matte = matte.shape, matte.squeeze()
        if matte.ndim != 2 or not np.isfinite(matte).all():
            raise InputError(f"{self._field}: {self.path}: its first output has shape {shape}, not one map of numbers")
        # Logits leave [0, 1]; a map of probabilities does not.
        if matte.min() < -0.01 or matte.max() > 1.01:
            matte = 1 / (1 + np.exp(-np.clip(matte, -30, 30)))
        return guided_upsample(np.clip(matte, 0, 1), photo)

    def _open(self) -> onnxruntime.InferenceSession:
        # onnxruntime has one exception class per status code, without a common base.
        names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except tuple(getattr(state, name) for name in names) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self._field}: {self.path}: onnxruntime cannot load it ({reason})") from None
