"""Check names of drops: only characters that are safe in paths, pages, shells and Dagster partitions.

The name of a batch is the name of a producer's folder. Store keys, Dagster partitions and tags, file names of Data Docs
and all reports contain it. It is therefore checked at the inbox.
"""

from __future__ import annotations

import re

from mm_core.core.records import sha256_bytes

LONGEST = 120
"""Bytes of a name in UTF-8; Data Docs put it into file names of at most 255 bytes."""
_SAFE = re.compile(r"\w(?:[\w .,+=@()-]*[\w)])?")
"""Letters and digits of any script; the last character is neither a space nor a dot."""
RULE = (
    f"at most {LONGEST} bytes of letters, digits and _ - . , + = @ ( ) or single spaces; "
    "begin with a letter or digit, end with neither space nor dot"
)
_SHOWN = 60


def name_fault(name: str) -> str:
    """Return the reason why a folder's name cannot be a batch's name, or "" for a valid name.

    Args:
        name: The folder's name as the inbox lists it; it may hold any character.

    Returns:
        A message that is safe to show, because special characters are spelled out.
    """
    # Check the size first: the pattern below must not run over a very long name.
    if (size := len(name.encode("utf-8", "surrogateescape"))) > LONGEST:
        return f"the folder's name has {size} bytes ({shown(name)}): rename it to {RULE}"
    # Dagster refuses partitions with three dots. Two dots could lead out of a folder.
    if not _SAFE.fullmatch(name) or ".." in name or "  " in name:
        return f"the folder's name {shown(name)} is not safe to use: rename it to {RULE}"
    return ""


def safe_alias(name: str) -> str:
    """Return the ledger's name of a refused batch: a digest that no producer can choose."""
    return f"unsafe-name-{sha256_bytes(name.encode('utf-8', 'surrogateescape'))[:12]}"


def shown(name: str) -> str:
    """Return a name in ASCII with its special characters spelled out, cut to a length that fits a line.

    Markup characters are spelled out too, so that the text is harmless in any page.
    """
    spelled = ascii(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")
    return re.sub(r"[<>&`]", lambda found: f"\\x{ord(found[0]):02x}", spelled)
