"""A full disk and a damaged file end a command in one line that names the file and the remedy, never in a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mm_core import stages
from mm_core.cli import main
from mm_core.core.errors import CatalogError, InputError, MattingError, ReleaseRefused, StoreError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.core.progress import quiet
from mm_core.core.records import Report, Verdict, read_verdict, sha256_file, write_json
from mm_core.core.settings import Settings
from mm_core.eval.eval_budget import record_use
from mm_core.eval.shadow import disagreement
from mm_core.experiments.seed_noise import recorded_noise
from mm_core.export.override import valid_override
from mm_core.export.registry import Registry
from mm_core.export.start_weights import kept_starts
from mm_core.imaging.pixel_cache import Shelf
from mm_core.ingest.statements import Statement
from mm_core.labeling.label_studio_local import read_account
from mm_core.labeling.pull import Cursor
from mm_core.pinned_inputs import Run, read_inputs, recorded_verdict, require_promote
from mm_core.services.backup import back_up
from mm_core.services.check import check
from mm_core.storage.retry import plain_fault
from mm_core.storage.run import StorageRun, catalog_of
from mm_core.storage.seals import database_seals, require_unbroken
from mm_core.storage.store import LocalStore
from mm_core.structuring.drift import drifted_batches
from mm_core.training.mlflow_client import open_client
from samplegen import write_drop

PARAMS = Params().with_values(**{"structure.ocr": ()})


@pytest.fixture(scope="module")
def filled(clean_layout: Layout) -> Layout:
    write_drop(Path(clean_layout.settings.inbox), "pixel_labeled", "w01", {"pets": 2}, seed=1, size=64)
    stages.ingest(Run(PARAMS, clean_layout))
    stages.pin_inputs(Run(PARAMS, clean_layout))
    return clean_layout


def said(words: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command writes to stderr when it fails."""
    monkeypatch.setenv("MM_WORKSPACE", str(workspace))
    monkeypatch.setattr(sys, "argv", ["mm", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mm: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "case",
    [
        ("inputs.json", "snapshot", "inputs.json is damaged: delete it"),
        ("inputs.json", "pin-inputs", "inputs.json is damaged: delete it"),
        ("cycle/gate/verdict.json", "gate show", "verdict.json is damaged: run `mm gate`"),
        ("cycle/gate/verdict.json", "status", "verdict.json is damaged: run `mm gate`"),
        ("mlflow/mlflow.db", "status", "mm check"),
        ("store/catalog/samples/_delta_log/00000000000000000000.json", "status", "samples"),
        ("store/catalog/batches/_delta_log/00000000000000000000.json", "ingest", "run `mm check`, which names"),
        ("store/catalog/labels/_delta_log/00000000000000000000.json", "snapshot", "run `mm check`, which names"),
        ("cycle/snapshot/snapshot.json", "split", "snapshot.json is damaged"),
        ("cycle/snapshot/digests.json", "split", "digests.json is damaged, not the digests that were written"),
        ("cycle/snapshot/train_labeled.parquet", "split", "parquet is damaged"),
        ("cycle/snapshot/train_labeled.parquet", "train-simple", "mm "),
    ],
)
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00scribble" * 50])
def test_a_damaged_file_is_told_in_one_line(
    filled: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: tuple[str, str, str],
    content: bytes,
) -> None:
    file, command, remedy = case
    own = tmp_path / "data"
    shutil.copytree(filled.root, own)
    if file.startswith("cycle/snapshot"):
        stages.snapshot(Run(PARAMS, Layout(Settings.from_env(own))))
    if file.endswith(".db") and not content:
        pytest.skip("sqlite takes an empty file for a new database")
    path = own / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert remedy in said(command, own, monkeypatch, capsys)


def test_what_libraries_raise_about_disks_and_files_has_a_remedy() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert plain_fault(full) == "/data/x: No space left on device: free some space or move the store, then run again"
    in_the_way = FileExistsError(errno.EEXIST, "File exists", "/data/x")
    assert str(plain_fault(in_the_way)).endswith("in the place of a folder: move it away, or name another folder")
    wrapped = sqlite3.OperationalError("disk I/O error")
    wrapped.__cause__ = full
    assert "/data/x: No space left" in str(plain_fault(wrapped))
    assert "free some space" in str(plain_fault(sqlite3.OperationalError("database or disk is full")))
    with pytest.raises(json.JSONDecodeError) as broken:
        json.loads("{")
    assert "mm check" in str(plain_fault(broken.value))
    assert plain_fault(KeyError("a")) is None and plain_fault(ZeroDivisionError()) is None, "our own faults are shown"


@pytest.fixture
def full_disk(filled: Layout, tmp_path: Path) -> Iterator[Path]:
    """A real file system with the workspace on it and no byte left; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    shutil.copytree(filled.root, folder / "data")
    Registry(Settings.from_env(folder / "data")).pin("champion")  # MLflow makes its database
    with (folder / "filler").open("wb", buffering=0) as stream:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    stream.write(b"x" * size)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_in_one_line_that_names_the_file(
    full_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    photo = next((full_disk / "data" / "inbox" / "pixel_labeled" / "w01" / "images").iterdir())
    shutil.copy(photo, tmp_path / "photos" / "a.jpg")
    commands = {
        "snapshot": "cycle/snapshot/",
        f"drop {tmp_path}/photos --kind unlabeled --batch b": "inbox/unlabeled/b/images/a.jpg",
        f"keys {full_disk}/key.pem": "key.pem",
        f"backup {full_disk}/backup": "backup/",
    }
    for command, file in commands.items():
        line = said(command, full_disk / "data", monkeypatch, capsys)
        assert re.search(rf"{full_disk}/\S*({file})", line) and "free some space" in line, line
    assert not (full_disk / "key.pem").exists(), "half a pair is none"


def test_a_database_on_a_full_disk_is_named_without_a_traceback(
    full_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow logged a traceback, and its error quoted a statement with hundreds of values instead of the file."""
    with pytest.raises(StoreError) as refused:
        open_client(Settings.from_env(full_disk / "data")).create_experiment("another")
    database = full_disk / "data" / "mlflow" / "mlflow.db"
    assert str(refused.value).startswith(f"{database}: database or disk is full: free some space")
    assert capfd.readouterr().err == ""


def test_decoded_photos_on_a_full_disk_are_named_and_no_half_row_counts(full_disk: Path) -> None:
    shelf = Shelf(full_disk / "data" / "cache", "photos-64", (64, 64, 3))
    row = np.ones(shelf.shape, np.uint8)
    with pytest.raises(StoreError, match=r"photos-64\.u8: No space left on device: free some space"):
        shelf.append([("a" * 64, row)])
    (full_disk / "filler").unlink()
    shelf.reload()
    assert len(shelf) == 0
    shelf.append([("a" * 64, row)])
    assert np.array_equal(shelf["a" * 64], row)


def test_damaged_weights_of_a_judged_candidate_are_named(tmp_path: Path) -> None:
    """The message said that another candidate was judged, and to run the gate, which refuses these weights too."""
    layout = Layout(Settings.from_env(tmp_path / "data"))
    model = layout.model("multimodal")
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    digest = sha256_file(model)
    verdict = Verdict(
        decision="PROMOTE", basis="bootstrap", reasons=[], candidate=digest, champion=None, anchor=None,
        snapshot="s", eval_digest="e", cells=[], created_at="2026-11-29T00:00:00+00:00",
    )  # fmt: skip
    write_json(layout.verdict, verdict.model_dump())
    model.write_bytes(b"weighty")
    with pytest.raises(ReleaseRefused, match="the recorded verdict is about"):
        require_promote(layout)
    Report("train-multimodal", facts={"digest": digest}).write(layout.stage_report("train-multimodal"))
    with pytest.raises(InputError, match=r"model.safetensors is damaged, .*: run `mm train-multimodal`"):
        require_promote(layout)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000])
def test_a_record_of_another_shape_is_told_with_its_file_and_a_remedy(tmp_path: Path, content: bytes) -> None:
    """A flipped bit may leave valid JSON. Each reader of an own record names the file; none ends in a traceback."""
    layout, store = Layout(Settings.from_env(tmp_path / "data")), LocalStore(tmp_path / "store")
    at_store = replace(layout.settings, store=str(store.root))
    drift = layout.root / "drift" / "unlabeled" / "b.json"
    files = {
        layout.shadow: lambda: disagreement(layout, {}, 0.1),
        drift: lambda: drifted_batches(layout.root / "drift"),
        layout.verdict: lambda: read_verdict(layout.verdict),
        layout.labels / "pulled.json": lambda: Cursor.read(layout, "link"),
        layout.labels / "account.json": lambda: read_account(layout.labels),
        layout.inputs: lambda: read_inputs(layout),
        layout.snapshot / "snapshot.json": lambda: read_snapshot(layout),
        layout.stage_report("gate"): lambda: Report.read(layout.stage_report("gate")),
    }
    records = {
        "gate/uses/a.json": lambda: record_use(store, ["1"], "c"),
        "gate/starts/a.json": lambda: kept_starts(store),
        "gate/noise.json": lambda: recorded_noise(StorageRun(PARAMS, Layout(at_store))),
        f"gate/overrides/{'m' * 32}/a.json": lambda: valid_override(store, "m" * 64),
    }
    for path, read in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{re.escape(str(path))} is damaged: .{{8,}}"):
            read()
    for key, read in records.items():
        store.put(key, content)
        with pytest.raises(InputError, match=f"{re.escape(key)} is damaged: .{{8,}}"):
            read()


def make_folder(path: Path) -> None:
    path.mkdir()


def break_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize("replace_by", [make_folder, os.mkfifo, break_link])
def test_what_is_no_file_is_not_taken_for_a_missing_file(tmp_path: Path, replace_by: Callable[[Path], None]) -> None:
    """A folder in the place of a start record was no record; reading a pipe waits for ever."""
    layout, store = Layout(Settings.from_env(tmp_path / "data")), LocalStore(tmp_path / "store")
    at_store = replace(layout.settings, store=str(store.root))
    files = {
        layout.verdict: lambda: recorded_verdict(layout),
        layout.inputs: lambda: read_inputs(layout),
        layout.snapshot / "snapshot.json": lambda: has_snapshot(layout),
        layout.snapshot / "digests.json": lambda: require_unbroken(layout.snapshot, "move it away"),
        layout.shadow: lambda: disagreement(layout, {}, 0.1),
        layout.labels / "pulled.json": lambda: Cursor.read(layout, "link"),
        layout.root / "databases.json": lambda: database_seals(layout.root),
    }
    records = {
        "gate/uses/a.json": lambda: record_use(store, ["1"], "c"),
        "gate/starts/a.json": lambda: kept_starts(store),
        "gate/noise.json": lambda: recorded_noise(StorageRun(PARAMS, Layout(at_store))),
        f"gate/overrides/{'m' * 32}/a.json": lambda: valid_override(store, "m" * 64),
        "ingest/statements/a.parquet": lambda: Statement.read(store, "ingest/statements/a.parquet"),
        "quarantine/a": lambda: store.exists("quarantine/a"),
    }
    for key in records:
        store.put(key, b"{}")
        files[store.root / key] = records[key]
    for path, read in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        replace_by(path)
        with pytest.raises(MattingError, match=f"{re.escape(str(path))} is .*: move it away"):
            read()


def data_file(table: Path) -> Path:
    return next(table.glob("*.parquet"))


def newest_commit(table: Path) -> Path:
    return max((table / "_delta_log").glob("*.json"))


@pytest.mark.parametrize("choose", [data_file, newest_commit])
@pytest.mark.parametrize("replace_by", [make_folder, os.mkfifo, break_link, None])
def test_a_pipe_in_place_of_a_tables_file_ends_readers_and_backups(
    filled: Layout, tmp_path: Path, choose: Callable[[Path], Path], replace_by: Callable[[Path], None] | None
) -> None:
    """delta-rs waits for ever for the writer of a pipe; a backup left the file out and ended without an error."""
    shutil.copytree(filled.root, tmp_path / "data")
    layout = Layout(Settings.from_env(tmp_path / "data"))
    path = choose(Path(layout.settings.store) / "catalog" / "samples")
    path.unlink()
    if replace_by:
        replace_by(path)
    with pytest.raises(CatalogError, match=path.name):
        catalog_of(layout).read("samples")
    with pytest.raises(CatalogError, match=f"{re.escape(str(path))} is .*: restore the store's catalog"):
        back_up(layout.settings, str(tmp_path / "backup"), Report("backup"), progress=quiet)
    assert not list((tmp_path / "backup").glob("backups/*"))


def test_the_check_names_what_is_no_file_and_goes_on(filled: Layout, tmp_path: Path) -> None:
    shutil.copytree(filled.root, tmp_path / "data")
    layout = Layout(Settings.from_env(tmp_path / "data"))
    store = LocalStore(Path(layout.settings.store))
    key = next(entry.key for entry in store.list("ingest/statements"))
    for path in (layout.inputs, store.root / key):
        path.unlink()
        path.mkdir()
    faults = check(layout, Report("check"), progress=quiet)
    assert {str(layout.inputs), f"{store.url}/{key}"} <= {fault.where for fault in faults} | {
        word for fault in faults for word in fault.fault.split()
    }
