"""Mattes from a trained model, at each photo's own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mm_core.core.records import decoder_of
from mm_core.model.preprocess import finish, prepare
from mm_core.model.upsample import guided_upsample


class Predictor(Protocol):
    """What evaluation, labelling and the command line ask mattes of."""

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Photos uint8 (H,W,3) sRGB and one decoder name each → float32 (H,W) in [0,1], in the same order."""
        ...

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """The decoder that the model itself would take for each photo, by its looks."""
        ...


def decoders_for(predictor: Predictor, photos: Sequence[np.ndarray], categories: Sequence[str | None]) -> list[str]:
    """The decoder of each photo: its category's; where none is known, the one that the model chooses."""
    unknown = [row for row, category in enumerate(categories) if not category]
    asked = predictor.choose([photos[row] for row in unknown]) if unknown else []
    chosen = dict(zip(unknown, asked, strict=True))
    return [chosen.get(row) or decoder_of(category) for row, category in enumerate(categories)]


def pick_device(device: str = "auto") -> str:
    """`auto` → `cuda` where there is one, else `cpu`; anything else as it is."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


class TorchPredictor:
    """Runs a model file in PyTorch. Holds no state between calls, so that threads may share one."""

    def __init__(self, path: Path, device: str = "auto", batch: int = 8, bf16: bool = False, guided: bool = False):
        """`bf16`: mixed precision; off, so that results depend little on the machine. Raises as load_model.

        `guided`: mattes follow the photo's edges (`upsample`); off where models are judged, for what ships does not.
        """
        import torch

        from mm_core.model.files import load_model

        self.device, self.batch, self.bf16 = pick_device(device), batch, bf16
        self.net, self.meta = load_model(path, self.device)
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.size, self.guided = self.net.config.size, guided

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """As `Predictor.predict`; photos of one decoder share batches."""
        if len(photos) != len(decoders):
            raise ValueError(f"{len(photos)} photos with {len(decoders)} decoder names")
        mattes: dict[int, np.ndarray] = {}
        for name in dict.fromkeys(decoders):
            rows = [row for row, decoder in enumerate(decoders) if decoder == name]
            for start in range(0, len(rows), self.batch):
                chunk = rows[start : start + self.batch]
                logits = self._run([photos[row] for row in chunk], lambda images, name=name: self.net(images, name))
                alphas = logits.float().sigmoid().cpu().numpy()
                for row, alpha in zip(chunk, alphas, strict=True):
                    photo = photos[row]
                    mattes[row] = guided_upsample(alpha[0], photo) if self.guided else finish(alpha[0], photo.shape[:2])
        return [mattes[row] for row in range(len(photos))]

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """As `Predictor.choose`."""
        chosen: list[str] = []
        for start in range(0, len(photos), self.batch):
            chunk = photos[start : start + self.batch]
            chosen += self._run(chunk, lambda images: self.net.chosen(self.net.encode(images)))
        return chosen

    def _run(self, photos: Sequence[np.ndarray], work: Callable[[Any], Any]) -> Any:
        import torch

        images = torch.from_numpy(np.stack([prepare(photo, self.size) for photo in photos]))
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return work(images)
