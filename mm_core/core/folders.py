"""Checks of what is in the place of a folder or a file."""

from __future__ import annotations

import os
from pathlib import Path

from mm_core.core.errors import InputError, StoreError


def require_folder(folder: Path) -> None:
    """Raise InputError if `folder` is missing, or is a file."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: name the folder that holds it")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a folder with photos")


def has_file(path: Path) -> bool:
    """Return whether a file of ours exists.

    Raises:
        StoreError: Something else is in its place, which must not be taken for a missing file.
    """
    if path.is_file():
        return True
    if what := misplaced(path):
        raise StoreError(f"{path} is {what}: move it away, then run again")
    return False


def misplaced(path: Path) -> str:
    """Return what is in the place of a file: a folder, a pipe or a broken link; empty for a file, or for nothing."""
    if path.is_file() or not os.path.lexists(path):
        return ""
    if path.is_dir():
        return "a folder"
    return "a pipe or a device" if path.exists() else f"a link to {os.readlink(path)}, where nothing is"
