"""Update MLflow's artifact addresses after a workspace was moved, copied or restored.

MLflow stores absolute addresses of artifacts in its database: per experiment, per run and per registered version.
In a workspace at another path these addresses still point to the old one.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mm_core.core.errors import StoreError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.storage.retry import explain_sqlite
from mm_core.storage.seals import database_fault, seal_databases

COLUMNS = ("artifact_location", "artifact_uri", "source", "storage_location")
"""Columns of MLflow's tables that hold artifact addresses."""
_TIMEOUT = 60.0
"""Seconds to wait for another process's write."""


def rehome(settings: Settings) -> int:
    """Point MLflow's artifact addresses to this workspace and return the number of changed rows.

    Only a sqlite database within the workspace is changed; the database of a server is left alone.

    Raises:
        StoreError: The database is damaged or cannot be written.
    """
    path = settings.mlflow_database
    if path is None or not path.is_relative_to(settings.workspace) or not path.is_file():
        return 0
    layout = Layout(settings)
    here = layout.mlflow_artifacts
    try:
        # Look first without a write lock: normally there is nothing to change.
        with closing(sqlite3.connect(path, timeout=_TIMEOUT)) as database:
            old = _old_roots(database, here)
            if not old:
                return 0
            # A change ends the seal, and with it the last chance to see that a bit flipped before.
            if fault := database_fault(layout.root, path):
                raise StoreError(f"{path}: {fault}: restore it from a backup")
            with database:
                database.execute("BEGIN IMMEDIATE")
                moved = sum(_move(database, before, after) for root in old for before, after in _forms(root, here))
    except sqlite3.Error as error:
        fault = explain_sqlite(str(error)) or f"{error}: run `mm check`, or restore it from a backup"
        raise StoreError(f"{path}: {fault}") from None
    seal_databases(layout.root, layout.cache)
    return moved


def _old_roots(database: sqlite3.Connection, here: Path) -> list[Path]:
    """Return the artifact folders of other workspaces that experiments refer to."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'experiments'").fetchone():
        return []
    roots: dict[Path, None] = {}
    tail = here.parts[-2:]
    for (location,) in database.execute("SELECT artifact_location FROM experiments WHERE artifact_location NOT NULL"):
        # An address is a file URI or a plain path.
        parts = urlsplit(str(location))
        path = Path(unquote(parts.path) if parts.scheme == "file" else str(location))
        if path.is_absolute() and path.parts[-2:] == tail and path != here:
            roots[path] = None
    return list(roots)


def _forms(root: Path, here: Path) -> list[tuple[str, str]]:
    """Return pairs of old and new address, as URI and as path."""
    return [(root.as_uri(), here.as_uri()), (str(root), str(here))]


def _move(database: sqlite3.Connection, before: str, after: str) -> int:
    """Replace a leading address in every column that holds addresses; return the number of changed rows."""
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    moved = 0
    for table in tables:
        names = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
        for column in (name for name in COLUMNS if name in names):
            # Match the address itself or the address followed by a slash, never a longer folder name.
            moved += database.execute(
                f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?',
                (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
            ).rowcount
    return moved
