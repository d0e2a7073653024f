"""Backup and restore: all comes back, in a folder, on S3 and from PostgreSQL; nothing is overwritten."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mm_core import stages
from mm_core.backup import back_up, backups, restore
from mm_core.catalog import Catalog
from mm_core.data.samplegen import write_drop
from mm_core.errors import InputError, StoreError
from mm_core.layout import Layout
from mm_core.params import Params
from mm_core.records import Report, sha256_file
from mm_core.settings import Settings
from mm_core.store import BLOBS, blob_key, open_store
from mm_core.tables import SCHEMAS

PARAMS = Params().with_values(**{"structure.ocr": ()})


def silent(what: str, done: int, total: int) -> None: ...


def save(settings: Settings, to: Path | str, **how) -> Report:
    return back_up(settings, str(to), Report("backup"), progress=silent, **how)


def bring(settings: Settings, source: Path | str, **how) -> Report:
    return restore(settings, str(source), Report("restore"), progress=silent, **how)


def fill(layout: Layout, batch: str, seed: int) -> None:
    write_drop(Path(layout.settings.inbox), "pixel_labeled", batch, {"pets": 2, "cards": 1}, seed=seed, size=64)
    stages.ingest(PARAMS, layout)
    stages.structure(PARAMS, layout)
    stages.pin_inputs(PARAMS, layout)


def contents(layout: Layout) -> dict[str, object]:
    """The catalog's rows, the store's objects, the registry's and the history's rows, the files that people read."""
    catalog, store = Catalog(layout.settings.store), open_store(layout.settings.store, layout.cache)
    found: dict[str, object] = {table: repr(catalog.read(table).to_dict("records")) for table in SCHEMAS}
    found["objects"] = {e.key: sha256_file(store.fetch(e.key)) for e in store.list()}
    for path in sorted(layout.root.rglob("*")):
        kept = path.relative_to(layout.root).parts[0] not in ("cache", "inbox", "store")
        if path.is_file() and kept and path.suffix not in (".db-wal", ".db-shm"):
            found[str(path.relative_to(layout.root))] = rows(path) if path.suffix == ".db" else sha256_file(path)
    return found


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """A workspace with a drop, an MLflow database (pinning made it) and a run history."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MM_STORE", "MM_INBOX", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        layout = Layout(Settings.from_env(tmp_path_factory.mktemp("filled") / "data"))
        fill(layout, "w01", 1)
        layout.dagster_home.mkdir()
        with closing(sqlite3.connect(layout.dagster_home / "runs.db")) as history:
            history.executescript("PRAGMA journal_mode=WAL; CREATE TABLE runs (id); INSERT INTO runs VALUES ('r1');")
        yield layout


def elsewhere(tmp_path: Path) -> Layout:
    return Layout(Settings.from_env(tmp_path / "other" / "data"))


def test_all_comes_back_and_the_next_backup_copies_only_what_is_new(filled: Layout, tmp_path: Path) -> None:
    first = save(filled.settings, tmp_path / "backup")
    again = save(filled.settings, tmp_path / "backup")
    assert first.facts["new_bytes"] > 0 and again.facts["new_bytes"] == 0
    other = elsewhere(tmp_path)
    report = bring(other.settings, tmp_path / "backup")
    assert contents(other) == contents(filled)
    assert str(filled.root) in report.facts["moved"]
    fill(other, "w02", 2)  # and goes on
    assert len(Catalog(other.settings.store).read("samples")) == 6


def test_all_comes_back_from_s3_to_s3(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_STORE", f"{bucket}/store")
    layout = Layout(Settings.from_env(tmp_path / "data"))
    fill(layout, "w01", 1)
    save(layout.settings, f"{bucket}/backup")
    before = contents(layout)
    monkeypatch.setenv("MM_STORE", f"{bucket}/fresh")
    other = elsewhere(tmp_path)
    bring(other.settings, f"{bucket}/backup")
    assert contents(other) == before


def test_a_backup_beside_a_writer_is_of_one_moment(filled: Layout, tmp_path: Path) -> None:
    """A row that is not committed is not in it."""
    with closing(sqlite3.connect(filled.dagster_home / "runs.db", isolation_level=None)) as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO runs VALUES ('half')")
        save(filled.settings, tmp_path / "backup")
        writer.execute("ROLLBACK")
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")
    assert "half" not in str(rows(other.dagster_home / "runs.db"))


def test_nothing_is_overwritten(filled: Layout, tmp_path: Path) -> None:
    save(filled.settings, tmp_path / "backup")
    before = contents(filled)
    with pytest.raises(InputError, match="empty store"):
        bring(filled.settings, tmp_path / "backup")
    other = elsewhere(tmp_path)
    (other.root / "bundle").mkdir(parents=True)
    (other.root / "bundle" / "mine").write_text("x")
    with pytest.raises(InputError, match="empty workspace"):
        bring(other.settings, tmp_path / "backup")
    assert contents(filled) == before and (other.root / "bundle" / "mine").read_text() == "x"


def test_a_killed_restore_goes_on_and_a_killed_backup_is_none(
    filled: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException): ...

    def die_at(n: int):
        def progress(what: str, done: int, total: int) -> None:
            if done == n:
                raise Killed

        return progress

    target = open_store(str(tmp_path / "backup"), tmp_path)
    with pytest.raises(Killed):
        back_up(filled.settings, str(tmp_path / "backup"), Report("backup"), progress=die_at(5))
    assert backups(target) == []
    save(filled.settings, tmp_path / "backup")
    other = elsewhere(tmp_path)
    with pytest.raises(Killed):
        restore(other.settings, str(tmp_path / "backup"), Report("restore"), progress=die_at(4))
    bring(other.settings, tmp_path / "backup")
    assert contents(other) == contents(filled)


def test_a_damaged_backup_says_which_file(filled: Layout, tmp_path: Path) -> None:
    save(filled.settings, tmp_path / "backup")
    (stamp,) = backups(open_store(str(tmp_path / "backup"), tmp_path))
    manifest = json.loads((tmp_path / "backup" / "backups" / f"{stamp}.json").read_text())
    (tmp_path / "backup" / blob_key(manifest["files"]["workspace/inputs.json"]["sha256"])).write_text("other")
    with pytest.raises(StoreError, match=r"workspace/inputs\.json"):
        bring(elsewhere(tmp_path).settings, tmp_path / "backup")


def test_a_manifest_cannot_write_outside(filled: Layout, tmp_path: Path) -> None:
    save(filled.settings, tmp_path / "backup")
    (path,) = (tmp_path / "backup" / "backups").iterdir()
    manifest = json.loads(path.read_text())
    manifest["files"] = {"workspace/../../evil": manifest["files"]["workspace/inputs.json"]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="outside of the workspace"):
        bring(elsewhere(tmp_path).settings, tmp_path / "backup")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "other" / "evil").exists()


def test_old_backups_go_with_what_only_they_hold(filled: Layout, tmp_path: Path) -> None:
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    (own.root / "note.txt").write_text("only in the first backup")
    save(own.settings, tmp_path / "backup")
    (own.root / "note.txt").unlink()
    report = save(own.settings, tmp_path / "backup", keep=1)
    target = open_store(str(tmp_path / "backup"), tmp_path)
    assert backups(target) == [report.facts["backup"]] and report.facts["deleted"] == 1
    assert all(b"only in the first" not in target.fetch(e.key).read_bytes() for e in target.list(BLOBS))
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")


def test_a_forgotten_photo_leaves_the_backups_with_those_from_before(filled: Layout, tmp_path: Path) -> None:
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    save(own.settings, tmp_path / "backup")
    gone = str(Catalog(own.settings.store).read("samples")["id"].min())
    labels = Catalog(own.settings.store).read("labels")
    mine = {gone, *labels.loc[labels["sample_id"] == gone, "alpha_sha256"]}
    target = open_store(str(tmp_path / "backup"), tmp_path)
    assert len(mine) == 2 and all(target.exists(blob_key(digest)) for digest in mine)
    stages.forget(PARAMS, own, [gone])
    save(own.settings, tmp_path / "backup")
    assert all(target.exists(blob_key(digest)) for digest in mine), "an older backup can still be restored whole"
    save(own.settings, tmp_path / "backup", keep=1)
    assert not any(target.exists(blob_key(digest)) for digest in mine)
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")
    assert len(Catalog(other.settings.store).read("samples")) == 2


def test_photos_may_stay_where_they_are(filled: Layout, tmp_path: Path) -> None:
    save(filled.settings, tmp_path / "backup", photos=False)
    other = elsewhere(tmp_path)
    assert "elsewhere" in bring(other.settings, tmp_path / "backup").facts["photos"]
    assert len(Catalog(other.settings.store).read("samples")) == 3
    assert not (Path(other.settings.store) / BLOBS).exists()


def test_a_place_in_the_workspace_is_refused(filled: Layout) -> None:
    with pytest.raises(InputError, match="outside"):
        save(filled.settings, filled.root / "backup")


def test_postgres_comes_back(filled: Layout, tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "fresh"):
        psql(postgres, "postgres", f"DROP DATABASE IF EXISTS {name}")
        psql(postgres, "postgres", f"CREATE DATABASE {name}")
    psql(postgres, "mlflow", "CREATE TABLE runs (id text); INSERT INTO runs VALUES ('r7')")
    monkeypatch.setenv("MM_BACKUP_DATABASES", f"{postgres}/mlflow")
    save(filled.settings, tmp_path / "backup")
    psql(postgres, "mlflow", "DROP TABLE runs")
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")
    assert psql(postgres, "mlflow", "SELECT id FROM runs") == "r7"
    shutil.rmtree(other.root)
    with pytest.raises(StoreError, match="already exists"):  # and is not overwritten
        bring(other.settings, tmp_path / "backup")
    monkeypatch.setenv("MM_BACKUP_DATABASES", "")
    shutil.rmtree(other.root)
    with pytest.raises(InputError, match="MM_BACKUP_DATABASES"):
        bring(other.settings, tmp_path / "backup")


def psql(server: str, database: str, sql: str) -> str:
    command = ["psql", "-v", "ON_ERROR_STOP=1", "-qtA", f"{server}/{database}", "-c", sql]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.strip()


@pytest.mark.parametrize("inside", ["store", "store/backups", "inbox"])
def test_a_backup_into_what_it_copies_is_refused(tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--keep`, everything in the store that no backup names would be deleted."""
    monkeypatch.setenv("MM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MM_INBOX", str(tmp_path / "inbox"))
    settings = Settings.from_env(tmp_path / "data")
    with pytest.raises(InputError, match="choose a place outside of it"):
        save(settings, tmp_path / inside, keep=1)
    assert not (tmp_path / inside).exists()


def test_what_removes_photos_waits_for_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(Settings.from_env(tmp_path / "data"))
    fill(layout, "w01", 1)
    one = stages.catalog_of(layout).read("samples")["id"].iloc[0]
    threads: list[threading.Thread] = []

    def begin_forgetting(what: str, done: int, total: int) -> None:
        if not threads:
            threads.append(threading.Thread(target=stages.forget, args=(PARAMS, layout, [one])))
            threads[0].start()
        threads[0].join(0.01)
        assert threads[0].is_alive()

    back_up(layout.settings, str(tmp_path / "backup"), Report("backup"), progress=begin_forgetting)
    threads[0].join()
    assert one not in set(stages.catalog_of(layout).read("samples")["id"])
    restored = elsewhere(tmp_path)
    bring(restored.settings, tmp_path / "backup")
    assert one in set(Catalog(restored.settings.store).read("samples")["id"])
