"""The int8 files in the runtime that phones use: onnxruntime, numpy and OpenCV, no torch.

What the gate judges runs through here, so that what is judged is what ships.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.export.bundle_manifest import MANIFEST, checked_manifest
from mm_core.model.preprocess import finish, prepare
from mm_core.model.upsample import guided_upsample

if TYPE_CHECKING:
    import onnxruntime

SUFFIX = ".int8.onnx"
"""`<decoder>.int8.onnx`: input `image` float32 (1,3,S,S), normalised; outputs `alpha` float32 (1,1,S,S) in [0,1] and
`CHOICE`."""
CHOICE = "decoder"
"""Logits float32 (1,3) of DECODERS: which of them the photo is for. Files from before it was there lack it."""


def open_session(file: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU; `threads` None leaves the choice to the runtime.

    Raises InputError where the file is no model that this runtime reads.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore

    broken = tuple(
        getattr(state, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except broken as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: onnxruntime cannot load it ({reason}); export it again") from None


def input_size(session: onnxruntime.InferenceSession) -> int:
    """Side S of the square input in pixels."""
    return int(session.get_inputs()[0].shape[-1])


class OnnxPredictor:
    """`mm_core.model.predict`'s Predictor over `<decoder>.int8.onnx` files.

    `files` maps file names to paths (a promoted model's files lie in the store under their digests);
    names of other formats are passed over.
    Sessions open when a decoder is first asked for. `guided`: as in TorchPredictor.
    """

    def __init__(self, files: Mapping[str, Path], threads: int | None = None, guided: bool = False):
        self.files = {name.removesuffix(SUFFIX): path for name, path in files.items() if name.endswith(SUFFIX)}
        self.threads, self.guided = threads, guided
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        unknown = sorted(set(self.files) - set(DECODERS))
        if unknown or not self.files:
            raise InputError(
                f"{', '.join(sorted(files)) or 'an empty list'}: expected files named "
                + ", ".join(f"{decoder}{SUFFIX}" for decoder in DECODERS)
            )

    @classmethod
    def of_folder(cls, folder: Path, threads: int | None = None, guided: bool = False) -> OnnxPredictor:
        """The int8 files of a folder: those that a bundle's manifest lists, or what `quantise` left.

        Raises InputError where there are none, and where a bundle's files are not those of its manifest.
        """
        if (folder / MANIFEST).is_file():
            listed = {entry["file"] for entry in checked_manifest(folder)["decoders"].values()}
            return cls({name: folder / name for name in sorted(listed)}, threads, guided)
        found = {path.name: path for path in sorted(folder.glob(f"*{SUFFIX}"))}
        if not found:
            raise InputError(f"{folder} holds no *{SUFFIX}: run `mm evaluate`, which quantises the candidate")
        return cls(found, threads, guided)

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """As `Predictor.predict`: photos uint8 (H,W,3), one decoder each → float32 (H,W) in [0,1]."""
        if len(photos) != len(decoders):
            raise ValueError(f"{len(photos)} photos and {len(decoders)} decoders: give one decoder per photo")
        mattes = []
        for photo, decoder in zip(photos, decoders, strict=True):
            image = prepare(photo, input_size(self._session(decoder)))
            alpha = self.alpha(image, decoder)
            mattes.append(guided_upsample(alpha, photo) if self.guided else finish(alpha, photo.shape[:2]))
        return mattes

    def alpha(self, image: np.ndarray, decoder: str) -> np.ndarray:
        """What the file itself gives: prepared float32 (3,S,S) → float32 (S,S) in [0,1]."""
        (alpha,) = self._session(decoder).run(["alpha"], {"image": image[None]})
        return np.asarray(alpha)[0, 0]

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """As `Predictor.choose`; the first decoder where the files do not say."""
        session = self._session(next(name for name in DECODERS if name in self.files))
        if CHOICE not in [output.name for output in session.get_outputs()]:
            return [DECODERS[0]] * len(photos)
        size, chosen = input_size(session), []
        for photo in photos:
            (logits,) = session.run([CHOICE], {"image": prepare(photo, size)[None]})
            chosen.append(DECODERS[int(np.asarray(logits).argmax())])
        return chosen

    def _session(self, decoder: str) -> onnxruntime.InferenceSession:
        if decoder not in self._sessions:
            if decoder not in self.files:
                raise InputError(f"no file for decoder {decoder!r}: this model has {', '.join(sorted(self.files))}")
            self._sessions[decoder] = open_session(self.files[decoder], self.threads)
        return self._sessions[decoder]
