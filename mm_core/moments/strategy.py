"""Choose effects for a photo and state the reasons (Matting Moments, section 2.1: from structuring to strategy).

The rules use the results of `mm_core.structuring`, and each has its reason. They only order offers for a person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from mm_core.effects.haze import FOGGY, HAZY
from mm_core.structuring.rows import Found

FUNCTIONS = ("document", "sky", "cutout", "eraser", "splash", "blur", "stylise")
"""Names of all effects; the order breaks ties."""


@dataclass(frozen=True)
class Facts:
    """Known facts about a photo; an unmeasured field is None or empty, and the rules ignore it."""

    category: str | None = None
    """Known or guessed."""
    tags: tuple[str, ...] = ()
    """Most probable first."""
    text: str = ""
    text_share: float = 0.0
    """Share of the frame covered by text."""
    aesthetic: float | None = None
    """In [0, 1]."""
    brightness: float | None = None
    colourfulness: float | None = None
    """Hasler-Suesstrunk: 0 grey, above 60 vivid."""
    simplicity: float | None = None
    """In [0, 1]; high for a frame with little beyond the salient subject."""
    taken_at: datetime | None = None
    located: bool = False
    haze: float | None = None
    """Share of haze (`effects.haze`), for scenery."""
    subjects: int | None = None
    """Separate subjects in the matte."""
    subject_share: float | None = None
    """Share of the frame covered by the dominant subject."""

    @staticmethod
    def of(category: str | None, found: Mapping[str, Found]) -> Facts:
        """Create an instance from rows of `features`: extractor → result."""
        photo, ocr = found.get("photo", Found()), found.get("ocr", Found())
        # CLIP's tags are preferred to those of the classifier.
        guess, tags = found.get("guess", Found()), found.get("clip") or found.get("classifier", Found())
        numbers = photo.numbers
        stamp = photo.texts.get("taken_at")
        # The matte gives `haze`, `subjects` and `subject_share`; the caller adds them.
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
    """One effect for one photo."""

    function: str
    """One of FUNCTIONS."""
    score: float
    """In [0, 1]; orders the offers of a photo."""
    why: str
    """A sentence for people."""
    choice: str = ""
    """Option of the effect: name of a sky or a style."""


def offers(facts: Facts) -> list[Offer]:
    """Return the effects that suit a photo, best first; a photo without any facts gets a cutout."""
    candidates = [offer for rule in RULES if (offer := rule(facts)) is not None]
    # Highest score first; ties in the order of FUNCTIONS.
    candidates.sort(key=lambda offer: (-offer.score, FUNCTIONS.index(offer.function)))
    # Several rules may name one effect: its first offer is the best one.
    best: dict[str, Offer] = {}
    for offer in candidates:
        best.setdefault(offer.function, offer)
    nothing = "Nothing is known about this photo: its subject can always be lifted."
    return [*best.values()] or [Offer("cutout", 0.1, nothing)]


def _document(f: Facts) -> Offer | None:
    lines = len([line for line in f.text.splitlines() if line.strip()])
    if f.category == "cards" and lines:
        return Offer("document", 0.95, f"A card or document with {_count(lines, 'line')} of text: straighten it.")
    if f.category == "cards":
        return Offer("document", 0.8, "A card or document: straighten it.")
    # A few lines occur on signs and shirts; a document has more, and they fill the frame.
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
    # None for an unknown time; the evening rule then does not apply.
    hour = f.taken_at.hour if f.taken_at else None
    if f.colourfulness is not None and f.colourfulness < 25:
        return Offer("sky", 0.85, "Scenery with little colour: another sky changes that.", "clouds")
    if hour is not None and (hour >= 18 or hour < 6):
        return Offer("sky", 0.75, "An evening view: it can have the sunset that the camera lost.", "sunset")
    return Offer("sky", 0.6, "Scenery: try it under another sky.", "sunset")


def _cutout(f: Facts) -> Offer | None:
    if f.category in ("pets", "accessories", "delicacy"):
        what = {"pets": "A pet", "accessories": "A thing", "delicacy": "A dish"}[f.category]
        return Offer("cutout", 0.8, f"{what} alone makes a good sticker: lift it.")
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
    return Offer("eraser", 0.7, f"{others} besides the main one: remove those in the way.")


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
