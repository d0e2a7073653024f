"""Backup and restore: all comes back, in a folder, on S3 and from PostgreSQL; nothing is overwritten.

The tests are in one file because they share one filled workspace, which takes most of their time.
"""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mm_core import operations, stages
from mm_core.core.errors import InputError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.records import Report, sha256_file, write_json
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from mm_core.services.backup import _in_order, back_up, restore
from mm_core.services.backup_target import backups, read_manifest
from mm_core.services.check import check
from mm_core.storage.catalog import Catalog
from mm_core.storage.seals import database_fault, seal_databases
from mm_core.storage.store import BLOBS, blob_key, open_store
from mm_core.training.rehome import rehome
from mm_core.training.tracking import Tracker
from tests.services.backup_workspace import PARAMS, bring, contents, elsewhere, fill, make_filled, rows, save, silent
from tests.tiny import snapshot_facts


@pytest.fixture(scope="module")
def filled(clean_layout: Layout) -> Layout:
    """As `make_filled` makes it."""
    return make_filled(clean_layout)


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


def test_the_seal_of_a_commit_beside_a_backup_is_not_in_it(tmp_path: Path) -> None:
    """The restored table would lack the commit of that seal, which no command would read as an older table."""
    catalog, store = Catalog(str(tmp_path / "store")), open_store(str(tmp_path / "store"), tmp_path / "cache")
    copied = open_store(str(tmp_path / "copied"), tmp_path / "cache")
    catalog.add("labels", [{"id": "a"}])
    for n, entry in enumerate(_in_order(store)):
        if n == 0:
            catalog.add("labels", [{"id": "late"}])
        copied.put(entry.key, store.fetch(entry.key))
    assert list(Catalog(copied.url).read("labels")["id"]) == ["a"]
    assert sorted(catalog.read("labels")["id"]) == ["a", "late"]


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


def test_a_file_of_the_backup_in_an_otherwise_empty_workspace_is_not_overwritten(
    filled: Layout, tmp_path: Path
) -> None:
    save(filled.settings, tmp_path / "backup")
    other = elsewhere(tmp_path)
    other.root.mkdir(parents=True)
    other.inputs.write_text("mine")
    with pytest.raises(InputError, match=r"inputs\.json lies in the way"):
        bring(other.settings, tmp_path / "backup")
    assert other.inputs.read_text() == "mine"


def test_a_half_restored_workspace_takes_no_work(filled: Layout, tmp_path: Path) -> None:
    """An ingest committed to the restored half of a table; the rest of the restore then replaced its commit."""
    save(filled.settings, tmp_path / "backup")
    other = elsewhere(tmp_path)

    def die(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(other.settings, str(tmp_path / "backup"), Report("restore"), progress=die)
    for work in (
        lambda: stages.ingest(Run(PARAMS, other)),
        lambda: stages.pin_inputs(Run(PARAMS, other)),
        lambda: save(other.settings, tmp_path / "backup", keep=1),
        lambda: check(other, Report("check"), progress=silent),
    ):
        with pytest.raises(InputError, match=r"restoring\.json: a restore is not finished"):
            work()
    bring(other.settings, tmp_path / "backup")
    assert contents(other) == contents(filled)


def test_two_restores_at_once_leave_a_whole_workspace(filled: Layout, tmp_path: Path) -> None:
    """The second one removed the marker of the first, and the first then ended with an error."""
    save(filled.settings, tmp_path / "backup")
    other = elsewhere(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(bring, other.settings, tmp_path / "backup") for _ in range(2)]
    failures = [error for end in ends if (error := end.exception())]
    assert len(failures) == 1 and "restore into an empty store" in str(failures[0])
    assert contents(other) == contents(filled)


def test_an_empty_disk_replaces_no_backup(filled: Layout, tmp_path: Path) -> None:
    """A disk that was not mounted became an empty backup; with --keep it then replaced those that were whole."""
    own = Layout(Settings.from_env(tmp_path / "data"))
    shutil.copytree(filled.root, own.root)
    whole = save(own.settings, tmp_path / "backup").facts["backup"]
    own.root.rename(tmp_path / "unmounted")
    with pytest.raises(InputError, match="hold nothing to back up: is each disk there"):
        save(own.settings, tmp_path / "backup", keep=1)
    shutil.copytree(tmp_path / "unmounted" / "store", own.root / "store")
    report = save(own.settings, tmp_path / "backup", keep=1)
    assert f"this backup has no workspace/inputs.json, and {whole} has" in str(report.facts["not_deleted"])
    assert whole in backups(open_store(str(tmp_path / "backup"), tmp_path))


@pytest.mark.parametrize("place", ["", " "])
def test_an_empty_name_of_a_place_is_not_this_folder(filled: Layout, place: str) -> None:
    for work in (save, bring):
        with pytest.raises(InputError, match="the place of the backups is empty"):
            work(filled.settings, place)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("workspace"),
        lambda m: m.pop("photos"),
        lambda m: m["files"].update({"elsewhere/x": m["files"]["workspace/inputs.json"]}),
        lambda m: m["files"].update({"workspace/": m["files"]["workspace/inputs.json"]}),
        lambda m: m["files"]["workspace/inputs.json"].update(mode="0644"),
        lambda m: m["files"]["workspace/inputs.json"].update(sha256="A" * 64),
    ],
)
def test_a_manifest_of_another_form_writes_nothing(
    filled: Layout, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    save(filled.settings, tmp_path / "backup")
    (path,) = (tmp_path / "backup" / "backups").iterdir()
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="is damaged: choose an older backup"):
        bring(elsewhere(tmp_path).settings, tmp_path / "backup")
    assert not elsewhere(tmp_path).restoring.exists() and not elsewhere(tmp_path).inputs.exists()


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
    operations.forget(Run(PARAMS, own), [gone])
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


def test_what_lies_outside_by_a_link_is_backed_up_and_a_pipe_stops_nothing(filled: Layout, tmp_path: Path) -> None:
    """Who moves the run history or the photos to a larger disk and links them must find them in the backup."""
    own = Layout(Settings.from_env(tmp_path / "own" / "data"))
    shutil.copytree(filled.root, own.root)
    shutil.move(own.dagster_home, tmp_path / "disk")
    own.dagster_home.symlink_to(tmp_path / "disk")
    shutil.move(own.inputs, tmp_path / "inputs.json")
    own.inputs.symlink_to(tmp_path / "inputs.json")
    (own.dagster_home / "up").symlink_to(own.root)
    (own.root / "all").symlink_to("/")
    (own.root / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(own.root / "pipe")
    blobs = Path(own.settings.store) / "blobs"
    shutil.move(blobs, tmp_path / "photos")
    blobs.symlink_to(tmp_path / "photos")
    part = next((tmp_path / "photos").iterdir())
    shutil.move(part, tmp_path / "part")
    part.symlink_to(tmp_path / "part")
    (tmp_path / "part" / "around").symlink_to(own.settings.store)
    report = save(own.settings, tmp_path / "backup")
    assert "vanished_meanwhile" not in report.facts
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")
    assert contents(other) == contents(filled)


def test_restored_databases_are_sealed(filled: Layout, tmp_path: Path) -> None:
    """A seal holds for one modification time, which a restored file does not have any more."""
    save(filled.settings, tmp_path / "backup")
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")
    path = other.dagster_home / "runs.db"
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b"r1", b"r2"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert database_fault(other.root, path)


def test_a_place_in_the_workspace_is_refused_by_any_name(filled: Layout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(filled.root)
    with pytest.raises(InputError, match="within the workspace"):
        save(filled.settings, tmp_path / "link" / "backup")


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


def test_modes_come_back_and_a_secret_is_readable_by_nobody_else(filled: Layout, tmp_path: Path) -> None:
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    secret, program = own.root / "labels" / "webhook.token", own.root / "labels" / "run"
    for path, mode in ((secret, 0o600), (program, 0o750)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
        path.chmod(mode)
    save(own.settings, tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700
    other = elsewhere(tmp_path)
    bring(other.settings, tmp_path / "backup")
    found = {name: stat.S_IMODE((other.root / "labels" / name).stat().st_mode) for name in ("webhook.token", "run")}
    assert found == {"webhook.token": 0o600, "run": 0o750}


def test_a_restore_goes_on_past_a_file_that_is_not_needed_and_says_so(filled: Layout, tmp_path: Path) -> None:
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    (own.root / "reports").mkdir(exist_ok=True)
    (own.root / "reports" / "old.html").write_text("a page")
    save(own.settings, tmp_path / "backup")
    target = open_store(str(tmp_path / "backup"), tmp_path)
    files = read_manifest(target, backups(target)[-1])["files"]
    photo = next(name for name in files if name.startswith("store/blobs/"))
    (target.fetch(blob_key(files["workspace/reports/old.html"]["sha256"]))).write_text("A page")
    target.delete(blob_key(files[photo]["sha256"]))
    other = elsewhere(tmp_path)
    report = bring(other.settings, tmp_path / "backup")
    assert {row["file"] for row in report.tables["left_out"]} == {"workspace/reports/old.html", photo}
    assert "2 files" in report.facts["left_out"] and report.facts["files"] == len(files) - 2
    assert not (other.root / "reports" / "old.html").exists()
    assert len(Catalog(other.settings.store).read("samples")) == 3
    # The next backup notices what is gone from its place and writes it again.
    save(own.settings, tmp_path / "backup")
    assert sha256_file(target.fetch(blob_key(files[photo]["sha256"]))) == files[photo]["sha256"]


def test_a_damaged_database_is_named_and_no_backup_is_written(filled: Layout, tmp_path: Path) -> None:
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    path = own.root / "dagster" / "runs.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 10))
    with pytest.raises(StoreError, match=r"runs\.db is a damaged database .*mm check"):
        save(own.settings, tmp_path / "backup")
    assert backups(open_store(str(tmp_path / "backup"), tmp_path)) == []


@pytest.mark.parametrize("how", ["moved", "copied", "restored"])
def test_artifacts_of_mlflow_follow_the_workspace(filled: Layout, tmp_path: Path, how: str) -> None:
    """Old runs' artifacts are found and new ones written in the workspace, whatever became of the old place."""
    source = Layout(Settings.from_env(tmp_path / "before and after" / "data"))
    shutil.copytree(filled.root, source.root)
    (source.root / "cycle" / "snapshot").mkdir(parents=True)
    write_json(source.root / "cycle" / "snapshot" / "snapshot.json", snapshot_facts("abc"))
    # By another process: MLflow remembers a run's address for as long as a process lives.
    code = "import sys; from mm_core.core.records import Report; from mm_core.training.tracking import Tracker\n"
    code += "from mm_core.core.layout import Layout; from mm_core.core.settings import Settings\n"
    code += "settings = Settings.from_env(sys.argv[1]); rows = {'t': [{'a': 1}]}\n"
    code += "print(Tracker(settings).log_report(Layout(settings), Report('split', tables=rows)))"
    command = [sys.executable, "-c", code, str(source.root)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    run = done.stdout.split()[-1]
    other = elsewhere(tmp_path)
    other.root.parent.mkdir()
    if how == "restored":
        save(source.settings, tmp_path / "backup")
        bring(other.settings, tmp_path / "backup")
    elif how == "moved":
        source.root.rename(other.root)
    else:
        shutil.copytree(source.root, other.root)
    shutil.rmtree(source.root, ignore_errors=True)
    tracker = Tracker(other.settings)
    assert tracker.log_report(other, Report("split", tables={"t": [{"a": 2}]})) == run
    client = MlflowClient(tracking_uri=other.settings.mlflow_uri)
    assert str(client.get_run(run).info.artifact_uri).startswith(other.mlflow_artifacts.as_uri())
    assert json.loads(Path(client.download_artifacts(run, "tables/t.json")).read_text()) == [{"a": 2}]
    assert not source.root.exists(), "nothing is written to the old place"
    assert rehome(other.settings) == 0, "done once"


def test_a_moved_database_is_sealed_again_and_a_damaged_one_is_not_moved(tmp_path: Path) -> None:
    """A change of the addresses ends the seal: a bit that flips afterwards must still be found."""
    own = Layout(Settings.from_env(tmp_path / "own" / "data"))
    path = own.root / "mlflow" / "mlflow.db"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE experiments (name, artifact_location)")
        database.execute("INSERT INTO experiments VALUES ('the name', '/before/mlflow/artifacts')")
    seal_databases(own.root, own.cache)
    status, data = path.stat(), path.read_bytes()

    def rot() -> None:
        status, data = path.stat(), path.read_bytes()
        path.write_bytes(data.replace(b"the name", b"the namd"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    rot()
    with pytest.raises(StoreError, match=r"mlflow\.db: its bytes changed .*backup"):
        rehome(own.settings)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert rehome(own.settings) > 0
    assert database_fault(own.root, path) == ""
    rot()
    assert database_fault(own.root, path)
