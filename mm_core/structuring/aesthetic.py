"""One number for how well a photo is made, from its measured quality and composition. A heuristic, no judge of taste.

The score is the weighted mean of seven terms in [0, 1], each a textbook rule of photography (the kind of features of
Datta et al. 2006, "Studying aesthetics in photographic images using a computational approach"), with weights that were
set by hand and fitted to no ratings. It orders photos for people to look at; it decides nothing. For a learned score,
name LAION's linear head (`structure.aesthetic_head`).
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
"""Values that count half: about the medians of 318 research photos at long side 512."""


def aesthetic(numbers: Mapping[str, float]) -> float:
    """In [0, 1], from the numbers of `photo.quality` and `composition.composition`."""
    clipped = numbers["dark_share"] + numbers["bright_share"]
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
    return value / (value + half)
