"""Decide whether a bundle's folder can be trusted: by its signature if a key is configured."""

from __future__ import annotations

import os
from pathlib import Path

from mm_core.core.errors import InputError
from mm_core.export.signature import check_file, read_signature

KEYS = ("MM_VERIFY_KEY", "MM_SIGNING_KEY")


def require_bundle(bundle: Path, bundles: Path) -> None:
    """Check that a folder holds a bundle.

    Args:
        bundle: the folder named by the user.
        bundles: the folder of this workspace's bundles; the error lists them.

    Raises:
        InputError: the folder holds no `manifest.json`.
    """
    if (bundle / "manifest.json").is_file():
        return
    # The message lists the existing bundles, so that the user can copy a path.
    existing = sorted(str(path.parent) for path in bundles.glob("*/manifest.json"))
    remedy = (
        f"bundles of this workspace: {', '.join(existing)}"
        if existing
        else "this workspace has none yet: `mm run` makes one"
    )
    raise InputError(f"{bundle}: no bundle there (no manifest.json); {remedy}")


def check_signer(manifest: Path, *, unsigned: bool = False) -> tuple[str | None, str]:
    """Check who signed a bundle's manifest.

    Args:
        manifest: the path of `manifest.json`; its signature is in the same folder.
        unsigned: accept the bundle with any signer or without one.

    Returns:
        The fingerprint of the trusted key that signed it, and an empty text; or None and a warning with the reason
        for the missing check.

    Raises:
        InputError: a key is configured, `unsigned` is False, and that key did not sign the manifest.
    """
    if any(os.environ.get(name) for name in KEYS) and not unsigned:
        return check_file(manifest), ""
    signature = read_signature(manifest)
    # Without a check of the signer, the caller shows a warning.
    if signature is None:
        why = "UNSIGNED: the origin of this bundle is unknown; sign it with MM_SIGNING_KEY (`mm keys FILE` makes a key)"
    else:
        why = (
            f"SIGNATURE NOT CHECKED: key {signature.get('key')} signed it; set MM_VERIFY_KEY to the signer's public key"
        )
    return None, f"{why}. Only digests and golden pairs were checked."
