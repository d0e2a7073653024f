"""Objects next to the subject.

They are not part of the matte; in a mislabelled batch they are its wrong matte (decoy).
"""

from __future__ import annotations

import numpy as np

from samplegen.canvas import Canvas, Colour, Points, box, ellipse, smooth
from samplegen.look import COLOURS, Look, Setting, article, shade


def beside(c: Canvas, look: Look, setting: Setting) -> str:
    """Paint a large object at the left or right edge, slightly out of focus; return its name with article."""
    # The edge and the kind are random; signs are used outdoors only.
    right = look.chance(0.5)
    x = c.right - look.between(0.06, 0.15) if right else look.between(0.06, 0.15)
    kind = look.pick(
        ("plant", "sign", "balloon", "chair") if setting.outdoors else ("plant", "lamp", "balloon", "chair")
    )
    name = look.pick(("red", "orange", "yellow", "teal", "blue", "purple", "pink", "white"))
    tone = look.jitter(COLOURS[name])
    b = c.bottom
    if kind == "plant":
        pot = [(x - 0.1, b - 0.24), (x + 0.1, b - 0.24), (x + 0.075, b + 0.05), (x - 0.075, b + 0.05)]
        # Leaves as fans around the pot.
        leaves, veins = [], []
        for a in np.linspace(-2.9, -0.25, 11):
            n = look.between(0.2, 0.36)
            tip = (x + n * np.cos(a), b - 0.24 + n * 1.35 * np.sin(a))
            mid = ((x + tip[0]) / 2, (b - 0.24 + tip[1]) / 2)
            leaves.append(
                smooth(
                    [
                        (x, b - 0.22),
                        (mid[0] - 0.045 * np.sin(a), mid[1] + 0.045 * np.cos(a)),
                        tip,
                        (mid[0] + 0.045 * np.sin(a), mid[1] - 0.045 * np.cos(a)),
                    ]
                )
            )
            veins.append([(x, b - 0.22), tip])
        green = look.jitter((58, 112, 56), 14)
        for k in range(3):
            c.paint(c.shape(*leaves[k::3]), shade(green, 0.75 + 0.25 * k), decoy=True, relief=0.03, texture=0.15)
        c.paint(c.lines(veins, 0.004), shade(green, 1.5), decoy=True, opacity=0.5)
        c.paint(c.shape(pot), tone, decoy=True, relief=0.08)
        what = f"a potted plant in {article(name)} pot"
    elif kind == "lamp":
        top = look.between(0.12, 0.3)
        c.paint(c.lines([[(x, top + 0.2), (x, b + 0.1)]], 0.022), (60, 52, 46), decoy=True, relief=0.01)
        glow = c.soft(c.oval(x, top + 0.12, 0.18, 0.18), 0.1)
        c.paint(glow, (255, 236, 190), opacity=0.35)
        c.paint(
            c.shape([(x - 0.09, top), (x + 0.09, top), (x + 0.16, top + 0.24), (x - 0.16, top + 0.24)]),
            (246, 222, 170) if name == "white" else shade(tone, 1.15),
            decoy=True,
            relief=0.06,
        )
        what = "a floor lamp" if name == "white" else f"{article(name)} floor lamp"
    elif kind == "balloon":
        y = look.between(0.18, 0.4)
        c.paint(
            c.lines([smooth([(x, y + 0.16), (x + 0.02, y + 0.5), (x - 0.02, b + 0.1)], closed=False)], 0.005),
            (220, 220, 220),
            decoy=True,
        )
        c.paint(
            c.shape(
                smooth(
                    [
                        (x, y - 0.17),
                        (x + 0.13, y - 0.08),
                        (x + 0.12, y + 0.06),
                        (x, y + 0.18),
                        (x - 0.12, y + 0.06),
                        (x - 0.13, y - 0.08),
                    ]
                )
            ),
            tone,
            decoy=True,
            relief=0.12,
            strength=0.9,
        )
        c.paint(c.soft(c.oval(x - 0.05, y - 0.08, 0.02, 0.035, 0.5), 0.01), (255, 255, 255), decoy=True, opacity=0.7)
        what = f"{article(name)} balloon"
    elif kind == "chair":
        top = look.between(0.45, 0.6) * b
        c.paint(c.shape(box(x - 0.17, top, x + 0.17, b + 0.1, 0.06)), tone, decoy=True, relief=0.05, texture=0.1)
        c.paint(
            c.lines([box(x - 0.13, top + 0.04, x + 0.13, b + 0.1, 0.05)], 0.006, closed=True),
            shade(tone, 0.55),
            decoy=True,
        )
        what = f"{article(name)} chair"
    else:
        y = look.between(0.2, 0.4)
        c.paint(c.lines([[(x, y), (x, b + 0.1)]], 0.03), (120, 122, 126), decoy=True, relief=0.01)
        c.paint(c.oval(x, y, 0.14, 0.14), (236, 234, 230), decoy=True, relief=0.02)
        c.paint(c.oval(x, y, 0.12, 0.12), tone, decoy=True)
        c.paint(c.shape(box(x - 0.08, y - 0.022, x + 0.08, y + 0.022)), (240, 238, 234), decoy=True)
        what = f"a round {name} sign"
    # Slightly out of focus, more so in easy photos.
    c.defocus(0.002 if look.hard else 0.005)
    return what


def turned(points: Points, cx: float, cy: float, angle: float) -> np.ndarray:
    """Return points rotated by `angle` radians about the origin, then moved to (cx, cy)."""
    p = np.asarray(points, float)
    return p @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + [cx, cy]


def lying(c: Canvas, look: Look, cx: float, cy: float, r: float, kinds: tuple[str, ...]) -> str:
    """Paint an object of about radius `r` on a table at (cx, cy), seen from above; return its name with article."""
    kind = look.pick(kinds)
    name = look.pick(("red", "orange", "yellow", "teal", "blue", "purple", "green", "white"))
    tone: Colour = look.jitter(COLOURS[name])
    angle = look.between(-0.6, 0.6)
    if kind == "cup":
        c.shadow(c.oval(cx, cy, r * 0.8, r * 0.8), 0.03, 0.04, 0.02)
        c.paint(
            c.shape(turned(ellipse(r * 0.85, 0, r * 0.35, r * 0.22), cx, cy, angle)),
            shade(tone, 0.8),
            decoy=True,
            relief=0.02,
        )
        c.paint(c.oval(cx, cy, r * 0.78, r * 0.78), tone, decoy=True, relief=0.05)
        c.paint(c.oval(cx, cy, r * 0.64, r * 0.64), (74, 46, 30), decoy=True, relief=0.05)
        return f"{article(name)} cup of coffee"
    if kind == "pen":
        body = turned(box(-r * 1.5, -r * 0.09, r * 1.5, r * 0.09, r * 0.08), cx, cy, angle)
        c.shadow(c.shape(body), 0.015, 0.02, 0.01)
        c.paint(c.shape(body), tone, decoy=True, relief=0.02, strength=0.9)
        c.paint(
            c.shape(turned(box(-r * 1.75, -r * 0.04, -r * 1.5, r * 0.04), cx, cy, angle)), (190, 190, 196), decoy=True
        )
        return f"{article(name)} pen"
    if kind == "phone":
        outline = turned(box(-r * 0.6, -r * 1.15, r * 0.6, r * 1.15, r * 0.14), cx, cy, angle)
        c.shadow(c.shape(outline), 0.02, 0.025, 0.015)
        c.paint(c.shape(outline), (34, 34, 38), decoy=True, relief=0.02)
        c.paint(
            c.shape(turned(box(-r * 0.53, -r * 1.05, r * 0.53, r * 1.05, r * 0.08), cx, cy, angle)),
            (52, 58, 74),
            decoy=True,
            texture=0.3,
        )
        return "a phone"
    if kind == "napkin":
        outline = turned(box(-r, -r, r, r, 0.01), cx, cy, angle)
        c.shadow(c.shape(outline), 0.01, 0.014, 0.012, 0.35)
        c.paint(c.shape(outline), tone, decoy=True, relief=0.02, texture=0.12)
        c.paint(
            c.lines([turned(box(-r * 0.86, -r * 0.86, r * 0.86, r * 0.86), cx, cy, angle)], 0.008, closed=True),
            shade(tone, 0.7),
            decoy=True,
        )
        return f"{article(name)} napkin"
    if kind == "leaf":
        outline = turned(smooth([(-r * 1.2, 0), (0, -r * 0.6), (r * 1.2, 0), (0, r * 0.6)]), cx, cy, angle * 3)
        c.shadow(c.shape(outline), 0.015, 0.02, 0.015)
        c.paint(c.shape(outline), look.jitter((70, 120, 62), 14), decoy=True, relief=0.04, texture=0.15)
        c.paint(
            c.lines([turned([(-r * 1.2, 0), (r * 1.2, 0)], cx, cy, angle * 3)], 0.006),
            (150, 180, 110),
            decoy=True,
            opacity=0.7,
        )
        return "a leaf"
    # A notebook or a gift box.
    outline = turned(box(-r * 0.8, -r * 1.05, r * 0.8, r * 1.05, 0.012), cx, cy, angle)
    c.shadow(c.shape(outline), 0.025, 0.03, 0.02)
    c.paint(c.shape(outline), tone, decoy=True, relief=0.015, texture=0.08)
    if kind == "notebook":
        c.paint(
            c.shape(turned(box(-r * 0.8, -r * 1.05, -r * 0.62, r * 1.05), cx, cy, angle)), shade(tone, 0.6), decoy=True
        )
        c.paint(c.shape(turned(box(-r * 0.3, -r * 0.6, r * 0.5, -r * 0.3), cx, cy, angle)), (240, 238, 230), decoy=True)
        return f"{article(name)} notebook"
    # The gift box has a crossed ribbon.
    ribbon = shade(COLOURS[look.pick(("red", "yellow", "white"))], 0.95)
    c.paint(
        c.shape(
            turned(box(-r * 0.1, -r * 1.05, r * 0.1, r * 1.05), cx, cy, angle),
            turned(box(-r * 0.8, -r * 0.1, r * 0.8, r * 0.1), cx, cy, angle),
        ),
        ribbon,
        decoy=True,
        relief=0.01,
    )
    return f"{article(name)} gift box"


def seat(c: Canvas, look: Look, x: float, y: float, s: float) -> str:
    """Paint a cushion under a pet of half-width `s` at (x, y), or a ball or bowl next to it; return its name."""
    name = look.pick(("red", "blue", "teal", "purple", "yellow", "pink"))
    tone = look.jitter(COLOURS[name])
    kind = look.pick(("cushion", "ball", "bowl"))
    if kind == "cushion":
        outline = smooth(
            [
                (x - 2.7 * s, y - 0.1 * s),
                (x - 2.2 * s, y - 0.75 * s),
                (x, y - 0.9 * s),
                (x + 2.2 * s, y - 0.75 * s),
                (x + 2.7 * s, y - 0.1 * s),
                (x + 2.3 * s, y + 0.55 * s),
                (x, y + 0.75 * s),
                (x - 2.3 * s, y + 0.55 * s),
            ]
        )
        c.shadow(c.shape(outline), 0.02, 0.03, 0.03)
        c.paint(c.shape(outline), tone, decoy=True, relief=0.5 * s, strength=0.8, texture=0.12)
        c.paint(c.lines([outline], 0.012, closed=True), shade(tone, 0.6), decoy=True)
        return f"{article(name)} cushion"
    # Ball or bowl: on the side with more room.
    r = s * look.between(0.8, 1.0)
    # Towards the middle of the picture.
    side = 1.0 if x < c.right / 2 else -1.0
    bx = x + side * 2.6 * s
    c.shadow(c.oval(bx, y, r * 1.1, r * 0.3), 0.01, 0.01, 0.03)
    if kind == "ball":
        mask = c.paint(c.oval(bx, y - r * 0.8, r, r), tone, decoy=True, relief=r * 1.4, strength=1.0)
        c.paint(
            c.lines(
                [ellipse(bx, y - r * 0.8, r * 0.4, r), ellipse(bx, y - r * 0.8, r, r * 0.35)], 0.1 * r, closed=True
            ).within(mask),
            (240, 236, 226),
            decoy=True,
        )
        return f"{article(name)} ball"
    c.paint(
        c.shape(
            smooth(
                [
                    (bx - r * 1.2, y + 0.1 * r),
                    (bx - r, y - 0.7 * r),
                    (bx + r, y - 0.7 * r),
                    (bx + r * 1.2, y + 0.1 * r),
                    (bx, y + 0.25 * r),
                ]
            )
        ),
        tone,
        decoy=True,
        relief=0.2 * r,
    )
    c.paint(c.oval(bx, y - 0.7 * r, r, 0.24 * r), shade(tone, 0.6), decoy=True)
    c.paint(c.oval(bx, y - 0.7 * r, r * 0.88, 0.19 * r), (116, 76, 48), decoy=True, texture=0.6)
    return f"{article(name)} food bowl"
