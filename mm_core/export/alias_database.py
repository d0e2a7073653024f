"""Read the models behind aliases from MLflow's sqlite database, without MLflow, whose import takes seconds.

A run that finds nothing new needs only the aliases. A copy of them in a file of its own could be wrong after a move
outside of `mm`; the database cannot. `tests/export/test_registry.py` compares the answers with MLflow's client.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from mm_core.core.pins import ModelPin

_DELETED = "Deleted_Internal"
"""MLflow keeps the row of a deleted version in this stage."""
_TIMEOUT = 60.0
"""Seconds to wait for another process's write."""


class UnknownDatabase(Exception):
    """The database is of another version of MLflow, or cannot be read: ask MLflow's client."""


def read_pin(path: Path, model: str, name: str) -> ModelPin | None:
    """Return the pin of an alias or version number; None if it does not exist or has no digest.

    Args:
        path: The database.
        model: Name of the registered model.
        name: The alias or version number.

    Raises:
        UnknownDatabase: The tables are not those that this module knows.
    """
    try:
        # Read only: a missing database must not be created.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT)) as database:
            query = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
            found = [(int(name),)] if name.isdecimal() else database.execute(query, (model, name)).fetchall()
            if not found:
                return None
            (version,) = found[0]
            query = "SELECT current_stage FROM model_versions WHERE name = ? AND version = ?"
            stages = database.execute(query, (model, version)).fetchall()
            query = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
            tags = dict(database.execute(query, (model, version)))
    except OverflowError:  # no version has such a number
        return None
    except sqlite3.Error as error:
        raise UnknownDatabase(str(error)) from None
    if not stages or stages[0][0] == _DELETED or "model_digest" not in tags:
        return None
    return {"version": str(version), "digest": tags["model_digest"], "files": json.loads(tags["files"])}
