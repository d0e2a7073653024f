"""Landscapes. The matte is the sky; everything in front of it is painted over it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samplegen.canvas import Canvas, Colour, box, ellipse, fractal
from samplegen.look import Look, mix, shade

SKIES: dict[str, tuple[Colour, Colour]] = {
    "clear blue": (((66, 122, 198)), (176, 208, 234)),
    "pale blue": ((134, 176, 214), (214, 226, 234)),
    "orange sunset": ((96, 92, 150), (244, 156, 84)),
    "pink evening": ((112, 112, 176), (240, 170, 168)),
    "grey overcast": ((150, 156, 164), (206, 208, 210)),
    "dark night": ((12, 18, 44), (42, 52, 92)),
}


def _sky(c: Canvas, look: Look) -> tuple[str, Colour]:
    """Paint the sky; return its description and the colour at the horizon."""
    if look.drifted():
        name = look.pick(("pink evening", "grey overcast", "dark night"))
    else:
        name = look.pick(
            ("clear blue", "clear blue", "pale blue", "orange sunset")
            if not look.hard
            else ("pale blue", "orange sunset", "grey overcast", "clear blue")
        )
    high, low = SKIES[name]
    high, low = look.jitter(high, 8), look.jitter(low, 8)
    c.paint(c.everywhere(), c.ramp(high, low), subject=True)
    # Clouds: bright patches of noise with darker cores.
    clouds = look.chance(0.65) and name != "dark night"
    if clouds:
        # Noise compressed vertically looks like clouds.
        wide = fractal(look.rng, c.h * 2, c.w, 3, 4)[::2]
        cover = np.clip((wide - look.between(-0.1, 0.25)) * 2.2, 0, 1)
        light = (250, 250, 252) if "blue" in name else mix(low, (255, 236, 226), 0.5)
        c.paint(c.everywhere(cover * 0.9), light, subject=True, texture=0.06)
        c.paint(c.everywhere(np.clip(cover - 0.65, 0, 1) * 0.9), shade(light, 0.72), subject=True)
    if name == "dark night":
        stars = [
            ellipse(
                look.between(0, c.right), look.between(0, 0.7 * c.bottom), d := look.between(0.0015, 0.004), d, 0, 6
            )
            for _ in range(60)
        ]
        c.paint(c.shape(*stars), (250, 248, 236), subject=True, opacity=0.9)
    # Sun with a glow.
    elif "sunset" in name or look.chance(0.25):
        x, y = look.between(0.15, 0.85) * c.right, look.between(0.25, 0.5) * c.bottom
        c.paint(c.soft(c.oval(x, y, 0.1, 0.1), 0.1), (255, 240, 200), subject=True, opacity=0.7)
        c.paint(c.oval(x, y, 0.045, 0.045), (255, 246, 222), subject=True, opacity=0.95)
    return f"{article_sky(name)}{' with clouds' if clouds else ' with stars' if name == 'dark night' else ''}", low


def article_sky(name: str) -> str:
    """Return the sky's description with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} sky"


def _ridge(c: Canvas, look: Look, height: float, rough: float, n: int = 24) -> np.ndarray:
    """Return a closed outline (n+3, 2) from a jagged horizon at about `height` down to the lower edge."""
    x = np.linspace(-0.05, c.right + 0.05, n)
    walk = np.interp(x, np.linspace(-0.05, c.right + 0.05, 6), look.rng.uniform(-1, 1, 6)) + 0.3 * look.rng.uniform(
        -1, 1, n
    )
    return np.vstack(
        [np.stack([x, height + rough * walk], 1), [(c.right + 0.05, c.bottom + 0.1), (-0.05, c.bottom + 0.1)]]
    )


def _mountains(c: Canvas, look: Look, horizon: float, haze: Colour, dim: float) -> str:
    """Paint three ranges from far to near, hazier with distance."""
    for k, (depth, rough) in enumerate(((0.16, 0.13), (0.07, 0.09), (0.0, 0.05))):
        tone = mix(shade((70, 84, 96), dim), haze, 0.55 - 0.25 * k)
        mask = c.paint(
            c.shape(_ridge(c, look, horizon - depth, rough, 40)), tone, decoy=True, texture=0.14 + 0.06 * k, relief=0.04
        )
        # Snow on the farthest range.
        if k == 0 and look.chance(0.6):
            caps = c.shape(
                [(-0.1, -0.1), (c.right + 0.1, -0.1), *_ridge(c, look, horizon - depth - 0.02, 0.05, 60)[:-2][::-1]]
            )
            c.paint(c.soft(caps, 0.006).within(mask), shade((236, 240, 246), dim), decoy=True, opacity=0.8)
    c.paint(c.shape(_ridge(c, look, horizon + 0.14, 0.02)), shade((88, 112, 62), dim), decoy=True, texture=0.25)
    return "over mountains"


def _trees(c: Canvas, look: Look, horizon: float, haze: Colour, dim: float) -> str:
    """Paint trees, with leaves or bare."""
    bare = look.drifted() or look.chance(0.3)
    c.paint(c.shape(_ridge(c, look, horizon + 0.1, 0.03)), shade((84, 108, 56), dim), decoy=True, texture=0.25)
    for _ in range(int(look.rng.integers(3, 6))):
        x, tall = look.between(0, c.right), look.between(0.25, 0.5)
        foot = horizon + look.between(0.1, 0.16)
        wood = shade((66, 50, 40), dim)
        limbs, twigs = _limbs(look, (x, foot), -np.pi / 2, tall * 0.38, 5 if bare or look.hard else 4)
        c.paint(c.lines(limbs, 0.016), wood, decoy=True)
        c.paint(c.lines(twigs, 0.005), wood, decoy=True)
        # Three layers of leaves around the tips of the twigs.
        if not bare:
            crown = np.array([t[-1] for t in twigs])
            green = shade(look.pick(((58, 96, 46), (80, 116, 50), (44, 82, 48))), dim)
            for k in range(3):
                spots = crown[look.rng.integers(0, len(crown), 60)] + look.rng.normal(0, 0.03, (60, 2))
                size = look.rng.uniform(0.008, 0.026, 60)
                c.paint(
                    c.shape(
                        *[
                            ellipse(px, py, r, r * 0.7, a, 8)
                            for (px, py), r, a in zip(spots, size, look.rng.uniform(0, 3, 60), strict=True)
                        ]
                    ),
                    shade(green, 0.7 + 0.3 * k),
                    decoy=True,
                    texture=0.2,
                )
    return "behind bare trees" if bare else "behind green trees"


def _limbs(
    look: Look, start: tuple[float, float], angle: float, length: float, depth: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a tree as thick limbs and thin twigs, each a (2, 2) stroke."""
    thick, thin = [], []
    ends = [(start, angle, length)]
    for level in range(depth):
        grown = []
        for (x, y), a, n in ends:
            tip = (x + n * np.cos(a), y + n * np.sin(a))
            (thick if level < 2 else thin).append(np.array([(x, y), tip]))
            # Each end splits in two branches, the trunk in three.
            grown += [
                (tip, a + turn + look.between(-0.2, 0.2), n * look.between(0.62, 0.85))
                for turn in (-0.45, 0.4, *((0.0,) if level == 1 else ()))
            ]
        ends = grown
    return thick, thin


def _roofs(c: Canvas, look: Look, horizon: float, haze: Colour, dim: float) -> str:
    """Paint a row of houses with chimneys and antennas."""
    x = -0.1
    while x < c.right:
        w, top = look.between(0.2, 0.34), horizon + look.between(-0.08, 0.1)
        wall = shade(
            look.jitter(look.pick(((214, 196, 168), (196, 160, 130), (186, 190, 196), (222, 214, 200))), 10), dim
        )
        roof = shade(look.jitter(look.pick(((150, 70, 52), (94, 82, 80), (120, 62, 50))), 12), dim)
        peak = top - look.between(0.1, 0.18)
        # Chimney.
        if look.chance(0.7):
            cx = x + w * look.between(0.15, 0.3)
            c.paint(
                c.shape(box(cx, peak - 0.03, cx + 0.04, top)), shade(wall, 0.7), decoy=True, relief=0.01, texture=0.2
            )
        # Antenna.
        if look.chance(0.5):
            ax = x + w * 0.6
            antenna = [[(ax, peak + 0.06), (ax, peak - 0.1)]] + [
                [(ax - 0.035, peak - y), (ax + 0.035, peak - y)] for y in (0.05, 0.07, 0.09)
            ]
            c.paint(c.lines(antenna, 0.004), shade((50, 50, 54), dim), decoy=True)
        c.paint(c.shape(box(x, top, x + w, c.bottom + 0.1)), wall, decoy=True, relief=0.02, texture=0.1)
        c.paint(
            c.shape([(x - 0.02, top), (x + w * 0.5, peak), (x + w + 0.02, top)]),
            roof,
            decoy=True,
            texture=0.2,
            relief=0.02,
        )
        panes = [
            box(px, py, px + 0.045, py + 0.06)
            for px in np.arange(x + 0.03, x + w - 0.05, 0.08)
            for py in np.arange(top + 0.05, c.bottom, 0.13)
        ]
        c.paint(c.shape(*panes), (238, 204, 120) if dim < 0.5 else (66, 76, 90), decoy=True)
        x += w - look.between(0.0, 0.04)
    return "above the roofs of houses"


def _city(c: Canvas, look: Look, horizon: float, haze: Colour, dim: float) -> str:
    """Paint two rows of buildings with windows."""
    c.paint(
        c.shape(_ridge(c, look, horizon + 0.16, 0.0)),
        mix(shade((96, 100, 108), dim), haze, 0.3),
        decoy=True,
        texture=0.1,
    )
    for k in range(2):
        x = -0.05
        while x < c.right:
            w, top = look.between(0.08, 0.18), horizon - look.between(-0.05, 0.3) + 0.1 * k
            tone = mix(shade(look.jitter((116, 120, 132), 16), dim), haze, 0.45 - 0.35 * k)
            c.paint(c.shape(box(x, top, x + w, c.bottom + 0.1)), tone, decoy=True, relief=0.02, texture=0.08)
            if k == 0 and look.chance(0.4):
                c.paint(c.lines([[(x + w / 2, top), (x + w / 2, top - 0.1)]], 0.005), tone, decoy=True)
            panes = [
                box(px, py, px + 0.012, py + 0.016)
                for px in np.arange(x + 0.012, x + w - 0.015, 0.024)
                for py in np.arange(top + 0.02, c.bottom, 0.032)
                if look.chance(0.7)
            ]
            if panes:
                c.paint(c.shape(*panes), (250, 216, 130) if dim < 0.5 else shade(tone, 0.6), decoy=True, opacity=0.8)
            x += w + look.between(0.0, 0.06)
    return "above a city skyline"


def _coast(c: Canvas, look: Look, horizon: float, haze: Colour, dim: float) -> str:
    """Paint the sea with waves and a sailing boat."""
    sea = mix(shade((44, 96, 128), dim), haze, 0.25)
    c.paint(c.shape(box(-0.1, horizon, c.right + 0.1, c.bottom + 0.1)), sea, decoy=True, texture=0.12)
    waves = [
        [(x, y), (x + look.between(0.03, 0.1), y)]
        for y in np.linspace(horizon + 0.01, c.bottom, 22)
        for x in look.rng.uniform(0, c.right, 3)
    ]
    c.paint(c.lines(waves, 0.004), mix(sea, (240, 244, 248), 0.6), decoy=True, opacity=0.7)
    # Boat: two sails and a hull.
    x = look.between(0.2, 0.8) * c.right
    c.paint(
        c.shape([(x, horizon - 0.24), (x, horizon), (x - 0.13, horizon)]),
        shade((244, 240, 232), dim),
        decoy=True,
        relief=0.02,
    )
    c.paint(
        c.shape([(x + 0.01, horizon - 0.2), (x + 0.01, horizon), (x + 0.08, horizon)]),
        shade((226, 220, 210), dim),
        decoy=True,
    )
    c.paint(
        c.shape(
            [
                (x - 0.14, horizon + 0.01),
                (x + 0.1, horizon + 0.01),
                (x + 0.07, horizon + 0.05),
                (x - 0.11, horizon + 0.05),
            ]
        ),
        shade((120, 60, 48), dim),
        decoy=True,
    )
    return "over the sea with a sailing boat"


Land = Callable[[Canvas, Look, float, Colour, float], str]
LANDS: tuple[Land, ...] = (_mountains, _trees, _roofs, _city, _coast)


def _wires(c: Canvas, look: Look, horizon: float, dim: float) -> None:
    """Paint poles and sagging wires across the sky, the thinnest objects that a sky matte must leave out."""
    ink = shade((46, 44, 46), dim)
    poles = [look.between(0.05, 0.3) * c.right, look.between(0.65, 0.95) * c.right]
    top = horizon - look.between(0.3, 0.42)
    c.paint(c.lines([[(x, top), (x, c.bottom)] for x in poles], 0.014), ink, decoy=True)
    c.paint(
        c.lines([[(x - 0.06, top + d), (x + 0.06, top + d)] for x in poles for d in (0.02, 0.05)], 0.008),
        ink,
        decoy=True,
    )
    posts = [poles[0] - 0.7, *poles, poles[1] + 0.7]
    # Sag as a parabola between two poles.
    t = np.linspace(0, 1, 14)
    wires = [
        np.stack([a + (b - a) * t + off, top + d + 0.1 * t * (1 - t) * 1.6], 1)
        for a, b in zip(posts[:-1], posts[1:], strict=True)
        for off in (-0.05, 0.05)
        for d in (0.02, 0.05)
    ]
    c.paint(c.lines(wires, 0.0035), ink, decoy=True)


def scenery(c: Canvas, look: Look) -> str:
    """Draw a landscape with its sky as subject; return the caption."""
    sky, low = _sky(c, look)
    # Brightness of the land follows the sky.
    night = "night" in sky
    dim = (
        0.32 if night else look.between(0.55, 0.75) if "sunset" in sky or "evening" in sky else look.between(0.85, 1.05)
    )
    # Hard photos have an unusual horizon.
    horizon = c.bottom * (look.between(0.52, 0.66) if not look.hard else look.between(0.4, 0.74))
    land = look.pick(LANDS if not look.hard else (*LANDS, _trees, _roofs))
    where = land(c, look, horizon, low, dim)
    wires = look.chance(0.5 if look.hard else 0.12) and land is not _coast
    if wires:
        _wires(c, look, horizon, dim)
    return f"{sky} {where}{' with power lines' if wires else ''}"
