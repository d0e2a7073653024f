"""torchvision, and what needs it, can be imported beside this torch; asking twice is harmless."""

from __future__ import annotations

import subprocess
import sys


def test_a_fresh_process_can_import_what_needs_torchvision():
    code = (
        "from mm_core.model.torchvision_shim import ensure_torchvision as ensure\n"
        "ensure(); ensure()\n"
        "import torchvision, timm, open_clip\n"
        "torchvision.transforms.Resize(8)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
