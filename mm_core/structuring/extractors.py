"""Which extractors this installation has: each takes decoded photos and gives rows of `features`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.imaging.images import load_rgb, read_header
from mm_core.storage.store import blob_key
from mm_core.structuring import embedding, ocr, photo_features
from mm_core.structuring.rows import Found, Photo

if TYPE_CHECKING:
    from mm_core.structuring.tags import ClipTags

DECODE_SIDE = 960
"""Long side of the one decode: text stays readable, and a 12-megapixel JPEG is still decoded at a quarter."""


@dataclass(frozen=True)
class Extractor:
    """One kind of row. A row is computed once per sample and `version`."""

    name: str
    version: str
    run: Callable[[Sequence[Photo]], Sequence[Found]]
    """As many answers as photos, in their order."""
    together: bool = False
    """Takes many photos in one call (a network, a program); else photo by photo, on all cores."""
    categories: frozenset[str] | None = None
    """Only photos of these; None: all. A photo without category is `unknown`."""

    def wants(self, category: str | None) -> bool:
        return self.categories is None or (category or "unknown") in self.categories


@dataclass(frozen=True)
class Chosen:
    """What params and machine allow."""

    extractors: list[Extractor]
    left_out: dict[str, str]
    """Extractor → why it is not there."""
    clip: ClipTags | None
    vectors: tuple[str, str]
    """Extractor and version of the vectors that say most: CLIP's, else the classifier's, else the classical ones."""


def decode(path: Path) -> np.ndarray:
    """A photo as uint8 (H, W, 3) sRGB, upright, long side `DECODE_SIDE` at most. Raises UnreadableImage.

    Little too large, it is decoded whole and area-averaged: Pillow's filter would take longer than the decode.
    """
    header = read_header(path)
    far = max(header.width, header.height) >= 2 * DECODE_SIDE
    return shrunk(load_rgb(path, DECODE_SIDE if far else None), DECODE_SIDE)


def shrunk(rgb: np.ndarray, side: int) -> np.ndarray:
    """A photo (H, W, 3) by area averaging at long side `side` at most."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def chosen(params: Params, layout: Layout, stack: ExitStack) -> Chosen:
    """The extractors that params and machine allow, and why each other one is left out.

    Programs that they start end with `stack`. Raises InputError for weights that are named but cannot be had.
    """
    found = [Extractor(photo_features.EXTRACTOR, photo_features.VERSION, _each(_photo))]
    left_out: dict[str, str] = {}
    clip = None
    if params.clip.model == "local":
        # A CLIP trained on our few captions has seen no ImageNet class: its tags would be noise.
        left_out["clip"] = "clip.model is `local`: name an open_clip model and `pretrained` weights for its vectors"
        if params.structure.classifier:
            from mm_core.structuring.classifier import ClassifierTags

            tagger = ClassifierTags(params.structure.classifier, params.structure.tags, layout.settings.device)
            found.append(Extractor(tagger.extractor, tagger.version, tagger.run, together=True))
        else:
            left_out["classifier"] = "structure.classifier is empty"
            found.append(
                Extractor(
                    embedding.EXTRACTOR, embedding.VERSION, _each(lambda p: Found(vector=embedding.embedding(p.small)))
                )
            )
    else:
        from mm_core.structuring.tags import EXTRACTOR, ClipTags

        clip = ClipTags(params.clip, params.structure, layout.cache / "clip", layout.settings.device)
        found.append(Extractor(EXTRACTOR, clip.version, clip.run, together=True))
    vectors = found[-1].name, found[-1].version
    if not params.structure.ocr:
        left_out["ocr"] = "structure.ocr is empty"
    elif not layout.settings.ocr_python.is_file():
        left_out["ocr"] = f"{layout.settings.ocr_python} is missing: run `make ocr`, or set MM_OCR_PYTHON"
    else:
        program = stack.enter_context(ocr.OcrProgram(layout.settings.ocr_python))
        found.append(
            Extractor(
                ocr.EXTRACTOR, ocr.VERSION, program.run, together=True, categories=frozenset(params.structure.ocr)
            )
        )
    return Chosen(found, left_out, clip, vectors)


def _each(measure: Callable[[Photo], Found]) -> Callable[[Sequence[Photo]], list[Found]]:
    return lambda photos: [measure(one) for one in photos]


def _photo(one: Photo) -> Found:
    found = photo_features.photo_features(one.path, one.small)
    where = {"path": blob_key(one.sample_id)} | ({"name": one.name} if one.name else {})
    return Found(found.numbers, {**found.texts, **where})
