"""Backups beside other work: writers, deletions and a clock that was ahead."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mm_core import operations
from mm_core.core.layout import Layout
from mm_core.core.records import Report, sha256_file
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from mm_core.services.backup import back_up
from mm_core.services.backup_target import at_work, backups, read_manifest
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import catalog_of
from mm_core.storage.store import blob_key, open_store
from tests.services.backup_workspace import PARAMS, bring, elsewhere, fill, make_filled, save


@pytest.fixture(scope="module")
def filled(clean_layout: Layout) -> Layout:
    """As `make_filled` makes it."""
    return make_filled(clean_layout)


def test_what_removes_photos_waits_for_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(Settings.from_env(tmp_path / "data"))
    fill(layout, "w01", 1)
    one = catalog_of(layout).read("samples")["id"].iloc[0]
    threads: list[threading.Thread] = []

    def begin_forgetting(what: str, done: int, total: int) -> None:
        if not threads:
            threads.append(threading.Thread(target=operations.forget, args=(Run(PARAMS, layout), [one])))
            threads[0].start()
        threads[0].join(0.01)
        assert threads[0].is_alive()

    back_up(layout.settings, str(tmp_path / "backup"), Report("backup"), progress=begin_forgetting)
    threads[0].join()
    assert one not in set(catalog_of(layout).read("samples")["id"])
    restored = elsewhere(tmp_path)
    bring(restored.settings, tmp_path / "backup")
    assert one in set(Catalog(restored.settings.store).read("samples")["id"])


def test_a_file_that_grows_meanwhile_can_be_restored(filled: Layout, tmp_path: Path) -> None:
    """A log of a run at work: each of ten backups names what it wrote."""
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    log, ended = own.root / "dagster" / "worker.log", threading.Event()

    def grow() -> None:
        with log.open("ab", buffering=0) as stream:
            while not ended.is_set() and stream.tell() < 64 << 20:
                stream.write(os.urandom(1 << 14))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(10):
            save(own.settings, tmp_path / "backup")
    finally:
        ended.set()
        writer.join()
    target = open_store(str(tmp_path / "backup"), tmp_path)
    digests = set()
    for name in backups(target):
        for entry in read_manifest(target, name)["files"].values():
            path = target.fetch(blob_key(entry["sha256"]))
            assert sha256_file(path) == entry["sha256"] and path.stat().st_size == entry["bytes"]
        digests.add(read_manifest(target, name)["files"]["workspace/dagster/worker.log"]["sha256"])
    assert len(digests) > 1, "it grew"
    bring(elsewhere(tmp_path).settings, tmp_path / "backup")


def test_a_clock_that_was_ahead_costs_no_backup(filled: Layout, tmp_path: Path) -> None:
    save(filled.settings, tmp_path / "backup")
    folder = tmp_path / "backup" / "backups"
    (first,) = folder.iterdir()
    first.rename(folder / "20991231T000000.000000Z.json")
    target = open_store(str(tmp_path / "backup"), tmp_path)
    for _ in range(3):
        kept = save(filled.settings, tmp_path / "backup", keep=2).facts["backup"]
        assert backups(target)[-1] == kept, "the newest is the one that was just written"
    assert len(backups(target)) == 2
    last = save(filled.settings, tmp_path / "backup", keep=1).facts["backup"]
    assert backups(target) == [last]
    assert bring(elsewhere(tmp_path).settings, tmp_path / "backup").facts["backup"] == last


def test_of_two_backups_at_once_each_can_be_restored(filled: Layout, tmp_path: Path) -> None:
    """Two processes, `--keep 1`, three times: whatever is left is whole."""
    own = Layout(Settings.from_env(tmp_path / "own"))
    shutil.copytree(filled.root, own.root)
    command = [sys.executable, "-m", "mm_core", "backup", str(tmp_path / "backup"), "--keep", "1", "--json"]
    environment = os.environ | {"MM_WORKSPACE": str(own.root), "PYTHONPATH": str(Path(__file__).parents[1])}
    target = open_store(str(tmp_path / "backup"), tmp_path)
    for n in range(3):
        (own.root / "note.txt").write_text(f"round {n}")
        both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
        said = [json.loads(process.communicate()[0])["facts"]["backup"] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        names = backups(target)
        assert names and set(names) & set(said)
        for name in names:
            for entry in read_manifest(target, name)["files"].values():
                assert sha256_file(target.fetch(blob_key(entry["sha256"]))) == entry["sha256"]
    assert list(target.list("running")) == list(target.list("pruning")) == []
    save(own.settings, tmp_path / "backup", keep=1)
    assert len(backups(target)) == 1, "the next one alone tidies up"


def test_nothing_is_deleted_beside_a_backup_of_a_living_process_and_the_dead_hold_nobody_up(
    filled: Layout, tmp_path: Path
) -> None:
    save(filled.settings, tmp_path / "backup")
    target = open_store(str(tmp_path / "backup"), tmp_path)
    with at_work(target, "running"):
        report = save(filled.settings, tmp_path / "backup", keep=1)
        assert "is writing to" in report.facts["not_deleted"] and len(backups(target)) == 2
    dead = subprocess.Popen(["true"])
    dead.wait()
    about = {"host": socket.gethostname(), "pid": dead.pid, "alive": time.time()}
    for key in ("running/a.json", "pruning/b.json"):
        target.put(key, json.dumps(about).encode())
    target.put("running/c.json", b"scribble")
    target.put("running/d.json", b"[" * 100_000)
    target.put("running/e.json", b'{"host": "x", "pid": 1e999, "alive": 1}')
    target.put("running/f.json", json.dumps(about | {"pid": 10**30}).encode())
    assert save(filled.settings, tmp_path / "backup", keep=1).facts["deleted"] >= 0
    assert len(backups(target)) == 1 and not list(target.list("running"))
