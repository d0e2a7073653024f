"""Drinks: steam and transparent glasses."""

from __future__ import annotations

import numpy as np

from samplegen.canvas import Canvas, box, ellipse, smooth
from samplegen.look import COLOURS, Look, Setting, article, mix, shade
from samplegen.props import turned


def steam(c: Canvas, look: Look, cx: float, cy: float, r: float, strong: float) -> None:
    """Paint wisps of steam above a dish: white, soft, and part of the matte with a small alpha."""
    for x in np.linspace(-0.4, 0.4, 3):
        sway = look.between(0.08, 0.2) * r
        path = [
            (cx + x * r + sway * np.sin(3.2 * t + x * 5) * (0.4 + t), cy - t * 1.25 * r) for t in np.linspace(0, 1, 12)
        ]
        c.paint(
            c.soft(c.lines([path], 0.13 * r), 0.055 * r),
            (244, 244, 246),
            subject=True,
            opacity=strong * look.between(0.7, 1.1),
        )


def glass(c: Canvas, look: Look, setting: Setting, cx: float, cy: float, r: float) -> str:
    """Paint a drink in a glass; the table is visible through the wall and the drink."""
    name, tone = look.pick(
        (
            ("orange juice", (236, 150, 30)),
            ("water", (206, 226, 236)),
            ("iced tea", (176, 94, 36)),
            ("red wine", (112, 16, 36)),
            ("lemonade", (236, 226, 150)),
        )
    )
    # Opacity of each drink.
    solid = {"orange juice": 0.9, "water": 0.22, "iced tea": 0.66, "red wine": 0.82, "lemonade": 0.5}[name]
    top, low, wide, narrow = cy - 1.1 * r, cy + 0.95 * r, 0.62 * r, 0.48 * r
    wall = smooth(
        [
            (cx - wide, top),
            (cx - (wide + narrow) / 2, cy),
            (cx - narrow, low),
            (cx, low + 0.12 * r),
            (cx + narrow, low),
            (cx + (wide + narrow) / 2, cy),
            (cx + wide, top),
            (cx, top + 0.05 * r),
        ]
    )
    # Wall, drink and surface, each with its own opacity.
    c.shadow(c.oval(cx, low, 0.6 * r, 0.2 * r), 0.06, 0.02, 0.03, 0.4)
    glass = c.paint(c.shape(wall), (226, 236, 240), subject=True, opacity=0.2)
    level = top + look.between(0.25, 0.6) * r
    drink = c.shape(box(cx - wide, level, cx + wide, low + 0.2 * r)).within(
        c.shape((wall - [cx, 0]) * [0.9, 1] + [cx, -0.03 * r])
    )
    c.paint(drink, tone, subject=True, opacity=solid, relief=0.2 * r)
    c.paint(
        c.oval(cx, level, 0.53 * r, 0.12 * r),
        mix(tone, (255, 255, 255), 0.3),
        subject=True,
        opacity=min(1.0, solid + 0.1),
    )
    # Ice cubes.
    if name != "red wine":
        for _ in range(3):
            cube = turned(
                box(-0.14 * r, -0.14 * r, 0.14 * r, 0.14 * r, 0.04 * r),
                cx + look.between(-0.25, 0.25) * r,
                level + look.between(0.05, 0.4) * r,
                look.between(0, 1.5),
            )
            c.paint(c.shape(cube), (240, 246, 250), subject=True, opacity=0.35, relief=0.06 * r)
    # Straw.
    if look.chance(0.6):
        c.paint(
            c.lines([[(cx + 0.1 * r, low - 0.3 * r), (cx + 0.65 * r, top - 0.5 * r)]], 0.07 * r),
            look.jitter(COLOURS[look.pick(("red", "green", "black"))]),
            subject=True,
            relief=0.02,
        )
    # Rim, outline and highlight.
    c.paint(
        c.lines([ellipse(cx, top + 0.02 * r, wide, 0.14 * r)], 0.03 * r, closed=True),
        (240, 246, 248),
        subject=True,
        opacity=0.75,
    )
    c.paint(c.lines([wall], 0.025 * r, closed=True), (236, 242, 246), subject=True, opacity=0.6)
    c.paint(
        c.soft(c.lines([[(cx - 0.42 * r, top + 0.2 * r), (cx - 0.34 * r, low - 0.2 * r)]], 0.06 * r), 0.02 * r).within(
            glass
        ),
        (255, 255, 255),
        subject=True,
        opacity=0.7,
    )
    return f"a glass of {name}"


def coffee(c: Canvas, look: Look, setting: Setting, cx: float, cy: float, r: float) -> str:
    """Paint a cup of coffee on a saucer, with steam."""
    name, ware = look.colour(setting.tone, ("white", "red", "teal", "black", "yellow", "light blue"))
    c.shadow(c.oval(cx, cy + 0.6 * r, 1.05 * r, 0.6 * r), 0.03, 0.03, 0.03, 0.5)
    c.paint(c.oval(cx, cy + 0.55 * r, 1.05 * r, 0.55 * r), ware, subject=True, relief=0.06 * r)
    c.paint(c.oval(cx, cy + 0.55 * r, 0.7 * r, 0.36 * r), shade(ware, 0.8), subject=True)
    # Handle, behind the body.
    c.paint(
        c.lines([ellipse(cx + 0.7 * r, cy + 0.05 * r, 0.26 * r, 0.26 * r)], 0.1 * r, closed=True),
        shade(ware, 0.9),
        subject=True,
        relief=0.04 * r,
    )
    body = smooth(
        [
            (cx - 0.68 * r, cy - 0.4 * r),
            (cx - 0.62 * r, cy + 0.3 * r),
            (cx - 0.35 * r, cy + 0.64 * r),
            (cx + 0.35 * r, cy + 0.64 * r),
            (cx + 0.62 * r, cy + 0.3 * r),
            (cx + 0.68 * r, cy - 0.4 * r),
            (cx, cy - 0.5 * r),
        ]
    )
    c.paint(c.shape(body), ware, subject=True, relief=0.35 * r, strength=0.9)
    # Rim, coffee and milk foam.
    c.paint(c.oval(cx, cy - 0.42 * r, 0.68 * r, 0.3 * r), shade(ware, 1.05), subject=True, relief=0.04 * r)
    c.paint(c.oval(cx, cy - 0.4 * r, 0.6 * r, 0.25 * r), (88, 52, 30), subject=True, relief=0.05 * r)
    if look.chance(0.5):
        c.paint(c.oval(cx, cy - 0.39 * r, 0.4 * r, 0.15 * r), (222, 190, 150), subject=True, opacity=0.85)
    steam(c, look, cx, cy - 0.5 * r, r * 0.8, 0.55 if look.hard else 0.38)
    return f"{article(name)} cup of hot coffee with steam"
