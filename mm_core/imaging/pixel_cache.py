"""Pixels for training: each photo is decoded once, then only cropped or reduced.

`PixelCache` keeps photos and mattes as uint8 squares in growing memory-mapped files, so an epoch decodes no JPEG.
`Pool` draws batches from it. A batch is a pure function of (seed, stream, step). No random state has to be saved: a
resumed run draws the same batches as an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import pandas as pd

from mm_core.core.locks import exclusive
from mm_core.core.progress import Progress
from mm_core.core.records import write_bytes
from mm_core.imaging.augment import augment
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.store import Store, fetch_blob

CACHE_SCALE = 1.25
"""Side of cached squares relative to the model's input; the reserve keeps detail in crops."""
UNKNOWN = "unknown"
"""Category of a row without one."""
CHUNK = 64
"""Photos and mattes that are decoded before they are written."""
FEW = 8
"""Mattes that a model predicts before they are written."""
_KEY = 64
"""Characters of a key: a sha256 in hex."""


class Shelf:
    """Rows of one shape in a growing file, found by sha256; stored rows never change.

    `<name>.u8` holds the rows, `<name>.index` one key and newline per row. The key is written after its row. A killed
    process leaves a row without a key (overwritten by the next write) or half a key (cut off).

    `keep` writes the next generation, `<name>.<n>.u8` and `<name>.<n>.index`. The newest one with an index counts.
    Processes that have the files of an earlier one open can still read them.
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.row_bytes = math.prod(shape)
        self._folder, self._name = folder, name
        self._generation = 0
        self._rows: np.ndarray | None = None
        self._place: dict[str, int] = {}
        self.reload()

    def _file(self, generation: int, suffix: str) -> Path:
        number = f".{generation}" if generation else ""
        return self._folder / f"{self._name}{number}.{suffix}"

    def _newest(self) -> int:
        numbers = [path.name.split(".")[-2] for path in self._folder.glob(f"{self._name}.*.index")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def reload(self) -> None:
        """Read the keys that other processes have appended."""
        generation = self._newest()
        index = self._file(generation, "index")
        length = index.stat().st_size if index.is_file() else 0
        # The integer division ignores half a key at the end.
        count, known = length // (_KEY + 1), len(self._place)
        # Rows never move within a generation. A shorter index is a new one after `PixelCache.clear`.
        if generation != self._generation or count < known:
            self._place, known = {}, 0
        self._generation = generation
        if count > known:
            with index.open("rb") as stream:
                stream.seek(known * (_KEY + 1))
                lines = stream.read((count - known) * (_KEY + 1)).decode("ascii").split("\n")
            self._place.update(zip(lines, range(known, count), strict=False))
        self._map()

    def _map(self) -> None:
        count = len(self._place)
        data = self._file(self._generation, "u8")
        self._rows = np.memmap(data, np.uint8, "r", shape=(count, *self.shape)) if count else None

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def stored(self) -> list[str]:
        """Return the keys in the order in which their rows were added."""
        return list(self._place)

    def append(self, items: Sequence[tuple[str, np.ndarray]]) -> None:
        """Add rows; the caller holds the folder's lock and has called `reload` under it.

        The cost depends on the new rows only.
        """
        if not items:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        count = len(self)
        _write_at(
            self._file(self._generation, "u8"),
            count * self.row_bytes,
            (np.ascontiguousarray(row, np.uint8).data for _, row in items),
        )
        # The rows are on disk before their keys.
        keys = "".join(f"{key}\n" for key, _ in items).encode("ascii")
        _write_at(self._file(self._generation, "index"), count * (_KEY + 1), [keys])
        self._place.update((key, count + n) for n, (key, _) in enumerate(items))
        self._map()

    def keep(self, keys: Sequence[str]) -> None:
        """Remove all rows but these, which keep their order; the caller holds the lock, as for `append`."""
        generation = self._generation + 1
        # A killed process may have left rows of this generation without an index.
        self._file(generation, "u8").unlink(missing_ok=True)
        _write_at(self._file(generation, "u8"), 0, (np.ascontiguousarray(self[key]).data for key in keys))
        # From here on, the new generation counts.
        write_bytes(self._file(generation, "index"), "".join(f"{key}\n" for key in keys).encode("ascii"))
        for suffix in ("index", "u8"):
            self._file(self._generation, suffix).unlink(missing_ok=True)
        self.reload()

    def __getitem__(self, key: str) -> np.ndarray:
        """Return a read-only view of one row."""
        assert self._rows is not None
        return self._rows[self._place[key]]


def _write_at(path: Path, offset: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write at a position of a file, which ends there afterwards, and wait for the disk.

    Raises:
        StoreError: The disk is full, or the file cannot be written.
    """
    with disk_faults_of(path), path.open("r+b" if path.exists() else "w+b") as stream:
        stream.seek(offset)
        stream.truncate()
        for part in parts:
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())


class PixelCache:
    """Photos (side, side, 3) by sample id and mattes (side, side) by alpha digest, stretched to squares."""

    def __init__(self, folder: Path, size: int, limit: float = math.inf) -> None:
        """Open the cache.

        Args:
            folder: The workspace's folder of caches.
            size: The model's input side in pixels; the cached side is `CACHE_SCALE` times that.
            limit: Bytes above which `fill` removes what it does not need.
        """
        self.size, self.side, self.limit = size, round(size * CACHE_SCALE), limit
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

        If the cache would exceed its limit, photos and mattes outside of `frame` are removed first, the oldest first,
        down to half of the limit. What `frame` needs is kept in any case.

        Safe with concurrent processes and after a kill. Raises BlobNotFound, or the InputError of an unreadable file.
        """
        with exclusive(self.folder / ".lock"):
            self.photos.reload()
            self.mattes.reload()
            jobs = [(self.photos, row.sample_id, row) for row in _first(frame, "sample_id", self.photos)]
            jobs += [(self.mattes, row.alpha_sha256, row) for row in _first(frame, "alpha_sha256", self.mattes)]
            self._make_room(frame, sum(shelf.row_bytes for shelf, _, _ in jobs))
            # Only the cores that this process may use.
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            # A chunk limits the memory and the loss by a kill.
            with ThreadPoolExecutor(workers) as pool:
                for start in range(0, len(jobs), CHUNK):
                    chunk = jobs[start : start + CHUNK]
                    squares = list(pool.map(lambda job: self._square(store, *job), chunk))
                    for shelf in (self.photos, self.mattes):
                        shelf.append([(job[1], sq) for job, sq in zip(chunk, squares, strict=True) if job[0] is shelf])
                    if progress:
                        progress("decode", start + len(chunk), len(jobs))
        return len(jobs)

    def has_matte(self, key: str) -> bool:
        """Return whether the cache holds a matte under this key."""
        return key in self.mattes

    def keep_mattes(self, mattes: Iterable[tuple[str, np.ndarray]]) -> None:
        """Add mattes that no file of the store holds, a few at a time, so that a kill loses little work.

        Args:
            mattes: Pairs of a key of 64 hex digits and a matte (H, W) in [0, 1].
        """
        stream = iter(mattes)
        while rows := [(key, np.rint(self._resize(m) * 255).astype(np.uint8)) for key, m in islice(stream, FEW)]:
            with exclusive(self.folder / ".lock"):
                self.mattes.reload()
                self.mattes.append([(key, row) for key, row in rows if key not in self.mattes])

    def _make_room(self, frame: pd.DataFrame, new: int) -> None:
        """Remove rows that the frame does not need if `new` bytes would exceed the limit."""
        shelves = ((self.photos, frame["sample_id"]), (self.mattes, frame["alpha_sha256"]))
        if not new or sum(len(shelf) * shelf.row_bytes for shelf, _ in shelves) + new <= self.limit:
            return
        for shelf, column in shelves:
            needed = set(column.dropna())
            others = [key for key in shelf.stored() if key not in needed]
            # A photo and its matte take four parts: three for the photo, one for the matte.
            share = self.limit / 2 * (3 if shelf is self.photos else 1) / 4
            room = share - len(needed) * shelf.row_bytes
            newest = set(others[len(others) - max(0, int(room // shelf.row_bytes)) :]) if room > 0 else set()
            if len(newest) < len(others):
                shelf.keep([key for key in shelf.stored() if key in needed or key in newest])

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

    def drawn(self, slots: int) -> np.ndarray:
        """Return the rows of the slots 0, 1, …, `slots` − 1, sorted and without repeats.

        The last round counts whole, so that the cost does not depend on the number of slots.
        """
        if not slots:
            return np.empty(0, int)
        turns = -(-slots // len(self._names))
        parts = [
            rows if turns >= len(rows) else rng_of(self._seed, self._stream, name, 0).permutation(rows)[:turns]
            for name, rows in self._rows.items()
        ]
        return np.sort(np.concatenate(parts))


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
        self._frame = frame
        self._ids = frame["sample_id"].tolist()
        self._alphas = [digest if isinstance(digest, str) else None for digest in frame["alpha_sha256"]]
        self._binary = frame["label_binary"].fillna(False).astype(bool).to_numpy()
        self._decoders = frame["decoder"].tolist()
        self._captions = frame["caption"].fillna("").tolist()
        self.categories = frame["category"].fillna(UNKNOWN).tolist()
        self._order = BalancedOrder(self.categories, seed, stream)

    def __len__(self) -> int:
        return len(self._ids)

    def drawn(self, steps: int, count: int) -> pd.DataFrame:
        """Return the rows of the frame that `draw` uses in the steps before `steps`, each once."""
        return self._frame.iloc[self._order.drawn(steps * count)]

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
