"""Magic eraser: remove chosen subjects from a photo and fill the holes.

`blend` is the default fill: the mean of three fills with different errors, with the texture of one of them. Two are
OpenCV's Telea and Navier-Stokes methods, which continue edges and colours but leave streaks. The third, `_clone`,
copies parts of the same photo with similar surroundings: it finds offsets as in He & Sun 2012 ("Statistics of patch
offsets for image completion") with OpenCV's masked template matching, and joins them by their gradients (Pérez et al.
2003, "Poisson image editing"; OpenCV's seamlessClone). The mean is closer to the hidden pixels than each of the three.
Detail finer than its blur is taken from the copied parts (figures: benchmarks/aigc_quality.md).

`learned` runs a TorchScript file with LaMa's interface (Suvorov et al. 2022): (image, mask) -> image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.effects.foreground import over
from mm_core.effects.fullsize import check_pair, enlarged, harmonic, shrunk, touched

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

SEARCH_SIDE = 384
"""Long side of the picture in which the best offset is searched."""
TILE = 0.35
"""Share of the long side above which a hole is filled in several tiles."""
RING = 0.15
"""Width of the compared surroundings as a share of a tile's longer side."""
TEXTURE, FINE = 0.75, 0.008
"""Share of the clone's detail in the blend; and the blur that separates detail, as a share of the long side. Chosen on
every third photo of benchmarks/aigc_quality.md."""
Fill = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Photo uint8 (H, W, 3), hole uint8 (H, W) of 0 and 1, and pixels not to copy, in the same form → filled photo."""


def erase(
    photo: np.ndarray, alpha: np.ndarray, *, keep: np.ndarray | None = None, fill: Fill | None = None
) -> np.ndarray:
    """Remove the content of a matte from a photo.

    The matte is extended by the width of its soft band, because colours there are mixed with the subject's.

    Args:
        photo: uint8 (H, W, 3), sRGB.
        alpha: Matte of the content to remove, float (H, W) in [0, 1].
        keep: Matte of subjects that stay; no pixels are copied from them.
        fill: Fills the hole; `blend` by default.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: The sizes differ, or the file of a learned fill does not work.
    """
    check_pair(photo, alpha)
    hole = grown(alpha)
    if not hole.any():
        return photo.copy()
    avoid = (keep > 0.1).astype(np.uint8) if keep is not None else np.zeros_like(hole)
    filled = (fill or blend)(photo, hole, avoid)
    # A soft transition hides the border of the filled area.
    feather = max(3, 2 * round(max(photo.shape[:2]) / 1500) + 1)
    soft = np.maximum(cv2.GaussianBlur(hole.astype(np.float32), (0, 0), feather / 3), hole.astype(np.float32))
    return over(filled, soft, photo)


def grown(alpha: np.ndarray) -> np.ndarray:
    """Return the area of a matte, extended by half the width of its soft band: uint8 (H, W) of 0 and 1.

    The width is the area of the band divided by the length of the contour at 0.5.
    """
    # Even nearly transparent pixels carry some of the subject's colour.
    seen = (alpha > 0.02).astype(np.uint8)
    contours, _ = cv2.findContours((alpha > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    length = sum(cv2.arcLength(contour, True) for contour in contours)
    band = float(((alpha > 0.02) & (alpha < 0.98)).sum()) / length if length else 0.0
    reach = round(min(band / 2, 0.02 * max(alpha.shape))) + max(1, round(0.002 * max(alpha.shape)))
    return cv2.dilate(seen, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))


def blend(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    """Return the mean of OpenCV's two fills and `_clone`, with the detail of `_clone`, within the hole's window."""
    small = shrunk(photo, SEARCH_SIDE)
    missing = touched(hole, small)
    # The clone works at full size, the two smooth fills at reduced size.
    cloned = _clone(photo, hole, avoid)
    smooth = [enlarged(cv2.inpaint(small, missing, 5, method), photo) for method in (cv2.INPAINT_NS, cv2.INPAINT_TELEA)]
    sigma = FINE * max(photo.shape[:2])
    # All further work is limited to the window around the hole.
    x, y, width, height = cv2.boundingRect(hole)
    margin = round(4 * sigma) + 1
    window = slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)
    inside = hole[window].astype(np.float32)
    share = np.maximum(cv2.GaussianBlur(inside, (0, 0), sigma), 1e-3)[..., None]
    # Blur within the hole only (normalised convolution), so that its surroundings stay sharp.
    clone = cloned[window].astype(np.float32)
    mean = (clone + smooth[0][window] + smooth[1][window]) / 3
    low, mean = (cv2.GaussianBlur(layer * inside[..., None], (0, 0), sigma) / share for layer in (clone, mean))
    mixed = np.rint(np.clip(mean + TEXTURE * (clone - low), 0, 255)).astype(np.uint8)
    result = photo.copy()
    result[window] = np.where(inside[..., None] > 0, mixed, photo[window])
    return result


def _clone(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    """Fill smoothly first, then add texture tile by tile, starting with the tile with the best-known surroundings.

    Tiles and offsets are found at reduced size and applied at full size.
    """
    result = harmonic(photo, hole)
    small = shrunk(result, SEARCH_SIDE)
    scale = small.shape[1] / photo.shape[1]
    missing, avoid = (touched(mask, small) for mask in (hole, avoid))
    todo = _tiles(missing)
    while todo:
        scores = [float(_ring(tile, missing)[0].sum()) / float(tile.sum()) ** 0.5 for tile in todo]
        tile = todo.pop(int(np.argmax(scores)))
        offset = _best_offset(small, tile, missing, avoid)
        if offset is None:
            continue
        _set_in(small, tile, offset)
        whole = cv2.resize(tile, hole.shape[::-1], interpolation=cv2.INTER_NEAREST) & hole
        if whole.any():
            _set_in(result, whole, (round(offset[0] / scale), round(offset[1] / scale)))
        # A filled tile is known from here on, for its neighbours too.
        missing[tile > 0] = 0
    return result


def _tiles(hole: np.ndarray) -> list[np.ndarray]:
    """Return the tiles of a hole, uint8 (H, W) each; none is larger than about TILE of the long side."""
    count, labels = cv2.connectedComponents(hole, connectivity=8)
    side = max(8, round(TILE * max(hole.shape)))
    tiles = []
    for number in range(1, count):
        piece = (labels == number).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(piece)
        # Ceiling division: as few equal tiles as possible.
        down, across = -(-height // side), -(-width // side)
        for top, bottom in zip(*_cuts(y, height, down), strict=True):
            for left, right in zip(*_cuts(x, width, across), strict=True):
                tile = np.zeros_like(piece)
                tile[top:bottom, left:right] = piece[top:bottom, left:right]
                if tile.any():
                    tiles.append(tile)
    return tiles


def _cuts(start: int, length: int, parts: int) -> tuple[list[int], list[int]]:
    edges = [start + round(length * n / parts) for n in range(parts + 1)]
    return edges[:-1], edges[1:]


def _ring(tile: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Return the known surroundings of a tile, float32 in its window, and the window."""
    x, y, width, height = cv2.boundingRect(tile)
    reach = max(4, round(RING * max(width, height)))
    rows = slice(max(0, y - reach), min(tile.shape[0], y + height + reach))
    columns = slice(max(0, x - reach), min(tile.shape[1], x + width + reach))
    # The ring: the dilated tile without unknown pixels.
    around = cv2.dilate(tile[rows, columns], np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    return around.astype(np.float32) * (unknown[rows, columns] == 0), (rows, columns)


def _best_offset(photo: np.ndarray, tile: np.ndarray, missing: np.ndarray, avoid: np.ndarray) -> tuple[int, int] | None:
    """Return the shift (rows, columns) to the place with the most similar surroundings; None if nothing fits."""
    ring, (rows, columns) = _ring(tile, missing | avoid)
    if not ring.any():
        return None
    weight = np.ascontiguousarray(np.repeat(ring[..., None], 3, 2))
    cost = cv2.matchTemplate(
        photo.astype(np.float32), photo[rows, columns].astype(np.float32), cv2.TM_SQDIFF, mask=weight
    )
    # Places with unknown or protected pixels cannot be copied.
    taken = (missing | avoid).astype(np.float32)
    covered = cv2.matchTemplate(taken, tile[rows, columns].astype(np.float32), cv2.TM_CCORR)
    # NaN and infinite costs come from windows without valid pixels.
    cost[(covered > 0.5) | ~np.isfinite(cost)] = np.inf
    if not np.isfinite(cost).any():
        return None
    row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return int(row) - rows.start, int(column) - columns.start


def _set_in(photo: np.ndarray, piece: np.ndarray, offset: tuple[int, int]) -> None:
    """Copy the content at `offset` into a piece, in place, with blended gradients."""
    x, y, width, height = cv2.boundingRect(piece)
    margin = 2
    # seamlessClone requires a margin around the hole, inside both pictures.
    padded = cv2.copyMakeBorder(
        photo[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin],
        max(0, margin - y), max(0, y + height + margin - photo.shape[0]),
        max(0, margin - x), max(0, x + width + margin - photo.shape[1]), cv2.BORDER_REPLICATE,
    )  # fmt: skip
    rows = np.clip(np.arange(y - margin, y + height + margin) + offset[0], 0, photo.shape[0] - 1)
    columns = np.clip(np.arange(x - margin, x + width + margin) + offset[1], 0, photo.shape[1] - 1)
    source = np.ascontiguousarray(photo[rows][:, columns])
    mask = np.zeros(padded.shape[:2], np.uint8)
    mask[margin:-margin, margin:-margin] = piece[y : y + height, x : x + width] * 255
    centre = (mask.shape[1] // 2, mask.shape[0] // 2)
    blended = cv2.seamlessClone(source, padded, mask, centre, cv2.NORMAL_CLONE)
    # Only the piece itself is written back.
    inside = piece[y : y + height, x : x + width] > 0
    photo[y : y + height, x : x + width][inside] = blended[margin:-margin, margin:-margin][inside]


def learned(model: Path) -> Fill:
    """Return the fill that runs a TorchScript file at reduced size."""

    def fill(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
        small = shrunk(photo)
        missing = touched(hole, small)
        height, width = missing.shape
        # LaMa's network needs sides that are multiples of 8.
        below, right = -height % 8, -width % 8
        image = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        mask = cv2.copyMakeBorder(missing, 0, below, 0, right, cv2.BORDER_CONSTANT)
        net = _script(model)
        try:
            with torch.inference_mode():
                result = net(
                    torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None],
                    torch.from_numpy(mask.astype(np.float32))[None, None],
                )[0]
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{model}: does not take (image, mask): {' '.join(str(error).split())[-200:]}") from None
        filled = result.clamp(0, 1).numpy().transpose(1, 2, 0)[:height, :width]
        return enlarged(np.rint(filled * 255).astype(np.uint8), photo)

    return fill


@lru_cache(1)
def _script(model: Path) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(model, "cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{model}: not a TorchScript file ({' '.join(str(error).split())[:200]})") from None
