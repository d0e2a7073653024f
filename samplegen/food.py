"""Dishes: plates and bowls with food."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samplegen.backgrounds import table
from samplegen.canvas import Canvas, Colour, box, ellipse, smooth
from samplegen.drinks import coffee, glass, steam
from samplegen.look import COLOURS, Look, Setting, article, mix, shade
from samplegen.props import lying, turned

Fill = Callable[[Canvas, Look, float, float, float, float], str]
# Ratio of a plate's axes, seen from a chair and not from above.
SQUASH = 0.62


def _within(look: Look, cx: float, cy: float, r: float, k: float, n: int) -> np.ndarray:
    """Return `n` points in an ellipse, ordered back to front, so that nearer pieces cover farther ones."""
    a, d = look.rng.uniform(0, 6.283, n), r * np.sqrt(look.rng.uniform(0, 1, n))
    p = np.stack([cx + d * np.cos(a), cy + d * k * np.sin(a)], 1)
    return p[np.argsort(p[:, 1])]


def _bits(c: Canvas, look: Look, spots: np.ndarray, size: float, tones: list[Colour], flat: float = 0.8) -> None:
    """Paint small pieces at the spots, in turn in each of the tones."""
    for k, tone in enumerate(tones):
        shapes = [
            ellipse(x, y, size * look.between(0.7, 1.2), size * flat, look.between(0, 3), 12)
            for x, y in spots[k :: len(tones)]
        ]
        if shapes:
            c.paint(c.shape(*shapes), look.jitter(tone, 8), subject=True, relief=size * 0.8, strength=0.8, texture=0.1)


def _pasta(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    c.paint(
        c.oval(cx, cy - 0.05 * r, r * 0.85, r * k * 0.85), (206, 160, 84), subject=True, relief=0.2 * r, texture=0.2
    )
    # Four layers of strands, from dark to bright.
    for tone in ((190, 138, 62), (228, 186, 104), (240, 206, 130), (214, 168, 90)):
        paths = []
        for x, y in _within(look, cx, cy - 0.08 * r, r * 0.55, k, 16):
            a, bend = look.between(0, 6.28), look.between(-1.6, 1.6)
            t = np.linspace(-1, 1, 9)
            paths.append(
                np.stack([x + 0.33 * r * np.sin(a + bend * t) * t, y + 0.33 * r * k * np.cos(a + bend * t) * t], 1)
            )
        c.paint(c.lines(paths, 0.04 * r), tone, subject=True, relief=0.012)
    # Sauce with herbs.
    sauce = smooth(
        [
            (cx + 0.42 * r * np.cos(a) * look.between(0.7, 1.1), cy - 0.14 * r + 0.42 * r * k * np.sin(a))
            for a in np.linspace(0, 5.7, 8)
        ]
    )
    c.paint(c.shape(sauce), (176, 46, 28), subject=True, relief=0.08 * r, texture=0.3)
    _bits(c, look, _within(look, cx, cy - 0.16 * r, 0.3 * r, k, 6), 0.08 * r, [(62, 130, 52)], 0.5)
    return "spaghetti with tomato sauce"


def _salad(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    for scale, tones in ((0.24, [(58, 112, 44), (92, 150, 62)]), (0.2, [(130, 178, 84), (70, 130, 52)])):
        _bits(c, look, _within(look, cx, cy - 0.08 * r, 0.68 * r, k, 22), scale * r, list(tones), 0.45)
    _bits(c, look, _within(look, cx, cy - 0.1 * r, 0.55 * r, k, 6), 0.13 * r, [(204, 48, 40)], 0.9)
    _bits(c, look, _within(look, cx, cy - 0.1 * r, 0.5 * r, k, 4), 0.12 * r, [(238, 234, 214)], 0.6)
    return "green salad with tomatoes"


def _steak(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    # The meat with an irregular outline.
    meat = smooth(
        [
            (cx - 0.62 * r, cy),
            (cx - 0.4 * r, cy - 0.4 * r * k),
            (cx + 0.1 * r, cy - 0.42 * r * k),
            (cx + 0.42 * r, cy - 0.1 * r),
            (cx + 0.2 * r, cy + 0.32 * r * k),
            (cx - 0.35 * r, cy + 0.36 * r * k),
        ]
    )
    c.paint(c.shape(meat), (112, 62, 40), subject=True, relief=0.12 * r, strength=0.9, texture=0.35)
    # Grill marks.
    inside = c.shape(meat)
    bars = [
        [(cx - 0.7 * r + d, cy - 0.4 * r), (cx - 0.3 * r + d, cy + 0.4 * r)] for d in np.arange(0, 1.2 * r, 0.2 * r)
    ]
    c.paint(c.lines(bars, 0.05 * r).within(inside), (48, 26, 20), subject=True, opacity=0.7)
    _bits(
        c,
        look,
        _within(look, cx + 0.42 * r, cy + 0.22 * r, 0.26 * r, k, 26),
        0.06 * r,
        [(88, 150, 58), (70, 132, 48)],
        1.0,
    )
    # Fries in three shades.
    fries = [
        turned(box(-0.22 * r, -0.035 * r, 0.22 * r, 0.035 * r), x, y, look.between(-0.8, 0.8))
        for x, y in _within(look, cx + 0.35 * r, cy - 0.3 * r, 0.2 * r, k, 9)
    ]
    for k2 in range(3):
        c.paint(c.shape(*fries[k2::3]), shade((226, 178, 84), 0.85 + 0.12 * k2), subject=True, relief=0.02 * r)
    return "grilled steak with peas and fries"


def _pancakes(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    n = int(look.rng.integers(3, 6))
    # Each pancake has a bright side and a brown top.
    for i in range(n):
        y, d = cy + 0.12 * r - i * 0.13 * r, look.between(-0.03, 0.03) * r
        c.paint(c.oval(cx + d, y + 0.06 * r, 0.62 * r, 0.62 * r * k), (226, 178, 108), subject=True, relief=0.05 * r)
        c.paint(c.oval(cx + d, y, 0.62 * r, 0.62 * r * k), (192, 128, 62), subject=True, relief=0.06 * r, texture=0.15)
    y = cy + 0.12 * r - (n - 1) * 0.13 * r
    syrup = smooth(
        [
            (cx + 0.5 * r * np.cos(a) * look.between(0.7, 1.1), y + 0.5 * r * k * np.sin(a))
            for a in np.linspace(0, 5.7, 9)
        ]
    )
    c.paint(c.shape(syrup), (122, 56, 20), subject=True, opacity=0.75, relief=0.06 * r)
    _bits(c, look, _within(look, cx, y - 0.05 * r, 0.24 * r, k, 6), 0.1 * r, [(40, 44, 96), (186, 34, 52)], 1.0)
    return "pancakes with berries and syrup"


def _pizza(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    c.paint(
        c.oval(cx, cy, 0.9 * r, 0.9 * r * k), (206, 150, 82), subject=True, relief=0.12 * r, strength=0.9, texture=0.15
    )
    c.paint(c.oval(cx, cy, 0.76 * r, 0.76 * r * k), (196, 74, 36), subject=True, texture=0.2)
    _bits(c, look, _within(look, cx, cy, 0.6 * r, k, 26), 0.16 * r, [(238, 206, 116), (246, 222, 150)], 0.6)
    _bits(c, look, _within(look, cx, cy, 0.58 * r, k, 9), 0.13 * r, [(168, 40, 32)], 0.62)
    _bits(c, look, _within(look, cx, cy, 0.58 * r, k, 8), 0.07 * r, [(54, 110, 46)], 0.5)
    # Cuts between the slices.
    cuts = [
        [
            (cx - 0.88 * r * np.cos(a), cy - 0.88 * r * k * np.sin(a)),
            (cx + 0.88 * r * np.cos(a), cy + 0.88 * r * k * np.sin(a)),
        ]
        for a in (0.4, 1.45, 2.5)
    ]
    c.paint(c.lines(cuts, 0.015 * r), (110, 50, 24), subject=True, opacity=0.6)
    return "pepperoni pizza"


def _cake(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    a, b, d = (
        np.array((cx - 0.62 * r, cy + 0.1 * r)),
        np.array((cx + 0.4 * r, cy + 0.34 * r)),
        np.array((cx + 0.48 * r, cy - 0.16 * r)),
    )
    # Height of the slice.
    up = np.array((0.0, -0.5 * r))
    name = look.pick(("chocolate", "strawberry", "vanilla"))
    tone: Colour = {"chocolate": (92, 54, 38), "strawberry": (232, 150, 160), "vanilla": (240, 222, 170)}[name]
    # A wedge: two sides, layers of cream, top and a cherry.
    side = c.paint(c.shape([a, b, b + up, a + up]), shade(tone, 0.85), subject=True, texture=0.2)
    c.paint(c.shape([b, d, d + up, b + up]), shade(tone, 0.6), subject=True, texture=0.1)
    for f in (0.3, 0.65):
        c.paint(c.lines([[a + up * f, b + up * f]], 0.06 * r).within(side), (246, 238, 226), subject=True)
    c.paint(c.shape([a + up, b + up, d + up]), mix(tone, (255, 250, 240), 0.25), subject=True, relief=0.04 * r)
    c.paint(
        c.oval(float(b[0] + d[0]) / 2 - 0.15 * r, float(b[1] + d[1]) / 2 - 0.58 * r, 0.11 * r, 0.11 * r),
        (200, 30, 44),
        subject=True,
        relief=0.1 * r,
        strength=1.0,
    )
    return f"a slice of {name} cake"


def _sushi(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    for row in range(2):
        for col in range(3):
            x, y = cx + (col - 1) * 0.46 * r + row * 0.08 * r, cy + (row - 0.6) * 0.42 * r
            # Rice with fish in the back row, rolls in the front row.
            if row == 0:
                c.paint(
                    c.shape(box(x - 0.19 * r, y - 0.06 * r, x + 0.19 * r, y + 0.16 * r, 0.06 * r)),
                    (238, 236, 228),
                    subject=True,
                    relief=0.05 * r,
                    texture=0.2,
                )
                top = smooth(
                    [
                        (x - 0.22 * r, y + 0.02 * r),
                        (x - 0.1 * r, y - 0.14 * r),
                        (x + 0.12 * r, y - 0.14 * r),
                        (x + 0.23 * r, y + 0.02 * r),
                        (x, y + 0.05 * r),
                    ]
                )
                c.paint(c.shape(top), (232, 118, 74), subject=True, relief=0.06 * r)
                c.paint(
                    c.lines(
                        [[(x + d * r, y - 0.12 * r), (x + (d + 0.05) * r, y + 0.02 * r)] for d in (-0.1, 0.0, 0.1)],
                        0.012 * r,
                    ),
                    (250, 206, 180),
                    subject=True,
                )
            else:
                c.paint(
                    c.shape(box(x - 0.17 * r, y - 0.04 * r, x + 0.17 * r, y + 0.2 * r, 0.05 * r)),
                    (34, 44, 38),
                    subject=True,
                    relief=0.04 * r,
                )
                c.paint(c.oval(x, y - 0.02 * r, 0.17 * r, 0.11 * r), (240, 238, 230), subject=True, texture=0.15)
                c.paint(
                    c.oval(x, y - 0.02 * r, 0.07 * r, 0.05 * r),
                    look.pick(((226, 110, 66), (96, 150, 70))),
                    subject=True,
                )
    return "sushi"


def _soup(c: Canvas, look: Look, cx: float, cy: float, r: float, k: float) -> str:
    name, tone = look.pick(
        (("tomato", (196, 70, 32)), ("pumpkin", (224, 144, 46)), ("pea", (120, 146, 62)), ("noodle", (206, 160, 92)))
    )
    # The soup's surface; noodles are clipped to it.
    surface = c.paint(c.oval(cx, cy, 0.84 * r, 0.84 * r * k), tone, subject=True, texture=0.12)
    # Noodles with an egg, or a swirl of cream.
    if name == "noodle":
        paths = [
            smooth([(x - 0.2 * r, y), (x, y + look.between(-0.1, 0.1) * r), (x + 0.2 * r, y)], closed=False)
            for x, y in _within(look, cx, cy, 0.5 * r, k, 22)
        ]
        c.paint(c.lines(paths, 0.035 * r).within(surface), (242, 214, 150), subject=True, relief=0.01)
        c.paint(c.oval(cx - 0.25 * r, cy - 0.05 * r, 0.2 * r, 0.15 * r), (246, 244, 236), subject=True, relief=0.05 * r)
        c.paint(c.oval(cx - 0.25 * r, cy - 0.05 * r, 0.1 * r, 0.075 * r), (236, 150, 40), subject=True, relief=0.05 * r)
    else:
        swirl = [
            (cx + d * np.cos(4 * d / r + 1), cy + d * k * np.sin(4 * d / r + 1))
            for d in np.linspace(0.05 * r, 0.55 * r, 20)
        ]
        c.paint(c.lines([swirl], 0.05 * r), (248, 240, 226), subject=True, opacity=0.8)
    _bits(c, look, _within(look, cx, cy, 0.55 * r, k, 10), 0.045 * r, [(58, 118, 48)], 0.6)
    return f"{name} soup"


def _dish(c: Canvas, look: Look, setting: Setting, cx: float, cy: float, r: float) -> str:
    fill: Fill = look.pick((_pasta, _salad, _steak, _pancakes, _pizza, _cake, _sushi, _soup))
    name, ware = look.colour(setting.tone, ("white", "light blue", "teal", "black", "grey", "pink", "beige", "red"))
    k = SQUASH
    # Some dishes are served in a bowl.
    deep = fill is _soup or (fill in (_salad, _pasta) and look.chance(0.6))
    # A bowl has a body below its rim, a plate only a shadow.
    if deep:
        body = smooth(
            [
                (cx - r, cy),
                (cx - 0.8 * r, cy + 0.5 * r),
                (cx - 0.35 * r, cy + 0.82 * r),
                (cx + 0.35 * r, cy + 0.82 * r),
                (cx + 0.8 * r, cy + 0.5 * r),
                (cx + r, cy),
                (cx, cy - 0.3 * r),
            ]
        )
        c.shadow(c.oval(cx, cy + 0.62 * r, 0.8 * r, 0.4 * r), 0.05, 0.03, 0.03, 0.55)
        c.paint(c.shape(body), ware, subject=True, relief=0.4 * r, strength=0.8)
    else:
        c.shadow(c.oval(cx, cy + 0.05 * r, r, r * k), 0.03, 0.03, 0.03, 0.5)
    c.paint(c.oval(cx, cy, r, r * k), ware, subject=True, relief=0.06 * r, strength=0.6)
    c.paint(
        c.oval(cx, cy + 0.01, 0.9 * r if deep else 0.74 * r, (0.9 if deep else 0.74) * r * k),
        shade(ware, 0.84),
        subject=True,
        relief=0.08 * r,
        strength=-0.5,
    )
    if look.chance(0.35):
        c.paint(
            c.lines([ellipse(cx, cy, 0.93 * r, 0.93 * r * k)], 0.02 * r, closed=True),
            look.jitter(COLOURS[look.pick(("blue", "red", "green"))]),
            subject=True,
        )
    food = fill(c, look, cx, cy, r * (1.0 if deep else 0.84), k)
    hot = fill in (_soup, _steak, _pasta, _pizza) and look.chance(0.7 if look.hard else 0.4)
    if hot:
        steam(c, look, cx, cy - 0.1 * r, r, 0.5 if look.hard else 0.35)
    ware_name = f"{article(name)} {'bowl' if deep else 'plate'}"
    lead = "a steaming serving of " if hot and not food.startswith("a ") else ""
    return f"{lead}{food} {'in' if deep else 'on'} {ware_name}"


def delicacy(c: Canvas, look: Look) -> str:
    """Draw a dish or a drink on a table; return its caption."""
    setting = table(c, look)
    draw = look.pick((_dish, _dish, _dish, glass, coffee))
    r = look.scale((0.34, 0.4), (0.17, 0.28)) * (0.85 if draw is not _dish else 1.0)
    cx = c.right * (look.between(0.44, 0.54) if not look.hard else look.between(0.22, 0.6))
    cy = c.bottom * (look.between(0.5, 0.58) if not look.hard else look.between(0.4, 0.7))
    aside = (c.right - look.between(0.08, 0.14), c.bottom * look.pick((0.14, 0.86)))
    prop = lying(
        c,
        look,
        *aside,
        look.between(0.17, 0.23),
        ("napkin", "napkin", "phone", "cup" if draw is not coffee else "napkin"),
    )
    if look.chance(0.6):
        x = max(0.05, cx - r - 0.07)
        handle = [[(x, cy - 0.1), (x, cy + r * 0.9)]]
        c.shadow(c.lines(handle, 0.02), 0.012, 0.015, 0.01)
        c.paint(c.lines(handle, 0.022), (186, 188, 194), decoy=True, relief=0.012, strength=0.9)
        c.paint(
            c.lines(
                [[(x + d, cy - r * 0.75), (x + d, cy - 0.1), (x, cy - 0.02)] for d in (-0.028, -0.01, 0.01, 0.028)],
                0.009,
            ),
            (196, 198, 204),
            decoy=True,
        )
    what = draw(c, look, setting, cx, cy, r)
    return look.pick((f"{what} {setting.phrase}", f"{what} next to {prop}", f"{what} {setting.phrase}, beside {prop}"))
