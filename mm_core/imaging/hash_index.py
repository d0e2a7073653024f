"""Neighbours: which photos of a catalog a batch may repeat, without comparing all pairs.

The 64 bits of a hash are cut in `bits + 1` bands: two hashes within `bits` of each other agree in at least one band
whole (pigeonhole), so only hashes that share a band are compared at all. The batch is the index and the catalog streams
past it, so memory follows the batch. Work stays bounded where many photos look alike (a million flat pictures, one
watermark on everything): of what is near a hash a fixed number is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_CANDIDATES = 64
"""Photos kept of those that are near one hash: the nearest, then by id."""
MAX_BUCKET = 1024
"""Different hashes of a batch compared of those that share a band; more of them have been made up by somebody."""
LEAST_SHARED = 2
"""Landmarks that two photos must share before they are looked at. Of 50,403 pairs of unrelated photos none shares two
and one shares one, which would be a look in vain for every 20,000 photos of the catalog."""
CHUNK = 1 << 20
"""Hashes compared at once."""


class HashIndex:
    """Hashes uint64 (N,) without repetitions, to be found within a number of differing bits."""

    def __init__(self, hashes: np.ndarray, bits: int, *, bucket: int | None = None):
        """`bucket`: compares no more hashes of those that share a band, at the risk of missing some."""
        self.hashes, self.bits = hashes, bits
        edges = np.linspace(0, 64, bits + 2).astype(int).tolist()
        # Of a wide band the lowest 16 bits say where a hash stands in its table: no pair is lost, and it stays small.
        widths = np.minimum(np.diff(edges), 16).tolist()
        self._bands = [(np.uint64(e), np.uint64((1 << w) - 1)) for e, w in zip(edges[:-1], widths, strict=True)]
        self._tables = []
        for number in range(len(self._bands)):
            slots = self._slots(hashes, number)
            counts = np.bincount(slots, minlength=1 << 16)
            starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
            self._tables.append((np.argsort(slots, kind="stable"), starts, np.minimum(counts, bucket or len(hashes))))

    def near(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every pair within `bits` once: positions in the index and positions in the hashes uint64 (M,) asked for."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, max(1, len(hashes)), CHUNK):
            part = hashes[start : start + CHUNK]
            for number, (order, starts, counts) in enumerate(self._tables):
                slots = self._slots(part, number)
                hit = np.flatnonzero(counts[slots])
                for step in range(int(counts[slots[hit]].max(initial=0))):
                    hit = hit[counts[slots[hit]] > step]
                    inside = order[starts[slots[hit]] + step]
                    differing = self.hashes[inside] ^ part[hit]
                    near = np.bitwise_count(differing) <= self.bits
                    for shift, mask in self._bands[:number]:  # an earlier band has found these
                        near &= (differing >> shift & mask) != 0
                    found.append((inside[near], hit[near] + start))
        positions, asked = zip(*found, strict=True) if found else ((), ())
        empty = np.empty(0, np.int64)
        return np.concatenate((empty, *positions)), np.concatenate((empty, *asked))

    def _slots(self, hashes: np.ndarray, number: int) -> np.ndarray:
        """Where hashes stand in the table of a band, int64."""
        shift, mask = self._bands[number]
        return (hashes >> shift & mask).astype(np.int64)


@dataclass(frozen=True)
class Hashed:
    """Photos by their hashes."""

    ids: np.ndarray
    """What names a photo, and decides between equally near ones: (N,)."""
    whole: np.ndarray
    """Hash of each whole photo, uint64 (N,)."""
    landmarks: np.ndarray
    """Hashes of all landmarks, uint64 (L,)."""
    owners: np.ndarray
    """The photo of each landmark, as its position, ascending, (L,)."""

    @staticmethod
    def of(ids: Sequence[Any], phashes: Sequence[str], landmarks: Sequence[bytes | None]) -> Hashed:
        """From columns of the catalog: 16 hex digits, and 8 bytes (highest first) for each landmark."""
        marks = [m or b"" for m in landmarks]
        owners = np.repeat(np.arange(len(marks)), [len(m) // 8 for m in marks])
        whole = np.array([int(text, 16) for text in phashes], np.uint64)
        return Hashed(np.asarray(ids, object), whole, np.frombuffer(b"".join(marks), ">u8").astype(np.uint64), owners)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> Hashed:
        """The photos from one position up to another."""
        first, last = np.searchsorted(self.owners, [start, end]).tolist()
        owners = self.owners[first:last] - start
        return Hashed(self.ids[start:end], self.whole[start:end], self.landmarks[first:last], owners)

    def parts(self, size: int) -> Iterator[Hashed]:
        for start in range(0, len(self), size):
            yield self.part(start, start + size)


@dataclass(slots=True)
class Candidates:
    """Photos that one photo may repeat, by id, likeliest first, itself included: at most MAX_CANDIDATES each."""

    copies: list[Any] = field(default_factory=list)
    """The whole picture has a hash within `bits`."""
    edits: list[Any] = field(default_factory=list)
    """At least LEAST_SHARED landmarks do: those that share most first."""


def find_candidates(asked: Hashed, known: Iterable[Hashed], bits: int) -> list[Candidates]:
    """For each photo asked about, what it may repeat; the known come in pieces of any size, to the same result."""
    wholes, whole_of = np.unique(asked.whole, return_inverse=True)
    marks, mark_of = np.unique(asked.landmarks, return_inverse=True)
    by_whole, by_mark = HashIndex(wholes, bits, bucket=MAX_BUCKET), HashIndex(marks, bits, bucket=MAX_BUCKET)
    copies: dict[int, list[tuple[int, Any]]] = {}
    edits: dict[int, list[tuple[int, Any]]] = {}
    for part in known:
        _collect(copies, by_whole, part.whole, part.ids, np.arange(len(part.ids)))
        _collect(edits, by_mark, part.landmarks, part.ids, part.owners, by_distance=False)
    ends = np.searchsorted(asked.owners, np.arange(len(asked.whole) + 1))
    found = []
    for photo, whole in enumerate(whole_of.tolist()):
        shared: dict[Any, int] = {}
        for mark in set(mark_of[ends[photo] : ends[photo + 1]].tolist()):
            for _, one in edits.get(mark, ()):
                shared[one] = shared.get(one, 0) + 1
        likely = sorted((-count, one) for one, count in shared.items() if count >= LEAST_SHARED)[:MAX_CANDIDATES]
        found.append(Candidates([one for _, one in copies.get(whole, ())], [one for _, one in likely]))
    return found


def _collect(
    kept: dict[int, list[tuple[int, Any]]],
    index: HashIndex,
    hashes: np.ndarray,
    ids: np.ndarray,
    owners: np.ndarray,
    by_distance: bool = True,
) -> None:
    """Adds (differing bits or 0, id) to what is kept for each hash of the index: the MAX_CANDIDATES first of them."""
    inside, asked = index.near(hashes)
    order = np.argsort(inside, kind="stable")
    inside, asked = inside[order], asked[order]
    distance = np.bitwise_count(index.hashes[inside] ^ hashes[asked]) if by_distance else np.zeros(len(inside), int)
    for these in np.split(np.arange(len(inside)), np.flatnonzero(np.diff(inside)) + 1):
        if len(these):
            ranked = zip(distance[these].tolist(), ids[owners[asked[these]]], strict=True)
            slot = int(inside[these[0]])
            kept[slot] = heapq.nsmallest(MAX_CANDIDATES, {*ranked, *kept.get(slot, ())})


def connected(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of positions in hashes uint64 (N,) that connect all that are within `bits` of each other."""
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    left, right = HashIndex(unique, bits).near(unique)
    once = left < right
    return np.concatenate((first[inverse], first[left[once]])), np.concatenate(
        (np.arange(len(hashes)), first[right[once]])
    )
