"""Magic eraser: remove chosen subjects from a photo and fill the holes.

The default method `blend` is the mean of three fills with different errors, with the texture of one of them. OpenCV's
`telea` and `ns` continue edges and colours but leave streaks. `clone` copies parts of the same photo with similar
surroundings: it finds offsets as in He & Sun 2012 ("Statistics of patch offsets for image completion") with OpenCV's
masked template matching, and blends gradients as in Pérez et al. 2003 ("Poisson image editing") with OpenCV's
seamlessClone. It has realistic texture, but sometimes of a wrong object. The mean is closer to the hidden pixels than
each of the three fills. Detail finer than its blur is replaced by the clone's (figures: benchmarks/aigc_quality.md).

`harmonic` is the smooth solution of Laplace's equation, `biharmonic` is scikit-image's. `learned` runs a TorchScript
file with LaMa's interface (Suvorov et al. 2022): (image, mask) -> image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.errors import InputError
from mm_core.effects.foreground import over
from mm_core.effects.fullsize import check_pair, enlarged, harmonic, shrunk, touched

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
"""Photo uint8 (h, w, 3), hole uint8 (h, w) of 0 and 1, and pixels not to copy, in the same form → filled photo."""


def erase(
    photo: np.ndarray,
    alpha: np.ndarray,
    *,
    keep: np.ndarray | None = None,
    method: str = "blend",
    model: Path | None = None,
) -> np.ndarray:
    """Remove the content of a matte from a photo.

    The matte is extended by the width of its soft band, because colours there are mixed with the subject's.

    Args:
        photo: uint8 (H, W, 3).
        alpha: Matte of the content to remove, float (H, W) in [0, 1].
        keep: Matte of subjects that stay; no pixels are copied from them.
        method: A key of FILLS, or `learned`.
        model: TorchScript file for method `learned`.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InputError: The method is unknown, or its file does not work.
    """
    check_pair(photo, alpha)
    if method not in FILLS and method != "learned":
        raise InputError(f"inpainting method {method!r}: one of {', '.join([*FILLS, 'learned'])}")
    hole = grown(alpha)
    if not hole.any():
        return photo.copy()
    avoid = (keep > 0.1).astype(np.uint8) if keep is not None else np.zeros_like(hole)
    fill: Fill = FILLS[method] if method != "learned" else _learned(model)
    if method in AT_FULL_SIZE:
        filled = fill(photo, hole, avoid)
    else:
        small = fill(shrunk(photo), touched(hole, shrunk(photo)), touched(avoid, shrunk(photo)))
        filled = enlarged(small, photo)
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


def _blend(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    """Return the mean of `ns`, `telea` and `clone` with the clone's detail, within the hole's window."""
    small = shrunk(photo, SEARCH_SIDE)
    missing = touched(hole, small)
    # The clone works at full size, the two smooth fills at reduced size.
    cloned = _clone(photo, hole, avoid)
    smooth = [enlarged(fill(small, missing, missing), photo) for fill in (_ns, _telea)]
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


def _telea(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    return cv2.inpaint(photo, hole, 5, cv2.INPAINT_TELEA)


def _ns(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    return cv2.inpaint(photo, hole, 5, cv2.INPAINT_NS)


def _biharmonic(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    from skimage.restoration import inpaint_biharmonic

    # The solver's time grows fast with the size of the hole.
    small = shrunk(photo, SEARCH_SIDE)
    solution = inpaint_biharmonic(small / 255.0, touched(hole, small) > 0, channel_axis=-1)
    return enlarged(np.rint(np.clip(solution, 0, 1) * 255).astype(np.uint8), photo)


def _harmonic(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    return harmonic(photo, hole)


FILLS: dict[str, Fill] = {
    "blend": _blend,
    "clone": _clone,
    "harmonic": _harmonic,
    "telea": _telea,
    "ns": _ns,
    "biharmonic": _biharmonic,
}
AT_FULL_SIZE = ("blend", "clone", "harmonic")
"""Fills that take the photo at full size."""


def _learned(model: Path | None) -> Fill:
    if model is None:
        raise InputError(
            "inpainting method 'learned' needs a TorchScript file: name it in params.yaml, moments.inpainting"
        )

    def fill(photo: np.ndarray, hole: np.ndarray, avoid: np.ndarray) -> np.ndarray:
        import torch

        height, width = hole.shape
        # LaMa's network needs sides that are multiples of 8.
        below, right = -height % 8, -width % 8
        image = cv2.copyMakeBorder(photo, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        mask = cv2.copyMakeBorder(hole, 0, below, 0, right, cv2.BORDER_CONSTANT)
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
        return np.rint(filled * 255).astype(np.uint8)

    return fill


@lru_cache(1)
def _script(model: Path):
    import torch

    try:
        return torch.jit.load(model, "cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{model}: not a TorchScript file ({' '.join(str(error).split())[:200]})") from None
