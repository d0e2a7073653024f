"""Structuring → strategy: which function suits a photo, and why (Matting Moments, section 2.1).

Rules over what `mm_core.structuring` found; each names its reason. They order offers for a person; nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from mm_core.effects.haze import FOGGY, HAZY
from mm_core.structuring.rows import Found

FUNCTIONS = ("document", "sky", "cutout", "eraser", "splash", "blur", "stylise")


@dataclass(frozen=True)
class Facts:
    """What is known of a photo; a field that nobody measured is None or empty, and no rule looks at it."""

    category: str | None = None
    """Known or guessed."""
    tags: tuple[str, ...] = ()
    """Likeliest first."""
    text: str = ""
    text_share: float = 0.0
    """Share of the frame that text covers."""
    aesthetic: float | None = None
    """In [0, 1]."""
    brightness: float | None = None
    colourfulness: float | None = None
    """Hasler-Suesstrunk: 0 grey, above 60 vivid."""
    simplicity: float | None = None
    """In [0, 1]: how little there is beside what is salient."""
    taken_at: datetime | None = None
    located: bool = False
    haze: float | None = None
    """`effects.haze`'s share, of scenery."""
    subjects: int | None = None
    """Separate subjects in the matte."""
    subject_share: float | None = None
    """Share of the frame that the dominant one covers."""

    @staticmethod
    def of(category: str | None, found: Mapping[str, Found]) -> Facts:
        """From the rows of `features`: extractor → what it found."""
        photo, ocr = found.get("photo", Found()), found.get("ocr", Found())
        guess, tags = found.get("guess", Found()), found.get("clip") or found.get("classifier", Found())
        numbers = photo.numbers
        stamp = photo.texts.get("taken_at")
        return Facts(
            category=category or guess.texts.get("category"),
            tags=tuple(tag for tag in tags.texts.get("tags", "").split("; ") if tag),
            text=ocr.texts.get("text", ""),
            text_share=ocr.numbers.get("text_share", 0.0),
            aesthetic=numbers.get("aesthetic"),
            brightness=numbers.get("brightness"),
            colourfulness=numbers.get("colourfulness"),
            simplicity=numbers.get("simplicity"),
            taken_at=datetime.fromisoformat(stamp) if stamp else None,
            located="latitude" in numbers,
        )


@dataclass(frozen=True)
class Offer:
    """One function for one photo."""

    function: str
    """One of FUNCTIONS."""
    score: float
    """In [0, 1]; orders the offers of a photo."""
    why: str
    """A sentence for people."""
    choice: str = ""
    """The function's own choice: a sky's or a style's name."""


def offers(facts: Facts) -> list[Offer]:
    """What suits a photo, best first; a photo that nothing is known of is offered a cut-out."""
    made = [offer for rule in RULES if (offer := rule(facts)) is not None]
    best: dict[str, Offer] = {}
    for offer in made:
        if offer.function not in best or offer.score > best[offer.function].score:
            best[offer.function] = offer
    found = sorted(best.values(), key=lambda offer: (-offer.score, FUNCTIONS.index(offer.function)))
    return found or [Offer("cutout", 0.1, "Nothing is known of this photo: its subject can always be lifted.")]


def _document(f: Facts) -> Offer | None:
    lines = len([line for line in f.text.splitlines() if line.strip()])
    if f.category == "cards" and lines:
        return Offer("document", 0.95, f"A card or document with {_count(lines, 'line')} of text: straighten it.")
    if f.category == "cards":
        return Offer("document", 0.8, "A card or document: straighten it.")
    if lines >= 4 and f.text_share > 0.08:
        return Offer("document", 0.75, f"{_count(lines, 'line')} of text fill much of the frame: a document.")
    return None


def _foggy_sky(f: Facts) -> Offer | None:
    if f.category != "scenery" or f.haze is None or f.haze < HAZY:
        return None
    word = "foggy" if f.haze >= FOGGY else "hazy"
    return Offer("sky", 0.95, f"A {word} view: a clear sky brings it to life.", "clouds")


def _dull_sky(f: Facts) -> Offer | None:
    if f.category != "scenery":
        return None
    hour = f.taken_at.hour if f.taken_at else None
    if f.colourfulness is not None and f.colourfulness < 25:
        return Offer("sky", 0.85, "Scenery with little colour: another sky changes that.", "clouds")
    if hour is not None and (hour >= 18 or hour < 6):
        return Offer("sky", 0.75, "An evening view: it can have the sunset that the camera lost.", "sunset")
    return Offer("sky", 0.6, "Scenery: try it under another sky.", "sunset")


def _cutout(f: Facts) -> Offer | None:
    if f.category in ("pets", "accessories", "delicacy"):
        what = {"pets": "A pet", "accessories": "A thing", "delicacy": "A dish"}[f.category]
        return Offer("cutout", 0.8, f"{what} by itself makes a good sticker: lift it.")
    if f.category == "portrait":
        return Offer("cutout", 0.65, "One person: lift them and put them elsewhere.")
    if f.category == "multi_person":
        return Offer("cutout", 0.55, "People together: lift them all, or one by a tap.")
    if f.subject_share is not None and f.subject_share > 0.03:
        return Offer("cutout", 0.5, "One thing stands out: lift it.")
    return None


def _eraser(f: Facts) -> Offer | None:
    if f.subjects is None or f.subjects < 2 or f.category not in ("portrait", "scenery", "pets", "accessories"):
        return None
    others = _count(f.subjects - 1, "other subject")
    return Offer("eraser", 0.7, f"{others} beside the main one: take out who is in the way.")


def _splash(f: Facts) -> Offer | None:
    if f.category not in ("portrait", "multi_person", "pets") or f.colourfulness is None:
        return None
    if f.colourfulness > 45:
        return Offer("splash", 0.7, "Many colours compete with the subject: keep only the subject's.")
    return Offer("splash", 0.4, "The subject in colour, the rest in grey.")


def _blur(f: Facts) -> Offer | None:
    if f.category not in ("portrait", "pets", "accessories", "delicacy"):
        return None
    if f.simplicity is not None and f.simplicity < 0.35:
        return Offer("blur", 0.75, "A busy background: blur it as a large lens would.")
    return Offer("blur", 0.45, "A softer background sets the subject apart.")


def _stylise(f: Facts) -> Offer | None:
    if f.category in ("cards", None):
        return None
    if f.brightness is not None and f.brightness < 0.25:
        return Offer("stylise", 0.6, "A dark photo: make its mood a style.", "noir")
    if f.aesthetic is not None and f.aesthetic < 0.4:
        return Offer("stylise", 0.5, "A plain snapshot: a style gives its background character.", "golden")
    return Offer("stylise", 0.3, "Another mood for the background.", "film")


Rule = Callable[[Facts], Offer | None]
RULES: tuple[Rule, ...] = (_document, _foggy_sky, _dull_sky, _cutout, _eraser, _splash, _blur, _stylise)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
