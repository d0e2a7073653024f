"""Augmentations that keep a photo and its matte consistent: crops, and the light and flaws of another camera."""

from __future__ import annotations

import math

import cv2
import numpy as np


def augment(
    photo: np.ndarray, matte: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a random crop of a photo and its matte, with the light, blur and noise of another camera.

    Geometry: mirror (half of the time), zoom 0.85 to 1.5, aspect ±10 %, rotation ±8° (half of the time), any position
    within the frame, reflected edges. Photo only: gamma, contrast, white balance, saturation; sometimes blur, noise
    and JPEG blocks.

    Args:
        photo: uint8 (H, W, 3).
        matte: uint8 (H, W), or None.
        size: Side S of the result in pixels.
        rng: Source of all random values.

    Returns:
        Photo (S, S, 3), and matte (S, S) or None.
    """
    height, width = photo.shape[:2]
    # Zoom and aspect are drawn on a log scale, so that both directions are equally likely.
    zoom, aspect = math.exp(rng.uniform(math.log(0.85), math.log(1.5))), math.exp(rng.uniform(-0.1, 0.1))
    angle = math.radians(rng.uniform(-8, 8)) if rng.random() < 0.5 else 0.0
    across, down = width / (size * zoom) * aspect, height / (size * zoom) / aspect
    flip = -1.0 if rng.random() < 0.5 else 1.0
    # The matrix maps output pixels to source pixels, relative to the two centres.
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.diag([across * flip, down])
    # The crop's centre may move as far as the crop stays within the frame.
    room = np.maximum(np.array([width, height]) - np.array([across, down]) * size, 0) / 2
    centre = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * room - 0.5
    full = np.column_stack([matrix, centre - matrix @ np.full(2, size / 2 - 0.5)])

    def cut(image: np.ndarray) -> np.ndarray:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, full, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)

    return relit(cut(photo), rng), None if matte is None else cut(matte)


def relit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the photo, uint8 (H, W, 3), in other light and with another camera's blur, noise and JPEG blocks."""
    # One lookup table per channel: gamma, contrast and brightness, then white balance.
    levels = np.linspace(0, 1, 256)[:, None] ** math.exp(rng.uniform(-0.3, 0.3))
    levels = (levels - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.08, 0.08)
    table = np.rint(np.clip(levels * rng.uniform(0.92, 1.08, 3), 0, 1) * 255).astype(np.uint8)
    image = cv2.LUT(image, table.reshape(256, 1, 3))
    saturation = rng.uniform(0.7, 1.3)
    # Saturation: mix the picture with its grey version.
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
    # Camera flaws, each in some of the photos only.
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.2:
        reach = int(rng.integers(4, 20))
        image = cv2.add(image, rng.integers(-reach, reach + 1, image.shape, np.int16), dtype=cv2.CV_8U)
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))]
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR))
    return image
