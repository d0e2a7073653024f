"""Compute the identity of code: a digest over a module and all first-party modules that it imports.

Every key of a cached result (a trained model, a quantised file) contains this digest. Changed code therefore never
returns an old result. Docstrings, comments and formatting do not change the digest.

To parse the 200 modules takes a second. What a module contributes is therefore kept next to its byte code, and is valid
for the same source and the same code of this module.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source, find_spec
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
        total.update(f"{name}\n{_read(name)[1]}\n".encode())
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
            waiting += _read(name)[0]
    return sorted(visited)


def source_path(module: str) -> Path:
    """Return the source file of a module; raise ValueError if the module is not found."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no source of module {module}")
    return Path(spec.origin)


@cache
def _read(module: str) -> tuple[tuple[str, ...], str]:
    """Return the names of our modules that a module imports, and the digest of its code without words."""
    path = source_path(module)
    names, digest = _parse_or_load(path)
    ours = {name for name in names if name.split(".")[0] in ROOTS}
    return tuple(sorted(name for name in ours if _is_module(name))), digest


def _parse_or_load(path: Path) -> tuple[list[str], str]:
    """Return imported names and the digest of a source file, from the file next to its byte code if that is valid."""
    source = path.read_bytes()
    key = hashlib.sha256(Path(__file__).read_bytes() + source).hexdigest()
    kept = Path(cache_from_source(str(path))).with_suffix(".code.json")
    try:
        known = json.loads(kept.read_bytes())
        if known["key"] == key:
            return known["names"], known["digest"]
    # A damaged file is written again.
    except (OSError, ValueError, KeyError, TypeError):
        pass
    tree = ast.parse(source)
    names = sorted(set(_imported_names(tree)))
    _drop_strings(tree)
    digest = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    if not sys.dont_write_bytecode:
        _write(kept, {"key": key, "names": names, "digest": digest})
    return names, digest


def _write(path: Path, value: object) -> None:
    """Write a file in one step; where the folder cannot be written, as in an image, nothing is kept."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        fresh.write_text(json.dumps(value))
        fresh.replace(path)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements directly below a node. Expressions, most of a tree, hold none and are not visited."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(node, field, None)
        # The body of a lambda is an expression, not a list.
        if isinstance(children, list):
            yield from children


def _imported_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that import statements mention, those of attributes of modules included."""
    # Imports for type checkers are never executed, so they cannot change a result.
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        # `from mm_core.imaging import images` names a module; `from mm_core.imaging.images import load_rgb` not.
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in _statements(node):
        yield from _imported_names(child)


def _drop_strings(node: ast.AST) -> None:
    """Remove docstrings, and the strings that document a field or constant on the line above them, in place."""
    for child in _statements(node):
        _drop_strings(child)
    body = getattr(node, "body", None)
    if isinstance(body, list):
        kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]


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
