"""Predict mattes with a trained model, at each photo's own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.records import decoder_of
from mm_core.model.preprocess import finish, prepare
from mm_core.model.upsample import guided_upsample

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

Result = TypeVar("Result")


class Predictor(Protocol):
    """Interface of models for evaluation, labelling and the command line."""

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Return mattes float32 (H, W) in [0, 1], in the order of the photos.

        Args:
            photos: uint8 (H, W, 3) sRGB, of any sizes.
            decoders: One decoder name per photo.
        """
        ...

    def choose(self, photos: Sequence[np.ndarray]) -> list[str]:
        """Return the decoder that the model chooses for each photo, given the photo alone."""
        ...


def decoders_for(predictor: Predictor, photos: Sequence[np.ndarray], categories: Sequence[str | None]) -> list[str]:
    """Return the decoder of each photo's category, or the model's choice for photos without a category."""
    unknown = [row for row, category in enumerate(categories) if not category]
    choices = predictor.choose([photos[row] for row in unknown]) if unknown else []
    chosen = dict(zip(unknown, choices, strict=True))
    return [chosen.get(row) or decoder_of(category) for row, category in enumerate(categories)]


def pick_device(device: str = "auto") -> str:
    """Resolve `auto` to `cuda` if a GPU is available, otherwise `cpu`; other names are returned unchanged."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


class TorchPredictor:
    """Predictor that runs a model file in PyTorch. It has no state between calls, so threads may share it."""

    def __init__(self, path: Path, device: str = "auto", batch: int = 8, guided: bool = False) -> None:
        """Load a model.

        Args:
            path: Model file.
            device: `auto` or the name of a torch device.
            batch: Maximum number of photos per forward pass.
            guided: Refine mattes along the photo's edges (`upsample`). Off where models are judged, because exported
                models do not include it.

        Raises:
            InputError: As in `load_model`.
        """
        from mm_core.model.files import load_model

        self.device, self.batch = pick_device(device), batch
        self.net, self.meta = load_model(path, self.device)
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.size, self.guided = self.net.config.size, guided

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        """Return mattes as in `Predictor.predict`; photos of one decoder share batches."""
        if len(photos) != len(decoders):
            raise ValueError(f"{len(photos)} photos with {len(decoders)} decoder names")
        mattes: dict[int, np.ndarray] = {}
        # Group the photos by decoder, in order of first use.
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
        """Return decoders as in `Predictor.choose`."""
        chosen: list[str] = []
        for start in range(0, len(photos), self.batch):
            chunk = photos[start : start + self.batch]
            chosen += self._run(chunk, lambda images: self.net.chosen(self.net.encode(images)))
        return chosen

    def _run(self, photos: Sequence[np.ndarray], work: Callable[[torch.Tensor], Result]) -> Result:
        """Prepare photos as one batch on the device and apply `work` to it."""
        images = torch.from_numpy(np.stack([prepare(photo, self.size) for photo in photos]))
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return work(images)
