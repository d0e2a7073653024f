"""A workspace that was moved, copied or restored: MLflow's artifact roots follow it.

MLflow writes absolute addresses of artifacts into its database: of the experiment, of every run, of every registered
version. In a workspace that lies elsewhere they still point to the old place.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mm_core.core.errors import StoreError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.storage.retry import database_remedy

COLUMNS = ("artifact_location", "artifact_uri", "source", "storage_location")
"""Columns of MLflow's tables that hold addresses of artifacts."""
_SQLITE = "sqlite:///"
_TIMEOUT = 60.0
"""Seconds that another process's write is waited for."""


def rehome(settings: Settings) -> int:
    """Point MLflow's artifact addresses into this workspace; return how many rows changed.

    Only for a sqlite database that lies in the workspace: what a server holds is the server's. Raises StoreError where
    the database is damaged or cannot be written.
    """
    path = Path(settings.mlflow_uri.removeprefix(_SQLITE))
    own = settings.mlflow_uri.startswith(_SQLITE) and path.is_relative_to(settings.workspace)
    if not own or not path.is_file():
        return 0
    here = Layout(settings).mlflow_artifacts
    try:
        with closing(sqlite3.connect(path, timeout=_TIMEOUT)) as database:
            old = _old_roots(database, here)
            if not old:
                return 0
            with database:
                database.execute("BEGIN IMMEDIATE")
                return sum(_move(database, before, after) for root in old for before, after in _forms(root, here))
    except sqlite3.Error as error:
        remedy = database_remedy(str(error)) or "run `mm check`, or bring it back from a backup"
        raise StoreError(f"{path}: {error}: {remedy}") from None


def _old_roots(database: sqlite3.Connection, here: Path) -> list[Path]:
    """Artifact folders of other workspaces that experiments name."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'experiments'").fetchone():
        return []
    found: dict[Path, None] = {}
    tail = here.parts[-2:]
    for (location,) in database.execute("SELECT artifact_location FROM experiments WHERE artifact_location NOT NULL"):
        parts = urlsplit(str(location))
        path = Path(unquote(parts.path) if parts.scheme == "file" else str(location))
        if path.is_absolute() and path.parts[-2:] == tail and path != here:
            found[path] = None
    return list(found)


def _forms(root: Path, here: Path) -> list[tuple[str, str]]:
    """The old address and the new one, as URI and as path."""
    return [(root.as_uri(), here.as_uri()), (str(root), str(here))]


def _move(database: sqlite3.Connection, before: str, after: str) -> int:
    """Replace a leading address in every column that holds one."""
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    moved = 0
    for table in tables:
        names = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
        for column in (name for name in COLUMNS if name in names):
            moved += database.execute(
                f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?',
                (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
            ).rowcount
    return moved
