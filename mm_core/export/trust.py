"""May a bundle's folder be trusted? Its signature decides where there is a key to check it with."""

from __future__ import annotations

import os
from pathlib import Path

from mm_core.core.errors import InputError
from mm_core.export.signature import check_file, read_signature

KEYS = ("MM_VERIFY_KEY", "MM_SIGNING_KEY")


def require_bundle(bundle: Path, bundles: Path) -> None:
    """Check that a folder is a bundle's.

    Args:
        bundle: the folder that a person named.
        bundles: where this workspace keeps its bundles; they are named in the error.

    Raises:
        InputError: the folder holds no `manifest.json`.
    """
    if (bundle / "manifest.json").is_file():
        return
    here = sorted(str(path.parent) for path in bundles.glob("*/manifest.json"))
    remedy = (
        f"bundles of this workspace: {', '.join(here)}" if here else "this workspace has none yet: `mm run` makes one"
    )
    raise InputError(f"{bundle}: no bundle there (no manifest.json); {remedy}")


def check_signer(manifest: Path, *, unsigned: bool = False) -> tuple[str | None, str]:
    """Check who signed a bundle's manifest.

    Args:
        manifest: the path of `manifest.json`; its signature lies beside it.
        unsigned: take the bundle whoever signed it.

    Returns:
        The fingerprint of the trusted key that signed it, and an empty text; or None and a warning that says why
        nobody vouches for the files.

    Raises:
        InputError: a key is configured, `unsigned` is not said, and that key did not sign the manifest.
    """
    if any(os.environ.get(name) for name in KEYS) and not unsigned:
        return check_file(manifest), ""
    signature = read_signature(manifest)
    if signature is None:
        why = "UNSIGNED: nobody vouches for this bundle; sign it with MM_SIGNING_KEY (`mm keys FILE` makes a key)"
    else:
        why = (
            f"SIGNATURE NOT CHECKED: key {signature.get('key')} signed it; set MM_VERIFY_KEY to the signer's public key"
        )
    return None, f"{why}. Only digests and golden pairs were checked."
