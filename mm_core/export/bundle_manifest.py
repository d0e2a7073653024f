"""Read a bundle's manifest and check the folder's files against it.

The module uses no model and no runtime, so a bundle can be checked before any of its files is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mm_core.core.errors import InputError
from mm_core.core.records import sha256_file

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20
"""Largest size of a manifest, 4 MiB."""


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Return the manifest of a bundle; raise InputError if it is missing or unreadable."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm export` first")
    # A foreign file must not fill the memory.
    if (size := path.stat().st_size) > MANIFEST_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {MANIFEST_BYTES} are read: fetch the bundle again")
    try:
        manifest = json.loads(path.read_text(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a bundle's manifest; fetch the bundle again")
    return manifest


def checked_manifest(bundle: Path) -> dict[str, Any]:
    """Return the manifest of a foreign bundle after checking that every named file exists with its digest.

    Raises InputError for any difference. No file of the bundle is run or opened before.
    """
    manifest = read_manifest(bundle)
    try:
        files = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()}
        used = {*by_file(manifest), manifest["golden"]["file"]}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{bundle / 'manifest.json'}: not a bundle's manifest; fetch the bundle again") from None
    for name in sorted(used | set(files)):
        # Plain names only: a path or a link could lead out of the folder.
        path = bundle / name
        if Path(name).name != name or path.is_symlink() or name not in files:
            raise InputError(f"{bundle}: the manifest names {name!r}, which is not a file of the bundle: do not use it")
        size, digest = files[name]
        if not path.is_file() or path.stat().st_size != size or sha256_file(path) != digest:
            shown = name.encode("unicode_escape").decode()
            # Escaped, because a foreign name may hold control characters.
            raise InputError(f"{bundle}/{shown}: not the file that the manifest names; fetch the bundle again")
    return manifest


def by_file(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries by file name, ONNX files first."""
    entries = [*manifest["decoders"].values()]
    # ONNX entries come first; later entries are those of other formats.
    entries += [other for row in manifest["decoders"].values() for other in row["formats"].values()]
    return {entry["file"]: entry for entry in entries}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
