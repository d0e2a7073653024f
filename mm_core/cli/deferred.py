"""Lazy modules, so that `mm --help` does not wait for slow imports."""

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
