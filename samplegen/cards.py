"""Cards and documents: a printed face, drawn flat and placed on a desk in perspective."""

from __future__ import annotations

import cv2
import numpy as np

from samplegen.backgrounds import table
from samplegen.canvas import Canvas, Colour, box, smooth
from samplegen.look import COLOURS, Look, article, mix, shade
from samplegen.person import SKINS
from samplegen.props import lying

NAMES = ("ANNA BERG", "JON KALU", "MIRA SATO", "LEO ROSSI", "INES DUARTE", "OMAR HADI")
FONT = cv2.FONT_HERSHEY_SIMPLEX


class Print:
    """Flat face of a card: uint8 (h, w, 3), drawn with cv2; coordinates are shares of its sides."""

    def __init__(self, width: int, height: int, paper: Colour) -> None:
        self.w, self.h = width, height
        self.face = np.full((height, width, 3), paper, np.uint8)

    def text(self, words: str, x: float, y: float, size: float, ink: Colour, bold: int = 1) -> None:
        """Write text at (x, y)."""
        cv2.putText(self.face, words, (int(x * self.w), int(y * self.h)), FONT, size, ink, bold, cv2.LINE_AA)

    def block(self, x0: float, y0: float, x1: float, y1: float, ink: Colour) -> None:
        """Fill a rectangle."""
        cv2.rectangle(self.face, (int(x0 * self.w), int(y0 * self.h)), (int(x1 * self.w), int(y1 * self.h)), ink, -1)

    def lines(self, look: Look, x0: float, x1: float, ys: np.ndarray, ink: Colour) -> None:
        """Draw rows of small print."""
        for y in ys:
            x = x0
            while x < x1 - 0.03:
                n = look.between(0.03, 0.1)
                self.block(x, y, min(x + n, x1), y + 0.012, ink)
                x += n + 0.016

    def person(self, look: Look, x: float, y: float, r: float) -> None:
        """Draw a passport photo."""
        w, h = self.w, self.h
        self.block(x - r, y - r * 2, x + r, y + r * 2, look.jitter((196, 208, 220), 10))
        centre, unit = (int(x * w), int((y - r * 0.3) * h)), int(r * w * 0.42)
        # Shoulders, hair, face.
        cv2.ellipse(
            self.face,
            (centre[0], int((y + 2 * r) * h)),
            (int(unit * 2.0), int(unit * 1.7)),
            0,
            180,
            360,
            look.jitter((60, 72, 110), 30),
            -1,
            cv2.LINE_AA,
        )
        cv2.ellipse(
            self.face,
            (centre[0], centre[1] - unit // 3),
            (int(unit * 1.15), int(unit * 1.3)),
            0,
            0,
            360,
            (60, 42, 32),
            -1,
            cv2.LINE_AA,
        )
        cv2.ellipse(self.face, centre, (unit, int(unit * 1.25)), 0, 0, 360, look.pick(SKINS), -1, cv2.LINE_AA)


def _id_card(look: Look, name: str, tone: Colour) -> tuple[Print, str]:
    p = Print(340, 214, mix(tone, (250, 250, 250), 0.8))
    # Fine wavy lines as on a banknote.
    waves = np.sin(np.linspace(0, 30, p.w))[None] * 6 + np.arange(p.h)[:, None]
    p.face[(waves % 12) < 1.2] = np.array(mix(tone, (250, 250, 250), 0.6), np.uint8)
    p.block(0, 0, 1, 0.2, tone)
    p.text(look.pick(("IDENTITY CARD", "STUDENT ID", "STAFF ID")), 0.05, 0.145, 0.62, (248, 248, 248), 2)
    p.person(look, 0.2, 0.6, 0.14)
    p.text(look.pick(NAMES), 0.4, 0.4, 0.55, (30, 30, 40), 1)
    p.text(f"No {int(look.rng.integers(100000, 999999))}", 0.4, 0.55, 0.45, (60, 60, 70))
    p.lines(look, 0.4, 0.93, np.array([0.64, 0.71, 0.78, 0.87]), (90, 90, 100))
    return p, f"{article(name)} ID card with a photo"


def _bank_card(look: Look, name: str, tone: Colour) -> tuple[Print, str]:
    p = Print(340, 214, tone)
    cv2.circle(
        p.face,
        (int(look.between(0, p.w)), int(look.between(0, p.h))),
        int(look.between(90, 170)),
        shade(tone, 1.22),
        -1,
        cv2.LINE_AA,
    )
    ink = (246, 246, 244) if np.mean(tone) < 170 else (40, 40, 48)
    p.text(look.pick(("BANK", "CITY BANK", "NORD PAY")), 0.07, 0.18, 0.62, ink, 2)
    # Chip.
    p.block(0.08, 0.34, 0.22, 0.53, (216, 182, 104))
    p.block(0.08, 0.42, 0.22, 0.435, (140, 110, 60))
    p.block(0.14, 0.34, 0.148, 0.53, (140, 110, 60))
    p.text(" ".join(f"{int(n):04d}" for n in look.rng.integers(0, 10000, 4)), 0.07, 0.7, 0.66, ink, 2)
    p.text(look.pick(NAMES), 0.07, 0.88, 0.46, ink)
    # Two overlapping circles as a card network's logo.
    for k, dot in enumerate(((222, 60, 50), (240, 170, 60))):
        cv2.circle(p.face, (int((0.8 + 0.07 * k) * p.w), int(0.84 * p.h)), 19, dot, -1, cv2.LINE_AA)
    return p, f"{article(name)} bank card"


def _business_card(look: Look, name: str, tone: Colour) -> tuple[Print, str]:
    p = Print(340, 200, look.jitter((244, 242, 236), 5))
    p.block(0, 0, 0.06, 1, tone)
    # Logo.
    centre = (int(0.82 * p.w), int(0.3 * p.h))
    cv2.circle(p.face, centre, 30, tone, -1, cv2.LINE_AA)
    cv2.fillPoly(
        p.face,
        [np.array([(centre[0] - 16, centre[1] + 12), (centre[0], centre[1] - 18), (centre[0] + 16, centre[1] + 12)])],
        (246, 246, 244),
        cv2.LINE_AA,
    )
    p.text(look.pick(NAMES), 0.13, 0.36, 0.62, (34, 34, 40), 2)
    p.text(look.pick(("Designer", "Engineer", "Architect", "Photographer")), 0.13, 0.52, 0.45, tone)
    p.lines(look, 0.13, 0.7, np.array([0.66, 0.74, 0.82]), (110, 110, 116))
    return p, f"a business card with {article(name)} logo"


def _document(look: Look, name: str, tone: Colour) -> tuple[Print, str]:
    p = Print(260, 340, look.jitter((242, 240, 234), 5))
    title = look.pick(("INVOICE", "CONTRACT", "REPORT", "RECEIPT"))
    p.block(0.08, 0.05, 0.2, 0.13, tone)
    p.text(title, 0.26, 0.11, 0.75, (30, 30, 36), 2)
    p.lines(look, 0.08, 0.92, np.arange(0.2, 0.6, 0.042), (104, 104, 110))
    # Lines of a table.
    for k in range(5):
        p.block(0.08, 0.63 + 0.045 * k, 0.92, 0.633 + 0.045 * k, (150, 150, 156))
    p.block(0.62, 0.9, 0.92, 0.93, tone)
    p.text("Total", 0.08, 0.93, 0.45, (30, 30, 36))
    return p, f"a printed {title.lower()} document with {article(name)} logo"


def _place(c: Canvas, look: Look, p: Print, cx: float, cy: float, half: float) -> np.ndarray:
    """Return the corners (4, 2) of the card on the desk, rotated and tilted away from the camera."""
    ratio = p.h / p.w
    corners = np.array([(-1, -ratio), (1, -ratio), (1, ratio), (-1, ratio)]) * half / max(1.0, ratio)
    a = look.between(-0.35, 0.35) if not look.hard else look.between(-0.8, 0.8)
    corners = corners @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    tilt = look.between(0.0, 0.35) if not look.hard else look.between(0.2, 0.7)
    # Farther points are nearer to the middle.
    depth = 1 + tilt * (corners[:, 1:] / half) * -0.5
    return corners * [1, 1 - 0.4 * tilt] / depth + [cx, cy]


def _finger(c: Canvas, look: Look, corner: np.ndarray, middle: np.ndarray) -> None:
    """Paint a thumb over a corner of the card; it is in front of the card and not part of the matte."""
    skin = look.jitter(look.pick(SKINS), 8)
    inward = (middle - corner) / np.linalg.norm(middle - corner)
    side = np.array([-inward[1], inward[0]])
    tip = corner + inward * 0.1
    palm = [corner - inward * 0.2 - side * 0.06, corner - inward * 0.9 - side * 0.1]
    # The thumb reaches inwards over the corner.
    thumb = [tip - inward * 0.05, corner - inward * 0.14, corner - inward * 0.6]
    c.shadow(c.lines([thumb], 0.1), 0.012, 0.016, 0.012)
    c.paint(c.lines([palm], 0.24), shade(skin, 0.92), decoy=True, relief=0.08, texture=0.06)
    c.paint(c.lines([thumb], 0.1), skin, decoy=True, relief=0.05, texture=0.06)
    nail = smooth(
        [
            tip - inward * 0.01,
            tip + side * 0.03 - inward * 0.04,
            tip - inward * 0.075,
            tip - side * 0.03 - inward * 0.04,
        ]
    )
    c.paint(c.shape(nail), mix(skin, (250, 216, 206), 0.6), decoy=True, relief=0.02)


def cards(c: Canvas, look: Look) -> str:
    """Draw a card or document on a table; return the caption."""
    setting = table(c, look)
    draw = look.pick((_id_card, _bank_card, _business_card, _document))
    name, tone = look.colour(setting.tone, [n for n in COLOURS if n not in ("white", "beige", "yellow")])
    printed, what = draw(look, name, tone)
    # Half the card's width.
    half = look.scale((0.34, 0.4), (0.17, 0.28))
    cx = c.right * (look.between(0.45, 0.55) if not look.hard else look.between(0.25, 0.75))
    cy = c.bottom * (look.between(0.45, 0.55) if not look.hard else look.between(0.25, 0.75))
    aside = look.pick(((0.1, 0.12), (c.right - 0.1, 0.14), (0.12, c.bottom - 0.12), (c.right - 0.12, c.bottom - 0.1)))
    prop = lying(c, look, *aside, look.between(0.18, 0.24), ("pen", "notebook", "phone", "cup", "notebook"))
    corners = _place(c, look, printed, cx, cy, half)
    # Project the flat face to its place in the scene.
    flat = box(0, 0, printed.w, printed.h, 16 if draw in (_id_card, _bank_card) else 0.5)
    way = cv2.getPerspectiveTransform(
        np.array([(0, 0), (printed.w, 0), (printed.w, printed.h), (0, printed.h)], np.float32),
        corners.astype(np.float32),
    )
    outline = cv2.perspectiveTransform(flat[None].astype(np.float64), way)[0]
    mask = c.shape(outline)
    c.shadow(mask, 0.012, 0.018, 0.012, 0.5)
    # Warp the print itself to canvas pixels.
    pixels = np.diag([c.u, c.u, 1.0]) @ way
    ink = cv2.warpPerspective(printed.face, pixels, (c.w, c.h), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    c.paint(mask, ink.astype(np.float32).transpose(2, 0, 1), subject=True, relief=0.015, strength=0.25, texture=0.04)
    # A diagonal band of gloss.
    gloss = (
        np.linspace(-1, 1, c.w, dtype=np.float32)[None]
        + np.linspace(-1, 1, c.h, dtype=np.float32)[:, None]
        + look.between(-0.8, 0.8)
    )
    c.paint(
        c.everywhere(np.exp(-(gloss**2) * 8)).within(mask),
        (255, 255, 255),
        subject=True,
        opacity=look.between(0.05, 0.22),
    )
    if look.chance(0.4):
        _finger(c, look, corners[int(look.rng.integers(2, 4))], corners.mean(0))
        return f"a hand holding {what} {setting.phrase}"
    return look.pick((f"{what} {setting.phrase}", f"{what} next to {prop}", f"{what} and {prop} {setting.phrase}"))
