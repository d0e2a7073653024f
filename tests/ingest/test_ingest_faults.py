"""Ingest where processes die, disks are full and S3 lets requests down: nothing lost, nothing twice, nothing half."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arrivals
from benchmarks.faulty_proxy import FAULTS, FaultyProxy
from benchmarks.ingest_kills import Kills
from mm_core.core.errors import CatalogError, MattingError, StoreError
from mm_core.storage.catalog import Catalog, CatalogMoved
from mm_core.storage.store import open_store

SEED = 35
"""Kills twice around writes."""
KILLS = """
import sys
from pathlib import Path
from benchmarks.ingest_kills import Kills
work = Kills(Path(sys.argv[1]))
work.prepare()
# A run may end before the moment that was drawn for its kill: then another trial is made.
for number in range(8):
    work.trial(number, int(sys.argv[2]) + number, 2)
    if work.kills.total() >= 2:
        break
assert work.kills.total() >= 2, work.kills
assert not work.failures, work.failures
assert not +work.after, work.after
print("equal")
"""


def test_killed_processes_leave_no_trace(tmp_path: Path) -> None:
    """Two real SIGKILLs in a row; `benchmarks/ingest_kills.py` does 200. In a process of its own, since it forks."""
    command = [sys.executable, "-c", KILLS, str(tmp_path), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_the_comparison_of_catalogs_sees_a_difference() -> None:
    expected = {"samples": ["a", "b"], "objects": ["x"]}
    assert arrivals.differences(expected, expected) == []
    found = {"samples": ["b", "b"], "objects": ["x", "y"]}
    assert arrivals.differences(expected, found) == ["- samples: a", "+ samples: 1 lines twice", "+ objects: y"]
    assert Kills(Path()).failures == []


FUZZ = """
import sys
from pathlib import Path
from benchmarks.ingest_fuzz import Fuzz
fuzz = Fuzz(Path(sys.argv[1]), 4000)
fuzz.run(150)
assert not fuzz.failures, fuzz.failures
assert sorted(fuzz.ends) == list(range(150))
print("ended", len(set(fuzz.ends.values())))
"""


def test_fuzzed_files_end_with_a_verdict(tmp_path: Path) -> None:
    """No crash, no hang; `benchmarks/ingest_fuzz.py` does 10,000. In a process of its own, since it forks."""
    done = subprocess.run([sys.executable, "-c", FUZZ, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith("ended"), done.stderr[-3000:]
    assert int(done.stdout.split()[1]) >= 5, "accepted, and several reasons"


# ── S3 lets requests down ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_S3_TIMEOUT", "0.5")


def test_some_of_all_requests_fail(
    s3_address: str, bucket: str, impatient: None, workshop_at: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inbox, blobs and tables on S3 through a proxy that spoils them; the catalog is that of a run without faults."""
    shop = workshop_at(f"{bucket}/drops", f"{bucket}/calm")
    monkeypatch.setattr("mm_core.ingest.data_docs.DataDocs.build", lambda self: None)
    half = make.row(3)["image_bytes"][:300]
    shop.drop(
        "pixel_labeled", "a", [make.row(1), make.row(2), make.row(1, image="c.jpg"), make.row(3, image_bytes=half)]
    )
    shop.ingest()
    faulty = workshop_at(f"{bucket}/drops", f"{bucket}/faulty")
    shutil.rmtree(shop.root / "cache")
    with FaultyProxy(s3_address, 0.08, seed=1, silence=1.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        for store in (faulty.store, faulty.inbox):
            store._client_or_none = None
        again = workshop_at(f"{bucket}/drops", f"{bucket}/faulty")
        for _ in range(5):
            try:
                again.ingest()
                break
            except MattingError:
                continue
        assert again.tables() == shop.tables()
    assert proxy.faults.total() > 5 and len(proxy.faults) >= len(FAULTS) - 2


def test_a_commit_whose_answer_is_lost_is_not_done_by_another(
    workshop_at: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables moved by our own commit: what it changed is still ours when verdicts are made again."""
    monkeypatch.setattr("mm_core.ingest.data_docs.DataDocs.build", lambda self: None)
    calm, lossy = workshop_at(store=tmp_path / "calm"), workshop_at(store=tmp_path / "lossy")
    calm.drop("unlabeled", "a", [make.row(1, category=""), make.row(2)])
    for shop in (calm, lossy):
        shop.ingest()
    calm.drop("text_image", "b", [make.row(1, caption="A dog."), make.row(3, caption="A cat.")])
    calm.drop("pixel_labeled", "c", [make.row(2), make.row(4)])
    calm.ingest()
    lost: set[tuple[str, str]] = set()

    def losing(verb: Any) -> Any:
        def commit(self: Catalog, table: str, rows: Any, *args: Any, **more: Any) -> int:
            rows = list(rows)
            done = verb(self, table, rows, *args, **more)
            batch = next((row["batch"] for row in rows if "batch" in row), "")
            if rows and more.get("at") is not None and (table, batch) not in lost:
                lost.add((table, batch))
                raise CatalogMoved(f"{table}: the answer was lost")
            return done

        return commit

    monkeypatch.setattr(Catalog, "upsert", losing(Catalog.upsert))
    lossy.ingest()
    assert lost == {("labels", "c"), ("samples", "c"), ("samples", "b")}
    assert lossy.tables() == calm.tables()


@pytest.mark.parametrize("fault", FAULTS)
def test_s3_that_never_answers_well_is_reported(
    fault: str, s3_address: str, bucket: str, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(bucket, tmp_path / "a").put("key", b"content")
    monkeypatch.setattr("mm_core.storage.store.S3_ATTEMPTS", 2)
    monkeypatch.setattr("benchmarks.faulty_proxy.FAULTS", (fault,))
    with FaultyProxy(s3_address, 1.0, silence=1.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        store = open_store(bucket, tmp_path / "b")
        with pytest.raises(StoreError, match="run again"):
            store.fetch("key")
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()], "no half of it in the cache"


def test_s3_that_is_not_there_is_reported_on_one_line(bucket: str, impatient: None, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("mm_core.storage.retry.TRIES", 2)
    catalog = Catalog(bucket)
    assert catalog._options
    catalog._options |= {"max_retries": "1"}
    with pytest.raises(CatalogError, match="run again$") as told:
        catalog.read("samples")
    assert "\n" not in str(told.value) and "\x1b" not in str(told.value)


# ── no space ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 kB; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_more_space_ends_it(
    small_disk: Path, workshop_at: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk grows by steps, so that it is full at many moments; the end is that of a disk with space."""
    monkeypatch.setattr("mm_core.ingest.data_docs.DataDocs.build", lambda self: None)
    rows = [make.row(n, image_bytes=make.encoded(make.photo(n, 160, 120), "PNG")) for n in range(6)]
    for n, row in enumerate(rows):
        row["alpha_bytes"] = make.encoded(make.matte(n, 160, 120), "PNG")
    calm = workshop_at(store=tmp_path / "calm")
    calm.drop("pixel_labeled", "a", [*rows, make.row(9, image_bytes=b"<html>")])
    calm.ingest()
    shop = workshop_at(store=small_disk / "store")
    told = []
    for size in range(24, 2400, 20):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        try:
            shop.ingest()
            break
        except MattingError as error:
            told.append(error)
            assert "space" in str(error) and str(small_disk) in str(error)
    assert {type(error) for error in told} == {StoreError, CatalogError}
    assert shop.tables() == calm.tables()


def test_a_full_workspace_is_said(small_disk: Path, workshop_at: Any, make: Any) -> None:
    """The store has space, the disk of the spool and the Data Docs has not."""
    shop = workshop_at()
    shop.drop("pixel_labeled", "a", [make.row(n) for n in range(3)])
    (small_disk / "filler").write_bytes(bytes(24 << 10))
    shop.root = small_disk
    with pytest.raises(StoreError, match="free some space"):
        shop.ingest()
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert shop.ingest().metrics["ingest/accepted"] == 3


LIMITED = """
import resource, sys
from pathlib import Path
from mm_core.storage.catalog import Catalog
from mm_core.core.errors import MattingError
from mm_core.storage.store import open_store, put_blob
store = open_store(sys.argv[1], Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for work in (lambda: put_blob(store, b"x" * 5000),
             lambda: Catalog(sys.argv[1]).add("labels", [{"id": str(n)} for n in range(99)])):
    try:
        work()
        print("written")
    except MattingError as error:
        print(type(error).__name__, error)
"""


def test_a_file_that_may_not_grow_is_said(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    store, catalog = done.stdout.splitlines()
    assert store.startswith("StoreError") and "ulimit -f" in store, done.stderr
    assert catalog.startswith("CatalogError") and "ulimit -f" in catalog
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [], "nothing half-recorded"
    assert open_store(str(tmp_path), tmp_path).list("blobs") and not list((tmp_path / ".tmp").iterdir())
