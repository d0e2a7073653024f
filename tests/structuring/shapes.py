"""Mattes whose difficulty is known by construction."""

import cv2
import numpy as np

SIDE = 192


def disk(radius: float = 50, side: int = SIDE) -> np.ndarray:
    return _antialiased(lambda big, s: cv2.circle(big, (big.shape[1] // 2,) * 2, round(radius * s), 255, -1), side)


def star(side: int = SIDE, points: int = 7) -> np.ndarray:
    turns = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, 0.16, 0.42) * side
    corners = np.stack((np.cos(turns), np.sin(turns)), -1) * radii[:, None] + side / 2
    return _antialiased(lambda big, s: cv2.fillPoly(big, [np.rint(corners * s).astype(np.int32)], 255), side)


def hair(side: int = SIDE, strands: int = 60) -> np.ndarray:
    def draw(big: np.ndarray, s: int) -> None:
        middle = big.shape[0] // 2
        cv2.circle(big, (middle, middle), round(0.15 * side * s), 255, -1)
        for turn in np.linspace(0, 2 * np.pi, strands, endpoint=False):
            end = middle + 0.42 * side * s * np.array([np.cos(turn), np.sin(turn)])
            cv2.line(big, (middle, middle), (int(end[0]), int(end[1])), 255, max(1, round(0.004 * side * s)))

    return _antialiased(draw, side)


def painted(alpha: np.ndarray, inside=(200, 60, 40), outside=(40, 60, 200)) -> np.ndarray:
    """The photo of a subject and a background of one colour each."""
    mixed = alpha[..., None] * np.array(inside) + (1 - alpha[..., None]) * np.array(outside)
    return np.rint(mixed).astype(np.uint8)


def _antialiased(draw, side: int, supersample: int = 8) -> np.ndarray:
    big = np.zeros((side * supersample,) * 2, np.uint8)
    draw(big, supersample)
    return cv2.resize(big, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
