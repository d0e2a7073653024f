"""Pair the photos of a folder with their mattes, in the layouts that data sets are published in.

| layout | photo | matte |
|---|---|---|
| `alphas/` or `alpha/` beside the photos | `pets/rex.jpg` | `alphas/pets/rex.png` or `pets/alphas/rex.png` |
| `image/` and `mask/` | `image/pets/rex.jpg` | `mask/pets/rex.png` |
| the matte beside the photo | `pets/rex.jpg` | `pets/rex_alpha.png` |
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath

from mm_core.core.records import ALL_CATEGORIES
from mm_core.core.spellings import PHOTOS, category_of

ALPHA_SUFFIXES = ("_alpha", "-alpha", "_matte", "-matte")
MASK_SUFFIXES = (*ALPHA_SUFFIXES, "_mask", "-mask")
"""Endings of a matte's name in a folder of mattes, where a name without an ending is allowed too."""
PHOTO_FOLDERS = ("image", "images", "img", "imgs", "photo", "photos")
ALPHA_FOLDERS = ("alphas", "alpha")
MATTE_FOLDERS = (*ALPHA_FOLDERS, "masks", "mask", "mattes", "matte")
"""Folders of mattes. Those that are not in ALPHA_FOLDERS count only beside one of PHOTO_FOLDERS."""


class MatteFinder:
    """The pairs of photos and mattes below one folder. Each directory is listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # One cache per finder: the files may change between two commands of one process.
        self._pictures = cache(_list_pictures)
        self._matte_folders = cache(_list_matte_folders)

    def is_matte(self, path: Path) -> bool:
        """Return whether a file below the folder is a matte, by its place or its name."""
        place = self.folder
        for part in path.relative_to(self.folder).parts[:-1]:
            if place / part in self._matte_folders(place):
                return True
            place /= part
        stem = path.stem.lower()
        ending = next((ending for ending in ALPHA_SUFFIXES if stem.endswith(ending)), None)
        if ending is None:
            return False
        # A PNG with such a name is always a matte. Another format needs its photo in the same folder.
        photo = path.stem[: -len(ending)]
        return path.suffix.lower() == ".png" or any(
            _plain(other.stem) == _plain(photo) for other in self._pictures(path.parent).get(_key(photo), [])
        )

    def matte_of(self, photo: Path) -> Path | None:
        """Return the matte of a photo below the folder, or None; a folder of mattes precedes a matte beside it."""
        masks = [photo.stem, *(f"{photo.stem}{ending}" for ending in MASK_SUFFIXES)]
        # Where `A.jpg` and `a.jpg` lie in one folder, `a.png` belongs to the second one alone.
        twins = {path.stem for path in self._pictures(photo.parent).get(_key(photo.stem), [])} - {photo.stem}
        for place in self._places(photo):
            if matte := self._find(place, masks, bool(twins)):
                return matte
        return self._find(photo.parent, [f"{photo.stem}{ending}" for ending in ALPHA_SUFFIXES], bool(twins))

    def _places(self, photo: Path) -> Iterator[Path]:
        """Yield the folders that may hold the photo's matte, from the most to the least specific one."""
        inside = photo.relative_to(self.folder)
        for mattes in self._matte_folders(self.folder):
            yield mattes / inside.parent
        yield from self._matte_folders(photo.parent)
        flat = list(self._matte_folders(self.folder))
        # `train/image/pets/rex.jpg`: the matte is in `train/mask/pets` or in `train/mask`.
        for depth, part in enumerate(inside.parts[:-1]):
            if part.lower() in PHOTO_FOLDERS:
                siblings = self._matte_folders(self.folder.joinpath(*inside.parts[:depth]))
                for mattes in siblings:
                    yield mattes.joinpath(*inside.parts[depth + 1 : -1])
                flat += siblings
        yield from flat

    def _find(self, folder: Path, stems: list[str], only_exact: bool) -> Path | None:
        """Return the picture with one of these stems, PNG first; format and, unless `only_exact`, case are free."""
        pictures = self._pictures(folder)
        matches = [path for stem in dict.fromkeys(map(_key, stems)) for path in pictures.get(stem, [])]
        # Prefer the exact case: `A.png` and `a.png` may belong to different photos.
        exact = [path for path in matches if _plain(path.stem) in map(_plain, stems)]
        return min(
            exact or ([] if only_exact else matches), key=lambda path: path.suffix.lower() != ".png", default=None
        )


def category_in(inside: PurePath, folder: Path) -> str:
    """Return the category that a sub-folder or the folder itself is named after; "" for none.

    Args:
        inside: Path of a photo, relative to `folder`.
        folder: The folder that holds the photos.
    """
    # Sub-folders from the outside in, then the folder itself.
    names = (*inside.parts[:-1], folder.resolve().name)
    return next((name for name in map(category_of, names) if name in ALL_CATEGORIES), "")


def _list_pictures(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures directly in a folder by the key of their stem; empty if there is no such folder."""
    pictures: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in PHOTOS and path.is_file():
            pictures.setdefault(_key(path.stem), []).append(path)
    return pictures


def _plain(stem: str) -> str:
    """Return a stem with composed letters, because macOS decomposes ü."""
    return unicodedata.normalize("NFC", stem)


def _key(stem: str) -> str:
    return _plain(stem).lower()


def _list_matte_folders(parent: Path) -> list[Path]:
    """Return the folders of mattes directly in `parent`, in the order of MATTE_FOLDERS."""
    folders = {path.name.lower(): path for path in parent.iterdir() if path.is_dir()} if parent.is_dir() else {}
    # A folder `mask` alone may be the photos of a costume shop.
    names = MATTE_FOLDERS if any(name in folders for name in PHOTO_FOLDERS) else ALPHA_FOLDERS
    return [folders[name] for name in names if name in folders]
