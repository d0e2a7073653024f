"""Import torchvision and timm next to a CPU build of torch, without torch's compiler.

A registry's torchvision wheel may be built for CUDA. Its compiled operators do not load next to a CPU build of torch,
and the import fails with "operator torchvision::nms does not exist" (pytorch/vision issues 9077, 9085). This project
uses none of those operators, so declaring them is enough.

torchvision and timm import `torch._dynamo`, the compiler, to mark three functions. It takes a second, two thirds of the
import of timm. A stand-in marks these functions; the compiler is imported when something first compiles.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mm_core.core.deferred import Deferred

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

_declared: list[object] = []
"""Keeps a reference to the library object: its operators are removed when it is deleted."""


def ensure_torchvision() -> None:
    """Import torchvision and timm; call it before the first use of timm or open_clip."""
    if "timm" not in sys.modules:
        _declare_operators()
        with _deferred_compiler():
            import_module("timm")


@contextmanager
def _deferred_compiler() -> Iterator[None]:
    """Put a stand-in in the place of `torch._dynamo`, unless that is imported already."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    compiler, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    vars(compiler).update(utils=utils, disable=_disable_compiler)
    vars(utils).update(is_compile_supported=_is_compile_supported)
    stand_ins = {module.__name__: module for module in (compiler, utils)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _disable_compiler(function: Callable[..., object], recursive: bool = True, **_: object) -> Callable[..., object]:
    """Exclude a function from compilation, as `torch._dynamo.disable`, when it is first called."""
    return import_module("torch._compile")._disable_dynamo(function, recursive)


def _is_compile_supported(device: str) -> bool:
    """Return the value of the compiler's own function."""
    return import_module("torch._dynamo.utils").is_compile_supported(device)


def _declare_operators() -> None:
    """Declare torchvision's operators if they do not load."""
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
