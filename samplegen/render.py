"""Render a finished photo from a seed: scene, camera, sensor."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

import cv2
import numpy as np

from mm_core.core.errors import InputError
from samplegen.accessories import accessories
from samplegen.animals import pets
from samplegen.canvas import Canvas
from samplegen.cards import cards
from samplegen.food import delicacy
from samplegen.look import Look
from samplegen.people import multi_person, portrait
from samplegen.scenery import scenery

SCENES: dict[str, Callable[[Canvas, Look], str]] = {
    "portrait": portrait,
    "multi_person": multi_person,
    "pets": pets,
    "accessories": accessories,
    "cards": cards,
    "delicacy": delicacy,
    "scenery": scenery,
}


class View(TypedDict, total=False):
    """Options of a generated photo; the same scene can be drawn with several of them."""

    size: int
    """Long side in pixels; 192 by default."""
    mode: str
    """`easy` (default) or `hard`: small, thin, camouflaged or cut-off subjects in clutter and noise."""
    drift: float
    """Change of colours, places, light and scale as with a new camera and season, in [0, 1]; 0 by default."""
    variant: int
    """Frame within the burst of the scene; 0 (default) is the first."""
    aspect: float
    """Width / height, 1 by default; 3/4 gives an upright photo."""


@dataclass(frozen=True)
class GeneratedSample:
    """A photo and its exact matte."""

    image: np.ndarray
    """uint8 (H, W, 3) RGB."""
    alpha: np.ndarray
    """float32 (H, W) in [0, 1]."""
    category: str
    caption: str
    group: str
    """Equal for all photos of one scene (a burst)."""
    mode: str


@dataclass(frozen=True)
class Rendering:
    """A photo before sensor noise, with its mattes and caption."""

    light: np.ndarray
    """float32 (H, W, 3) in 0..255, exactly alpha*F + (1-alpha)*B."""
    alpha: np.ndarray
    """float32 (H, W)."""
    decoy: np.ndarray
    """float32 (H, W): exact matte of the wrong objects (prop, clothes, table mat …)."""
    caption: str
    look: Look


def render(category: str, seed: int, *, backdrop: float | None = None, **view: Unpack[View]) -> Rendering:
    """Draw a scene.

    Args:
        category: One of `SCENES`.
        seed: Seed of the scene.
        backdrop: Paints everything but the subject in one constant; two such pictures verify the matte.
        **view: Size, mode, drift, variant and aspect (`View`).

    Raises:
        InputError: The category or the mode is unknown.
    """
    size, mode = view.get("size", 192), view.get("mode", "easy")
    variant, aspect = view.get("variant", 0), view.get("aspect", 1.0)
    if category not in SCENES:
        raise InputError(f"samplegen: category {category!r} is unknown; use one of {', '.join(SCENES)}")
    if mode not in ("easy", "hard"):
        raise InputError(f"samplegen: mode {mode!r} is unknown; use easy or hard")
    # The category is part of the seed, so that equal seeds give different scenes per category.
    rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
    height, width = (size, round(size * aspect)) if aspect <= 1 else (round(size / aspect), size)
    # Supersampling factor; small photos need more for thin strands.
    scale = 3 if size < 128 else 2
    look = Look(rng, mode == "hard", float(np.clip(view.get("drift", 0.0), 0, 1)))
    angle = rng.uniform(-2.4, -0.7)
    canvas = Canvas(height * scale, width * scale, rng, (float(np.cos(angle)), float(np.sin(angle))), backdrop)
    caption = SCENES[category](canvas, look)
    # Only later frames move the camera, so the first frame is the scene itself.
    warp = _movement(canvas, seed, variant) if variant else None
    blur = rng.uniform(0.25, 0.45) if mode == "easy" else rng.uniform(0.25, 0.75)
    light, mattes = canvas.take((height, width), warp, blur)
    return Rendering(light, mattes[..., 0], mattes[..., 1], caption, look)


def _movement(canvas: Canvas, seed: int, variant: int) -> np.ndarray:
    """Return the camera movement between two photos of a burst: zoom by a few percent, small shift and rotation."""
    rng = np.random.default_rng([seed, variant])
    zoom = 1 + 0.03 * variant + rng.uniform(0.0, 0.03)
    warp = cv2.getRotationMatrix2D((canvas.w / 2, canvas.h / 2), rng.uniform(-2, 2), zoom)
    warp[:, 2] += rng.uniform(-0.02, 0.02, 2) * canvas.u
    return warp


def develop(r: Rendering, seed: int, variant: int) -> np.ndarray:
    """Apply exposure, white balance, vignette and sensor noise; return uint8 (H, W, 3).

    The gains are multiplicative and keep the matte exact; noise is added last.
    """
    rng = np.random.default_rng([seed, 77])
    look, (h, w) = r.look, r.alpha.shape
    # White balance: a warm or cool cast, stronger with drift.
    cool, warm = np.array([0.8, 0.95, 1.14]), np.array([1.14, 0.98, 0.78])
    cast = (cool if rng.random() < 0.5 else warm) ** (0.55 * look.drift + rng.normal(0, 0.08))
    exposure = rng.uniform(0.92, 1.06)
    noise = rng.uniform(1.0, 3.0)
    dark = rng.random()
    # Hard photos are noisier and often underexposed.
    if look.hard:
        noise = rng.uniform(3.0, 8.0)
        exposure *= rng.uniform(0.45, 0.7) if dark < 0.35 else rng.uniform(0.75, 1.08)
    exposure *= 1 - 0.22 * look.drift * rng.uniform(0.3, 1.0)
    noise += 1.5 * look.drift
    # Frames of a burst differ in exposure and noise only.
    frame = np.random.default_rng([seed, 78, variant])
    exposure *= 1 + (frame.uniform(-0.12, 0.12) if variant else 0.0)
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    vignette = 1 - (0.06 + 0.22 * look.drift * rng.uniform(0, 1)) * (x**2 + y**2)
    # Keep a minimum mean brightness.
    exposure = max(exposure, min(1.15, 46 / float(r.light.mean())))
    light = r.light * (cast * exposure).astype(np.float32) * vignette[..., None].astype(np.float32)
    # Shot noise grows with the square root of the light.
    grain = frame.standard_normal((h, w, 1), np.float32) + np.float32(0.6) * frame.standard_normal(
        (h, w, 3), np.float32
    )
    light += grain * np.sqrt(np.maximum(light, 8)) * np.float32(noise / 128**0.5)
    return np.clip(light, 0, 255).round().astype(np.uint8)


def generate(category: str, seed: int, **view: Unpack[View]) -> GeneratedSample:
    """Generate one sample; the same arguments give the same bytes.

    Args:
        category: One of `SCENES`.
        seed: Determines the scene and its group.
        **view: Size, mode, drift, variant and aspect (`View`).
    """
    r = render(category, seed, **view)
    image = develop(r, seed, view.get("variant", 0))
    return GeneratedSample(image, r.alpha, category, r.caption, f"{category}-{seed:010x}", view.get("mode", "easy"))
