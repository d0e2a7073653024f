"""Probe: measures one row of a drop. It judges nothing; `expectations` does.

A field that could not be measured, because an earlier step failed, stays None, and no expectation looks at it.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.errors import BlobNotFound, BlobTooLarge
from mm_core.core.params import IngestParams
from mm_core.core.records import sha256_file
from mm_core.imaging.images import (
    ColourPicture,
    Header,
    NotAnImage,
    TooManyPixels,
    UnreadableImage,
    load_rgb,
    read_header,
)
from mm_core.imaging.near_duplicates import LOOK_SIDE, glance, landmarks, perceptual_hash
from mm_core.ingest.decode_sandbox import safely
from mm_core.ingest.manifest import ManifestRow
from mm_core.ingest.matte_quality import MatteQuality
from mm_core.ingest.mattes import take_matte
from mm_core.storage.store import Store

MAX_LINK_BYTES = 4096
FORMULA = re.compile(r"=[\w\"'(+\-@$]|[+\-@]\s*[A-Z][A-Z0-9.]*\((?=[^a-z]*\)\W*$|.*[\"'])|[+\-@].*\w\|.*!\w")
"""What spreadsheets run and nobody writes: a formula, a call of a function, a program (`cmd|'…'!A0`). A dash or a sign
before words is a caption ("-5°C in the snow!", "@NASA(2024) launch"); it is escaped where a CSV leaves
(`drop.escaped`)."""


@dataclass(slots=True)
class Probe:
    """What was measured of one row: the table that Great Expectations judges has these columns."""

    row: int
    image: str
    category: str | None
    role: str | None
    extra_fields: int
    plain_text: bool = True
    """No field begins like a formula of a spreadsheet: reports and exports are opened in such programs."""
    caption_length: int | None = None
    image_inside: bool | None = None
    """The name, and what it links to, stay in the batch."""
    image_found: bool | None = None
    image_bytes: int | None = None
    image_recognised: bool | None = None
    """The content is of a known picture format, whatever the name says."""
    pixels: int | None = None
    """As the header claims."""
    image_decodes: bool | None = None
    width: int | None = None
    """Pixels, upright."""
    height: int | None = None
    short_side: int | None = None
    format: str | None = None
    sha256: str | None = None
    sha256_as_declared: bool | None = None
    phash: str | None = None
    brightness: float | None = None
    """Mean luma, in [0, 1]."""
    landmarks: str | None = None
    """16 hex digits each."""
    alpha_inside: bool | None = None
    alpha_found: bool | None = None
    alpha_bytes: int | None = None
    alpha_decodes: bool | None = None
    alpha_grey: bool | None = None
    """No picture in colour."""
    alpha_way_up: float | None = None
    """Where it could lie in two ways: by how much the photo's edges prefer the one taken (`mattes.turned_upright`)."""
    alpha_is_photo: bool | None = None
    """Its values are the brightness of the photo itself."""
    alpha_size: str | None = None
    """As width×height."""
    alpha_fits: bool | None = None
    """As large as the photo, upright or as stored."""
    alpha_highest: float | None = None
    """Largest value, in [0, 1]."""
    alpha_lowest: float | None = None
    alpha_binary: bool | None = None
    """0 and 1 only: no soft edge."""
    alpha_sha256: str | None = None
    """Of the normalised matte: grey PNG, upright, as large as the photo."""
    matte: MatteQuality | None = None
    """Whether the matte is believable."""
    note: str = ""
    """What a reader or link said, where one complained."""


class Prober:
    """Measures the rows of one batch; safe to call from several threads."""

    def __init__(self, inbox: Store, manifest_key: str, kind: str, params: IngestParams, spool: Path):
        self.inbox, self.kind, self.spool = inbox, kind, spool
        self.max_bytes, self.max_pixels = params.max_bytes, params.max_pixels
        self.prefix = posixpath.dirname(manifest_key)
        self.folder = inbox.fetch(manifest_key).parent.resolve()

    def __call__(self, row: ManifestRow) -> Probe:
        """Everything about one row. Raises StoreError where the inbox itself fails."""
        probe = Probe(row.row, row.image, row.category or None, row.role or None, row.extra_fields)
        probe.plain_text = not any(FORMULA.match(str(value)) for value in astuple(row))
        if self.kind == "text_image" or row.caption:
            probe.caption_length = len(row.caption)
        photo = self._photo(row, probe)
        if self.kind == "pixel_labeled":
            self._alpha(row, probe, photo)
        return probe

    def path_of(self, name: str) -> Path:
        """Local path of a file of the batch. Raises BlobNotFound, BlobTooLarge, or OutsideBatch for a name that leads
        elsewhere."""
        inner = posixpath.normpath(name.replace("\\", "/"))
        if inner.startswith(("/", "../")) or inner == ".." or re.match(r"[A-Za-z]:|\w+://", name):
            raise OutsideBatch(name)
        path = self._fetch(inner)
        target = path.resolve()
        if not target.is_relative_to(self.folder):
            raise OutsideBatch(f"a link to {target.name}")
        return path

    def alpha_copy(self, row: int) -> Path:
        """Where the normalised matte of a row lies while the batch is in work."""
        return self.spool / f"{row}.png"

    def _fetch(self, inner: str) -> Path:
        """macOS writes ü in two signs where others use one: each form is tried."""
        forms = dict.fromkeys((inner, unicodedata.normalize("NFC", inner), unicodedata.normalize("NFD", inner)))
        for form in forms:
            try:
                return self.inbox.fetch(f"{self.prefix}/{form}", most=self.max_bytes)
            except BlobNotFound:
                continue
        raise BlobNotFound(f"{self.prefix} holds no {inner}")

    def _photo(self, row: ManifestRow, probe: Probe) -> tuple[Header, np.ndarray] | None:
        """Header and reduced picture of the photo, where it can be read."""
        probe.image_inside = True
        probe.image_found = False
        try:
            path = self.path_of(row.image)
            probe.image_bytes = path.stat().st_size
            probe.sha256 = sha256_file(path)
        except OutsideBatch as error:
            probe.image_inside, probe.image_found, probe.note = False, None, str(error)
            return None
        except BlobTooLarge as error:
            probe.image_found, probe.image_bytes = True, error.size
            return None
        except (BlobNotFound, OSError) as error:
            probe.note = getattr(error, "strerror", None) or ""
            return None
        probe.image_found = True
        if row.sha256:
            probe.sha256_as_declared = row.sha256 == probe.sha256
        if not probe.image_bytes:
            return None
        probe.image_recognised = False
        try:
            header = safely(read_header, path)
            probe.image_recognised = True
            probe.pixels, probe.format = header.pixels, header.format
            probe.width, probe.height = header.width, header.height
            probe.short_side = min(header.width, header.height)
            if header.pixels > self.max_pixels:
                return None
            probe.image_decodes = False
            look = safely(load_rgb, path, LOOK_SIDE)
            probe.phash = perceptual_hash(look)
            probe.landmarks = landmarks(glance(look)).astype(">u8").tobytes().hex()
            probe.brightness = float(cv2.cvtColor(look, cv2.COLOR_RGB2GRAY).mean()) / 255
            probe.image_decodes = True
            return header, look
        except NotAnImage:
            if target := _link_as_text(path, row.image):
                probe.image_inside, probe.image_found, probe.note = False, None, f"a link, written as text, to {target}"
        except TooManyPixels as error:
            probe.image_recognised, probe.pixels = True, error.pixels
        except UnreadableImage as error:
            probe.image_recognised, probe.image_decodes, probe.note = True, False, _remark(error)
        return None

    def _alpha(self, row: ManifestRow, probe: Probe, taken: tuple[Header, np.ndarray] | None) -> None:
        probe.alpha_inside, probe.alpha_found = True, False
        if not row.alpha:
            return
        try:
            path = self.path_of(row.alpha)
        except OutsideBatch as error:
            probe.alpha_inside, probe.alpha_found, probe.note = False, None, str(error)
            return
        except BlobTooLarge as error:
            probe.alpha_found, probe.alpha_bytes = True, error.size
            return
        except BlobNotFound:
            return
        probe.alpha_found, probe.alpha_bytes = True, path.stat().st_size
        if taken is None:
            return
        photo, look = taken
        probe.alpha_decodes = False
        try:
            header = safely(read_header, path)
            if header.pixels > self.max_pixels:
                raise TooManyPixels(f"{path}: {header.pixels} pixels", header.pixels)
            probe.alpha_size = f"{header.width}×{header.height}"
            fitting = {(photo.width, photo.height), (photo.raw_width, photo.raw_height)}
            if (header.width, header.height) not in fitting:  # said by the header: a large one is not decoded for it
                probe.alpha_decodes, probe.alpha_fits = None, False
                return
            matte = safely(take_matte, path, header, photo, look, probe.category, self.alpha_copy(row.row))
        except ColourPicture as error:
            probe.alpha_decodes, probe.alpha_grey, probe.note = None, False, _remark(error)
            return
        except UnreadableImage as error:
            probe.note = _remark(error)
            if isinstance(error, NotAnImage) and (target := _link_as_text(path, row.alpha)):
                probe.alpha_inside, probe.alpha_decodes = False, None
                probe.note = f"a link, written as text, to {target}"
            return
        probe.alpha_decodes = probe.alpha_fits = probe.alpha_grey = True
        probe.alpha_way_up, probe.alpha_is_photo = matte.way_up, matte.is_photo
        probe.alpha_lowest, probe.alpha_highest, probe.alpha_binary = matte.lowest, matte.highest, matte.binary
        probe.matte, probe.alpha_sha256 = matte.quality, matte.sha256


class OutsideBatch(Exception):
    """A name of a manifest leads out of the batch; caught where the row is measured."""


def _link_as_text(path: Path, name: str) -> str | None:
    """The target of a link that git or a copy wrote out as a text file, where that leads out of the batch."""
    if path.stat().st_size > MAX_LINK_BYTES:
        return None
    try:
        target = path.read_bytes().decode().strip()
    except UnicodeDecodeError:
        return None
    if not target or not target.isprintable() or "<" in target:
        return None
    landing = posixpath.normpath(posixpath.join(posixpath.dirname(name), target.replace("\\", "/")))
    return target if landing.startswith(("/", "../")) else None


def _remark(error: UnreadableImage) -> str:
    """The reader's words without the path, which the row names already."""
    return str(error).partition(": ")[2].rpartition(": ")[0] or str(error)
