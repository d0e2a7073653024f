"""Ingest interrupted between any two writes, and in company: the catalog of an undisturbed run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pandas as pd
import pytest

from mm_core.ingest import commit as writes_module
from mm_core.ingest import ingest as ingest_module
from mm_core.ingest.expectations import Judge
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import LocalStore, blob_key, open_store


class Killed(BaseException):
    """The process ends here."""


def killing_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ends the process after that many writes of any kind; the list tells what was written."""
    done: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(self: Any, what: str, *args: Any, **more: Any) -> Any:
            if len(done) >= writes:
                raise Killed
            result = real(self, what, *args, **more)
            done.append(f"{name} {what}")
            return result

        return write

    for owner, name in ((LocalStore, "put"), (Catalog, "_merge"), (Catalog, "delete")):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    return done


def remember_judgements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations judges each table once: it is slow, says the same each time, and is tested elsewhere."""
    real, known = Judge._run, {}

    def run(self: Judge, scope: Any, table: pd.DataFrame) -> Any:
        key = (self.kind, scope, table.to_json())
        if key not in known:
            known[key] = (real(self, scope, table), list(self.results))
        broken, self.results[:] = known[key]
        return broken

    monkeypatch.setattr(Judge, "_run", run)


def test_killed_between_any_two_writes_and_run_again(
    workshop_at: Callable[..., Any], make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written before, the next run ends in the catalog of an undisturbed one."""
    remember_judgements(monkeypatch)
    # With several, two may write the same blob: runs would differ in how many writes they have.
    monkeypatch.setattr(writes_module, "WRITERS", 1)
    before = workshop_at(store=tmp_path / "before")
    unlabelled = {"image": "u.jpg", "image_bytes": make.row(9)["image_bytes"], "category": ""}
    before.drop("unlabeled", "earlier", [unlabelled])
    before.ingest()
    before.drop("pixel_labeled", "a", [*make.mixed(), make.row(9)])
    captioned = unlabelled | {"image": "t.jpg", "caption": "A thing."}
    before.drop("text_image", "t", [captioned, captioned | {"image": "images/1.jpg", "caption": "One."}])

    def fresh(name: str) -> Any:
        shutil.copytree(tmp_path / "before", tmp_path / name)
        return workshop_at(store=tmp_path / name)

    calm = fresh("calm")
    with monkeypatch.context() as patch:
        written = killing_after(10**6, patch)
        calm.ingest()
    expected = calm.tables()
    assert len(expected["samples"]) == 5 and len(expected["labels"]) == 5 and len(expected["batches"]) == 3
    assert len(written) > 15
    for writes in range(len(written)):
        shop = fresh(f"killed {writes}")
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killing_after(writes, patch)
            shop.ingest()
        shop.ingest()
        assert shop.tables() == expected, f"killed after {written[:writes][-1:]}"
        shutil.rmtree(tmp_path / f"killed {writes}")


def test_labels_are_there_before_their_samples(workshop: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot may take a labelled photo for an unlabelled one, and no row may name pixels that are not there."""
    seen = []
    real = Catalog._merge

    def looking(self: Catalog, table: str, rows: Any, **more: Any) -> Any:
        if table == "samples":
            labels = set(self.read("labels")["sample_id"])
            for row in rows.to_pylist():
                seen.append((row["id"] in labels, workshop.store.exists(blob_key(row["id"]))))
        return real(self, table, rows, **more)

    monkeypatch.setattr(Catalog, "_merge", looking)
    workshop.drop("pixel_labeled", "a", [make.row(n) for n in range(3)])
    workshop.ingest()
    assert seen == [(True, True)] * 3


def test_verdicts_are_made_again_where_the_catalog_moved(
    workshop: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker commits the same photo, and a copy of one, between our look and our commit."""
    workshop.drop("unlabeled", "mine", [make.row(1), make.row(2), make.row(3)])
    workshop.drop(
        "unlabeled", "theirs", [make.row(1), make.row(2, image_bytes=make.encoded(make.photo(2), quality=50))]
    )
    real, raced = ingest_module.decide, []

    def decide(batch: Any, *args: Any) -> Any:
        decisions = real(batch, *args)
        if batch.batch == "mine" and not raced:
            raced.append(True)
            workshop.ingest(batch="theirs")
        return decisions

    monkeypatch.setattr(ingest_module, "decide", decide)
    report = workshop.ingest(batch="mine")
    assert report.metrics["ingest/accepted"] == 1
    assert workshop.verdicts() == {
        "images/1.jpg": ("duplicate", "duplicate"),
        "images/2.jpg": ("duplicate", "near-duplicate"),
    }
    assert len(workshop.catalog.read("samples")) == 3


WORKER = """
import sys
from pathlib import Path
from time import sleep
from dataclasses import replace
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings
from mm_core.ingest.ingest import ingest_ready
from mm_core.core.records import Report
from mm_core.storage.run import StorageRun
import great_expectations, deltalake, pyarrow.dataset
inbox, store, folder, me = sys.argv[1:]
folder = Path(folder)
(folder / f"ready-{me}").touch()
while not (folder / "go").exists():
    sleep(0.005)
settings = replace(Settings.from_env(folder, inbox), store=store)
ingest_ready(StorageRun(Params(), Layout(settings)), Report("ingest"))
"""


def test_two_processes_at_once(any_workshop: Any, make: Any, tmp_path: Path) -> None:
    """The same drops, which share photos, by two workers: one catalog, as if one had done them in some order."""
    shop = any_workshop
    shop.drop("pixel_labeled", "a", [make.row(n) for n in range(4)])
    shop.drop("pixel_labeled", "b", [make.row(n) for n in range(2, 6)])
    shop.drop("unlabeled", "c", [make.row(n, image_bytes=make.encoded(make.photo(n), quality=60)) for n in range(4)])
    command = [sys.executable, "-c", WORKER, shop.inbox.url, shop.store.url, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(n)]) for n in range(2)]
    while len(list(tmp_path.glob("ready-*"))) < 2 and all(worker.poll() is None for worker in workers):
        sleep(0.02)
    (tmp_path / "go").touch()
    assert [worker.wait(120) for worker in workers] == [0, 0]
    samples, labels = shop.catalog.read("samples"), shop.catalog.read("labels")
    assert len(samples) == 6 == len(labels) and samples["phash"].nunique() == 6
    assert set(labels["sample_id"]) == set(samples["id"]) and set(labels["version"]) == {1}
    lines = shop.catalog.read("batches").set_index("batch")
    assert lines["accepted"].sum() == 6 == lines["duplicates"].sum() and len(lines) == 3
    for digest in [*samples["id"], *labels["alpha_sha256"]]:
        assert open_store(shop.store.url, tmp_path / "other").exists(blob_key(digest))
