"""Duplicates: the same bytes, and the same photo saved again.

Two looks: a 64-bit perceptual hash finds candidates (Zauner 2010, "Implementation and benchmarking of
perceptual image hash functions", DCT hash), a correlation of small grey pictures confirms them, so that
photos which merely resemble each other stay apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

THUMB = 32
"""Side of the small grey picture of the second look."""
LOOK_SIDE = 256
"""Longer side, in pixels, of the decoded photo that hashes are taken from."""
SAME_PHOTO = 0.95
"""Least correlation of two thumbnails, over everything and over fine detail alone, of copies of one photo.

Measured: copies saved again (JPEG quality 20 to 90, a quarter to full size) reach 0.988, neighbouring frames 0.78."""
MAX_CANDIDATES = 64
"""Candidates of one photo that get the second look, nearest hash first."""


def perceptual_hash(rgb: np.ndarray) -> str:
    """64-bit DCT hash of a photo uint8 (H, W, 3) as 16 hex digits: are its low 8×8 frequencies above their median?"""
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = np.asarray(cv2.dct(grey.astype(np.float32))[:8, :8], np.float64).ravel()
    bits = low > np.median(low[1:])
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def thumbnail(rgb: np.ndarray) -> np.ndarray:
    """The second look at a photo uint8 (H, W, 3): grey float32 (32, 32)."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)


def same_photo(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two thumbnails (32, 32) are copies of one photo: saved again, resized, brightened."""
    return min(similarity(a, b)) >= SAME_PHOTO


def similarity(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Correlation of two thumbnails and of their fine detail, each in [-1, 1]; flat pictures by their brightness."""
    detail = [t - cv2.GaussianBlur(t, (0, 0), 2) for t in (a, b)]
    return _correlation(a, b), _correlation(*detail)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    if scale < a.size:  # both without structure to speak of: within a grey level of their mean
        return 1.0 if float(np.abs(a - b).mean()) <= 2 else 0.0
    return float((x * y).sum()) / scale


@dataclass(frozen=True)
class Entry:
    """A photo that others may repeat."""

    phash: int
    identity: str
    """sha256 of its bytes."""
    name: str
    group: str
    """Declared burst or scene; empty where none was declared."""
    aspect: float
    """Width by height."""


class NearIndex:
    """Photos by perceptual hash, within a number of differing bits.

    The 64 bits are cut in `bits + 1` bands: two hashes within `bits` agree in at least one band whole
    (pigeonhole), so only photos that share a band are compared at all.
    """

    def __init__(self, bits: int):
        self.bits = bits
        edges = np.linspace(0, 64, bits + 2).astype(int)
        self._bands = [(int(low), (1 << int(high - low)) - 1) for low, high in zip(edges, edges[1:], strict=False)]
        self._buckets: dict[tuple[int, int], list[Entry]] = {}

    def add(self, entry: Entry) -> None:
        for key in self._keys(entry.phash):
            self._buckets.setdefault(key, []).append(entry)

    def near(self, phash: int, aspect: float) -> list[Entry]:
        """Entries within `bits` of a hash and of about its aspect ratio, nearest first, at most MAX_CANDIDATES."""
        found: dict[str, tuple[int, Entry]] = {}
        for key in self._keys(phash):
            for entry in self._buckets.get(key, ()):
                distance = (entry.phash ^ phash).bit_count()
                if distance <= self.bits and abs(entry.aspect / aspect - 1) < 0.04:
                    found[entry.identity] = (distance, entry)
        ranked = sorted(found.values(), key=lambda item: (item[0], item[1].identity))
        return [entry for _, entry in ranked[:MAX_CANDIDATES]]

    def _keys(self, phash: int) -> list[tuple[int, int]]:
        return [(number, phash >> shift & mask) for number, (shift, mask) in enumerate(self._bands)]

    def sharing_a_band(self, known: np.ndarray, asked: Iterable[int]) -> np.ndarray:
        """Which of the hashes uint64 (N,) share a band with any hash asked for: bool (N,).

        A batch looks at a large catalog through this, so that the index holds a sliver of it.
        """
        hashes = np.fromiter(asked, np.uint64)
        hit = np.zeros(len(known), bool)
        for shift, mask in self._bands:
            hit |= np.isin(known >> np.uint64(shift) & np.uint64(mask), hashes >> np.uint64(shift) & np.uint64(mask))
        return hit
