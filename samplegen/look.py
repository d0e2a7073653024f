"""Choices that are made before a scene is drawn: difficulty, drift, light, colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Required, TypedDict, TypeVar, Unpack

import cv2
import numpy as np

from samplegen.canvas import Canvas, Colour, Mask

T = TypeVar("T")

COLOURS: dict[str, Colour] = {
    "red": (186, 38, 40),
    "orange": (226, 122, 36),
    "yellow": (228, 192, 62),
    "green": (62, 132, 66),
    "teal": (34, 128, 130),
    "blue": (48, 86, 178),
    "light blue": (136, 178, 218),
    "purple": (112, 62, 146),
    "pink": (228, 146, 168),
    "brown": (112, 74, 48),
    "beige": (212, 190, 156),
    "white": (234, 232, 228),
    "grey": (132, 134, 138),
    "black": (36, 36, 40),
}
# Colours of the drifted season.
DRIFTED = ("teal", "purple", "orange", "black", "yellow", "green")

METALS: dict[str, Colour] = {
    "silver": (192, 196, 202),
    "gold": (214, 170, 84),
    "rose gold": (206, 146, 122),
    "dark steel": (92, 94, 102),
}


class LocalUnits(ABC):
    """Subject that is drawn in units of its own."""

    @abstractmethod
    def at(self, points: object) -> np.ndarray:
        """Map points (..., 2) from the subject's units to canvas units (..., 2)."""

    def spot(self, x: float, y: float) -> tuple[float, float]:
        """Map one point as `at` does."""
        point = self.at((x, y))
        return float(point[0]), float(point[1])


@dataclass(frozen=True)
class Setting:
    """Background of a scene: its phrase in the caption and its main colour."""

    phrase: str
    tone: Colour
    outdoors: bool = False


@dataclass(frozen=True)
class Look:
    """Random choices of one scene.

    `hard` makes the scene difficult; `drift` in [0, 1] is the change of camera and season.
    """

    rng: np.random.Generator
    hard: bool
    drift: float

    def chance(self, p: float) -> bool:
        """Return true with probability `p`."""
        return bool(self.rng.random() < p)

    def drifted(self) -> bool:
        """Return true more often the larger the drift is."""
        return self.chance(0.9 * self.drift)

    def between(self, low: float, high: float) -> float:
        """Return a uniform random number."""
        return float(self.rng.uniform(low, high))

    def pick(self, options: Sequence[T]) -> T:
        """Return a random option."""
        return options[int(self.rng.integers(len(options)))]

    def jitter(self, colour: Colour, amount: float = 10.0) -> Colour:
        """Return a colour with random brightness and hue."""
        r, g, b = np.clip(
            np.array(colour) + self.rng.normal(0, amount * 0.6) + self.rng.normal(0, amount * 0.5, 3), 4, 250
        )
        return float(r), float(g), float(b)

    def scale(self, easy: tuple[float, float], hard: tuple[float, float]) -> float:
        """Return a subject's size: large in easy scenes, small in hard ones, and smaller with drift."""
        return self.between(*(hard if self.hard else easy)) * (1 - 0.18 * self.drift)

    def colour(self, tone: Colour, names: Sequence[str] | None = None, camouflage: float = 0.6) -> tuple[str, Colour]:
        """Return a named colour: different from the background's `tone` in easy scenes, often similar in hard ones."""
        candidates = list(names or COLOURS)
        if names is None and self.drifted():
            candidates = list(DRIFTED)
        distance = {name: float(np.linalg.norm(np.subtract(COLOURS[name], tone))) for name in candidates}
        # Camouflage: one of the three nearest colours.
        hidden = self.chance(camouflage)
        if self.hard and hidden:
            choice = self.pick(sorted(candidates, key=distance.__getitem__)[:3])
        elif self.hard:
            choice = self.pick(candidates)
        else:
            distinct = [n for n in candidates if distance[n] > 90]
            choice = self.pick(distinct or [max(candidates, key=distance.__getitem__)])
        return choice, self.jitter(COLOURS[choice])


def article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def shade(colour: Colour, factor: float) -> Colour:
    """Return a colour with its brightness multiplied."""
    r, g, b = (min(255.0, max(0.0, v * factor)) for v in colour)
    return r, g, b


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Return a colour between `a` and `b`."""
    r, g, bl = (x + (y - x) * t for x, y in zip(a, b, strict=True))
    return r, g, bl


class Hair(TypedDict, total=False):
    """Look of hair or fur."""

    width: Required[float]
    """Width of a strand in canvas units."""
    fall: float
    """Bend downwards; 0 by default."""
    curl: float
    """Amplitude of waves; 0 by default."""
    spread: float
    """Standard deviation of the directions; 0.35 by default."""
    contrast: float
    """Amplitude of the brightness between strands; 0.35 by default."""
    opacity: float
    """Factor of the coverage; 0.9 by default."""
    clip: Mask
    """Area that the hair stays in."""


def strands(
    canvas: Canvas,
    look: Look,
    roots: np.ndarray,
    directions: np.ndarray,
    length: float,
    colour: Colour,
    **hair: Unpack[Hair],
) -> None:
    """Paint hair or fur of the subject: a curved stroke per root (n, 2)."""
    n, steps = len(roots), 7
    if not n:
        return
    rng, width, contrast = look.rng, hair["width"], hair.get("contrast", 0.35)
    t = np.linspace(0, 1, steps)[None, :, None]
    # Random length, direction and bend per strand.
    size = length * rng.uniform(0.45, 1.15, (n, 1, 1))
    d = directions + rng.normal(0, hair.get("spread", 0.35), (n, 2))
    d = (d / (np.linalg.norm(d, axis=1, keepdims=True) + 1e-6))[:, None]
    side = np.concatenate([-d[..., 1:], d[..., :1]], -1)
    wave = hair.get("curl", 0.0) * np.sin(t * rng.uniform(4, 9, (n, 1, 1)) + rng.uniform(0, 6.3, (n, 1, 1))) * t
    paths = roots[:, None] + size * (
        d * t + side * (wave + rng.normal(0, 0.12, (n, 1, 1)) * t**2) + np.array([0, hair.get("fall", 0.0)]) * t**2
    )
    mask = canvas.lines(list(paths), width)
    # Five levels of brightness.
    gain = canvas.shades(mask, paths, width, 1 + contrast * np.linspace(-1, 1, 5)[rng.integers(0, 5, n)])
    clip, opacity = hair.get("clip"), hair.get("opacity", 0.9)
    canvas.paint(mask.within(clip) if clip else mask, colour, subject=True, opacity=opacity, gain=gain)


def rim(outline: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` random points on a closed outline and the outward directions, for either orientation."""
    nxt = np.roll(outline, -1, 0)
    # Positions uniform along the length of the outline.
    lengths = np.linalg.norm(nxt - outline, axis=1)
    total = lengths.sum()
    at = np.sort(rng.uniform(0, total, count))
    ends = np.cumsum(lengths)
    i = np.minimum(np.searchsorted(ends, at), len(outline) - 1)
    f = 1 - (ends[i] - at) / np.maximum(lengths[i], 1e-6)
    points = outline[i] + (nxt[i] - outline[i]) * f[:, None]
    along = (nxt[i] - outline[i]) / np.maximum(lengths[i], 1e-6)[:, None]
    normal = np.stack([along[:, 1], -along[:, 0]], 1)
    # The sign of the area shows the orientation of the outline.
    area = float(cv2.contourArea(outline.astype(np.float32), True))
    return points, normal if area > 0 else -normal


def scatter(outline: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return about `count` random points inside a closed outline."""
    low, high = outline.min(0), outline.max(0)
    points = rng.uniform(low, high, (count * 2, 2))
    # Rasterise the outline and keep the points in filled cells.
    grid = np.zeros((64, 64), np.uint8)
    span = np.maximum(high - low, 1e-6)
    cv2.fillPoly(grid, [np.round((outline - low) / span * 63).astype(np.int32)], 1)
    cell = np.minimum(((points - low) / span * 63).astype(int), 63)
    return points[grid[cell[:, 1], cell[:, 0]] > 0][:count]
