"""A supersampled canvas that paints a photo and its exact alpha matte with the same brush.

Every stroke blends a colour over the photo with a weight `m`. It blends the value 1 (subject) or 0 (not subject) over
the matte with the same `m`. The matte is therefore the exact share of the subject's light in each pixel:
photo = alpha*F + (1-alpha)*B for lenses, steam, strands and occluders. Later operations (blur, warp, downsampling) are
linear and are applied to photo and mattes together, so the matte stays exact.

Coordinates are in units of the short side: x to the right in [0, width/short], y down in [0, height/short].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import cv2
import numpy as np

Colour = tuple[float, float, float]
Number = float | np.floating
Points = Sequence[Sequence[Number] | np.ndarray] | np.ndarray

# Fractional bits of cv2's polygon coordinates: edges move smoothly and not in whole pixels.
_SHIFT = 4


@dataclass(frozen=True)
class Mask:
    """Coverage in a window of the canvas: `a` float32 (h, w) in [0, 1], with its top left corner at pixel (x, y)."""

    a: np.ndarray
    x: int
    y: int

    def within(self, other: Mask) -> Mask:
        """Return the part of this mask that is inside `other`."""
        grid = np.zeros_like(self.a)
        h, w = self.a.shape
        # Overlap of the two windows in pixels of the canvas.
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1, y1 = min(self.x + w, other.x + other.a.shape[1]), min(self.y + h, other.y + other.a.shape[0])
        if x1 > x0 and y1 > y0:
            grid[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x] = other.a[
                y0 - other.y : y1 - other.y, x0 - other.x : x1 - other.x
            ]
        return Mask(self.a * grid, self.x, self.y)

    def scaled(self, share: float) -> Mask:
        """Return the mask multiplied by `share`."""
        return Mask(self.a * np.float32(share), self.x, self.y)


def smooth(points: Points, *, closed: bool = True, steps: int = 6) -> np.ndarray:
    """Return a Catmull-Rom curve through (n, 2) control points: (n*steps, 2), or (n-1)*steps+1 rows if open."""
    p = np.asarray(points, float)
    # A closed curve repeats its first points, an open one its end points.
    p = p[np.arange(-1, len(p) + 2) % len(p)] if closed else np.vstack([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.vstack([curve, p[-1]])


def ellipse(cx: Number, cy: Number, rx: Number, ry: Number, angle: Number = 0.0, n: int = 40) -> np.ndarray:
    """Return the outline (n, 2) of an ellipse rotated by `angle` radians."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    return np.stack([cx + x * np.cos(angle) - y * np.sin(angle), cy + x * np.sin(angle) + y * np.cos(angle)], 1)


def box(x0: Number, y0: Number, x1: Number, y1: Number, corner: Number = 0.0) -> np.ndarray:
    """Return the outline of a rectangle, with rounded corners of radius `corner`."""
    if corner <= 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)
    # A quarter circle per corner, in order around the outline.
    t = np.linspace(0, np.pi / 2, 6)
    centres = (
        (x1 - corner, y1 - corner),
        (x0 + corner, y1 - corner),
        (x0 + corner, y0 + corner),
        (x1 - corner, y0 + corner),
    )
    return np.concatenate(
        [
            np.stack([x + corner * np.cos(t + k * np.pi / 2), y + corner * np.sin(t + k * np.pi / 2)], 1)
            for k, (x, y) in enumerate(centres)
        ]
    )


def fractal(rng: np.random.Generator, height: int, width: int, cells: int, octaves: int = 3) -> np.ndarray:
    """Return smooth noise float32 (height, width), about in [-1, 1]; `cells` coarse cells across the short side."""
    total = np.zeros((height, width), np.float32)
    short = min(height, width)
    # Each octave has twice the frequency and half the amplitude.
    for octave in range(octaves):
        n = cells * 2**octave
        grid = rng.uniform(-1, 1, (n * height // short + 2, n * width // short + 2)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total / np.float32(1.3)


class Stroke(TypedDict, total=False):
    """Look of a stroke."""

    opacity: float
    """Factor of the coverage; 1 by default."""
    relief: float
    """Width in units of a rounded edge that the light shades; 0 (default) draws a flat stroke."""
    strength: float
    """Strength of that shading; 0.5 by default."""
    texture: float
    """Amplitude of fine and coarse noise in the brightness; 0 by default."""
    gain: np.ndarray
    """Brightness (h, w) of the mask's window."""


class Canvas:
    """A photo `rgb` float32 (3, H, W) in 0..255 with its mattes.

    `mattes` float32 (2, H, W) holds the subject's alpha and the decoy's (see `paint`). `backdrop` replaces the colour
    of everything that is not subject by one constant. The difference of two drawings of a scene over two constants
    gives the alpha; the tests verify with it that the matte is exact.
    """

    def __init__(
        self,
        height: int,
        width: int,
        rng: np.random.Generator,
        light: tuple[float, float] = (-0.6, -0.8),
        backdrop: float | None = None,
    ) -> None:
        self.h, self.w, self.u = height, width, min(height, width)
        self.right, self.bottom = width / self.u, height / self.u
        self.rng, self.light, self.backdrop = rng, light, backdrop
        self.rgb = np.zeros((3, height, width), np.float32)
        self.mattes = np.zeros((2, height, width), np.float32)
        self._untouched = True  # without a subject or decoy the mattes stay zero and need no update
        # Noise for textures, drawn once per canvas.
        self.fine = fractal(rng, height, width, 40, 2)
        self.coarse = fractal(rng, height, width, 5, 3)

    # ---- from shapes to masks

    def shape(self, *outlines: Points, smooth_steps: int = 0) -> Mask:
        """Return the union of filled outlines, optionally smoothed through their points."""
        polygons = [
            (smooth(o, steps=smooth_steps) if smooth_steps else np.asarray(o, float)) * self.u for o in outlines
        ]
        grid, x, y = self._window(polygons, 2)
        if grid.size:
            origin = np.array([x, y])
            for p in polygons:
                cv2.fillPoly(grid, [np.round((p - origin) * 2**_SHIFT).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
        return Mask(grid.astype(np.float32) / 255, x, y)

    def oval(self, cx: Number, cy: Number, rx: Number, ry: Number, angle: Number = 0.0) -> Mask:
        """Return the mask of a filled ellipse."""
        return self.shape(ellipse(cx, cy, rx, ry, angle))

    def lines(self, paths: Sequence[Points], width: float, closed: bool = False) -> Mask:
        """Return strokes along paths; a stroke thinner than a pixel covers only a part of it, as in a real photo."""
        curves = [np.asarray(p, float) * self.u for p in paths]
        pixels = width * self.u
        grid, x, y = self._window(curves, int(pixels / 2) + 3)
        if grid.size:
            origin = np.array([x, y])
            fixed = [np.round((p - origin) * 2**_SHIFT).astype(np.int32) for p in curves]
            cv2.polylines(grid, fixed, closed, 255, max(1, round(pixels)), cv2.LINE_AA, _SHIFT)
        # Draw at least one pixel wide and scale the coverage instead.
        return Mask(grid.astype(np.float32) * np.float32(min(1.0, pixels) / 255), x, y)

    def shades(self, mask: Mask, paths: np.ndarray, width: float, values: np.ndarray) -> np.ndarray:
        """Return the brightness (h, w) for a mask that `lines` made from paths (n, k, 2): path i has values[i]."""
        grid = np.ones(mask.a.shape, np.float32)
        curves = np.round(paths * self.u - [mask.x, mask.y]).astype(np.int32)
        for value in np.unique(values) if grid.size else ():
            cv2.polylines(grid, list(curves[values == value]), False, float(value), max(1, round(width * self.u)) + 2)
        return grid

    def soft(self, mask: Mask, radius: float) -> Mask:
        """Return the mask blurred by a Gaussian of `radius` units, in a correspondingly larger window."""
        k = max(1, int(radius * self.u))
        x0, y0 = max(0, mask.x - 2 * k), max(0, mask.y - 2 * k)
        x1, y1 = min(self.w, mask.x + mask.a.shape[1] + 2 * k), min(self.h, mask.y + mask.a.shape[0] + 2 * k)
        if not mask.a.size or x1 <= x0 or y1 <= y0:
            return mask
        grid = np.zeros((y1 - y0, x1 - x0), np.float32)
        grid[mask.y - y0 : mask.y - y0 + mask.a.shape[0], mask.x - x0 : mask.x - x0 + mask.a.shape[1]] = mask.a
        return Mask(_blur(grid, k), x0, y0)

    def everywhere(self, a: np.ndarray | float = 1.0) -> Mask:
        """Return a mask of the whole canvas with constant or given coverage."""
        return Mask(np.broadcast_to(np.asarray(a, np.float32), (self.h, self.w)), 0, 0)

    def ramp(self, top: Colour, bottom: Colour) -> np.ndarray:
        """Return an image (3, H, W) with a vertical gradient between two colours."""
        t = np.linspace(0, 1, self.h, dtype=np.float32)[None, :, None]
        a, b = (np.asarray(tone, np.float32)[:, None, None] for tone in (top, bottom))
        return np.broadcast_to(a + (b - a) * t, self.rgb.shape)

    def _window(self, polygons: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, int, int]:
        """Return an empty grid around the points, cut at the canvas's borders, and its position."""
        points = np.concatenate(polygons)
        low, high = points.min(0).astype(int) - pad, points.max(0).astype(int) + pad + 1
        x0, y0 = np.clip(low, 0, (self.w, self.h))
        x1, y1 = np.clip(high, 0, (self.w, self.h))
        return np.zeros((max(0, y1 - y0), max(0, x1 - x0)), np.uint8), int(x0), int(y0)

    # ---- from masks to photo and mattes

    def paint(
        self,
        mask: Mask,
        colour: Colour | np.ndarray,
        *,
        subject: bool = False,
        decoy: bool = False,
        **stroke: Unpack[Stroke],
    ) -> Mask:
        """Blend a colour over the photo and update the mattes; return the mask for later use.

        Args:
            mask: Coverage of the stroke.
            colour: A colour, or an image (3, H, W) of the canvas's size.
            subject: The stroke belongs to the subject's matte.
            decoy: The stroke belongs to the wrong matte of a mislabelled batch.
            **stroke: Opacity, relief, strength, texture and gain (`Stroke`).
        """
        h, w = mask.a.shape
        if not h or not w:
            return mask
        here = np.s_[mask.y : mask.y + h, mask.x : mask.x + w]
        opacity, relief, texture = stroke.get("opacity", 1.0), stroke.get("relief", 0.0), stroke.get("texture", 0.0)
        gain = stroke.get("gain")
        m = mask.a if opacity == 1 else mask.a * np.float32(opacity)
        keep = 1 - m
        # Brightness from relief and texture; not needed if the backdrop replaces the colour.
        if (relief or texture) and (self.backdrop is None or subject):
            gain = np.ones((h, w), np.float32) if gain is None else gain
            if relief:
                gain += np.float32(stroke.get("strength", 0.5)) * self._relief(mask.a, relief)
            if texture:
                gain += np.float32(texture) * (np.float32(0.6) * self.fine[here] + self.coarse[here])
            np.maximum(gain, 0, out=gain)
        # Blend each channel by the coverage.
        for k in range(3):
            tone = (
                np.float32(self.backdrop or 0.0)
                if self.backdrop is not None and not subject
                else _plane(colour, k, here)
            )
            if gain is not None:
                tone = np.minimum(gain * tone, np.float32(255))
            self.rgb[k][here] *= keep
            self.rgb[k][here] += m * tone
        if subject or decoy:
            self._untouched = False
        # The same blend on the mattes: 1 for members, 0 for others.
        if not self._untouched:
            for matte, member in zip(self.mattes, (subject, decoy), strict=True):
                matte[here] *= keep
                if member:
                    matte[here] += m
        return mask

    def _relief(self, a: np.ndarray, radius: float) -> np.ndarray:
        """Return the brightness, about in [-1, 1], of a shape with a rounded edge under the canvas's light."""
        # The shading is smooth, so a quarter of the resolution is enough.
        step = 4 if min(a.shape) > 24 else 1
        small = cv2.resize(
            np.ascontiguousarray(a), (-(-a.shape[1] // step), -(-a.shape[0] // step)), interpolation=cv2.INTER_AREA
        )
        k = max(1.0, radius * self.u / step)
        padded = cv2.copyMakeBorder(small, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0.0)
        soft = cv2.GaussianBlur(padded, (0, 0), k / 2, borderType=cv2.BORDER_REPLICATE)
        # The gradient of the blurred shape is the slope of its edge; light from `self.light` brightens one side.
        gy, gx = np.gradient(soft)
        shade = -(gx * self.light[0] + gy * self.light[1]) * k
        return cv2.resize(
            shade[1:-1, 1:-1].astype(np.float32), (a.shape[1], a.shape[0]), interpolation=cv2.INTER_LINEAR
        )

    def shadow(self, mask: Mask, dx: float, dy: float, radius: float, opacity: float = 0.4) -> None:
        """Darken the picture by the shadow of `mask`, moved by (dx, dy) and blurred.

        Subject and background darken by the same factor, so no matte changes.
        """
        soft = self.soft(mask, radius)
        h, w = soft.a.shape
        x, y = soft.x + round(dx * self.u), soft.y + round(dy * self.u)
        x0, y0, x1, y1 = max(0, x), max(0, y), min(self.w, x + w), min(self.h, y + h)
        if x1 > x0 and y1 > y0:
            moved = Mask(soft.a[y0 - y : y1 - y, x0 - x : x1 - x] * np.float32(opacity), x0, y0)
            here = np.s_[y0:y1, x0:x1]
            # With a constant backdrop only the subject's share may darken.
            rest = (1 - self.mattes[0][here]) * np.float32(self.backdrop or 0.0)
            for plane in self.rgb:
                plane[here] -= moved.a * (plane[here] - rest)

    def defocus(self, radius: float) -> None:
        """Blur photo and mattes together, as a lens out of focus does."""
        k = radius * self.u
        if k >= 0.7:
            for plane in (*self.rgb, *(() if self._untouched else self.mattes)):
                plane[:] = _blur(plane, k)

    # ---- the finished picture

    def take(self, size: tuple[int, int], warp: np.ndarray | None, blur: float) -> tuple[np.ndarray, np.ndarray]:
        """Return photo (h, w, 3) and mattes (h, w, 2) at size=(h, w).

        Args:
            size: Output size.
            warp: Camera movement (2, 3) in canvas pixels, or None.
            blur: Sigma of a final blur in output pixels.
        """
        out = []
        for stack in (self.rgb, self.mattes):
            plane = np.ascontiguousarray(stack.transpose(1, 2, 0))
            if warp is not None:
                plane = cv2.warpAffine(
                    plane, warp, (self.w, self.h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
                )
            # Area averaging is the antialiasing of the supersampled canvas.
            plane = cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_AREA)
            out.append(cv2.GaussianBlur(plane, (0, 0), blur) if blur > 0.15 else plane)
        return out[0], np.clip(out[1], 0, 1)


def _plane(colour: Colour | np.ndarray, k: int, here: tuple[slice, slice]) -> np.ndarray | np.float32:
    """Return one channel of an image in a window, or of a colour."""
    return colour[k][here] if isinstance(colour, np.ndarray) else np.float32(colour[k])


def _blur(grid: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian, on a smaller grid if `sigma` allows it: a wide blur costs no more than a narrow one."""
    step = int(max(1, min(sigma / 2, 8)))
    if step == 1:
        return cv2.GaussianBlur(grid, (0, 0), sigma)
    h, w = grid.shape[:2]
    small = cv2.resize(grid, (max(1, w // step), max(1, h // step)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / step), (w, h), interpolation=cv2.INTER_LINEAR)
