"""Finished pieces of a moment: a collage of cutouts, a new sky, a colour splash, a rectified card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mm_core.effects.cutout import Cutout, encoded, lift, placed
from mm_core.effects.document import find_quad, straightened
from mm_core.effects.eraser import erase, learned
from mm_core.effects.fullsize import shrunk
from mm_core.effects.haze import haze
from mm_core.effects.sky import replaced
from mm_core.effects.style import background_blur, colour_splash, stylised
from mm_core.effects.subjects import Subjects
from mm_core.imaging.images import load_rgb
from mm_core.model.predict import Predictor, decoders_for
from mm_core.moments.strategy import Offer

MAX_SIDE = 4096
"""Largest long side of a finished piece in pixels; photos of 12 megapixels are not reduced."""
COLLAGE_WIDTH = 1600
"""Width of a collage in pixels."""
TONE_COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "joyful": ((255, 214, 120), (255, 150, 120)),
    "festive": ((120, 40, 90), (30, 20, 70)),
    "calm": ((196, 220, 232), (140, 176, 200)),
    "cosy": ((236, 206, 170), (190, 130, 90)),
    "adventurous": ((170, 206, 160), (70, 120, 110)),
    "everyday": ((226, 226, 222), (186, 188, 190)),
}
"""Tone → colours of a collage's background, top and bottom."""


@dataclass(frozen=True)
class Matted:
    """A photo at the size of finished pieces, and its matte."""

    photo: np.ndarray
    """uint8 (H, W, 3)."""
    alpha: np.ndarray
    """float32 (H, W) in [0, 1]; for scenery the matte of the sky."""
    subjects: Subjects

    @staticmethod
    def of(path: Path, category: str | None, predictor: Predictor) -> Matted:
        """Read a photo and predict its matte."""
        photo = load_rgb(path, MAX_SIDE)
        alpha = predictor.predict([photo], decoders_for(predictor, [photo], [category]))[0]
        return Matted(photo, alpha, Subjects(alpha))

    def haze(self) -> float:
        """Return the share of haze in scenery, which has the sky as its matte."""
        return haze(self.photo, self.alpha).share


def finished(matted: Matted, offer: Offer, inpainting: Path | None = None) -> np.ndarray | Cutout | None:
    """Apply an offered effect; return a picture uint8 (H, W, 3), a cutout, or None if the effect does not apply."""
    photo, alpha, subjects = matted.photo, matted.alpha, matted.subjects
    if offer.function == "document":
        quad = find_quad(photo, alpha)
        return None if quad is None else straightened(photo, quad)
    # Without a visible sky its replacement has no effect.
    if offer.function == "sky":
        return replaced(photo, alpha, offer.choice or "sunset") if (alpha > 0.5).mean() > 0.02 else None
    # All effects below need a subject.
    if not subjects.all:
        return None
    if offer.function == "cutout":
        return lift(photo, alpha)
    # The dominant subject stays; the eraser removes the others.
    main = subjects.of(subjects.all[0])
    if offer.function == "eraser":
        others = subjects.of(*subjects.all[1:]) if len(subjects.all) > 1 else None
        fill = learned(inpainting) if inpainting else None
        return None if others is None else erase(photo, others, keep=main, fill=fill)
    if offer.function == "splash":
        return colour_splash(photo, alpha)
    if offer.function == "blur":
        return background_blur(photo, alpha)
    return stylised(photo, alpha, offer.choice or "film")


def collage(cutouts: Sequence[Cutout], tone: str) -> np.ndarray:
    """Arrange up to six cutouts side by side on a background in the tone's colours.

    More cutouts give a flatter picture. Each has a soft shadow. Subjects cropped by the lower edge of their photo are
    placed on the lower edge.

    Args:
        cutouts: The cutouts, best first.
        tone: A key of TONE_COLOURS.

    Returns:
        uint8 (height, width, 3).
    """
    top, bottom = (np.array(colour, np.float32) for colour in TONE_COLOURS[tone])
    chosen, width = list(cutouts)[:6], COLLAGE_WIDTH
    height = round(width * {1: 0.9, 2: 0.75, 3: 0.6}.get(len(chosen), 0.5))
    # Vertical gradient between the two colours.
    fall = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    backdrop = np.repeat(top * (1 - fall) + bottom * fall, width, 1)
    picture = np.rint(backdrop).astype(np.uint8)
    column = width / max(1, len(chosen))
    # Draw the outer ones first: the best photo is first in the list and ends in the middle, in front.
    places = sorted(range(len(chosen)), key=lambda n: abs(n - (len(chosen) - 1) / 2))
    for place, cutout in sorted(zip(places, chosen, strict=True), key=lambda pair: -abs(pair[0] - len(chosen) / 2)):
        tall, wide = cutout.rgba.shape[:2]
        share = min(0.86, 1.5 * column / wide * tall / height)
        grounded = cutout.box[3] >= cutout.photo_size[1] - 2
        x = (place + 0.5) / len(chosen)
        y = 1 - share / 2 if grounded else 0.94 - share / 2
        # The shadow is a black, blurred copy of the cutout, slightly shifted.
        shadow = np.dstack([np.zeros_like(cutout.rgba[..., :3]), _softened(cutout.rgba[..., 3])])
        under = Cutout(shadow, cutout.box, cutout.photo_size)
        picture = placed(under, picture, (x + 0.008, y + 0.01), share)
        picture = placed(cutout, picture, (x, y), share)
    return picture


def _softened(matte: np.ndarray) -> np.ndarray:
    sigma = max(1.0, 0.02 * max(matte.shape))
    small = cv2.GaussianBlur(shrunk(matte, 512), (0, 0), max(1.0, sigma * min(1.0, 512 / max(matte.shape))))
    return (cv2.resize(small, matte.shape[::-1]) * 0.45).astype(np.uint8)


def file_of(piece: np.ndarray | Cutout, **about: str) -> tuple[str, bytes]:
    """Return suffix and bytes of a piece: JPEG, or PNG with transparency, without the photo's own metadata."""
    if isinstance(piece, Cutout):
        return ".png", encoded(piece, "PNG", **about)
    stream = BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "; ".join(f"{name}: {value}" for name, value in about.items())  # ImageDescription
    Image.fromarray(piece).save(stream, "JPEG", quality=92, exif=exif)
    return ".jpg", stream.getvalue()
