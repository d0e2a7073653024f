"""The categories of photos. A new category is one more line in TABLE; nothing else lists all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("pixel_labeled", "unlabeled", "text_image")
"""Kinds of drops. They are here, because the command line shows them without loading the records."""
DECODERS = ("saliency", "portrait", "scenery")


@dataclass(frozen=True)
class Category:
    """A category, with everything that differs from category to category by name only."""

    name: str
    decoder: str
    """The one of DECODERS that serves it."""
    spellings: tuple[str, ...]
    """Names of folders that mean it, in lower case, without spaces, dashes and underscores."""
    sentences: tuple[str, ...]
    """Descriptions by which CLIP guesses it."""
    noun: str
    """What its photos show, in the text about a moment."""
    judged: bool = True
    """Whether the gate judges it and the means include it."""


TABLE = (
    Category(
        "portrait",
        "portrait",
        ("portrait", "portraits"),
        ("a portrait photo of one person", "a photo of a man", "a photo of a woman", "a selfie"),
        "a person",
    ),
    Category(
        "multi_person",
        "portrait",
        ("multiperson", "multipersons", "multipeople", "multiplepersons", "multiplepeople"),
        ("a photo of several people", "a group photo of people", "a photo of two people together"),
        "people together",
    ),
    Category(
        "pets",
        "saliency",
        ("pet", "pets"),
        ("a photo of a pet", "a photo of a dog", "a photo of a cat", "a photo of an animal"),
        "a pet",
    ),
    Category(
        "accessories",
        "saliency",
        ("accessory", "accessories"),
        ("a photo of a product", "a photo of a bag", "a photo of shoes", "a photo of an object on a table"),
        "things",
    ),
    Category(
        "cards",
        "saliency",
        ("card", "cards"),
        ("a photo of a card", "a photo of a document", "a photo of a page with text", "a photo of a sign"),
        "cards or papers",
    ),
    Category(
        "delicacy",
        "saliency",
        ("delicacy", "delicacies"),
        ("a photo of food", "a photo of a dish on a plate", "a photo of a drink", "a photo of a dessert"),
        "food",
    ),
    Category(
        "scenery",
        "scenery",
        ("scenery", "sceneries"),
        ("a photo of a landscape", "a photo of the sky", "a photo of a street", "a photo of mountains"),
        "scenery",
        judged=False,
    ),
)

CATEGORIES = tuple(category.name for category in TABLE if category.judged)
"""The six categories that the gate judges (Matting Moments, Table 1)."""
GUARDED = tuple(category.name for category in TABLE if not category.judged)
"""Categories outside the gate's means; a certain loss in one of them blocks a release all the same."""
ALL_CATEGORIES = (*CATEGORIES, *GUARDED)
DECODER_OF: Mapping[str, str] = {category.name: category.decoder for category in TABLE}
NOUNS: Mapping[str, str] = {category.name: category.noun for category in TABLE}
SENTENCES: Mapping[str, tuple[str, ...]] = {category.name: category.sentences for category in TABLE}
CATEGORY_OF: Mapping[str, str] = {spelling: category.name for category in TABLE for spelling in category.spellings}
"""Spelling → category."""


def decoder_of(category: str | None) -> str:
    """Return the decoder that serves a category; saliency for an unknown one."""
    return DECODER_OF.get(category or "", "saliency")
