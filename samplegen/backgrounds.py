"""Backgrounds: walls, rooms, streets, foliage, table tops. They are never part of a matte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samplegen.canvas import Canvas, Colour, box, ellipse, fractal
from samplegen.look import COLOURS, Look, Setting, mix, shade

Place = Callable[[Canvas, Look], Setting]


def _ramp(c: Canvas, top: Colour, bottom: Colour) -> None:
    """Paint a vertical gradient over the whole canvas."""
    c.paint(c.everywhere(), c.ramp(top, bottom), texture=0.05)


def _spots(
    c: Canvas, look: Look, n: int, y: tuple[float, float], r: tuple[float, float], squash: float = 0.6
) -> list[np.ndarray]:
    """Return outlines of `n` random ellipses at heights `y` with radii `r`."""
    rng = look.rng
    return [
        ellipse(rng.uniform(0, c.right), rng.uniform(*y), s := rng.uniform(*r), s * squash, rng.uniform(0, 3.1), 10)
        for _ in range(n)
    ]


def studio(c: Canvas, look: Look) -> Setting:
    """Paint a plain studio backdrop with a soft light."""
    name = look.pick(
        ("grey", "white", "beige", "light blue", "pink", "teal")
        if not look.drifted()
        else ("purple", "black", "orange", "green")
    )
    tone = look.jitter(COLOURS[name], 14)
    _ramp(c, shade(tone, 1.05), shade(tone, 0.72))
    # A soft light on the backdrop.
    glow = c.soft(c.oval(look.between(0.2, 0.8), look.between(0.2, 0.5), 0.4, 0.4), 0.25)
    c.paint(glow, mix(tone, (255, 250, 240), 0.5), opacity=0.55)
    return Setting(f"against a plain {name} backdrop", tone)


def plaster(c: Canvas, look: Look) -> Setting:
    """Paint a plastered wall lit from one side, sometimes with a picture."""
    name = look.pick(("beige", "white", "light blue", "green", "grey", "yellow"))
    tone = look.jitter(mix(COLOURS[name], (225, 220, 210), 0.3), 12)
    c.paint(c.everywhere(), tone, texture=0.14)
    side = look.between(0.0, 1.0) > 0.5
    # Light falls from one side.
    light = np.linspace(1, 0, c.w, dtype=np.float32)[None] ** 1.5
    c.paint(c.everywhere(np.repeat(light if side else light[:, ::-1], c.h, 0)), (255, 246, 228), opacity=0.3)
    # A framed picture with some coloured spots.
    if look.chance(0.6):
        x, y, w, h = (
            look.between(0, 0.7) * c.right,
            look.between(0.04, 0.2),
            look.between(0.2, 0.35),
            look.between(0.2, 0.4),
        )
        c.shadow(c.shape(box(x, y, x + w, y + h)), 0.012, 0.018, 0.02, 0.4)
        c.paint(c.shape(box(x, y, x + w, y + h)), look.jitter((72, 52, 38), 20), relief=0.02)
        c.paint(c.shape(box(x + 0.02, y + 0.02, x + w - 0.02, y + h - 0.02)), look.jitter((216, 208, 190), 16))
        for _ in range(4):
            spot = c.oval(
                x + w / 2 + look.between(-0.07, 0.07),
                y + h / 2 + look.between(-0.07, 0.07),
                0.05,
                0.04,
                look.between(0, 3),
            )
            c.paint(
                spot.within(c.shape(box(x + 0.03, y + 0.03, x + w - 0.03, y + h - 0.03))),
                look.jitter(look.pick(list(COLOURS.values()))),
            )
    c.defocus(0.006)
    return Setting(f"in front of a {name} wall", tone)


def brick(c: Canvas, look: Look) -> Setting:
    """Paint a brick wall; each brick has one of four shades."""
    red = not look.drifted()
    tone = look.jitter((152, 84, 64) if red else (176, 172, 166), 14)
    c.paint(c.everywhere(), mix(tone, (190, 182, 172), 0.75) if red else shade(tone, 0.7), texture=0.15)
    bh, bw = look.between(0.05, 0.08), look.between(0.14, 0.2)
    # One group per shade, so that each shade is one stroke.
    groups: list[list[np.ndarray]] = [[], [], [], []]
    for row in range(int(c.bottom / bh) + 1):
        for col in range(-1, int(c.right / bw) + 2):
            x = (col + 0.5 * (row % 2)) * bw
            groups[int(look.rng.integers(4))].append(box(x, row * bh, x + bw - 0.01, row * bh + bh - 0.01))
    for k, group in enumerate(groups):
        c.paint(c.shape(*group), shade(tone, 0.78 + 0.14 * k), texture=0.22, relief=0.01, strength=0.4)
    c.defocus(look.between(0.0, 0.012))
    return Setting("in front of a brick wall" if red else "in front of a grey stone wall", tone, True)


def foliage(c: Canvas, look: Look) -> Setting:
    """Paint layers of leaves, more blurred in easy photos."""
    autumn = look.drifted()
    tones = (
        ((70, 104, 48), (44, 82, 40), (104, 136, 62), (30, 56, 32))
        if not autumn
        else ((190, 112, 40), (160, 72, 34), (208, 160, 62), (84, 54, 34))
    )
    c.paint(c.everywhere(), tones[3], texture=0.3)
    # Layers of leaves from dark to bright.
    for k in (3, 1, 0, 2, 0, 2):
        c.paint(
            c.shape(*_spots(c, look, 45, (0, c.bottom), (0.02, 0.07))),
            look.jitter(tones[k], 12),
            relief=0.015,
            opacity=0.9,
        )
    if look.hard:
        c.defocus(look.between(0.002, 0.012))
    else:
        c.defocus(look.between(0.02, 0.05))
    return Setting("in front of autumn leaves" if autumn else "in front of green leaves", tones[1], True)


def bokeh(c: Canvas, look: Look) -> Setting:
    """Paint blurred lights at night."""
    warm = look.chance(0.5)
    base = look.jitter((36, 32, 52) if not warm else (62, 42, 34), 8)
    _ramp(c, base, shade(base, 0.6))
    lights = (
        ((250, 210, 130), (250, 150, 90), (240, 90, 90), (120, 200, 240), (220, 120, 230))
        if look.drifted()
        else ((255, 214, 140), (250, 180, 110), (255, 238, 200))
    )
    c.defocus(0.02)
    # Out-of-focus lights are discs.
    for _ in range(16):
        spot = c.oval(look.between(0, c.right), look.between(0, c.bottom), r := look.between(0.025, 0.09), r)
        c.paint(spot, look.pick(lights), opacity=look.between(0.25, 0.75))
    c.defocus(0.008)
    return Setting("in front of blurred night lights", base, True)


def street(c: Canvas, look: Look) -> Setting:
    """Paint a street with houses, windows and cars."""
    night = look.drifted()
    haze = (196, 206, 216) if not night else (40, 44, 66)
    _ramp(c, haze, shade(haze, 0.9))
    x = -0.1
    while x < c.right:
        w, top = look.between(0.15, 0.34), look.between(-0.1, 0.35)
        tone = look.jitter(
            look.pick(((176, 140, 110), (150, 150, 156), (196, 176, 144), (128, 88, 74), (108, 116, 126))), 12
        )
        tone = shade(tone, 0.4) if night else tone
        c.paint(c.shape(box(x, top, x + w, 0.8 * c.bottom)), tone, texture=0.12, relief=0.03)
        step = look.between(0.055, 0.085)
        panes = [
            box(wx, wy, wx + step * 0.5, wy + step * 0.7)
            for wx in np.arange(x + 0.025, x + w - 0.04, step)
            for wy in np.arange(top + 0.05, 0.66 * c.bottom, step * 1.5)
            if look.chance(0.85)
        ]
        if panes:
            c.paint(c.shape(*panes), (240, 206, 120) if night else (62, 74, 88), opacity=0.85)
        x += w
    ground = (104, 102, 102) if not night else (44, 44, 52)
    c.paint(c.shape(box(-0.1, 0.74 * c.bottom, c.right + 0.1, c.bottom + 0.1)), ground, texture=0.2)
    # Two parked cars.
    for _ in range(2):
        cx, cy, s = look.between(0, c.right), 0.77 * c.bottom, look.between(0.08, 0.13)
        c.paint(
            c.shape(
                [
                    (cx - s, cy),
                    (cx - s, cy - s * 0.35),
                    (cx - s * 0.5, cy - s * 0.4),
                    (cx - s * 0.3, cy - s * 0.7),
                    (cx + s * 0.4, cy - s * 0.7),
                    (cx + s * 0.7, cy - s * 0.35),
                    (cx + s, cy - s * 0.3),
                    (cx + s, cy),
                ]
            ),
            look.jitter(look.pick(list(COLOURS.values())), 12),
            relief=0.02,
        )
    c.defocus(look.between(0.004, 0.01) if look.hard else look.between(0.015, 0.03))
    return Setting("on a city street at night" if night else "on a city street", ground, True)


def room(c: Canvas, look: Look) -> Setting:
    """Paint a living room: wall, skirting, floor, and a window or shelf, slightly out of focus."""
    tone = look.jitter(
        look.pick(
            ((214, 204, 188), (186, 198, 200), (206, 186, 176), (170, 178, 160))
            if not look.drifted()
            else ((88, 100, 128), (120, 84, 92), (72, 92, 84))
        ),
        10,
    )
    c.paint(c.everywhere(), tone, texture=0.08)
    # Floor and skirting.
    floor = look.between(0.68, 0.82) * c.bottom
    c.paint(c.shape(box(-0.1, floor, c.right + 0.1, c.bottom + 0.1)), look.jitter((142, 104, 72), 16), texture=0.18)
    c.paint(c.shape(box(-0.1, floor - 0.03, c.right + 0.1, floor)), (236, 232, 224))
    x = look.between(-0.1, 0.75) * c.right
    # A window, or a shelf with books.
    if look.chance(0.5):
        c.paint(c.shape(box(x, 0.08, x + 0.4, 0.5)), (240, 238, 232), relief=0.02)
        c.paint(
            c.shape(box(x + 0.02, 0.1, x + 0.19, 0.48), box(x + 0.21, 0.1, x + 0.38, 0.48)),
            (206, 226, 240),
            texture=0.1,
        )
    else:
        c.paint(c.shape(box(x, 0.06, x + 0.38, floor - 0.02)), (112, 78, 50), relief=0.02, texture=0.15)
        for k in range(3):
            y = 0.09 + k * 0.19
            c.paint(c.shape(box(x + 0.02, y, x + 0.36, y + 0.16)), (66, 46, 32))
            bx = x + 0.025
            while bx < x + 0.32:
                w, h = look.between(0.018, 0.04), look.between(0.1, 0.15)
                c.paint(
                    c.shape(box(bx, y + 0.16 - h, bx + w, y + 0.16)),
                    look.jitter(look.pick(list(COLOURS.values())), 16),
                    relief=0.01,
                )
                bx += w
    c.defocus(look.between(0.002, 0.008) if look.hard else look.between(0.01, 0.022))
    return Setting("in a living room", tone)


def lawn(c: Canvas, look: Look) -> Setting:
    """Paint a field with trees at the horizon."""
    snow = look.drifted()
    tone = look.jitter((96, 132, 62) if not snow else (222, 226, 234), 10)
    _ramp(c, (170, 200, 226) if not snow else (188, 196, 208), tone)
    c.paint(
        c.shape(*_spots(c, look, 26, (0.1, 0.36), (0.08, 0.18), 0.9)),
        shade(tone, 0.55) if not snow else (84, 96, 92),
        texture=0.4,
        relief=0.05,
    )
    c.defocus(0.022)
    horizon = 0.4
    c.paint(c.shape(box(-0.1, horizon, c.right + 0.1, c.bottom + 0.1)), tone, texture=0.22)
    rng = look.rng
    # Blades of grass, taller towards the camera.
    if not snow:
        for k in range(3):
            n = 160
            y = horizon + (c.bottom - horizon) * rng.uniform(0, 1, n) ** 0.8
            x = rng.uniform(0, c.right, n)
            h = 0.01 + 0.06 * (y - horizon)
            paths = np.stack([np.stack([x, y], 1), np.stack([x + rng.normal(0, 0.01, n), y - h], 1)], 1)
            c.paint(c.lines(list(paths), 0.004), shade(tone, 0.7 + 0.3 * k), opacity=0.8)
    return Setting("on a snowy field" if snow else "on the grass", tone, True)


def wood_top(c: Canvas, look: Look) -> Setting:
    """Paint a wooden table with grain and planks."""
    dark = look.drifted() or look.chance(0.25)
    tone = look.jitter((170, 122, 78) if not dark else (84, 56, 40), 12)
    c.paint(c.everywhere(), tone, texture=0.1)
    grain = fractal(look.rng, c.h, c.w, 3, 2)
    # Sine waves distorted by noise look like annual rings.
    rings = 0.5 + 0.5 * np.sin((np.linspace(0, 26, c.h, dtype=np.float32)[:, None] + 5 * grain) * 2.2)
    c.paint(c.everywhere(rings * 0.35), shade(tone, 0.62))
    planks = look.between(0.2, 0.34)
    seams = [[(-0.1, y), (c.right + 0.1, y)] for y in np.arange(look.between(0.05, planks), c.bottom, planks)]
    c.paint(c.lines(seams, 0.007), shade(tone, 0.35))
    return Setting("on a dark wooden table" if dark else "on a wooden table", tone)


def marble_top(c: Canvas, look: Look) -> Setting:
    """Paint a marble counter with veins."""
    tone = look.jitter((222, 221, 219), 8) if not look.drifted() else look.jitter((62, 66, 72), 8)
    c.paint(c.everywhere(), tone, texture=0.06)
    # Veins: the zero lines of smooth noise.
    veins = np.exp(-np.abs(fractal(look.rng, c.h, c.w, 3, 4)) * 16) + 0.6 * np.exp(
        -np.abs(fractal(look.rng, c.h, c.w, 5, 3)) * 22
    )
    dark = float(np.mean(tone)) < 128
    c.paint(c.everywhere(np.clip(veins * 0.45, 0, 1)), (188, 192, 196) if dark else (146, 148, 154))
    return Setting("on a dark marble counter" if dark else "on a white marble counter", tone)


def cloth_top(c: Canvas, look: Look) -> Setting:
    """Paint a tablecloth with folds, plain, striped or checked."""
    name = look.pick(
        ("red", "light blue", "beige", "green", "grey", "white")
        if not look.drifted()
        else ("purple", "teal", "orange", "black")
    )
    tone = look.jitter(COLOURS[name], 10)
    c.paint(c.everywhere(), tone, texture=0.1)
    # Dark and bright sides of the folds.
    folds = fractal(look.rng, c.h, c.w, 2, 2)
    c.paint(c.everywhere(np.clip(folds, 0, 1) * 0.3), shade(tone, 0.5))
    c.paint(c.everywhere(np.clip(-folds, 0, 1) * 0.25), mix(tone, (255, 255, 255), 0.6))
    style, step = look.pick(("plain", "checked", "striped")), look.between(0.06, 0.12)
    if style != "plain":
        c.paint(
            c.lines([[(-0.1, y), (c.right + 0.1, y)] for y in np.arange(0, c.bottom, step)], step * 0.4),
            mix(tone, (245, 242, 236), 0.75),
            opacity=0.5,
        )
    if style == "checked":
        c.paint(
            c.lines([[(x, -0.1), (x, c.bottom + 0.1)] for x in np.arange(0, c.right, step)], step * 0.4),
            mix(tone, (245, 242, 236), 0.75),
            opacity=0.5,
        )
    return Setting(f"on a {style} {name} cloth", tone)


def concrete_top(c: Canvas, look: Look) -> Setting:
    """Paint a plain desk."""
    name = look.pick(("grey", "white", "light blue") if not look.drifted() else ("black", "teal"))
    tone = look.jitter(mix(COLOURS[name], (150, 150, 150), 0.25), 8)
    c.paint(c.everywhere(), tone, texture=0.2)
    return Setting(f"on a {name} desk", tone)


EASY_PLACES: tuple[Place, ...] = (studio, plaster, bokeh, room, foliage, street, brick)
HARD_PLACES: tuple[Place, ...] = (foliage, street, brick, room, bokeh, plaster)
FLOORS: tuple[Place, ...] = (room, lawn, room, studio)
TABLES: tuple[Place, ...] = (wood_top, marble_top, cloth_top, concrete_top)


def behind(c: Canvas, look: Look) -> Setting:
    """Paint a background for people."""
    return look.pick(HARD_PLACES if look.hard else EASY_PLACES)(c, look)


def floor(c: Canvas, look: Look) -> Setting:
    """Paint a background with a ground to sit on."""
    return look.pick(FLOORS)(c, look)


def table(c: Canvas, look: Look) -> Setting:
    """Paint a surface seen from above."""
    return look.pick(TABLES)(c, look)
