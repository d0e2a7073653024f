"""Make `import torchvision` (needed by timm and open_clip) work next to a CPU build of torch.

A registry's torchvision wheel may be built for CUDA. Its compiled operators do not load next to a CPU build of torch,
and the import fails with "operator torchvision::nms does not exist" (pytorch/vision issues 9077, 9085). This project
uses none of those operators, so declaring them is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mm_core.core.deferred import Deferred

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

_declared: list[object] = []
"""Keeps a reference to the library object: its operators are removed when it is deleted."""


def ensure_torchvision() -> None:
    """Declare torchvision's operators if they do not load; call it before the first import of timm or open_clip."""
    if _declared or hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    # Try torchvision's own operators first.
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return
    # A declaration without an implementation satisfies the import.
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(fragment)
