"""Select the extractors of this installation; each maps decoded photos to rows of `features`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.storage.store import blob_key
from mm_core.structuring import embedding, ocr, photo_features
from mm_core.structuring.rows import Found, Photo

if TYPE_CHECKING:
    from mm_core.structuring.tags import ClipTags


@dataclass(frozen=True)
class Extractor:
    """One kind of row, computed once per sample and `version`."""

    name: str
    version: str
    run: Callable[[Sequence[Photo]], Sequence[Found]]
    """Returns one result per photo, in their order."""
    together: bool = False
    """Takes many photos in one call (a network, a program); otherwise it runs photo by photo on all cores."""
    categories: frozenset[str] | None = None
    """Categories of the photos to run on; None means all. A photo without category is `unknown`."""

    def wants(self, category: str | None) -> bool:
        """Return whether photos of a category get this row."""
        return self.categories is None or (category or "unknown") in self.categories


@dataclass(frozen=True)
class Chosen:
    """Extractors that params and machine allow."""

    extractors: list[Extractor]
    left_out: dict[str, str]
    """Extractor → reason why it is not available."""
    clip: ClipTags | None
    vectors: tuple[str, str]
    """Extractor and version of the most informative vectors: CLIP's, the classifier's or the classical ones."""


def chosen(params: Params, layout: Layout, stack: ExitStack) -> Chosen:
    """Return the extractors that params and machine allow, and the reasons for leaving out the others.

    Args:
        params: Sections `clip` and `structure`.
        layout: The workspace.
        stack: Programs that are started end with it.

    Raises:
        InputError: Configured weights are not available.
    """
    extractors = [Extractor(photo_features.EXTRACTOR, photo_features.VERSION, _each(_photo))]
    left_out: dict[str, str] = {}
    clip = None
    # One source of vectors: CLIP, the classifier or the classical embedding.
    if params.clip.model == "local":
        # A CLIP trained on a few captions has seen no ImageNet class, so its tags would be noise.
        left_out["clip"] = "clip.model is `local`: name an open_clip model and `pretrained` weights for its vectors"
        if params.structure.classifier:
            from mm_core.structuring.classifier import ClassifierTags

            tagger = ClassifierTags(params.structure.classifier, params.structure.tags, layout.graphs)
            extractors.append(Extractor(tagger.extractor, tagger.version, tagger.run, together=True))
        else:
            left_out["classifier"] = "structure.classifier is empty"
            embed = _each(lambda photo: Found(vector=embedding.embedding(photo.small)))
            extractors.append(Extractor(embedding.EXTRACTOR, embedding.VERSION, embed))
    else:
        from mm_core.structuring.tags import EXTRACTOR, ClipTags

        clip = ClipTags(params.clip, params.structure, layout.cache / "clip", layout.settings.device)
        extractors.append(Extractor(EXTRACTOR, clip.version, clip.run, together=True))
    # The last extractor so far is the one with vectors.
    vectors = extractors[-1].name, extractors[-1].version
    if not params.structure.ocr:
        left_out["ocr"] = "structure.ocr is empty"
    else:
        run, categories = stack.enter_context(ocr.OcrProgram()).run, frozenset(params.structure.ocr)
        extractors.append(Extractor(ocr.EXTRACTOR, ocr.VERSION, run, together=True, categories=categories))
    return Chosen(extractors, left_out, clip, vectors)


def _each(measure: Callable[[Photo], Found]) -> Callable[[Sequence[Photo]], list[Found]]:
    """Return a function that measures photos one by one."""
    return lambda photos: [measure(photo) for photo in photos]


def _photo(photo: Photo) -> Found:
    """Return the row of `photo_features`, with the blob's path and the photo's name."""
    features = photo_features.photo_features(photo.path, photo.small)
    where = {"path": blob_key(photo.sample_id)} | ({"name": photo.name} if photo.name else {})
    return Found(features.numbers, {**features.texts, **where})
