"""The check of a folder that a person names."""

from __future__ import annotations

from pathlib import Path

from mm_core.core.errors import InputError


def require_folder(folder: Path) -> None:
    """Raise InputError if `folder` is missing, or is a file."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: name the folder that holds it")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a folder with photos")
