"""Measure one row of a drop; `expectations` applies the rules to the measures.

A field is None if an earlier step failed and it could not be measured. Expectations ignore None.
"""

from __future__ import annotations

import posixpath
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.capture_time import parse_taken_at
from mm_core.core.errors import BlobNotFound, BlobTooLarge
from mm_core.core.params import IngestParams
from mm_core.core.records import sha256_file
from mm_core.core.spellings import name_forms
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


@dataclass(slots=True)
class Probe:
    """The measures of one row; Great Expectations validates a table with these columns."""

    row: int
    image: str
    category: str | None
    role: str | None
    extra_fields: int
    taken_at: str | None = None
    taken_at_possible: bool | None = None
    """Whether `taken_at` is the time of a photo; None where the producer states none."""
    caption_length: int | None = None
    image_inside: bool | None = None
    """Whether the name and its link target are inside the batch."""
    image_found: bool | None = None
    image_bytes: int | None = None
    image_recognised: bool | None = None
    """Whether the content has a known picture format; the name is ignored."""
    pixels: int | None = None
    """Number of pixels according to the header."""
    image_decodes: bool | None = None
    width: int | None = None
    """Width in pixels, upright."""
    height: int | None = None
    """Height in pixels, upright."""
    short_side: int | None = None
    format: str | None = None
    sha256: str | None = None
    sha256_as_declared: bool | None = None
    phash: str | None = None
    brightness: float | None = None
    """Mean luma, in [0, 1]."""
    landmarks: str | None = None
    """Hashes of the landmarks, 16 hex digits each, concatenated."""
    alpha_inside: bool | None = None
    alpha_found: bool | None = None
    alpha_bytes: int | None = None
    alpha_decodes: bool | None = None
    alpha_grey: bool | None = None
    """False for a picture in colour."""
    alpha_way_up: float | None = None
    """Lead of the chosen orientation's edge contrast over the next best one (`mattes.turned_upright`)."""
    alpha_is_photo: bool | None = None
    """Whether the values are the brightness of the photo itself."""
    alpha_size: str | None = None
    """Size as width×height, in pixels."""
    alpha_fits: bool | None = None
    """Whether the matte has the size of the photo, upright or stored."""
    alpha_highest: float | None = None
    """Largest value, in [0, 1]."""
    alpha_lowest: float | None = None
    """Smallest value, in [0, 1]."""
    alpha_binary: bool | None = None
    """Whether all values are 0 or 1, without a soft edge."""
    alpha_sha256: str | None = None
    """Digest of the normalised matte: grey PNG, upright, in the size of the photo."""
    matte: MatteQuality | None = None
    """Quality measures of the matte."""
    note: str = ""
    """Error message of a reader or of the check of links."""


class Prober:
    """Measures the rows of one batch; several threads may call it."""

    def __init__(self, inbox: Store, manifest_key: str, kind: str, params: IngestParams, spool: Path) -> None:
        self.inbox, self.kind, self.spool = inbox, kind, spool
        self.max_bytes, self.max_pixels = params.max_bytes, params.max_pixels
        self.prefix = posixpath.dirname(manifest_key)
        self.folder = inbox.fetch(manifest_key).parent.resolve()

    def __call__(self, row: ManifestRow) -> Probe:
        """Measure one row.

        Args:
            row: Row of the manifest.

        Returns:
            The measures; a missing or broken file gives None fields, not an error.

        Raises:
            StoreError: The inbox itself fails.
        """
        probe = Probe(row.row, row.image, row.category or None, row.role or None, row.extra_fields)
        if row.taken_at:
            probe.taken_at, probe.taken_at_possible = row.taken_at[:80], parse_taken_at(row.taken_at) is not None
        # Only text-image drops need a caption. A length of None skips the rule for other drops.
        if self.kind == "text_image" or row.caption:
            probe.caption_length = len(row.caption)
        photo = self._photo(row, probe)
        if self.kind == "pixel_labeled":
            self._alpha(row, probe, photo)
        return probe

    def path_of(self, name: str) -> Path:
        """Return the local path of a file of the batch.

        Args:
            name: Name from the manifest; it is not trusted.

        Raises:
            BlobNotFound: The batch has no such file.
            BlobTooLarge: The file exceeds the size limit.
            OutsideBatch: The name or its link target is outside the batch.
        """
        # A symbolic link inside the batch may point to any file of this machine. Check its target, too.
        path = fetch_named(self.inbox, self.prefix, name, most=self.max_bytes)
        target = path.resolve()
        if not target.is_relative_to(self.folder):
            raise OutsideBatch(f"a link to {target.name}")
        return path

    def alpha_copy(self, row: int) -> Path:
        """Return the temporary path of the normalised matte of a row."""
        return self.spool / f"{row}.png"

    def _photo(self, row: ManifestRow, probe: Probe) -> tuple[Header, np.ndarray] | None:
        """Measure the photo and return its header and reduced picture, or None if it is unreadable."""
        # The fields are set step by step. The first failing step decides the first broken rule.
        probe.image_inside = True
        probe.image_found = False
        # A declared checksum counts as wrong until the file has been read.
        probe.sha256_as_declared = False if row.sha256 else None
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
        # Assume failure and set the field after the step that may raise.
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
            # All comparisons use a reduced picture, which bounds the memory per row.
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
        """Measure the matte; `taken` is the result of `_photo`."""
        probe.alpha_inside, probe.alpha_found = True, False
        if not row.alpha:
            probe.note = "the column alpha is empty"
            return
        try:
            path = self.path_of(row.alpha)
            path.open("rb").close()  # a file without the right to read it counts as missing
        except OutsideBatch as error:
            probe.alpha_inside, probe.alpha_found, probe.note = False, None, str(error)
            return
        except BlobTooLarge as error:
            probe.alpha_found, probe.alpha_bytes = True, error.size
            return
        except (BlobNotFound, OSError) as error:
            probe.note = f"{row.alpha}: {getattr(error, 'strerror', None) or 'no file that can be read'}"
            return
        probe.alpha_found, probe.alpha_bytes = True, path.stat().st_size
        # A matte can only be compared with a readable photo.
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
            if (header.width, header.height) not in fitting:  # the header suffices; do not decode the matte
                probe.alpha_decodes, probe.alpha_fits = None, False
                return
            matte = safely(take_matte, path, header, photo, look, probe.category, self.alpha_copy(row.row))
        except ColourPicture as error:
            probe.alpha_decodes, probe.alpha_grey, probe.note = True, False, _remark(error)
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
    """A name in a manifest points outside the batch; the prober catches the error."""


def fetch_named(inbox: Store, prefix: str, name: str, *, most: int | None = None) -> Path:
    """Fetch a file of a drop by its name in the manifest.

    Folders may be separated by backslashes. Any Unicode form of the name is tried, because macOS decomposes letters
    such as ü.

    Args:
        inbox: The inbox.
        prefix: Folder of the drop, `kind/batch`.
        name: Name from the manifest; it is not trusted.
        most: Largest size of the file in bytes.

    Raises:
        BlobNotFound: The drop has no such file.
        BlobTooLarge: The file exceeds the size limit.
        OutsideBatch: The name is outside the drop.
    """
    inner = posixpath.normpath(name.replace("\\", "/"))
    if inner.startswith(("/", "../")) or inner == ".." or re.match(r"[A-Za-z]:|\w+://", name):
        raise OutsideBatch(name)
    for form in name_forms(inner):
        with suppress(BlobNotFound):
            return inbox.fetch(f"{prefix}/{form}", most=most)
    raise BlobNotFound(f"{prefix} holds no {inner}")


def _link_as_text(path: Path, name: str) -> str | None:
    """Return the target of a link that was copied as a text file, if it points outside the batch.

    Git and some copy programs write symbolic links as text files.

    Args:
        path: The file.
        name: Its name in the manifest.
    """
    if path.stat().st_size > MAX_LINK_BYTES:
        return None
    try:
        target = path.read_bytes().decode().strip()
    except UnicodeDecodeError:
        return None
    # Not a path: binary content or markup.
    if not target or not target.isprintable() or "<" in target:
        return None
    # A relative target starts at the folder of the link.
    landing = posixpath.normpath(posixpath.join(posixpath.dirname(name), target.replace("\\", "/")))
    return target if landing.startswith(("/", "../")) else None


def _remark(error: UnreadableImage) -> str:
    """Return the reader's message without the path, because the row already contains it."""
    return str(error).partition(": ")[2].rpartition(": ")[0] or str(error)
