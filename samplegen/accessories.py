"""Watches, glasses, bags, necklaces, rings: thin parts and transparent lenses, on a table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samplegen.backgrounds import table
from samplegen.canvas import Canvas, Colour, box, ellipse, smooth
from samplegen.look import METALS, Look, Setting, article, mix, shade
from samplegen.props import lying, turned

Frame = Callable[[object], np.ndarray]
LEATHERS = ("black", "brown", "red", "beige", "blue", "green", "white", "teal", "purple", "orange")


def _watch(c: Canvas, look: Look, at: Frame, s: float, setting: Setting) -> str:
    name, strap = look.colour(setting.tone, LEATHERS)
    metal_name = look.pick(list(METALS))
    metal = METALS[metal_name]
    # Strap: two halves with stitches, holes and a buckle.
    for k in (-1, 1):
        band = at(
            smooth(
                [
                    (-0.3, k * 0.4),
                    (-0.26, k * 1.0),
                    (-0.22, k * 1.75),
                    (0, k * 1.88),
                    (0.22, k * 1.75),
                    (0.26, k * 1.0),
                    (0.3, k * 0.4),
                ]
            )
        )
        c.shadow(c.shape(band), 0.02, 0.03, 0.02)
        c.paint(c.shape(band), strap, subject=True, relief=0.12 * s, strength=0.7, texture=0.1)
        c.paint(
            c.lines([at([(x, k * 0.5), (x * 0.7, k * 1.7)]) for x in (-0.21, 0.21)], 0.02 * s),
            mix(strap, (230, 220, 200), 0.4),
            subject=True,
            opacity=0.7,
        )
        if k > 0:
            c.paint(
                c.shape(*[at(ellipse(0, y, 0.035, 0.045, 0, 10)) for y in (1.0, 1.2, 1.4, 1.6)]),
                shade(strap, 0.25),
                subject=True,
            )
        else:
            c.paint(c.lines([at(box(-0.3, -1.8, 0.3, -1.55))], 0.06 * s, closed=True), metal, subject=True, relief=0.01)
    # Case, dial, ticks and hands.
    c.shadow(c.shape(at(ellipse(0, 0, 0.75, 0.75))), 0.02, 0.03, 0.02)
    c.paint(c.shape(at(box(0.6, -0.09, 0.82, 0.09, 0.03))), shade(metal, 0.85), subject=True, relief=0.02)
    c.paint(c.shape(at(ellipse(0, 0, 0.72, 0.72))), metal, subject=True, relief=0.16 * s, strength=1.0)
    dial = look.pick(((240, 240, 236), (30, 32, 40), (36, 62, 110)))
    ink = (30, 30, 34) if dial[0] > 128 else (236, 236, 232)
    c.paint(c.shape(at(ellipse(0, 0, 0.58, 0.58))), dial, subject=True)
    ticks = [
        at([(0.47 * np.cos(a), 0.47 * np.sin(a)), (0.54 * np.cos(a), 0.54 * np.sin(a))])
        for a in np.arange(12) * np.pi / 6
    ]
    c.paint(c.lines(ticks, 0.035 * s), ink, subject=True)
    for length, width in ((0.3, 0.06), (0.44, 0.035)):
        a = look.between(0, 6.28)
        c.paint(c.lines([at([(0, 0), (length * np.cos(a), length * np.sin(a))])], width * s), ink, subject=True)
    # Reflection on the glass.
    c.paint(
        c.shape(at([(-0.42, -0.3), (-0.1, -0.54), (0.06, -0.52), (-0.5, -0.1)])),
        (255, 255, 255),
        subject=True,
        opacity=0.2,
    )
    return f"{article(metal_name)} wristwatch with {article(name)} strap"


def _glasses(c: Canvas, look: Look, at: Frame, s: float, setting: Setting) -> str:
    dark = look.chance(0.5)
    name, rim_tone = look.colour(setting.tone, ("black", "brown", "red", "blue", "purple", "teal", "white"))
    # Dark lenses are nearly opaque, clear ones nearly transparent.
    density = look.between(0.68, 0.85) if dark else look.between(0.14, 0.32)
    tint: Colour = (
        look.pick(((30, 30, 34), (62, 42, 26), (26, 44, 64)))
        if dark
        else look.pick(((206, 224, 236), (226, 214, 190), (210, 236, 220)))
    )
    square = look.chance(0.5)
    # Square or oval lenses.
    lenses = []
    for k in (-1, 1):
        points = (
            [(k * 0.22, -0.3), (k * 0.95, -0.36), (k * 1.05, 0.0), (k * 0.85, 0.42), (k * 0.4, 0.45), (k * 0.2, 0.1)]
            if square
            else ellipse(k * 0.62, 0.0, 0.44, 0.42)
        )
        lenses.append(at(smooth(points)))
    arms = [
        at(smooth([(k * 1.02, -0.2), (k * 1.12, -0.75), (k * 0.98, -1.25), (k * 0.72, -1.5)], closed=False))
        for k in (-1, 1)
    ]
    thick = look.between(0.05, 0.1) if not look.hard else look.between(0.028, 0.06)
    frame = [*lenses, at(smooth([(-0.22, -0.08), (0, -0.18), (0.22, -0.08)], closed=False))]
    c.shadow(c.lines(arms, thick * s), 0.02, 0.03, 0.008, 0.45)
    c.shadow(c.shape(*lenses), 0.02, 0.03, 0.01, 0.45 if dark else 0.16)
    # The lenses are part of the subject with a small alpha.
    c.paint(c.lines(arms, thick * s), shade(rim_tone, 0.9), subject=True, relief=0.01)
    c.paint(c.shape(*lenses), tint, subject=True, opacity=density)
    for k in (-1, 1):
        glare = c.shape(
            at([(k * 0.62 - 0.3, 0.12), (k * 0.62 + 0.08, -0.3), (k * 0.62 + 0.2, -0.3), (k * 0.62 - 0.2, 0.26)])
        ).within(c.shape(*lenses))
        c.paint(glare, (255, 255, 255), subject=True, opacity=0.28)
    c.paint(c.lines(lenses, thick * s, closed=True), rim_tone, subject=True, relief=0.01, strength=0.4)
    c.paint(c.lines(frame[2:], thick * s), rim_tone, subject=True)
    return f"a pair of {'sunglasses' if dark else 'glasses'} with {article(name)} frame"


def _bag(c: Canvas, look: Look, at: Frame, s: float, setting: Setting) -> str:
    name, tone = look.colour(setting.tone, LEATHERS)
    body = at(
        smooth(
            [
                (-0.95, -0.35),
                (0, -0.42),
                (0.95, -0.35),
                (1.12, 0.6),
                (0.95, 1.08),
                (0, 1.14),
                (-0.95, 1.08),
                (-1.12, 0.6),
            ]
        )
    )
    strap = at(
        smooth(
            [(-0.8, -0.3), (-0.95, -1.1), (-0.35, -1.75), (0.35, -1.7), (0.92, -1.1), (0.8, -0.3)],
            closed=False,
            steps=10,
        )
    )
    # Hard photos have thin straps.
    thin = look.between(0.07, 0.12) if not look.hard else look.between(0.025, 0.06)
    c.shadow(c.shape(body), 0.03, 0.05, 0.03)
    c.shadow(c.lines([strap], thin * s), 0.02, 0.03, 0.01)
    # Strap, body, flap and clasp.
    c.paint(c.lines([strap], thin * s), shade(tone, 0.8), subject=True, relief=0.02)
    c.paint(c.shape(body), tone, subject=True, relief=0.3 * s, strength=0.7, texture=0.12)
    flap = c.shape(
        at(
            smooth(
                [
                    (-0.98, -0.4),
                    (0, -0.48),
                    (0.98, -0.4),
                    (1.0, 0.15),
                    (0.5, 0.42),
                    (0, 0.48),
                    (-0.5, 0.42),
                    (-1.0, 0.15),
                ]
            )
        )
    )
    c.paint(c.soft(flap, 0.03 * s).within(c.shape(body)), shade(tone, 0.4), subject=True, opacity=0.5)
    c.paint(flap, shade(tone, 1.08), subject=True, relief=0.14 * s, texture=0.1)
    c.paint(c.shape(at(box(-0.14, 0.3, 0.14, 0.56, 0.05))), METALS["gold"], subject=True, relief=0.05 * s, strength=1.0)
    return f"{article(name)} handbag with a {'thin ' if thin < 0.06 else ''}strap"


def _necklace(c: Canvas, look: Look, at: Frame, s: float, setting: Setting) -> str:
    metal = look.pick(("gold", "silver", "rose gold"))
    tone = METALS[metal]
    loop = at(
        smooth(
            [(0, 1.0), (-0.7, 0.35), (-1.15, -0.5), (-0.75, -1.35), (0.1, -1.5), (0.9, -1.2), (1.15, -0.4), (0.7, 0.4)],
            steps=14,
        )
    )
    # Pearls or a plain chain.
    pearls = look.chance(0.45)
    # Beads along the chain.
    r = 0.1 if pearls and not look.hard else 0.06 if pearls else 0.03
    beads = [
        ellipse(x, y, r * s, r * s, 0, 12) for x, y in loop[:: 3 if pearls and not look.hard else 2 if pearls else 1]
    ]
    c.shadow(c.lines([loop], 0.05 * s, closed=True), 0.012, 0.02, 0.01)
    c.paint(c.lines([loop], (0.02 if look.hard else 0.04) * s, closed=True), shade(tone, 0.8), subject=True)
    bead = (236, 230, 222) if pearls else tone
    c.paint(c.shape(*beads), bead, subject=True, relief=r * s, strength=1.0)
    gem_name, gem = look.pick((("red", (176, 26, 44)), ("blue", (40, 80, 190)), ("green", (30, 130, 84))))
    # Pendant with a gem.
    pendant = at(smooth([(0, 1.0), (-0.26, 1.32), (0, 1.72), (0.26, 1.32)]))
    c.shadow(c.shape(pendant), 0.015, 0.02, 0.012)
    c.paint(c.shape(pendant), tone, subject=True, relief=0.08 * s, strength=1.0)
    c.paint(c.shape(at(ellipse(0, 1.36, 0.14, 0.2))), gem, subject=True, relief=0.12 * s, strength=1.2)
    c.paint(c.shape(at(ellipse(-0.04, 1.29, 0.04, 0.05))), (255, 255, 255), subject=True, opacity=0.8)
    return f"a {'pearl' if pearls else metal} necklace with a {gem_name} pendant"


def _ring(c: Canvas, look: Look, at: Frame, s: float, setting: Setting) -> str:
    metal = look.pick(("gold", "silver", "rose gold"))
    tone = METALS[metal]
    thick = 0.24 if not look.hard else 0.13
    hoop = at(ellipse(0, 0.25, 0.95, 0.95))
    # Hoop and its highlight.
    c.shadow(c.lines([hoop], thick * s, closed=True), 0.03, 0.04, 0.02)
    c.paint(c.lines([hoop], thick * s, closed=True), tone, subject=True, relief=0.12 * s, strength=1.2)
    c.paint(
        c.lines([at(ellipse(0, 0.25, 0.9, 0.9))], 0.03 * s, closed=True), shade(tone, 1.3), subject=True, opacity=0.7
    )
    gem_name, gem = look.pick(
        (("red", (186, 24, 46)), ("blue", (46, 90, 200)), ("green", (24, 140, 90)), ("clear", (222, 232, 240)))
    )
    # Stone with facets.
    stone = at([(-0.42, -1.0), (-0.24, -1.26), (0.24, -1.26), (0.42, -1.0), (0, -0.52)])
    c.shadow(c.shape(stone), 0.03, 0.04, 0.02)
    c.paint(c.shape(stone), gem, subject=True, relief=0.1 * s, strength=0.8, opacity=0.94)
    facets = [
        at([(-0.42, -1.0), (0.42, -1.0)]),
        at([(-0.14, -1.0), (0, -0.52), (0.14, -1.0), (0, -1.26), (-0.14, -1.0)]),
    ]
    c.paint(c.lines(facets, 0.03 * s), mix(gem, (255, 255, 255), 0.7), subject=True, opacity=0.8)
    return f"{article(metal)} ring with a {gem_name} stone"


def accessories(c: Canvas, look: Look) -> str:
    """Draw an accessory on a table next to a prop; return the caption."""
    setting = table(c, look)
    draw = look.pick((_watch, _glasses, _bag, _necklace, _ring))
    s = look.scale((0.24, 0.29), (0.12, 0.22))
    cx = c.right * (look.between(0.36, 0.46) if not look.hard else look.between(0.25, 0.5))
    cy = c.bottom * (look.between(0.45, 0.55) if not look.hard else look.between(0.3, 0.65))
    angle = look.between(-0.5, 0.5) if draw is not _bag else look.between(-0.15, 0.15)
    spot = (
        c.right - look.between(0.08, 0.16),
        c.bottom * look.pick((look.between(0.12, 0.25), look.between(0.75, 0.88))),
    )
    prop = lying(c, look, *spot, look.between(0.17, 0.22), ("box", "cup", "notebook", "leaf", "phone"))

    def at(points: object) -> np.ndarray:
        return turned(np.asarray(points, float) * s, cx, cy, angle)

    what = draw(c, look, at, s, setting)
    return look.pick(
        (f"{what} {setting.phrase}", f"{what} lying next to {prop}", f"{what} and {prop} {setting.phrase}")
    )
