"""Documents and cards: find the quadrangle in a photo and rectify it."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from mm_core.effects.fullsize import shrunk

SIDE = 640
"""Long side of the picture in which the quadrangle is searched."""
LEAST_SHARE, MOST_SHARE = 0.05, 0.97
"""Smallest and largest share of the frame for a quadrangle."""


def find_quad(photo: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray | None:
    """Find the corners of a card or document.

    The matte's outline is searched first, then the largest closed contours with four sides. The quadrangle's area must
    agree with the contour's: four corners alone do not make a card.

    Args:
        photo: uint8 (H, W, 3).
        alpha: Matte, float (H, W) in [0, 1], or None.

    Returns:
        Corners (4, 2) as x, y shares of width and height: top left, top right, bottom right, bottom left; or None.
    """
    small = shrunk(photo, SIDE)
    height, width = small.shape[:2]
    for mask in _masks(small, None if alpha is None else shrunk(alpha.astype(np.float32), SIDE)):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # The three largest contours are enough: a document is large.
        for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:3]:
            hull = cv2.convexHull(contour)
            area = cv2.contourArea(hull)
            if not LEAST_SHARE * height * width <= area <= MOST_SHARE * height * width:
                continue
            # The convex hull closes gaps such as a finger over the edge.
            quad = _four_corners(hull)
            if quad is not None and 0.9 < cv2.contourArea(contour) / cv2.contourArea(quad.astype(np.float32)) < 1.1:
                return _ordered(quad) / np.array([width, height], np.float32)
    return None


def straightened(photo: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Return the content of a quadrangle (from `find_quad`) as uint8 (h, w, 3), rectified.

    Width and height are the mean lengths of opposite sides, in pixels of the photo.
    """
    height, width = photo.shape[:2]
    corners = (quad * np.array([width, height])).astype(np.float32)
    top, right, bottom, left = (float(np.linalg.norm(corners[n] - corners[(n + 1) % 4])) for n in range(4))
    wide, tall = max(1, round((top + bottom) / 2)), max(1, round((left + right) / 2))
    goal = np.array([[0, 0], [wide, 0], [wide, tall], [0, tall]], np.float32)
    view = cv2.getPerspectiveTransform(corners, goal)
    return cv2.warpPerspective(photo, view, (wide, tall), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _masks(small: np.ndarray, alpha: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield candidate masks, uint8 (h, w), most probable first: the matte, bright areas, closed edges."""
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
    """Return a hull simplified to four corners, float (4, 2), or None."""
    length = cv2.arcLength(hull, True)
    # A growing tolerance removes more corners until four are left.
    for share in (0.02, 0.03, 0.05, 0.08):
        corners = cv2.approxPolyDP(hull, share * length, True)[:, 0]
        if len(corners) == 4:
            return corners.astype(np.float64)
        if len(corners) < 4:
            return None
    return None


def _ordered(quad: np.ndarray) -> np.ndarray:
    """Return the corners clockwise, starting with the one nearest to the frame's top left."""
    centre = quad.mean(0)
    turn = np.arctan2(quad[:, 1] - centre[1], quad[:, 0] - centre[0])
    clockwise = quad[np.argsort(turn)]
    return np.roll(clockwise, -int(np.argmin(clockwise.sum(1))), axis=0).astype(np.float32)
