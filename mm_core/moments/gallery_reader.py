"""Read the photos of a folder and extract their features; results are cached by content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.folders import require_folder
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import digest_of, read_keyed, sha256_file, write_json
from mm_core.core.spellings import NO_PHOTOS, PHOTOS, is_hidden
from mm_core.imaging.images import UnreadableImage, load_rgb
from mm_core.imaging.near_duplicates import LOOK_SIDE, glance, landmarks, perceptual_hash
from mm_core.storage.run import StorageRun
from mm_core.structuring import photo_features
from mm_core.structuring.category_guess import Guesser, guesser_of
from mm_core.structuring.decode import code_version, decode, shrunk
from mm_core.structuring.extractors import Chosen, chosen
from mm_core.structuring.rows import Found, Photo, best_vector

CHUNK = 32
"""Photos decoded together for extractors that process batches."""


@dataclass(frozen=True)
class Picture:
    """One photo of a gallery and its features."""

    path: Path
    name: str
    """Path relative to the gallery, with slashes."""
    digest: str
    """sha256 of the file."""
    found: dict[str, Found]
    """Extractor → its result; vectors are searched in the order of `VECTORS`."""
    phash: str
    landmarks: bytes
    category: str | None
    """Guessed category; None if the guess was not confident enough."""

    @property
    def vector(self) -> np.ndarray:
        """The most informative of the photo's vectors."""
        return best_vector(self.found)

    @property
    def place(self) -> tuple[float, float]:
        """Latitude and longitude in degrees; NaN if unknown."""
        numbers = self.found[photo_features.EXTRACTOR].numbers
        return numbers.get("latitude", np.nan), numbers.get("longitude", np.nan)

    @property
    def taken_at(self) -> str | None:
        """Time of capture, ISO 8601; None if unknown."""
        return self.found[photo_features.EXTRACTOR].texts.get("taken_at")

    @property
    def camera(self) -> str:
        """Maker and model from EXIF; empty if unknown."""
        return self.found[photo_features.EXTRACTOR].texts.get("camera", "")

    @property
    def quality(self) -> float:
        """The aesthetic score, in [0, 1]."""
        return self.found[photo_features.EXTRACTOR].numbers["aesthetic"]


@dataclass(frozen=True)
class Gallery:
    """The content of a folder."""

    pictures: list[Picture]
    unreadable: list[dict[str, str]]
    """Name and reason of unreadable files."""
    looked_at: int
    """Number of photos that were not in the cache."""


def read_gallery(run: StorageRun, folder: Path) -> Gallery:
    """Read every photo of a folder and its subfolders, sorted by name.

    Records are cached in the workspace by content. Hidden and system files are ignored (`spellings.is_hidden`).

    Args:
        run: Params, workspace, storage and progress.
        folder: The folder of photos.

    Returns:
        The photos and the unreadable files.

    Raises:
        InputError: The folder does not exist or holds no photo.
    """
    require_folder(folder)
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix.lower() in PHOTOS and not is_hidden(p.relative_to(folder))
    )
    if not files:
        raise InputError(f"{folder}: {NO_PHOTOS}")
    with ExitStack() as stack:
        tools = chosen(run.params, run.layout, stack)
        guesser, vectors_from = guesser_of(run.catalog, tools)
        # A change of extractors or parameters invalidates the records.
        key = digest_of(
            [code_version(__name__), run.params.structure.model_dump(mode="json"), vectors_from]
            + [(e.name, e.version) for e in tools.extractors]
        )
        digests = {path: sha256_file(path) for path in files}
        cached = {digest: read_keyed(_record(run.layout, digest), key) for digest in set(digests.values())}
        records = {digest: cast(PhotoRecord, record) for digest, record in cached.items() if record is not None}
        # Equal files share one record.
        new = {digest: path for path, digest in digests.items() if digest not in records}
        for done, (digest, record) in enumerate(_look(list(new.items()), tools, guesser, run.params), start=1):
            records[digest] = record
            # Written photo by photo, so that a killed run keeps its results.
            write_json(_record(run.layout, digest), {**record, "key": key})
            run.progress("photos", done, len(new))
    pictures, unreadable = [], []
    for path in files:
        name, record = path.relative_to(folder).as_posix(), records[digests[path]]
        if "unreadable" in record:
            unreadable.append({"photo": name, "reason": record["unreadable"]})
        else:
            pictures.append(_picture(path, name, digests[path], record))
    return Gallery(pictures, unreadable, len(new))


class FoundRecord(TypedDict):
    """The result of one extractor."""

    numbers: dict[str, float]
    texts: dict[str, str]
    vector: list[float] | None


class PhotoRecord(TypedDict, total=False):
    """What the cache keeps of a photo; of an unreadable one only the reason."""

    unreadable: str
    category: str | None
    phash: str
    landmarks: str
    """Hex digits, 8 bytes per landmark."""
    found: dict[str, FoundRecord]


def _record(layout: Layout, digest: str) -> Path:
    return layout.cache / "gallery" / digest[:2] / f"{digest}.json"


def _look(
    new: Sequence[tuple[str, Path]], tools: Chosen, guesser: Guesser, params: Params
) -> Iterator[tuple[str, PhotoRecord]]:
    """Decode and measure photos in chunks; the record of an unreadable file has only `unreadable`, its reason."""
    for start in range(0, len(new), CHUNK):
        photos: list[Photo] = []
        for digest, path in new[start : start + CHUNK]:
            try:
                rgb = decode(path)
            except UnreadableImage as error:
                # Equal files in other folders share the record, so it must not name this folder.
                yield digest, {"unreadable": str(error).replace(str(path.parent) + "/", "")}
                continue
            photos.append(Photo(digest, path.name, path, rgb, shrunk(rgb, photo_features.SIDE)))
        if not photos:
            continue
        rows: list[dict[str, Found]] = [{} for _ in photos]
        # Extractors for all categories run first: the category guess needs their vectors.
        for extractor in tools.extractors:
            if extractor.categories is None:
                for row, result in zip(rows, extractor.run(photos), strict=True):
                    row[extractor.name] = result
        least = params.structure.guess_confidence
        guesses = guesser.guess(np.stack([best_vector(row) for row in rows]))
        categories = [guess.category if guess and guess.confidence >= least else None for guess in guesses]
        # Extractors limited to categories (text recognition) run on the guessed ones.
        for extractor in tools.extractors:
            wanted = [n for n, category in enumerate(categories) if extractor.categories and extractor.wants(category)]
            for n, result in zip(wanted, extractor.run([photos[n] for n in wanted]) if wanted else (), strict=True):
                rows[n][extractor.name] = result
        for photo, row, category in zip(photos, rows, categories, strict=True):
            # Hashes use a picture of fixed size, so that they are comparable with the catalog's.
            look = load_rgb(photo.path, LOOK_SIDE)
            # Big-endian, as in the catalog.
            marks = landmarks(glance(look)).astype(">u8").tobytes().hex()
            found = {
                name: {
                    "numbers": dict(f.numbers),
                    "texts": dict(f.texts),
                    "vector": None if f.vector is None else [round(float(v), 6) for v in f.vector],
                }
                for name, f in row.items()
            }
            # The round trip through JSON makes a fresh record equal to one from the cache.
            record = {"category": category, "phash": perceptual_hash(look), "landmarks": marks, "found": found}
            yield photo.sample_id, json.loads(json.dumps(record))


def _picture(path: Path, name: str, digest: str, record: PhotoRecord) -> Picture:
    features = {
        extractor: Found(f["numbers"], f["texts"], None if f["vector"] is None else np.array(f["vector"], np.float32))
        for extractor, f in record.get("found", {}).items()
    }
    marks = bytes.fromhex(record.get("landmarks", ""))
    return Picture(path, name, digest, features, record.get("phash", ""), marks, record.get("category"))


def seconds_of(times: Sequence[datetime | None]) -> np.ndarray:
    """Return local times as seconds since 1970, float (N,); NaN for unknown."""
    return np.array([np.nan if t is None else (t - datetime(1970, 1, 1)).total_seconds() for t in times])
