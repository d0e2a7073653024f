"""Find photos of the catalog that a batch may repeat, without a comparison of all pairs.

The 64 bits of a hash are cut into `bits + 1` bands. Two hashes within `bits` of each other agree in at least one whole
band (pigeonhole principle), so only hashes with a common band are compared. The batch is the index and the catalog is
streamed, so memory depends on the batch. A fixed number of neighbours is kept per hash. This bounds the work for many
similar photos, such as a million flat pictures or one watermark on all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_CANDIDATES = 64
"""Photos kept per hash: the nearest ones, ties broken by id."""
MAX_BUCKET = 1024
"""Hashes of a batch compared per band value; larger buckets occur only in constructed data."""
LEAST_SHARED = 2
"""Landmarks that two photos must share before their pixels are compared. Among 50,403 pairs of unrelated photos,
one shared one landmark and none two: one useless comparison per 20,000 photos of the catalog."""
CHUNK = 1 << 20
"""Hashes compared in one step."""


class HashIndex:
    """An index of distinct hashes, uint64 (N,), for searches within a number of differing bits."""

    def __init__(self, hashes: np.ndarray, bits: int, *, bucket: int | None = None) -> None:
        """Build the index; `bucket` limits the hashes compared per band value, at the risk of missing some."""
        self.hashes, self.bits = hashes, bits
        # Bands of nearly equal width.
        edges = np.linspace(0, 64, bits + 2).astype(int).tolist()
        # A band's lowest 16 bits select the table slot: this loses no pair, and the table stays small.
        widths = np.minimum(np.diff(edges), 16).tolist()
        self._bands = [(np.uint64(e), np.uint64((1 << w) - 1)) for e, w in zip(edges[:-1], widths, strict=True)]
        self._tables = []
        # Per band: the hashes' order by slot, and each slot's start and count in that order.
        for number in range(len(self._bands)):
            slots = self._slots(hashes, number)
            counts = np.bincount(slots, minlength=1 << 16)
            starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
            self._tables.append((np.argsort(slots, kind="stable"), starts, np.minimum(counts, bucket or len(hashes))))

    def near(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return every pair within `bits` once: positions in the index and in `hashes`, uint64 (M,)."""
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, max(1, len(hashes)), CHUNK):
            chunk = hashes[start : start + CHUNK]
            for number, (order, starts, counts) in enumerate(self._tables):
                slots = self._slots(chunk, number)
                hit = np.flatnonzero(counts[slots])
                # Step n compares each queried hash with the n-th hash of its slot.
                for step in range(int(counts[slots[hit]].max(initial=0))):
                    hit = hit[counts[slots[hit]] > step]
                    inside = order[starts[slots[hit]] + step]
                    differing = self.hashes[inside] ^ chunk[hit]
                    near = np.bitwise_count(differing) <= self.bits
                    for shift, mask in self._bands[:number]:  # pairs with an equal earlier band are reported there
                        near &= (differing >> shift & mask) != 0
                    pairs.append((inside[near], hit[near] + start))
        positions, queried = zip(*pairs, strict=True) if pairs else ((), ())
        empty = np.empty(0, np.int64)
        return np.concatenate((empty, *positions)), np.concatenate((empty, *queried))

    def _slots(self, hashes: np.ndarray, number: int) -> np.ndarray:
        """Return the slots of hashes in the table of a band, int64."""
        shift, mask = self._bands[number]
        return (hashes >> shift & mask).astype(np.int64)


@dataclass(frozen=True)
class Hashed:
    """Photos and their hashes."""

    ids: np.ndarray
    """Identifiers of the photos (N,); they also break ties between equally near ones."""
    whole: np.ndarray
    """Hash of each whole photo, uint64 (N,)."""
    landmarks: np.ndarray
    """Hashes of all landmarks, uint64 (L,)."""
    owners: np.ndarray
    """Position of each landmark's photo, ascending, (L,)."""

    @staticmethod
    def of(ids: Sequence[object], phashes: Sequence[str], landmarks: Sequence[bytes | None]) -> Hashed:
        """Create an instance from columns of the catalog: 16 hex digits, and 8 bytes (big-endian) per landmark."""
        marks = [m or b"" for m in landmarks]
        owners = np.repeat(np.arange(len(marks)), [len(m) // 8 for m in marks])
        whole = np.array([int(text, 16) for text in phashes], np.uint64)
        return Hashed(np.asarray(ids, object), whole, np.frombuffer(b"".join(marks), ">u8").astype(np.uint64), owners)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> Hashed:
        """Return the photos from position `start` up to `end`."""
        first, last = np.searchsorted(self.owners, [start, end]).tolist()
        owners = self.owners[first:last] - start
        return Hashed(self.ids[start:end], self.whole[start:end], self.landmarks[first:last], owners)

    def parts(self, size: int) -> Iterator[Hashed]:
        """Yield all photos in parts of `size`."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)


@dataclass(slots=True)
class Candidates:
    """Photos that one photo may repeat, by id, most probable first, itself included: at most MAX_CANDIDATES each.

    The ids are those given to `Hashed.of`: ids of samples in a catalog, positions in a batch.
    """

    copies: list[Any] = field(default_factory=list)
    """Photos with a whole-picture hash within `bits`."""
    edits: list[Any] = field(default_factory=list)
    """Photos with at least LEAST_SHARED landmarks in common, most landmarks first."""


def find_candidates(asked: Hashed, known: Iterable[Hashed], bits: int) -> list[Candidates]:
    """Find possible originals of photos.

    Args:
        asked: The photos to find originals for.
        known: Earlier photos in parts of any size; the parts do not change the result.
        bits: Largest number of differing bits of two hashes.

    Returns:
        Candidates for each photo, in the same order.
    """
    # Equal hashes are searched once.
    wholes, whole_of = np.unique(asked.whole, return_inverse=True)
    marks, mark_of = np.unique(asked.landmarks, return_inverse=True)
    by_whole, by_mark = HashIndex(wholes, bits, bucket=MAX_BUCKET), HashIndex(marks, bits, bucket=MAX_BUCKET)
    copies: dict[int, list[tuple[int, Any]]] = {}
    edits: dict[int, list[tuple[int, Any]]] = {}
    for part in known:
        _collect(copies, by_whole, part.whole, part.ids, np.arange(len(part.ids)))
        _collect(edits, by_mark, part.landmarks, part.ids, part.owners, by_distance=False)
    # Combine the landmarks of each photo: count how many of them each candidate shares.
    ends = np.searchsorted(asked.owners, np.arange(len(asked.whole) + 1))
    candidates = []
    for photo, whole in enumerate(whole_of.tolist()):
        shared: dict[Any, int] = {}
        for mark in set(mark_of[ends[photo] : ends[photo + 1]].tolist()):
            for _, match in edits.get(mark, ()):
                shared[match] = shared.get(match, 0) + 1
        # Most shared landmarks first, ties by id.
        likely = sorted((-count, match) for match, count in shared.items() if count >= LEAST_SHARED)[:MAX_CANDIDATES]
        candidates.append(Candidates([match for _, match in copies.get(whole, ())], [match for _, match in likely]))
    return candidates


def _collect(
    kept: dict[int, list[tuple[int, Any]]],
    index: HashIndex,
    hashes: np.ndarray,
    ids: np.ndarray,
    owners: np.ndarray,
    by_distance: bool = True,
) -> None:
    """Add (differing bits or 0, id) to the entries of each index hash, and keep the MAX_CANDIDATES smallest."""
    inside, queried = index.near(hashes)
    order = np.argsort(inside, kind="stable")
    inside, queried = inside[order], queried[order]
    distance = np.bitwise_count(index.hashes[inside] ^ hashes[queried]) if by_distance else np.zeros(len(inside), int)
    # One group per hash of the index.
    for group in np.split(np.arange(len(inside)), np.flatnonzero(np.diff(inside)) + 1):
        if len(group):
            ranked = zip(distance[group].tolist(), ids[owners[queried[group]]], strict=True)
            slot = int(inside[group[0]])
            kept[slot] = heapq.nsmallest(MAX_CANDIDATES, {*ranked, *kept.get(slot, ())})


def connected(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions in hashes, uint64 (N,), that connect all hashes within `bits` of each other."""
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    left, right = _pairs_within(unique, bits)
    # Equal hashes are linked to their first occurrence.
    return np.concatenate((first[inverse], first[left])), np.concatenate((np.arange(len(hashes)), first[right]))


def _pairs_within(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of all pairs of distinct ascending hashes within `bits`, each pair once and left < right.

    In the order of a band's slots, candidates are neighbours: step n compares each hash with the n-th one after it.
    """
    index = HashIndex(hashes, bits)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for number, (order, _, counts) in enumerate(index._tables):
        ends = np.cumsum(counts)
        ordered, end = hashes[order], np.repeat(ends, counts)
        # `start` are positions in the order that still have an n-th follower in their slot.
        start = np.arange(len(order))
        for step in range(1, int(counts.max(initial=0))):
            start = start[start + step < end[start]]
            differing = ordered[start] ^ ordered[start + step]
            close = np.flatnonzero(np.bitwise_count(differing) <= bits)
            differing, one = differing[close], start[close]
            new = np.ones(len(one), bool)
            for shift, mask in index._bands[:number]:  # pairs with an equal earlier band are reported there
                new &= (differing >> shift & mask) != 0
            one = one[new]
            pairs.append((order[one], order[one + step]))
    left, right = zip(*pairs, strict=True)
    return np.concatenate(left), np.concatenate(right)
