"""ImageNet's class names, and the softmax over its classes; torch is imported only when the names are asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import numpy as np

from mm_core.model.torchvision_shim import ensure_torchvision


def class_names() -> list[str]:
    """Return ImageNet's 1000 classes in OpenAI's wording and ImageNet's order; a repeated name gets its number."""
    names: list[str] = []
    for number, name in enumerate(import_open_clip().IMAGENET_CLASSNAMES):
        names.append(f"{name} ({number})" if name in names else name)
    return names


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    # Subtracting the maximum avoids overflow.
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def import_open_clip() -> ModuleType:
    """Import open_clip next to a CPU build of torch."""
    ensure_torchvision()
    return import_module("open_clip")
