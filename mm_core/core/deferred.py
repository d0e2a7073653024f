"""Modules that are imported when they are first used, so that no command waits for packages that it does not need.

A module declares them at its top, once for type checkers and once for the running program:

    if TYPE_CHECKING:
        import mlflow
    else:
        mlflow = Deferred("mlflow")
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class Deferred:
    """Proxy of a module; the first access to an attribute imports the module."""

    __spec__ = None
    """Read by the import system, which must not cause the import."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        # `import_module` is cheap after the first call, so the module is not kept.
        return getattr(import_module(self._name), attribute)


@contextmanager
def slim_imports(deferred: Sequence[str], hidden: Sequence[str]) -> Iterator[None]:
    """Spare a package that is imported in the body the import of packages that this process may never need.

    Modules that are imported already are not affected. Other threads must not import these modules during the body.

    Args:
        deferred: Modules that the package receives as `Deferred`; it must use them inside functions only.
        hidden: Modules that the package takes as not installed.
    """
    stand_ins = {**{name: Deferred(name) for name in deferred}, **dict.fromkeys(hidden)}
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    # None as a module makes its import fail.
    sys.modules.update(stand_ins)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
