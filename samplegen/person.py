"""People: their appearance, and hair that ends in single strands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samplegen.canvas import Canvas, Colour, ellipse, smooth
from samplegen.look import LocalUnits, Look, Setting, rim, shade, strands

SKINS: tuple[Colour, ...] = (
    (242, 206, 180),
    (226, 178, 146),
    (196, 140, 104),
    (150, 100, 70),
    (104, 68, 48),
    (76, 50, 38),
)
HAIRS: dict[str, Colour] = {
    "black": (34, 28, 28),
    "dark brown": (66, 44, 32),
    "brown": (108, 72, 46),
    "red": (166, 72, 36),
    "blond": (214, 172, 104),
    "grey": (158, 156, 154),
}
CUTS_EASY = {"woman": ("long", "bun", "bob"), "man": ("short", "short", "bald")}
CUTS_HARD = {"woman": ("long", "curly", "bun", "long"), "man": ("short", "curly", "curly")}


@dataclass(frozen=True)
class Person(LocalUnits):
    """One person. `at` maps head units (0, 0 = middle of the face, 1 = half the head's height) to canvas units."""

    cx: float
    cy: float
    s: float
    lean: float
    kind: str
    cut: str
    hair_name: str
    hair: Colour
    skin: Colour
    top_name: str
    top: Colour
    glasses: bool
    beard: bool

    def at(self, points: object) -> np.ndarray:
        """Map points from head units to canvas units, with the head's lean."""
        p = np.asarray(points, float)
        x, y = p[..., 0], p[..., 1]
        return np.stack(
            [self.cx + self.s * (x - self.lean * y * 0.3), self.cy + self.s * (y + self.lean * x * 0.3)], -1
        )

    @property
    def hair_phrase(self) -> str:
        """Description of the hair for the caption."""
        if self.cut == "bald":
            return "a shaved head"
        if self.cut == "bun":
            return f"{self.hair_name} hair in a bun"
        return f"{'shoulder-length' if self.cut == 'bob' else self.cut} {self.hair_name} hair"


def cast(look: Look, setting: Setting, cx: float, cy: float, s: float) -> Person:
    """Choose a person's appearance for a setting."""
    kind = look.pick(("woman", "man"))
    cut = look.pick((CUTS_HARD if look.hard else CUTS_EASY)[kind])
    hair_name = look.pick(list(HAIRS) if not look.drifted() else ["red", "blond", "grey"])
    top_name, top = look.colour(setting.tone)
    return Person(
        cx,
        cy,
        s,
        look.between(-0.35, 0.35),
        kind,
        cut,
        hair_name,
        look.jitter(HAIRS[hair_name], 8),
        look.jitter(look.pick(SKINS), 8),
        top_name,
        top,
        look.chance(0.18),
        kind == "man" and look.chance(0.4),
    )


def back_hair(c: Canvas, look: Look, p: Person, fine: float) -> None:
    """Paint the hair behind the head: long hair or curls; `fine` is the width of a strand."""
    frizz = 1.6 if look.hard else 0.7
    if p.cut in ("long", "bob"):
        end = 2.7 if p.cut == "long" else 1.35
        outline = smooth(
            p.at(
                [
                    (0, -1.22),
                    (0.62, -1.02),
                    (0.98, -0.3),
                    (1.05, 0.7),
                    (1.02, end),
                    (0.4, end + 0.15),
                    (-0.4, end + 0.1),
                    (-1.02, end),
                    (-1.05, 0.7),
                    (-0.98, -0.3),
                    (-0.62, -1.02),
                ]
            )
        )
        c.paint(c.shape(outline), shade(p.hair, 0.75), subject=True, relief=0.4 * p.s, texture=0.1)
        # Strands along both sides, more and looser in hard photos.
        n = 240 if look.hard else 140
        side = np.where(look.rng.random(n) < 0.5, -1.0, 1.0)
        roots = p.at(np.stack([side * look.rng.uniform(0.72, 1.02, n), look.rng.uniform(-0.6, end - 0.7, n)], 1))
        down = np.stack([side * look.rng.uniform(-0.1, 0.16 * frizz, n), np.ones(n)], 1)
        strands(c, look, roots, down, 1.15 * p.s, p.hair, curl=0.1, width=fine, spread=0.1 * frizz)
        # Loose tips at the lower end.
        tips, _ = rim(outline, 70, look.rng)
        low = tips[tips[:, 1] > p.cy + p.s * (end - 0.4)]
        strands(c, look, low, np.tile([0.0, 1.0], (len(low), 1)), 0.5 * p.s, p.hair, curl=0.2, width=fine, spread=0.25)
    elif p.cut == "curly":
        r = look.between(1.3, 1.55)
        # Puffs around the head.
        puffs = [
            ellipse(
                *p.spot(r * 0.82 * np.cos(a), -0.45 + r * 0.8 * np.sin(a)), s := p.s * look.between(0.38, 0.5), s, 0, 14
            )
            for a in np.linspace(2.7, 6.72, 13)
        ]
        c.paint(
            c.shape(ellipse(*p.spot(0, -0.4), r * 0.95 * p.s, r * 0.9 * p.s), *puffs),
            shade(p.hair, 0.8),
            subject=True,
            relief=0.3 * p.s,
            texture=0.35,
        )
        # Curls in all directions around the head.
        n = 320 if look.hard else 180
        a = look.rng.uniform(2.6, 6.82, n)
        d = np.stack([np.cos(a), np.sin(a)], 1)
        roots = p.at(d * r * look.rng.uniform(0.6, 1.05, (n, 1)) - [0, 0.45])
        strands(c, look, roots, d, 0.42 * p.s, p.hair, curl=1.1, width=fine, spread=0.5, contrast=0.5)


def front_hair(c: Canvas, look: Look, p: Person, fine: float) -> None:
    """Paint the hair in front of the head with its parting; nothing for a shaved head."""
    if p.cut == "bald":
        return
    part = look.between(-0.35, 0.35)
    low = 0.15 if p.cut in ("short", "bun") else 0.5
    # Outline of the hair on top, open at the face.
    cap = smooth(
        p.at(
            [
                (-0.8, low),
                (-0.93, -0.4),
                (-0.7, -1.02),
                (0, -1.3),
                (0.7, -1.02),
                (0.93, -0.4),
                (0.8, low),
                (0.68, -0.35),
                (0.4 + part * 0.3, -0.62),
                (part, -0.72),
                (-0.4 + part * 0.3, -0.58),
                (-0.68, -0.35),
            ]
        )
    )
    if p.cut == "bun":
        # The bun with loose hairs around it.
        knot = ellipse(*p.spot(0, -1.5), 0.45 * p.s, 0.4 * p.s)
        c.paint(c.shape(knot), p.hair, subject=True, relief=0.25 * p.s, texture=0.2)
        roots, out = rim(knot, 60, look.rng)
        strands(c, look, roots, out, 0.3 * p.s, p.hair, curl=0.4, width=fine, spread=0.9)
    c.paint(c.shape(cap), p.hair, subject=True, relief=0.4 * p.s, strength=0.6, texture=0.12)
    # Strands from the parting to both sides, clipped to the hair's shape.
    n = 260
    x = look.rng.uniform(-1, 1, n)
    top = np.stack([part + (x - part) * 0.45, -1.2 + 0.25 * x**2], 1)
    away = np.stack([np.sign(x - part) * (0.5 + np.abs(x)), 0.25 + 0.5 * np.abs(x)], 1)
    strands(
        c, look, p.at(top), away, 0.75 * p.s, p.hair, fall=0.5, width=fine, spread=0.2, contrast=0.45, clip=c.shape(cap)
    )
    # Flyaway hair at the upper edge.
    roots, out = rim(cap[: 36 + 6], 110 if look.hard else 60, look.rng)
    up = roots[:, 1] < p.cy - 0.2 * p.s
    size = 0.42 if look.hard else 0.2
    strands(
        c,
        look,
        roots[up],
        out[up],
        size * p.s,
        p.hair,
        fall=0.3,
        curl=0.9 if p.cut == "curly" else 0.25,
        width=fine,
        spread=0.6,
    )
