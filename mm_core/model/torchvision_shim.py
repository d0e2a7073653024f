"""Makes `import torchvision` (so timm, open_clip) work beside a CPU build of torch.

A registry's torchvision wheel may be built for CUDA; next to a CPU torch its compiled operators do not load and the
import stops at "operator torchvision::nms does not exist" (pytorch/vision issues 9077, 9085). Nothing here uses those
operators, so declaring them is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_declared: list[Any] = []
"""Keeps the library object alive: its operators vanish with it."""


def ensure_torchvision() -> None:
    """Call before the first import of timm or open_clip; does nothing where torchvision's own operators load."""
    import torch

    if _declared or hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(fragment)
