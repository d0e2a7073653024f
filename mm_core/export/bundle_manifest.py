"""A bundle's manifest: which files it has, and whether they are the ones that lie in the folder.

It knows no model and no runtime, so that nothing of a bundle is opened before it was checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm_core.errors import InputError
from mm_core.records import parse_finite_json, sha256_file

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle; raises InputError where there is none that can be read."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm export` first")
    if (size := path.stat().st_size) > MANIFEST_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {MANIFEST_BYTES} are read: fetch the bundle again")
    try:
        manifest = parse_finite_json(path.read_text())
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a bundle's manifest; fetch the bundle again")
    return manifest


def checked_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle that came from elsewhere, once every file is the one that it names and lies in the
    folder; raises InputError. Nothing of the bundle is run or opened otherwise."""
    manifest = read_manifest(bundle)
    try:
        files = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()}
        used = {*by_file(manifest), manifest["golden"]["file"]}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{bundle / 'manifest.json'}: not a bundle's manifest; fetch the bundle again") from None
    for name in sorted(used | set(files)):
        path = bundle / name
        if Path(name).name != name or path.is_symlink() or name not in files:
            raise InputError(f"{bundle}: the manifest names {name!r}, which is no file of the bundle: do not use it")
        size, digest = files[name]
        if not path.is_file() or path.stat().st_size != size or sha256_file(path) != digest:
            shown = name.encode("unicode_escape").decode()
            raise InputError(f"{bundle}/{shown}: not the file that the manifest names; fetch the bundle again")
    return manifest


def by_file(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name → what the manifest says of it, the ONNX files first."""
    entries = [*manifest["decoders"].values()]
    entries += [other for row in manifest["decoders"].values() for other in row["formats"].values()]
    return {entry["file"]: entry for entry in entries}
