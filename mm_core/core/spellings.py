"""Define the picture formats and category spellings that `mm drop`, ingest and `mm evaluate --truth` accept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePath

from mm_core.core.categories import CATEGORY_OF

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
}
"""Format → file suffixes. Suffixes select the photos of a folder; the content decides the format."""
PHOTOS = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
NO_PHOTOS = f"no photos found; put {', '.join(suffixes[0] for suffixes in SUFFIXES.values())} files there"
"""The message about a folder without photos; it names one suffix of each format."""
SYSTEM_NAMES = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information", "@eadir", "#recycle"}
    | {"lost+found", "lost.dir", ".ds_store"}
)
"""Files and folders that operating systems add to folders of photos, in lower case."""


def category_of(text: str) -> str:
    """Return the category of a text such as `Multi-Person`, `PETS` or `multi person`.

    Args:
        text: Any text.

    Returns:
        The category's name. An unknown text is returned in lower case with underscores.
    """
    # NFKC converts full-width and other compatible letters.
    plain = unicodedata.normalize("NFKC", text).strip().casefold()
    return CATEGORY_OF.get(re.sub(r"[\s_\-–—.]+", "", plain), re.sub(r"[\s\-]+", "_", plain))


def name_forms(name: str) -> list[str]:
    """Return a file name as it is, and in both Unicode forms: macOS decomposes letters such as ü."""
    return list(dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))))


def is_hidden(path: PurePath) -> bool:
    """Return whether any part of a path is hidden or a system name: `.thumbnails`, `.trashed-1.jpg`, `@eaDir`."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in path.parts)
