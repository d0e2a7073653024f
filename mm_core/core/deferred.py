"""Modules that are imported when they are first used, so that no command waits for packages that it does not need.

A module declares them at its top, once for type checkers and once for the running program:

    if TYPE_CHECKING:
        import mlflow
    else:
        mlflow = Deferred("mlflow")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """Proxy of a module; the first access to an attribute imports the module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        # `import_module` is cheap after the first call, so the module is not kept.
        return getattr(import_module(self._name), attribute)
