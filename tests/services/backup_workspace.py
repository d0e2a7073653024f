"""A small workspace for the tests of backups, and what they do with it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from mm_core import stages
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report, sha256_file
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from mm_core.services.backup import back_up, restore
from mm_core.storage.catalog import Catalog
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.seals import DATABASES
from mm_core.storage.store import open_store
from samplegen import write_drop

PARAMS = Params().with_values(**{"structure.ocr": ()})


def silent(what: str, done: int, total: int) -> None: ...


def save(settings: Settings, to: Path | str, **how) -> Report:
    return back_up(settings, str(to), Report("backup"), progress=silent, **how)


def bring(settings: Settings, source: Path | str, **how) -> Report:
    return restore(settings, str(source), Report("restore"), progress=silent, **how)


def fill(layout: Layout, batch: str, seed: int) -> None:
    write_drop(Path(layout.settings.inbox), "pixel_labeled", batch, {"pets": 2, "cards": 1}, seed=seed, size=64)
    stages.ingest(Run(PARAMS, layout))
    stages.structure(Run(PARAMS, layout))
    stages.pin_inputs(Run(PARAMS, layout))


def contents(layout: Layout) -> dict[str, object]:
    """The catalog's rows, the store's objects, the registry's and the history's rows, the files that people read."""
    catalog, store = Catalog(layout.settings.store), open_store(layout.settings.store, layout.cache)
    found: dict[str, object] = {table: repr(catalog.read(table).to_dict("records")) for table in SCHEMAS}
    found["objects"] = {e.key: sha256_file(store.fetch(e.key)) for e in store.list()}
    for path in sorted(layout.root.rglob("*")):
        kept = path.relative_to(layout.root).parts[0] not in ("cache", "inbox", "locks", "store")
        # The seals of databases hold times of their files, which differ by place.
        if path.is_file() and kept and path.suffix not in (".db-wal", ".db-shm") and path.name != DATABASES:
            found[str(path.relative_to(layout.root))] = rows(path) if path.suffix == ".db" else sha256_file(path)
    return found


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def make_filled(layout: Layout) -> Layout:
    """Give a workspace a drop, pins and a run history; return it."""
    fill(layout, "w01", 1)
    layout.dagster_home.mkdir()
    with closing(sqlite3.connect(layout.dagster_home / "runs.db")) as history:
        history.executescript("PRAGMA journal_mode=WAL; CREATE TABLE runs (id); INSERT INTO runs VALUES ('r1');")
    return layout


def elsewhere(tmp_path: Path) -> Layout:
    return Layout(Settings.from_env(tmp_path / "other" / "data"))
