"""Run the int8 files in the runtime of phones: onnxruntime, numpy and OpenCV, without torch.

The gate evaluates through this module, so it judges exactly the released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS, digest_of, sha256_file
from mm_core.export.bundle_manifest import MANIFEST, checked_manifest
from mm_core.model.preprocess import finish, prepare
from mm_core.model.upsample import guided_upsample

SUFFIX = ".int8.onnx"
"""`<decoder>.int8.onnx`: input `image` float32 (1,3,S,S), normalised; outputs `alpha` float32 (1,1,S,S) in [0,1] and
`CHOICE`."""
CHOICE = "decoder"
"""Logits float32 (1, 3) over DECODERS, which choose the decoder for the photo; files of early versions lack it."""


MOST_SIDE = 4096
"""Largest side S in pixels; a foreign file may declare any, and the photo is enlarged to it."""
_STATUS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
BROKEN: tuple[type[Exception], ...] = (
    *(getattr(state, name) for name in (*_STATUS, "RuntimeException")),
    OSError,
    ValueError,
)
"""Errors of onnxruntime about a file. It has one class per status code, without a common base."""


def open_session(file: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Open an onnxruntime session on the CPU; with `threads` None the runtime chooses the thread count.

    Raises InputError if this runtime cannot read the file, if it reads weights from further files, or if it is no
    matting network.
    """
    options = onnxruntime.SessionOptions()
    # Level 3: errors only.
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    # Weights in other files are not loaded: the manifest of a bundle does not list such files.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file / "none"))
    try:
        session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    except BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: onnxruntime cannot load it ({reason}); export it again") from None
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    shape = inputs[0].shape if [(i.name, i.type) for i in inputs] == [("image", "tensor(float)")] else []
    sides = [side for side in shape[2:] if isinstance(side, int) and 1 <= side <= MOST_SIDE]
    if shape[:2] != [1, 3] or len(shape) != 4 or len(sides) != 2 or sides[0] != sides[1] or "alpha" not in outputs:
        raise InputError(
            f"{file}: no matting network with a square input of at most {MOST_SIDE} pixels; fetch it again"
        )
    return session


def input_size(session: onnxruntime.InferenceSession) -> int:
    """Return side S of the square input in pixels."""
    return int(session.get_inputs()[0].shape[-1])


def int8_files(folder: Path) -> dict[str, Path]:
    """Return name → path of the int8 files that `quantise` wrote; raise InputError if there is none."""
    files = {path.name: path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if not files:
        raise InputError(f"{folder} holds no *{SUFFIX}: run `mm evaluate`, which quantises the candidate")
    return files


def files_digest(files: Mapping[str, Path]) -> str:
    """Return the digest of int8 files by their names."""
    # Names without folders: a promoted model has its files in the store.
    return digest_of({name: sha256_file(path) for name, path in files.items()})


class OnnxPredictor:
    """The Predictor of `mm_core.model.predict` for `<decoder>.int8.onnx` files.

    Sessions open on a decoder's first use.

    Args:
        files: File name → path (a promoted model's files are in the store under their digests); names of other
            formats are ignored.
        threads: Thread count, or None for the runtime's choice.
        guided: See TorchPredictor.
    """

    def __init__(self, files: Mapping[str, Path], threads: int | None = None, guided: bool = False) -> None:
        self.files = {name.removesuffix(SUFFIX): path for name, path in files.items() if name.endswith(SUFFIX)}
        self.threads, self.guided = threads, guided
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        # A misspelled file name would otherwise surface only at prediction.
        unknown = sorted(set(self.files) - set(DECODERS))
        if unknown or not self.files:
            raise InputError(
                f"{', '.join(sorted(files)) or 'an empty list'}: expected files named "
                + ", ".join(f"{decoder}{SUFFIX}" for decoder in DECODERS)
            )

    @classmethod
    def of_folder(cls, folder: Path, threads: int | None = None, guided: bool = False) -> OnnxPredictor:
        """Open the int8 files of a folder: those in a bundle's manifest, or the output of `quantise`.

        Raises InputError if the folder has none, or if a bundle's files differ from its manifest.
        """
        if (folder / MANIFEST).is_file():
            listed = {entry["file"] for entry in checked_manifest(folder)["decoders"].values()}
            return cls({name: folder / name for name in sorted(listed)}, threads, guided)
        return cls(int8_files(folder), threads, guided)

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Return mattes like `Predictor.predict`: photos uint8 (H, W, 3), a decoder each → float32 (H, W) in [0, 1]."""
        if len(photos) != len(decoders):
            raise ValueError(f"{len(photos)} photos and {len(decoders)} decoders: give one decoder per photo")
        mattes = []
        for photo, decoder in zip(photos, decoders, strict=True):
            image = prepare(photo, input_size(self._session(decoder)))
            alpha = self.alpha(image, decoder)
            mattes.append(guided_upsample(alpha, photo) if self.guided else finish(alpha, photo.shape[:2]))
        return mattes

    def alpha(self, image: np.ndarray, decoder: str) -> np.ndarray:
        """Return the file's own output: prepared float32 (3, S, S) → float32 (S, S) in [0, 1]."""
        alpha = self._run(decoder, "alpha", image)
        # A comparison with NaN is false, so later checks would let it pass.
        if alpha.shape != (1, 1, *image.shape[1:]) or not np.isfinite(alpha).all():
            raise InputError(f"{self.files[decoder]}: its output is no matte; fetch it again")
        return alpha[0, 0]

    def _run(self, decoder: str, output: str, image: np.ndarray) -> np.ndarray:
        """Return one output of a file for a prepared photo, float32 (3, S, S)."""
        try:
            return np.asarray(self._session(decoder).run([output], {"image": image[None]})[0])
        except BROKEN as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.files[decoder]}: onnxruntime cannot run it ({reason}); fetch it again") from None

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """Return a decoder per photo like `Predictor.choose`; the first decoder if the files have no such output."""
        # Every file has the same chooser, so any of them will do.
        first = next(name for name in DECODERS if name in self.files)
        session = self._session(first)
        if CHOICE not in [output.name for output in session.get_outputs()]:
            return [DECODERS[0]] * len(photos)
        size, chosen = input_size(session), []
        for photo in photos:
            logits = self._run(first, CHOICE, prepare(photo, size))
            if logits.shape != (1, len(DECODERS)) or not np.isfinite(logits).all():
                raise InputError(f"{self.files[first]}: its output {CHOICE!r} chooses no decoder; fetch it again")
            chosen.append(DECODERS[int(logits.argmax())])
        return chosen

    def _session(self, decoder: str) -> onnxruntime.InferenceSession:
        if decoder not in self._sessions:
            if decoder not in self.files:
                raise InputError(f"no file for decoder {decoder!r}: this model has {', '.join(sorted(self.files))}")
            self._sessions[decoder] = open_session(self.files[decoder], self.threads)
        return self._sessions[decoder]
