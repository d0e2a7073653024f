"""Pixels for training: each photo is decoded once, then only cropped or reduced.

`PixelCache` keeps every photo and matte as a uint8 square in growing memory-mapped files, so an epoch decodes no JPEG.
`Pool` draws batches from it. A batch is a pure function of (seed, stream, step). No random state has to be saved: a
resumed run draws the same batches as an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import pandas as pd

from mm_core.core.locks import exclusive
from mm_core.core.progress import Progress
from mm_core.imaging.augment import augment
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.storage.store import Store, fetch_blob

CACHE_SCALE = 1.25
"""Side of cached squares relative to the model's input; the reserve keeps detail in crops."""
UNKNOWN = "unknown"
"""Category of a row without one."""
_KEY = 64
"""Characters of a key: a sha256 in hex."""


class Shelf:
    """Rows of one shape in a growing file, found by sha256; stored rows never change.

    `<name>.u8` holds the rows, `<name>.index` one key and newline per row. The key is written after its row. A killed
    process leaves a row without a key (overwritten by the next write) or half a key (cut off).
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._data, self._index = folder / f"{name}.u8", folder / f"{name}.index"
        self._rows: np.ndarray | None = None
        self._place: dict[str, int] = {}
        self.reload()

    def reload(self) -> None:
        """Read the rows that other processes have appended."""
        raw = self._index.read_bytes() if self._index.is_file() else b""
        # The integer division ignores half a key at the end.
        count = len(raw) // (_KEY + 1)
        lines = raw[: count * (_KEY + 1)].decode("ascii").split("\n")
        self._place = {key: row for row, key in enumerate(lines[:count])}
        self._rows = np.memmap(self._data, np.uint8, "r", shape=(count, *self.shape)) if count else None

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def append(self, items: Sequence[tuple[str, np.ndarray]]) -> None:
        """Add rows; the caller holds the folder's lock and has called `reload` under it."""
        self._data.parent.mkdir(parents=True, exist_ok=True)
        count, size = len(self), math.prod(self.shape)
        with self._data.open("r+b" if self._data.exists() else "w+b") as data:
            data.seek(count * size)
            for _, row in items:
                data.write(np.ascontiguousarray(row, np.uint8).data)
            data.flush()
            # The rows must be on disk before their keys.
            os.fsync(data.fileno())
        with self._index.open("r+b" if self._index.exists() else "w+b") as index:
            index.seek(count * (_KEY + 1))
            index.truncate()
            index.write("".join(f"{key}\n" for key, _ in items).encode("ascii"))
        self.reload()

    def __getitem__(self, key: str) -> np.ndarray:
        """Return a read-only view of one row."""
        assert self._rows is not None
        return self._rows[self._place[key]]


class PixelCache:
    """Photos (side, side, 3) by sample id and mattes (side, side) by alpha digest, stretched to squares."""

    def __init__(self, folder: Path, size: int) -> None:
        """Open the cache; `size` is the model's input side in pixels, the cached side is `CACHE_SCALE` times that."""
        self.size, self.side = size, round(size * CACHE_SCALE)
        self.folder = folder / "pixels" / str(self.side)
        self.photos = Shelf(self.folder, "photos", (self.side, self.side, 3))
        self.mattes = Shelf(self.folder, "mattes", (self.side, self.side))

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove all decoded pixels, of all sizes, and the results of CLIP for them."""
        for name in ("pixels", "clip"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def fill(self, store: Store, frame: pd.DataFrame, progress: Progress | None = None) -> int:
        """Decode the files of `frame` that the cache lacks; return their number.

        Safe with concurrent processes and after a kill. Raises BlobNotFound, or the InputError of an unreadable file.
        """
        with exclusive(self.folder / ".lock"):
            self.photos.reload()
            self.mattes.reload()
            jobs = [(self.photos, row.sample_id, row) for row in _first(frame, "sample_id", self.photos)]
            jobs += [(self.mattes, row.alpha_sha256, row) for row in _first(frame, "alpha_sha256", self.mattes)]
            # Only the cores that this process may use.
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            # A chunk limits the memory and the loss by a kill.
            with ThreadPoolExecutor(workers) as pool:
                for start in range(0, len(jobs), 64):
                    chunk = jobs[start : start + 64]
                    squares = list(pool.map(lambda job: self._square(store, *job), chunk))
                    for shelf in (self.photos, self.mattes):
                        shelf.append([(job[1], sq) for job, sq in zip(chunk, squares, strict=True) if job[0] is shelf])
                    if progress:
                        progress("decode", start + len(chunk), len(jobs))
        return len(jobs)

    def _square(self, store: Store, shelf: Shelf, key: str, row: _Sized) -> np.ndarray:
        path = fetch_blob(store, key)
        if shelf is self.mattes:
            # A matte is resized in float, then rounded once.
            return np.rint(self._resize(load_alpha(path)) * 255).astype(np.uint8)
        short, long = sorted((int(row.width), int(row.height)))
        # The shorter side must not be smaller than the square after decoding at reduced size.
        return self._resize(load_rgb(path, max_side=math.ceil(self.side * long / max(short, 1))))

    def _resize(self, image: np.ndarray) -> np.ndarray:
        # Area means avoid aliasing when shrinking; bilinear interpolation enlarges smoothly.
        shrinks = min(image.shape[:2]) >= self.side
        return cv2.resize(image, (self.side, self.side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _first(frame: pd.DataFrame, column: str, shelf: Shelf) -> list:
    """Return the first row of each key of `column` that the shelf lacks."""
    wanted = frame.dropna(subset=[column]).drop_duplicates(column)
    return [row for row in wanted.itertuples(index=False) if getattr(row, column) not in shelf]


class _Sized(Protocol):
    """A row of a pool: the photo's width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Batch:
    """B samples at the model's size S."""

    ids: list[str]
    images: np.ndarray
    """uint8 (B, S, S, 3), sRGB."""
    alphas: np.ndarray
    """uint8 (B, S, S); zeros for samples without a matte."""
    binary: np.ndarray
    """bool (B,): the matte is a mask without information on the soft band."""
    decoders: list[str]
    captions: list[str]
    """Empty for samples without a caption."""
    categories: list[str]
    """`unknown` for samples without a category."""

    @staticmethod
    def join(parts: Sequence[Batch]) -> Batch:
        """Join several batches of one kind, in order."""
        return Batch(
            sum((p.ids for p in parts), []),
            np.concatenate([p.images for p in parts]),
            np.concatenate([p.alphas for p in parts]),
            np.concatenate([p.binary for p in parts]),
            sum((p.decoders for p in parts), []),
            sum((p.captions for p in parts), []),
            sum((p.categories for p in parts), []),
        )


class BalancedOrder:
    """The row for slot 0, 1, 2, …: categories take turns, and each runs through its rows without repeats.

    Slot n belongs to round n // C of C categories. The order of categories within a round, and of rows within a
    category's epoch, are permutations that depend only on (seed, stream, round or epoch).
    """

    def __init__(self, categories: Sequence[str], seed: int, stream: str) -> None:
        self._seed, self._stream = seed, stream
        self._names = sorted(set(categories))
        self._rows = {name: np.flatnonzero(np.asarray(categories) == name) for name in self._names}
        self._epochs: dict[str, tuple[int, np.ndarray]] = {}

    def row(self, slot: int) -> int:
        """Return the row for a slot."""
        turn, place = divmod(slot, len(self._names))
        name = self._names[rng_of(self._seed, self._stream, "turn", turn).permutation(len(self._names))[place]]
        epoch, within = divmod(turn, len(self._rows[name]))
        cached, order = self._epochs.get(name, (-1, self._rows[name]))
        # A category's permutation is kept until its epoch ends.
        if cached != epoch:
            order = rng_of(self._seed, self._stream, name, epoch).permutation(self._rows[name])
            self._epochs[name] = (epoch, order)
        return int(order[within])


def rng_of(seed: int, *names: str | int) -> np.random.Generator:
    """Return a generator that depends only on its arguments, not on Python's hash seed."""
    # crc32 instead of hash(): the hash of a string differs between processes.
    return np.random.default_rng([seed, *(n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names)])


class Pool:
    """Batches from the rows of one snapshot frame."""

    def __init__(
        self,
        frame: pd.DataFrame,
        cache: PixelCache,
        seed: int,
        stream: str,
        *,
        whole: bool = False,
    ) -> None:
        """Prepare a pool.

        Args:
            frame: Rows of a snapshot.
            cache: Holds their pixels.
            seed: Seed of all draws.
            stream: Name of the use (`hard/replay`), so that two pools of one stage draw differently.
            whole: Draw photos uncropped, mirrored half of the time.
        """
        self._cache, self._seed, self._stream = cache, seed, stream
        self._whole = whole
        self._ids = frame["sample_id"].tolist()
        self._alphas = [digest if isinstance(digest, str) else None for digest in frame["alpha_sha256"]]
        self._binary = frame["label_binary"].fillna(False).astype(bool).to_numpy()
        self._decoders = frame["decoder"].tolist()
        self._captions = frame["caption"].fillna("").tolist()
        self.categories = frame["category"].fillna(UNKNOWN).tolist()
        self._order = BalancedOrder(self.categories, seed, stream)

    def __len__(self) -> int:
        return len(self._ids)

    def draw(self, step: int, count: int, *, rank: int = 0, world: int = 1) -> Batch:
        """Return the batch of a step, augmented or `whole`.

        It has the slots from step·count up to (step + 1)·count, every `world`-th from `rank` on.
        """
        slots = range(step * count + rank, (step + 1) * count, world)
        rngs = [rng_of(self._seed, self._stream, "cut", slot) for slot in slots]
        return self._batch([self._order.row(slot) for slot in slots], rngs)

    def uncut(self, step: int, count: int) -> Batch:
        """Return all rows that `draw` uses in this step, changed only in size."""
        return self._batch([self._order.row(slot) for slot in range(step * count, (step + 1) * count)], None)

    def in_order(self, count: int) -> Iterator[Batch]:
        """Yield all rows once, changed only in size."""
        for start in range(0, len(self), count):
            yield self._batch(list(range(start, min(start + count, len(self)))), None)

    def _batch(self, rows: list[int], rngs: list[np.random.Generator] | None) -> Batch:
        size = self._cache.size
        images, alphas = np.empty((len(rows), size, size, 3), np.uint8), np.zeros((len(rows), size, size), np.uint8)
        for i, row in enumerate(rows):
            digest = self._alphas[row]
            photo, matte = self._cache.photos[self._ids[row]], None if digest is None else self._cache.mattes[digest]
            # Whole photos and evaluation: resize, and mirror at most.
            if rngs is None or self._whole:
                aside = -1 if rngs is not None and rngs[i].random() < 0.5 else 1
                images[i] = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)[:, ::aside]
                if matte is not None:
                    alphas[i] = cv2.resize(matte, (size, size), interpolation=cv2.INTER_AREA)[:, ::aside]
            else:
                # Training: a random crop in another light.
                images[i], cut = augment(photo, matte, size, rngs[i])
                alphas[i] = 0 if cut is None else cut
        return Batch(
            [self._ids[r] for r in rows],
            images,
            alphas,
            self._binary[rows],
            [self._decoders[r] for r in rows],
            [self._captions[r] for r in rows],
            [self.categories[r] for r in rows],
        )
