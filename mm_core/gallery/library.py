"""Data of the gallery page: photos of a gallery and uploads, their renditions, and their mattes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES, decoder_of, sha256_bytes, sha256_file, write_bytes
from mm_core.effects.cutout import Cutout
from mm_core.effects.eraser import erase
from mm_core.effects.sky import SKIES, painted_sky
from mm_core.effects.style import STYLES
from mm_core.effects.subjects import Subjects
from mm_core.export.bundle_manifest import MANIFEST, checked_manifest, load_golden
from mm_core.export.runtime import OnnxPredictor
from mm_core.export.signature import can_verify, check_file
from mm_core.imaging.images import TooManyPixels, UnreadableImage, encode_alpha, load_rgb, read_header
from mm_core.ingest.drop import PHOTOS
from mm_core.model.predict import decoders_for
from mm_core.moments.moments_file import MomentEntry, read_moments
from mm_core.moments.pieces import Matted, file_of, finished
from mm_core.moments.strategy import FUNCTIONS, Offer

SIDES = (320, 2048)
"""Long sides of renditions in pixels: a tile, and the working size of the page."""
UPLOAD_BYTES = 40_000_000
"""Largest size of an uploaded photo, 40 MB."""
UPLOAD_FORMATS = frozenset({"JPEG", "PNG", "WEBP", "AVIF", "HEIF"})
KEPT_MATTES = 8
"""Mattes kept in memory, so that repeated taps do not run the network again."""


@dataclass(frozen=True)
class Entry:
    """One photo of the library."""

    id: str
    """sha256 of the file."""
    path: Path
    name: str
    category: str | None


class Library:
    """Photos, mattes and pieces, safe for several threads; heavy work is serialised to limit the memory."""

    def __init__(self, gallery: Path, moments: Path, bundle: Path, uploads: Path, max_pixels: int) -> None:
        """Open the library.

        Args:
            gallery: Folder of the photos.
            moments: Folder that `mm moments` wrote.
            bundle: Folder of the model's bundle. If `MM_VERIFY_KEY` or `MM_SIGNING_KEY` is set, that key must have
                signed it.
            uploads: Folder of uploaded photos.
            max_pixels: Limit for uploads.

        Raises:
            InputError: A folder lacks its content, or the bundle is invalid.
        """
        if not (moments / "moments.json").is_file():
            raise InputError(f"{moments} holds no moments.json: run `mm moments {gallery}` first")
        record = read_moments(moments / "moments.json")
        self.moments_folder, self.bundle, self.uploads, self.max_pixels = moments, bundle, uploads, max_pixels
        self.signed_by = check_file(bundle / MANIFEST) if can_verify() else None
        self.manifest = checked_manifest(bundle)
        self.predictor = OnnxPredictor.of_folder(bundle, guided=True)
        self._busy = threading.Lock()
        self._mattes: OrderedDict[tuple[str, str], Matted] = OrderedDict()
        self._decoders: dict[str, str] = {}
        self.moments: list[MomentEntry] = record["moments"]
        self._pieces = {piece["file"] for moment in self.moments for piece in moment["pieces"] if "file" in piece}
        self.photos: dict[str, Entry] = {}
        for photo in (p for moment in self.moments for p in moment["photos"]):
            path = (gallery / photo["name"]).resolve()
            # moments.json may be older than the folder; a replaced photo has another digest and is skipped.
            if path.is_relative_to(gallery.resolve()) and path.is_file() and sha256_file(path) == photo["id"]:
                self.photos[photo["id"]] = Entry(photo["id"], path, photo["name"], photo["category"])
        if uploads.is_dir():
            # Uploads have no category; their name is their digest.
            for path in sorted(uploads.iterdir()):
                if path.suffix in PHOTOS and sha256_file(path) == path.stem:
                    self.photos[path.stem] = Entry(path.stem, path, f"added {path.stem[:8]}", None)

    def entry(self, id: str) -> Entry:
        """Return a photo by id; raise KeyError for an unknown one."""
        return self.photos[id]

    def piece(self, file: str) -> Path:
        """Return the path of a finished piece that moments.json names; raise KeyError for any other."""
        if file not in self._pieces:
            raise KeyError(file)
        return self.moments_folder / file

    def rendition(self, id: str, side: int) -> bytes:
        """Return a JPEG of long side `side` at most, upright, sRGB, without metadata; raise KeyError if unknown."""
        entry = self.photos[id]
        if side not in SIDES:
            raise KeyError(side)
        with self._busy:
            stream = BytesIO()
            Image.fromarray(load_rgb(entry.path, side)).save(stream, "JPEG", quality=90)
        return stream.getvalue()

    def sky(self, name: str) -> bytes:
        """Return a JPEG of one of SKIES, 1024 x 512, as the page's background; raise KeyError for any other."""
        if name not in SKIES:
            raise KeyError(name)
        stream = BytesIO()
        Image.fromarray(painted_sky(name, 512, 1024)).save(stream, "JPEG", quality=92)
        return stream.getvalue()

    def matte(self, id: str, decoder: str) -> bytes:
        """Return the matte of the page's rendition as grey PNG, for browsers that cannot run the model."""
        with self._busy:
            photo = load_rgb(self.photos[id].path, max(SIDES))
            return encode_alpha(self.predictor.predict([photo], [decoder])[0])

    def decoder(self, id: str) -> str:
        """Return the decoder for a photo: by its category, or chosen by the model for an unknown one."""
        with self._busy:
            return self._decoder(self.photos[id])

    def _decoder(self, entry: Entry) -> str:
        if entry.id not in self._decoders:
            photo = load_rgb(entry.path, max(SIDES))
            (self._decoders[entry.id],) = decoders_for(self.predictor, [photo], [entry.category])
        return self._decoders[entry.id]

    def apply(self, id: str, function: str, choice: str, tap: tuple[float, float] | None) -> tuple[str, bytes]:
        """Apply one of FUNCTIONS to a photo at its own size.

        Args:
            id: The photo.
            function: One of FUNCTIONS.
            choice: A sky or a style, or empty.
            tap: Position as shares of width and height; the eraser removes the subject there, other functions use it
                as their subject.

        Returns:
            File suffix and bytes of the result.

        Raises:
            KeyError: Unknown photo.
            InputError: Unknown function or choice, or no subject found.
        """
        if function not in FUNCTIONS or (choice and choice not in (*SKIES, *STYLES)):
            raise InputError(f"{function} {choice}: no such function or choice")
        entry = self.photos[id]
        with self._busy:
            matted = self._matted(entry, decoder_of("scenery") if function == "sky" else self._decoder(entry))
            result: np.ndarray | Cutout | None
            if function == "eraser" and tap:
                # Erase the tapped subject and protect the others.
                subject = matted.subjects.at(*tap)
                others = [s for s in matted.subjects.all if s != subject]
                keep = matted.subjects.of(*others) if others else None
                result = None if subject is None else erase(matted.photo, matted.subjects.of(subject), keep=keep)
            elif tap and matted.subjects.at(*tap):
                # Limit the function to the tapped subject.
                subject = matted.subjects.at(*tap)
                assert subject is not None
                alpha = matted.subjects.of(subject)
                result = finished(Matted(matted.photo, alpha, Subjects(alpha)), Offer(function, 1.0, "", choice))
            else:
                # Without a tap the function uses the whole matte.
                result = finished(matted, Offer(function, 1.0, "", choice))
        if result is None:
            raise InputError("no subject was found there: tap on the subject, or choose another photo")
        return file_of(result, model=str(self.manifest["version"]), function=function)

    def add(self, data: bytes) -> Entry:
        """Add an uploaded photo; raise UnreadableImage or InputError with the reason, and keep nothing, if it is bad.

        The content decides format and name; the client's file name is ignored.
        """
        digest = sha256_bytes(data)
        if digest in self.photos:
            return self.photos[digest]
        waiting = self.uploads / f".{digest}.waiting"
        write_bytes(waiting, data)
        try:
            # Header first: format and size are checked before anything is decoded.
            header = read_header(waiting)
            if header.format not in UPLOAD_FORMATS:
                raise InputError(f"{header.format} is not taken: send JPEG, PNG, WebP, AVIF or HEIF")
            if header.pixels > self.max_pixels:
                raise TooManyPixels(f"claims {header.pixels} pixels: send a smaller picture", header.pixels)
            if min(header.width, header.height) < 32:
                raise InputError("a side is shorter than 32 pixels: send a larger picture")
            with self._busy:
                # A complete decoding shows that the file is intact.
                load_rgb(waiting, max(SIDES))
            path = self.uploads / f"{digest}.{header.format.lower().replace('jpeg', 'jpg')}"
            waiting.replace(path)
        except UnreadableImage as error:
            raise InputError(str(error).replace(str(waiting), "the file")) from None
        finally:
            waiting.unlink(missing_ok=True)
        self.photos[digest] = Entry(digest, path, f"added {digest[:8]}", None)
        return self.photos[digest]

    def golden(self, decoder: str) -> bytes:
        """Return a golden photo, uint8 S x S x 3, followed by its matte, float32 little-endian S x S, as bytes."""
        pairs = load_golden(self.bundle, self.manifest)
        image, alpha = pairs[f"{decoder}_image"], pairs[f"{decoder}_alpha"]
        return image.astype(np.uint8).tobytes() + alpha.astype("<f4").tobytes()

    def about(self) -> dict[str, object]:
        """Return the start data of the page: model, moments, photos and choices."""
        manifest: Mapping[str, object] = self.manifest
        # Only these fields of the manifest are public.
        model = {name: manifest[name] for name in ("version", "input", "golden", "metrics") if name in manifest}
        files = {decoder: entry["file"] for decoder, entry in self.manifest["decoders"].items()}
        digests = {file: self.manifest["files"][file]["sha256"] for file in files.values()}
        return {
            "model": model | {"decoders": files, "sha256": digests},
            "decoder_of": {category: decoder_of(category) for category in ALL_CATEGORIES},
            "moments": self.moments,
            "photos": [{"id": e.id, "name": e.name, "category": e.category} for e in self.photos.values()],
            "skies": list(SKIES),
            "styles": list(STYLES),
        }

    def _matted(self, entry: Entry, decoder: str) -> Matted:
        key = entry.id, decoder
        if key not in self._mattes:
            photo = load_rgb(entry.path, 4096)
            alpha = self.predictor.predict([photo], [decoder])[0]
            self._mattes[key] = Matted(photo, alpha, Subjects(alpha))
            # Least recently used mattes are dropped first.
            while len(self._mattes) > KEPT_MATTES:
                self._mattes.popitem(last=False)
        self._mattes.move_to_end(key)
        return self._mattes[key]
