"""Compute the identity of code: a digest over a module and all first-party modules that it imports.

Every key of a cached result (a trained model, a quantised file) contains this digest. Changed code therefore never
returns an old result. Docstrings, comments and formatting do not change the digest.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOTS = ("mm_core", "samplegen")
"""The first-party packages."""


def code_digest(*modules: str) -> str:
    """Compute the digest of modules and their transitive first-party imports.

    Args:
        modules: Full module names, such as `mm_core.training.stage`.

    Returns:
        A sha256 in hex; the same on every machine and Python of one minor version.

    Raises:
        ValueError: A module is not found.
    """
    total = hashlib.sha256()
    for name in first_party_closure(*modules):
        total.update(f"{name}\n{_normalised_source(name)}\n".encode())
    return total.hexdigest()


def first_party_closure(*modules: str) -> list[str]:
    """List modules and all modules of ours that they import, sorted by name.

    Imports inside functions count; those for type checkers alone do not.
    """
    # Depth-first walk of the import graph; `visited` holds the modules seen so far.
    visited: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in visited:
            visited.add(name)
            waiting += _imports(name)
    return sorted(visited)


def source_path(module: str) -> Path:
    """Return the source file of a module; raise ValueError if the module is not found."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no source of module {module}")
    return Path(spec.origin)


@cache
def _imports(module: str) -> tuple[str, ...]:
    tree = _WithoutTypeChecking().visit(ast.parse(source_path(module).read_text()))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            # `from mm_core.imaging import images` names a module; `from mm_core.imaging.images import load_rgb` not.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] in ROOTS}
    return tuple(sorted(name for name in ours if _is_module(name)))


def _is_module(name: str) -> bool:
    parent = name.rpartition(".")[0]
    # `find_spec` of a child imports the parent, and fails if the parent is not a package.
    if parent and not _is_package(parent):
        return False
    return find_spec(name) is not None


@cache
def _is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


@cache
def _normalised_source(module: str) -> str:
    return ast.unparse(_WithoutDocstrings().visit(ast.parse(source_path(module).read_text())))


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        # Imports for type checkers are never executed, so they cannot change a result.
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return node


class _WithoutDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # This also drops the strings that document a field or constant on the line above them.
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        return node
