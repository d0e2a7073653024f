"""Documents and cards: found as a quadrangle, straightened to the rectangle that they are."""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.effects.fullsize import shrunk

SIDE = 640
"""Long side at which the quadrangle is looked for."""
LEAST_SHARE, MOST_SHARE = 0.05, 0.97
"""Shares of the frame between which a quadrangle is something in the photo."""


def find_quad(photo: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray | None:
    """Corners (4, 2) as x, y shares of width and height: top left, top right, bottom right, bottom left; or None.

    With a matte float (H, W) its outline is taken; else the largest closed four-sided contour of the photo uint8
    (H, W, 3). What the quadrangle covers must agree with what was found: four corners alone make no card.
    """
    small = shrunk(photo, SIDE)
    height, width = small.shape[:2]
    for mask in _masks(small, None if alpha is None else shrunk(alpha.astype(np.float32), SIDE)):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:3]:
            hull = cv2.convexHull(contour)
            area = cv2.contourArea(hull)
            if not LEAST_SHARE * height * width <= area <= MOST_SHARE * height * width:
                continue
            quad = _four_corners(hull)
            if quad is not None and 0.9 < cv2.contourArea(contour) / cv2.contourArea(quad.astype(np.float32)) < 1.1:
                return _ordered(quad) / np.array([width, height], np.float32)
    return None


def straightened(photo: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """What lies in the quadrangle (as `find_quad` gives it), as uint8 (h, w, 3) seen from straight above.

    Sides get the mean length of the two that are opposite each other, in the photo's pixels.
    """
    height, width = photo.shape[:2]
    corners = (quad * np.array([width, height])).astype(np.float32)
    top, right, bottom, left = (float(np.linalg.norm(corners[n] - corners[(n + 1) % 4])) for n in range(4))
    wide, tall = max(1, round((top + bottom) / 2)), max(1, round((left + right) / 2))
    goal = np.array([[0, 0], [wide, 0], [wide, tall], [0, tall]], np.float32)
    view = cv2.getPerspectiveTransform(corners, goal)
    return cv2.warpPerspective(photo, view, (wide, tall), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _masks(small: np.ndarray, alpha: np.ndarray | None):
    """Candidate masks uint8 (h, w), the likeliest first."""
    kernel = np.ones((5, 5), np.uint8)
    if alpha is not None:
        yield cv2.morphologyEx((alpha > 0.5).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    grey = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    _, bright = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    yield cv2.morphologyEx(bright, cv2.MORPH_CLOSE, kernel)
    edges = cv2.dilate(cv2.Canny(grey, 40, 120), kernel)
    closed = np.zeros_like(edges)
    contours, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(closed, contours, -1, 255, -1)
    yield cv2.erode(closed, kernel)


def _four_corners(hull: np.ndarray) -> np.ndarray | None:
    """A hull simplified until it has four corners, float (4, 2); None where it has none."""
    length = cv2.arcLength(hull, True)
    for share in (0.02, 0.03, 0.05, 0.08):
        corners = cv2.approxPolyDP(hull, share * length, True)[:, 0]
        if len(corners) == 4:
            return corners.astype(np.float64)
        if len(corners) < 4:
            return None
    return None


def _ordered(quad: np.ndarray) -> np.ndarray:
    """Corners clockwise from the one nearest to the frame's top left."""
    centre = quad.mean(0)
    turn = np.arctan2(quad[:, 1] - centre[1], quad[:, 0] - centre[0])
    clockwise = quad[np.argsort(turn)]
    return np.roll(clockwise, -int(np.argmin(clockwise.sum(1))), axis=0).astype(np.float32)
