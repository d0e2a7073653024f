"""Matting Moments: the continuous-learning engine. The flow is told in `mm_core/stages.py`, the API in `Matter`."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_core.matter import Matter

__version__ = "0.1.0"
__all__ = ["Matter", "__version__"]

# Nothing is sent home. Here, as MLflow asks when it is imported; it does not take DO_NOT_TRACK=1.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")


def __getattr__(name: str) -> type[Matter]:
    """Load `Matter` when it is first asked for: whoever imports a room of this package does not wait for it."""
    if name == "Matter":
        return importlib.import_module("mm_core.matter").Matter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
