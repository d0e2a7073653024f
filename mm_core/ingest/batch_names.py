"""Names of drops: the few characters that are safe in a path, a page, a shell and a Dagster partition.

A batch's name comes from a producer's folder. It becomes part of store keys, of Dagster's partition and tags, of Data
Docs' file names and of every report, so it is restricted once, at the inbox.
"""

from __future__ import annotations

import re

from mm_core.core.records import sha256_bytes

LONGEST = 120
"""Bytes of a name in UTF-8; Data Docs put it into file names of at most 255 bytes."""
_SAFE = re.compile(r"\w(?:[\w .,+=@()-]*[\w)])?")
"""Letters and digits of any script; the last character is no space and no dot."""
RULE = (
    f"at most {LONGEST} bytes of letters, digits and _ - . , + = @ ( ) or single spaces; "
    "begin with a letter or digit, end with neither space nor dot"
)
_SHOWN = 60


def name_fault(name: str) -> str:
    """Return why a folder's name cannot be a batch's name, in words that are safe to show; "" where it can.

    Args:
        name: The folder's name as the inbox lists it; it may hold any character.
    """
    if (size := len(name.encode("utf-8", "surrogateescape"))) > LONGEST:
        return f"the folder's name has {size} bytes ({shown(name)}): rename it to {RULE}"
    # Dagster refuses partitions with three dots; two are a way out of a folder.
    if not _SAFE.fullmatch(name) or ".." in name or "  " in name:
        return f"the folder's name {shown(name)} is not safe to use: rename it to {RULE}"
    return ""


def safe_alias(name: str) -> str:
    """Return the name under which a refused batch stands in the ledger: a digest that no producer can choose."""
    return f"unsafe-name-{sha256_bytes(name.encode('utf-8', 'surrogateescape'))[:12]}"


def shown(name: str) -> str:
    """Return a name in ASCII with its special characters spelled out, cut to a length that fits a line.

    Markup characters are spelled out too, so that the text is harmless in any page.
    """
    spelled = ascii(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")
    return re.sub(r"[<>&`]", lambda found: f"\\x{ord(found[0]):02x}", spelled)
