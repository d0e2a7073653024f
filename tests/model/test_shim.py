"""`import torchvision` works beside this torch, and asking twice is harmless."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("library", ["torchvision", "timm", "open_clip"])
def test_a_fresh_process_can_import(library):
    code = (
        "from mm_core.model.torchvision_shim import ensure_torchvision as ensure\n"
        f"ensure(); ensure()\nimport {library}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
