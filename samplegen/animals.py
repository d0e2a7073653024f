"""Pets: cats, dogs and rabbits with ears, tails and fur that ends in single hairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samplegen.backgrounds import floor, foliage, plaster
from samplegen.canvas import Canvas, Colour, ellipse, smooth
from samplegen.look import LocalUnits, Look, article, mix, rim, scatter, shade, strands
from samplegen.props import beside, seat

COATS: dict[str, Colour] = {
    "orange": (208, 132, 66),
    "grey": (128, 128, 132),
    "black": (46, 44, 46),
    "white": (228, 224, 218),
    "brown": (122, 84, 56),
    "cream": (222, 196, 158),
}


@dataclass(frozen=True)
class Pet(LocalUnits):
    """One animal. `at` maps its units (0, 0 = middle of the head, 1 = half the head's width) to canvas units."""

    cx: float
    cy: float
    s: float
    flip: float
    kind: str
    coat: Colour
    under: Colour
    length: float
    """Length of its hair in canvas units."""
    look: Look

    def at(self, points: object) -> np.ndarray:
        """Map points from the animal's units to canvas units."""
        p = np.asarray(points, float)
        return np.stack([self.cx + self.s * self.flip * p[..., 0], self.cy + self.s * p[..., 1]], -1)


def _furry(c: Canvas, pet: Pet, outline: np.ndarray, colour: Colour, *, down: float = 0.6, dense: float = 1.0) -> None:
    """Paint a body part: a shaded shape, hairs over it, and hairs beyond its edge."""
    look = pet.look
    mask = c.paint(c.shape(outline), colour, subject=True, relief=0.5 * pet.s, strength=0.75, texture=0.12)
    # The number of hairs grows with the part's size.
    span = float(np.mean(np.ptp(outline, 0))) / 0.3
    n = int((110 + 160 * look.hard) * dense * min(3.0, span))
    inside = scatter(outline, n, look.rng)
    middle = outline.mean(0)
    # Hairs grow away from the middle.
    flow = (inside - middle) / 0.15 + [0, down]
    strands(
        c, look, inside, flow, pet.length * 0.9, colour, fall=0.3, width=0.003, contrast=0.4, opacity=0.6, clip=mask
    )
    # Hairs that cross the edge give the soft border of the matte.
    # Hairs along the outline, outwards and slightly down.
    roots, out = rim(outline, int(n * 1.3), look.rng)
    strands(c, look, roots, out + [0, down], pet.length, colour, fall=0.3, width=0.0028, spread=0.35, contrast=0.3)


def _ears(c: Canvas, look: Look, pet: Pet) -> None:
    """Paint upright ears with pink insides (cats and rabbits)."""
    pink = mix(pet.coat, (220, 150, 146), 0.6)
    for side in (-1, 1):
        if pet.kind == "cat":
            _furry(
                c,
                pet,
                smooth(pet.at([(side * 0.9, -0.1), (side * 0.86, -0.95), (side * 0.78, -1.2), (side * 0.3, -0.72)])),
                pet.coat,
                down=-0.6,
                dense=0.5,
            )
            c.paint(
                c.shape(pet.at([(side * 0.74, -0.4), (side * 0.75, -1.0), (side * 0.42, -0.66)])),
                pink,
                subject=True,
                opacity=0.8,
            )
        elif pet.kind == "rabbit":
            tilt = side * look.between(0.05, 0.35)
            ear = smooth(
                pet.at(
                    [
                        (side * 0.16, -0.6),
                        (side * 0.14 + tilt, -1.6),
                        (side * 0.34 + tilt * 1.3, -2.35),
                        (side * 0.62 + tilt, -1.6),
                        (side * 0.62, -0.6),
                    ]
                )
            )
            _furry(c, pet, ear, pet.coat, down=-0.6, dense=0.5)
            inner = smooth(
                pet.at(
                    [
                        (side * 0.3, -0.8),
                        (side * 0.26 + tilt, -1.6),
                        (side * 0.36 + tilt * 1.2, -2.1),
                        (side * 0.5 + tilt, -1.6),
                        (side * 0.5, -0.8),
                    ]
                )
            )
            c.paint(c.soft(c.shape(inner), 0.04 * pet.s), pink, subject=True, opacity=0.75)


def _flaps(c: Canvas, look: Look, pet: Pet) -> None:
    """Paint hanging ears (dogs)."""
    for side in (-1, 1):
        ear = smooth(
            pet.at(
                [
                    (side * 0.6, -0.85),
                    (side * 1.05, -0.75),
                    (side * 1.35, 0.1),
                    (side * 1.2, 0.75),
                    (side * 0.92, 0.6),
                    (side * 0.82, -0.1),
                ]
            )
        )
        _furry(c, pet, ear, shade(pet.coat, 0.7), down=1.2, dense=0.7)


def _face(c: Canvas, look: Look, pet: Pet) -> None:
    """Paint muzzle, eyes, nose, mouth and whiskers."""
    dog = pet.kind == "dog"
    iris = (
        (92, 60, 36)
        if dog
        else (40, 30, 28)
        if pet.kind == "rabbit"
        else look.pick(((180, 176, 60), (96, 160, 84), (110, 160, 190)))
    )
    # Distance of the eyes from the middle, and their height.
    spread, up = (0.36, -0.14) if dog else (0.58, -0.02) if pet.kind == "rabbit" else (0.42, -0.05)
    muzzle = smooth(
        pet.at(
            [
                (-0.42, 0.3),
                (0, 0.02 if dog else 0.14),
                (0.42, 0.3),
                (0.5, 0.62),
                (0, 0.92 if dog else 0.8),
                (-0.5, 0.62),
            ]
        )
    )
    c.paint(
        c.soft(c.shape(muzzle), 0.08 * pet.s), pet.under, subject=True, opacity=0.9, relief=0.2 * pet.s, strength=0.5
    )
    # Eyes: rim, iris, pupil and highlight.
    for side in (-1, 1):
        x = side * spread
        c.paint(c.oval(*pet.spot(x, up), 0.19 * pet.s, 0.18 * pet.s), (28, 22, 22), subject=True)
        c.paint(c.oval(*pet.spot(x, up), 0.155 * pet.s, 0.15 * pet.s), iris, subject=True, relief=0.05)
        c.paint(
            c.oval(
                *pet.spot(x, up),
                (0.06 if pet.kind == "cat" else 0.1) * pet.s,
                0.13 * pet.s if pet.kind == "cat" else 0.1 * pet.s,
            ),
            (12, 10, 12),
            subject=True,
        )
        c.paint(
            c.oval(*pet.spot(x - 0.05 * pet.flip, up - 0.06), 0.04 * pet.s, 0.04 * pet.s), (250, 250, 250), subject=True
        )
    # Nose and mouth.
    nose = (32, 26, 28) if dog else (206, 122, 118)
    w = 0.2 if dog else 0.12
    y = 0.26 if dog else 0.3
    c.paint(
        c.shape(smooth(pet.at([(-w, y), (0, y - 0.07), (w, y), (0, y + w)]))), nose, subject=True, relief=0.05 * pet.s
    )
    mouth = [
        smooth(pet.at([(0, y + w), (side * 0.08, y + w + 0.17), (side * 0.28, y + w + 0.17)]), closed=False)
        for side in (-1, 1)
    ]
    c.paint(c.lines(mouth, 0.035 * pet.s), shade(pet.coat, 0.3), subject=True, opacity=0.8)
    # Tongue.
    if dog and look.chance(0.6):
        c.paint(
            c.shape(smooth(pet.at([(-0.14, 0.62), (0.14, 0.62), (0.15, 0.95), (0, 1.06), (-0.15, 0.95)]))),
            (222, 108, 116),
            subject=True,
            relief=0.08 * pet.s,
        )
    # Whiskers, thinner than a pixel in most sizes.
    if not dog:
        n = 10
        side = np.where(np.arange(n) % 2 == 0, -1.0, 1.0)
        roots = pet.at(np.stack([side * 0.28, look.rng.uniform(0.36, 0.58, n)], 1))
        strands(
            c,
            look,
            roots,
            np.stack([side, look.rng.uniform(-0.25, 0.2, n)], 1),
            1.1 * pet.s,
            (236, 234, 230),
            width=0.0024,
            spread=0.05,
            contrast=0.1,
        )


def _body(c: Canvas, look: Look, pet: Pet, deep: float) -> None:
    """Paint a sitting body from the front, down to `deep` in the pet's units: tail, torso, chest, legs and paws."""
    if pet.kind != "rabbit":
        long = look.between(0.8, 1.2) if pet.kind == "cat" else 0.6
        line = smooth(
            [
                (1.0, deep - 0.5),
                (1.6, deep - 0.3),
                (1.9, deep - 0.9 * long),
                (1.7, deep - 2.0 * long),
                (2.0, deep - 2.5 * long),
            ],
            closed=False,
        )
        # Widen the tail's centre line by its normals.
        across = np.gradient(line, axis=0)
        across = np.stack([-across[:, 1], across[:, 0]], 1) / (np.linalg.norm(across, axis=1, keepdims=True) + 1e-6)
        thick = np.linspace(0.26, 0.16, len(line))[:, None]
        _furry(
            c,
            pet,
            pet.at(np.vstack([line + across * thick, (line - across * thick)[::-1]])),
            shade(pet.coat, 0.85),
            down=0.0,
        )
    else:
        _furry(c, pet, ellipse(*pet.spot(1.3, deep - 0.6), 0.42 * pet.s, 0.4 * pet.s), pet.under)
    # Torso, wider at the haunches.
    wide = 1.3 if pet.kind != "rabbit" else 1.45
    torso = smooth(
        pet.at(
            [
                (-0.55, 0.4),
                (-0.85, 1.2),
                (-wide, deep - 0.9),
                (-wide * 0.95, deep - 0.15),
                (0, deep - 0.05),
                (wide * 0.95, deep - 0.15),
                (wide, deep - 0.9),
                (0.85, 1.2),
                (0.55, 0.4),
            ]
        )
    )
    _furry(c, pet, torso, pet.coat, dense=1.3)
    # Chest in the colour of the underside.
    bib = smooth(pet.at([(-0.45, 0.7), (-0.55, 1.3), (0, 2.0), (0.55, 1.3), (0.45, 0.7)]))
    c.paint(c.soft(c.shape(bib), 0.14 * pet.s), pet.under, subject=True, opacity=0.8)
    for side in (-1, 1):
        leg = smooth(
            pet.at(
                [
                    (side * 0.12, 1.4),
                    (side * 0.14, deep - 0.15),
                    (side * 0.4, deep + 0.05),
                    (side * 0.68, deep - 0.12),
                    (side * 0.64, 1.4),
                ]
            )
        )
        # A dark gap separates the leg from the body.
        gap = c.soft(c.lines([leg], 0.06 * pet.s, closed=True), 0.05 * pet.s)
        c.paint(gap, shade(pet.coat, 0.35), subject=True, opacity=0.4)
        _furry(c, pet, leg, shade(pet.coat, 0.97), dense=0.5)
        c.paint(
            c.oval(*pet.spot(side * 0.41, deep - 0.08), 0.3 * pet.s, 0.17 * pet.s),
            mix(pet.coat, pet.under, 0.7),
            subject=True,
            relief=0.1 * pet.s,
        )


def pets(c: Canvas, look: Look) -> str:
    """Draw a pet in a setting; return the caption."""
    close = look.hard and look.chance(0.25)
    setting = look.pick((plaster, foliage))(c, look) if close else floor(c, look)
    kind = look.pick(("cat", "dog", "rabbit"))
    # Hard photos take coats similar to the background, easy ones different coats.
    names = ("grey", "black", "white", "cream") if look.drifted() else tuple(COATS)
    apart = {n: float(np.linalg.norm(np.subtract(COATS[n], setting.tone))) for n in names}
    near = sorted(names, key=apart.__getitem__)
    name = look.pick(near[:2] if look.hard and look.chance(0.6) else near[2:])
    s = look.scale((0.16, 0.19), (0.07, 0.13)) if not close else look.between(0.22, 0.28)
    deep = look.between(2.9, 3.3)
    ground = c.bottom - look.between(0.06, 0.12)
    cy = ground - deep * s if not close else c.bottom * look.between(0.5, 0.6)
    cx = c.right * (look.between(0.42, 0.56) if not look.hard else look.between(0.2, 0.8))
    pet = Pet(
        cx,
        cy,
        s,
        look.pick((-1.0, 1.0)),
        kind,
        look.jitter(COATS[name], 10),
        mix(COATS[name], (240, 234, 226), look.between(0.2, 0.8)),
        min(0.045, s * (look.between(0.28, 0.5) if look.hard else look.between(0.1, 0.2))),
        look,
    )
    # A close-up has no room for a cushion or toy.
    prop = (
        seat(c, look, pet.cx, pet.cy + deep * pet.s, pet.s)
        if not close and look.chance(0.75)
        else beside(c, look, setting)
    )
    # From back to front: body, ears, head, markings, face.
    c.shadow(c.oval(cx, cy + deep * s, 1.7 * s, 0.3 * s), 0.02, 0.01, 0.03, 0.5)
    _body(c, look, pet, deep)
    _ears(c, look, pet)
    _furry(c, pet, smooth(pet.at(_HEADS[kind])), pet.coat, down=0.2)
    if kind == "cat" and name in ("orange", "grey", "brown", "cream"):
        # Stripes of a tabby cat.
        bars = [pet.at([(x, -0.8), (x * 0.8, -0.35)]) for x in (-0.28, 0.0, 0.28)] + [
            pet.at([(k * 0.95, y), (k * 0.6, y + 0.08)]) for k in (-1, 1) for y in (0.15, 0.4)
        ]
        c.paint(c.soft(c.lines(bars, 0.09 * s), 0.03 * s), shade(pet.coat, 0.5), subject=True, opacity=0.7)
    if kind == "dog":
        _flaps(c, look, pet)
    _face(c, look, pet)
    hair = "long-haired " if pet.length > 0.36 * s else ""
    young = look.pick(("", "", "cute "))
    which = article(f"{young}{hair}{name} {kind}")
    if close:
        return f"a close-up of {which} {setting.phrase}"
    return look.pick(
        (f"{which} sitting {setting.phrase}", f"{which} with {prop}", f"{which} sitting {setting.phrase}, with {prop}")
    )


# Outlines of the heads in the animal's units.
_HEADS = {
    "cat": [(-0.95, 0.1), (-0.72, -0.6), (0, -0.78), (0.72, -0.6), (0.95, 0.1), (0.7, 0.62), (0, 0.86), (-0.7, 0.62)],
    "dog": [
        (-0.82, -0.1),
        (-0.62, -0.75),
        (0, -0.95),
        (0.62, -0.75),
        (0.82, -0.1),
        (0.62, 0.6),
        (0, 0.95),
        (-0.62, 0.6),
    ],
    "rabbit": [
        (-0.82, 0.1),
        (-0.62, -0.6),
        (0, -0.85),
        (0.62, -0.6),
        (0.82, 0.1),
        (0.66, 0.65),
        (0, 0.88),
        (-0.66, 0.65),
    ],
}
