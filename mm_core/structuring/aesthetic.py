"""Score a photo by one number, from its measured quality and composition. A heuristic, not a model of taste.

The score is the weighted mean of seven terms in [0, 1], each a textbook rule of photography (features as in Datta et
al. 2006, "Studying aesthetics in photographic images using a computational approach"). The weights were set by hand and
not fitted to ratings. The score orders photos for people and decides nothing. A learned score is LAION's linear head
(`structure.aesthetic_head`).
"""

from __future__ import annotations

from collections.abc import Mapping

WEIGHTS: Mapping[str, float] = {
    "exposure": 0.2,
    "contrast": 0.1,
    "sharpness": 0.2,
    "clean": 0.1,
    "colour": 0.15,
    "placement": 0.15,
    "simplicity": 0.1,
}
MID_GREY = 0.45
SHARP, NOISY, VIVID, CONTRASTY = 1000.0, 3.0, 40.0, 0.23
"""Values with a score of one half: about the medians of 318 research photos at long side 512."""


def aesthetic(numbers: Mapping[str, float]) -> float:
    """Return a score in [0, 1] from the numbers of `photo_features.quality` and `composition.composition`."""
    # Crushed shadows and blown highlights reduce the exposure term.
    clipped = numbers["dark_share"] + numbers["bright_share"]
    # Distance to middle grey, relative to the largest possible one.
    off = abs(numbers["brightness"] - MID_GREY) / max(MID_GREY, 1 - MID_GREY)
    terms = {
        "exposure": max(0.0, 1 - off) * max(0.0, 1 - clipped),
        "contrast": _rising(numbers["contrast"], CONTRASTY),
        "sharpness": _rising(numbers["sharpness"], SHARP),
        "clean": 1 - _rising(numbers["noise"], NOISY),
        "colour": _rising(numbers["colourfulness"], VIVID),
        "placement": max(numbers["thirds"], numbers["balance"]),
        "simplicity": numbers["simplicity"],
    }
    return sum(weight * terms[name] for name, weight in WEIGHTS.items())


def _rising(value: float, half: float) -> float:
    """Map a value >= 0 to [0, 1), strictly rising, with 1/2 at `half`."""
    return value / (value + half)
