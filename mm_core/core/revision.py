"""The revision of this code, for records of what produced a result."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path


def code_revision() -> str:
    """Return the commit of this code, with `-dirty` for changed tracked files; outside a checkout, the version.

    `MM_CODE_REVISION` takes precedence, because an image built from a commit contains no checkout.
    """
    if named := os.environ.get("MM_CODE_REVISION"):
        return named
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else f"matting-moments {version('matting-moments')}"
