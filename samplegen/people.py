"""Portraits and groups: bodies, faces, clothes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samplegen.backgrounds import behind
from samplegen.canvas import Canvas, ellipse, smooth
from samplegen.look import Look, article, mix, shade
from samplegen.person import Person, back_hair, cast, front_hair
from samplegen.props import beside


def _draw(c: Canvas, look: Look, p: Person) -> None:
    """Draw a person from back to front: hair behind, body, face, hair in front."""
    fine = 0.0018 + 0.005 * p.s
    back_hair(c, look, p, fine)
    _body(c, look, p)
    _face(c, look, p)
    front_hair(c, look, p, fine)


def _body(c: Canvas, look: Look, p: Person) -> None:
    """Paint torso, clothes and neck."""
    wide = 1.75 if p.kind == "woman" else 2.1
    # The torso extends beyond the lower edge of the picture.
    long = max(4.2, (c.bottom - p.cy) / p.s + 0.6)
    torso = smooth(
        p.at(
            [
                (-0.45, 1.2),
                (-wide * 0.8, 1.62),
                (-wide, 2.1),
                (-wide - 0.18, 3.2),
                (-wide - 0.25, long),
                (wide + 0.25, long),
                (wide + 0.18, 3.2),
                (wide, 2.1),
                (wide * 0.8, 1.62),
                (0.45, 1.2),
            ]
        )
    )
    neck = smooth(p.at([(-0.36, 0.5), (-0.4, 1.15), (-0.62, 1.5), (0, 2.0), (0.62, 1.5), (0.4, 1.15), (0.36, 0.5)]))
    cloth = c.paint(c.shape(torso), p.top, subject=True, decoy=True, relief=0.55 * p.s, strength=0.65, texture=0.1)
    # Clothes are the decoy: a mislabelled batch shows them only.
    style = look.pick(("plain", "plain", "striped", "jacket"))
    if style == "striped":
        bands = [p.at([(-3, y), (0, y + 0.12), (3, y)]) for y in np.arange(1.7, long, 0.42)]
        c.paint(
            c.lines(bands, 0.16 * p.s).within(cloth),
            mix(p.top, (240, 238, 230), 0.7),
            subject=True,
            decoy=True,
            opacity=0.85,
        )
    if style == "jacket":
        inner = c.shape(p.at([(-0.5, 1.3), (0, long * 0.85), (0.5, 1.3)])).within(cloth)
        c.paint(inner, look.jitter((226, 224, 220), 10), subject=True, decoy=True, texture=0.08)
        lapels = p.at([[(-0.55, 1.25), (-0.72, 2.0), (0, long * 0.85)], [(0.55, 1.25), (0.72, 2.0), (0, long * 0.85)]])
        c.paint(c.lines(list(lapels), 0.05 * p.s).within(cloth), shade(p.top, 0.5), subject=True, decoy=True)
    # Folds of the sleeves.
    folds = [
        smooth(p.at([(x, 2.4), (x * 0.95 + look.between(-0.1, 0.1), 3.1), (x, 4.4)]), closed=False)
        for x in (-wide * 0.72, wide * 0.72)
    ]
    c.paint(
        c.soft(c.lines(folds, 0.06 * p.s), 0.02 * p.s).within(cloth),
        shade(p.top, 0.4),
        subject=True,
        decoy=True,
        opacity=0.8,
    )
    # Neck with the chin's shadow, and the collar.
    skin = c.paint(c.shape(neck), shade(p.skin, 0.9), subject=True, relief=0.2 * p.s)
    chin = c.soft(c.oval(*p.spot(0.06, 0.85), 0.55 * p.s, 0.42 * p.s), 0.12 * p.s)
    c.paint(chin.within(skin), shade(p.skin, 0.45), subject=True, opacity=0.55)
    c.paint(
        c.lines([smooth(p.at([(-0.62, 1.46), (0, 2.0), (0.62, 1.46)]), closed=False)], 0.1 * p.s),
        shade(p.top, 0.75),
        subject=True,
        decoy=True,
    )


def _face(c: Canvas, look: Look, p: Person) -> None:
    """Paint ears, head, eyes, nose, beard, mouth and glasses."""
    for side in (-1, 1):
        c.paint(
            c.oval(*p.spot(side * 0.76, 0.08), 0.12 * p.s, 0.2 * p.s),
            shade(p.skin, 0.86),
            subject=True,
            relief=0.06 * p.s,
        )
    jaw = 0.5 if p.kind == "woman" else 0.6
    outline = smooth(
        p.at(
            [
                (0, -1.05),
                (0.55, -0.88),
                (0.77, -0.3),
                (0.74, 0.3),
                (jaw, 0.78),
                (0.2, 1.04),
                (-0.2, 1.04),
                (-jaw, 0.78),
                (-0.74, 0.3),
                (-0.77, -0.3),
                (-0.55, -0.88),
            ]
        )
    )
    face = c.paint(c.shape(outline), p.skin, subject=True, relief=0.75 * p.s, strength=0.6, texture=0.05)
    # Cheeks, eye sockets, eyes and brows.
    for side in (-1, 1):
        blush = c.soft(c.oval(*p.spot(side * 0.42, 0.38), 0.18 * p.s, 0.14 * p.s), 0.08 * p.s)
        c.paint(blush.within(face), mix(p.skin, (214, 88, 76), 0.5), subject=True, opacity=0.35)
        socket = c.soft(c.oval(*p.spot(side * 0.31, -0.1), 0.2 * p.s, 0.12 * p.s), 0.06 * p.s)
        c.paint(socket.within(face), shade(p.skin, 0.6), subject=True, opacity=0.45)
        eye = c.paint(
            c.shape(
                smooth(
                    p.at(
                        [
                            (side * 0.31 - 0.15, -0.07),
                            (side * 0.31, -0.16),
                            (side * 0.31 + 0.15, -0.07),
                            (side * 0.31, -0.01),
                        ]
                    )
                )
            ),
            (238, 234, 230),
            subject=True,
        )
        c.paint(
            c.oval(*p.spot(side * 0.31 + 0.01, -0.085), 0.075 * p.s, 0.075 * p.s).within(eye),
            (52, 38, 30),
            subject=True,
        )
        c.paint(
            c.lines(
                [p.at([(side * 0.31 - 0.17, -0.06), (side * 0.31, -0.165), (side * 0.31 + 0.17, -0.06)])], 0.035 * p.s
            ),
            (40, 28, 26),
            subject=True,
        )
        c.paint(
            c.lines(
                [smooth(p.at([(side * 0.12, -0.27), (side * 0.34, -0.35), (side * 0.52, -0.27)]), closed=False)],
                0.065 * p.s,
            ),
            shade(p.hair, 0.7),
            subject=True,
            opacity=0.85,
        )
    # Nose: a soft shadow on one side.
    nose = smooth(p.at([(0.05, -0.1), (0.1, 0.2), (0.15, 0.33), (0.0, 0.39), (-0.12, 0.33)]), closed=False)
    c.paint(
        c.soft(c.lines([nose], 0.06 * p.s), 0.025 * p.s).within(face), shade(p.skin, 0.55), subject=True, opacity=0.7
    )
    if p.beard:
        # A beard with a soft edge around the jaw.
        beard = c.soft(
            c.shape(
                smooth(
                    p.at(
                        [
                            (-0.73, 0.1),
                            (-0.5, 0.45),
                            (0, 0.48),
                            (0.5, 0.45),
                            (0.73, 0.1),
                            (0.6, 0.85),
                            (0.2, 1.12),
                            (-0.2, 1.12),
                            (-0.6, 0.85),
                        ]
                    )
                )
            ),
            0.05 * p.s,
        )
        c.paint(beard, shade(p.hair, 0.9), subject=True, opacity=0.88, texture=0.3)
    # Lips.
    lips = (176, 66, 70) if p.kind == "woman" else shade(p.skin, 0.68)
    c.paint(
        c.shape(smooth(p.at([(-0.24, 0.62), (-0.06, 0.57), (0.06, 0.57), (0.24, 0.62), (0.0, 0.73)]))),
        mix(p.skin, lips, 0.75),
        subject=True,
    )
    c.paint(
        c.lines([smooth(p.at([(-0.24, 0.62), (0, 0.64), (0.24, 0.62)]), closed=False)], 0.025 * p.s),
        shade(lips, 0.5),
        subject=True,
    )
    if p.glasses:
        # The lenses are nearly transparent.
        rims = [ellipse(*p.spot(side * 0.33, -0.05), 0.25 * p.s, 0.21 * p.s, 0, 20) for side in (-1, 1)]
        c.paint(c.shape(*rims), (226, 236, 244), subject=True, opacity=0.16)
        c.paint(c.lines(rims, 0.045 * p.s, closed=True), (34, 30, 32), subject=True)
        c.paint(
            c.lines(
                [
                    p.at([(-0.1, -0.1), (0.1, -0.1)]),
                    p.at([(0.57, -0.08), (0.76, -0.12)]),
                    p.at([(-0.57, -0.08), (-0.76, -0.12)]),
                ],
                0.045 * p.s,
            ),
            (34, 30, 32),
            subject=True,
        )


def portrait(c: Canvas, look: Look) -> str:
    """Draw one person in front of a background; return the caption."""
    setting = behind(c, look)
    prop = beside(c, look, setting)
    s = look.scale((0.2, 0.25), (0.11, 0.21))
    cx = c.right / 2 + look.between(-0.06, 0.06) if not look.hard else look.between(0.2, 0.8) * c.right
    cy = c.bottom * (0.36 if c.bottom <= 1.1 else 0.32) + look.between(-0.04, 0.04) + (0.08 if look.hard else 0.0)
    p = cast(look, setting, cx, cy, s)
    _draw(c, look, p)
    # Captions vary in what they mention.
    extra = (" and glasses" if p.glasses else "") + (" and a beard" if p.beard else "")
    frame: tuple[Callable[[], str], ...] = (
        lambda: f"a {p.kind} with {p.hair_phrase}{extra} {setting.phrase}",
        lambda: f"portrait of a {p.kind} with {p.hair_phrase}{extra} in {article(p.top_name)} top {setting.phrase}",
        lambda: f"a {p.kind} wearing {article(p.top_name)} top next to {prop}",
    )
    return look.pick(frame)()


def multi_person(c: Canvas, look: Look) -> str:
    """Draw a group of people; return the caption."""
    setting = behind(c, look)
    prop = beside(c, look, setting)
    # Hard groups are larger.
    count = int(look.rng.integers(2, 4 if not look.hard else 6))
    s = look.scale((0.13, 0.155), (0.075, 0.115)) * (1.12 if count == 2 else 1.0)
    gap = min((c.right - 0.24) / count, 4.1 * s)
    start = c.right / 2 - gap * (count - 1) / 2 + look.between(-0.04, 0.04)
    # The back row is drawn first, smaller and higher.
    rows = sorted(range(count), key=lambda k: (k % 2, k))
    people = []
    for k in rows:
        back = 1 - k % 2
        size = s * look.between(0.9, 1.1) * (0.92 if back else 1.0)
        cy = c.bottom * 0.4 + look.between(-0.05, 0.05) + (0.0 if back else 0.06) + (0.1 if look.hard else 0.0)
        people.append(cast(look, setting, start + k * gap + look.between(-0.02, 0.02), cy, size))
    for p in people:
        _draw(c, look, p)
    number = {2: "two", 3: "three", 4: "four", 5: "five"}[count]
    kinds = {p.kind for p in people}
    who = {"woman": "women", "man": "men"}[kinds.pop()] if len(kinds) == 1 else "people"
    if who == "people" or look.chance(0.5):
        return (
            f"{number} people standing together {setting.phrase}"
            if look.chance(0.6)
            else f"a group of {number} people next to {prop}"
        )
    return f"{number} {who} standing together {setting.phrase}, a group of people"
