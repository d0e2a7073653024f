"""The photos of a folder, structured as arrivals are; each file is looked at once, however often it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import digest_of, read_keyed, sha256_file, write_json
from mm_core.imaging.images import UnreadableImage, load_rgb
from mm_core.imaging.near_duplicates import LOOK_SIDE, glance, landmarks, perceptual_hash
from mm_core.ingest.spellings import PHOTOS, is_hidden
from mm_core.storage.catalog import Catalog
from mm_core.structuring import photo_features
from mm_core.structuring.category_guess import Guesser, guesser_of
from mm_core.structuring.extractors import Chosen, chosen, decode, shrunk
from mm_core.structuring.rows import Found, Photo, best_vector

VERSION = "1"
"""Rises whenever a record below may come out differently."""
CHUNK = 32
"""Photos that are decoded before the extractors that take many at once."""


@dataclass(frozen=True)
class Picture:
    """One photo of a gallery and what is known of it."""

    path: Path
    name: str
    """Relative to the gallery, with slashes."""
    digest: str
    """sha256 of the file."""
    found: dict[str, Found]
    """Extractor → what it found; `VECTORS` are looked up in this order."""
    phash: str
    landmarks: bytes
    category: str | None
    """Guessed; None where the guess was not sure enough."""

    @property
    def vector(self) -> np.ndarray:
        return best_vector(self.found)

    @property
    def place(self) -> tuple[float, float]:
        """Latitude and longitude in degrees; NaN where unknown."""
        numbers = self.found[photo_features.EXTRACTOR].numbers
        return numbers.get("latitude", np.nan), numbers.get("longitude", np.nan)

    @property
    def taken_at(self) -> str | None:
        return self.found[photo_features.EXTRACTOR].texts.get("taken_at")

    @property
    def camera(self) -> str:
        """Maker and model as EXIF has them; empty where unknown."""
        return self.found[photo_features.EXTRACTOR].texts.get("camera", "")

    @property
    def quality(self) -> float:
        """The aesthetic score, in [0, 1]."""
        return self.found[photo_features.EXTRACTOR].numbers["aesthetic"]


@dataclass(frozen=True)
class Gallery:
    """What a folder holds."""

    pictures: list[Picture]
    unreadable: list[dict[str, str]]
    """Name and reason of files that give no picture."""
    looked_at: int
    """Photos that were new."""


def read_gallery(
    folder: Path,
    params: Params,
    layout: Layout,
    catalog: Catalog,
    *,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Gallery:
    """Every photo of a folder and its sub-folders, by name; records lie in the workspace's cache by content.

    Hidden and system files are left aside (`spellings.is_hidden`). Raises InputError where the folder is none, or holds
    no photo.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a folder with photos")
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix.lower() in PHOTOS and not is_hidden(p.relative_to(folder))
    )
    if not files:
        raise InputError(f"{folder}: no photos found; put {', '.join(sorted(PHOTOS))} files there")
    with ExitStack() as stack:
        tools = chosen(params, layout, stack)
        guesser, vectors_from = guesser_of(catalog, tools)
        key = digest_of(
            [VERSION, photo_features.VERSION, params.structure.model_dump(mode="json"), vectors_from]
            + [(e.name, e.version) for e in tools.extractors]
        )
        digests = {path: sha256_file(path) for path in files}
        records: dict[str, dict[str, Any]] = {}
        for digest in set(digests.values()):
            known = read_keyed(_record(layout, digest), key)
            if known is not None:
                records[digest] = known
        new = {digest: path for path, digest in digests.items() if digest not in records}
        for done, (digest, record) in enumerate(_look(list(new.items()), tools, guesser, params), start=1):
            records[digest] = record
            write_json(_record(layout, digest), record | {"key": key})
            progress("photos", done, len(new))
    pictures, unreadable = [], []
    for path in files:
        name, record = path.relative_to(folder).as_posix(), records[digests[path]]
        if "unreadable" in record:
            unreadable.append({"photo": name, "reason": record["unreadable"]})
        else:
            pictures.append(_picture(path, name, digests[path], record))
    return Gallery(pictures, unreadable, len(new))


def _record(layout: Layout, digest: str) -> Path:
    return layout.cache / "gallery" / digest[:2] / f"{digest}.json"


def _look(
    new: Sequence[tuple[str, Path]], tools: Chosen, guesser: Guesser, params: Params
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Decodes and measures photos chunk by chunk; a file that gives no picture has `unreadable`, its reason."""
    for start in range(0, len(new), CHUNK):
        photos: list[Photo] = []
        for digest, path in new[start : start + CHUNK]:
            try:
                rgb = decode(path)
            except UnreadableImage as error:
                yield digest, {"unreadable": str(error).replace(str(path.parent) + "/", "")}
                continue
            photos.append(Photo(digest, path.name, path, rgb, shrunk(rgb, photo_features.SIDE)))
        if not photos:
            continue
        found: list[dict[str, Found]] = [{} for _ in photos]
        for extractor in tools.extractors:
            if extractor.categories is None:
                for row, result in zip(found, extractor.run(photos), strict=True):
                    row[extractor.name] = result
        vectors = np.stack([best_vector(row) for row in found])
        categories = []
        for guess in guesser.guess(vectors):
            sure = guess is not None and guess.confidence >= params.structure.guess_confidence
            categories.append(guess.category if guess is not None and sure else None)
        for extractor in tools.extractors:
            wanted = [n for n, category in enumerate(categories) if extractor.categories and extractor.wants(category)]
            if wanted:
                for n, result in zip(wanted, extractor.run([photos[n] for n in wanted]), strict=True):
                    found[n][extractor.name] = result
        for one, row, category in zip(photos, found, categories, strict=True):
            look = load_rgb(one.path, LOOK_SIDE)
            record: dict[str, Any] = {"category": category, "phash": perceptual_hash(look)}
            record["landmarks"] = landmarks(glance(look)).astype(">u8").tobytes().hex()
            record["found"] = {
                name: {
                    "numbers": dict(f.numbers),
                    "texts": dict(f.texts),
                    "vector": None if f.vector is None else [round(float(v), 6) for v in f.vector],
                }
                for name, f in row.items()
            }
            yield one.sample_id, json.loads(json.dumps(record))


def _picture(path: Path, name: str, digest: str, record: dict[str, Any]) -> Picture:
    found = {
        extractor: Found(f["numbers"], f["texts"], None if f["vector"] is None else np.array(f["vector"], np.float32))
        for extractor, f in record["found"].items()
    }
    marks = bytes.fromhex(record["landmarks"])
    return Picture(path, name, digest, found, record["phash"], marks, record["category"])


def seconds_of(times: Sequence[datetime | None]) -> np.ndarray:
    """Local times as seconds since 1970, float (N,); NaN where unknown."""
    return np.array([np.nan if t is None else (t - datetime(1970, 1, 1)).total_seconds() for t in times])
