"""Mattes from a trained model, at each photo's own size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mm_core.model.preprocess import finish, prepare
from mm_core.model.upsample import guided_upsample


class Predictor(Protocol):
    """What evaluation, labelling and the command line ask mattes of."""

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Photos uint8 (H,W,3) sRGB and one decoder name each → float32 (H,W) in [0,1], in the same order."""
        ...


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
        import torch

        if len(photos) != len(decoders):
            raise ValueError(f"{len(photos)} photos with {len(decoders)} decoder names")
        mattes: dict[int, np.ndarray] = {}
        for name in dict.fromkeys(decoders):
            rows = [row for row, decoder in enumerate(decoders) if decoder == name]
            for start in range(0, len(rows), self.batch):
                chunk = rows[start : start + self.batch]
                images = torch.from_numpy(np.stack([prepare(photos[row], self.size) for row in chunk]))
                images = images.to(self.device, memory_format=torch.channels_last)
                with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                    alphas = self.net(images, name).float().sigmoid().cpu().numpy()
                for row, alpha in zip(chunk, alphas, strict=True):
                    photo = photos[row]
                    mattes[row] = guided_upsample(alpha[0], photo) if self.guided else finish(alpha[0], photo.shape[:2])
        return [mattes[row] for row in range(len(photos))]
