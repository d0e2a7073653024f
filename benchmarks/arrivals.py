"""What the ingest_*.py runners share: small drops of all kinds with planted defects, and how catalogs are compared."""

from __future__ import annotations

import csv
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pandas as pd

from mm_core.core.layout import Layout
from mm_core.core.params import IngestParams, Params
from mm_core.core.records import KINDS, Report, sha256_file
from mm_core.core.settings import Settings
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.drop import write_manifest
from mm_core.ingest.expectations import Judge
from mm_core.ingest.ingest import ingest_ready
from mm_core.ingest.probe import Probe
from mm_core.storage.catalog import SCHEMAS, Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import Store, open_store
from samplegen import write_drop

FORK = multiprocessing.get_context("fork")


def write_arrivals(inbox: Path, photos: int = 3) -> int:
    """Five drops, `photos` good photos per category and drop, 64 px; returns the number of manifest rows.

    Labelled photos with eight defects and copies; new mattes for photos of the first drop; unlabelled ones; captions
    for photos that came before (manifest.parquet); a drop of nothing but broken files, which is held.
    """
    first = write_drop(inbox, "pixel_labeled", "1", {"pets": photos, "cards": photos}, seed=1, size=64)
    rows = _rows(first)
    good = [(first / row["image"]).read_bytes() for row in rows[:5]]
    (first / "images" / "cut.jpg").write_bytes(good[0][: len(good[0]) // 2])
    (first / "images" / "text.jpg").write_bytes(b"<html>404</html>")
    (first / "images" / "copy.jpg").write_bytes(good[1])
    pixels = cv2.imread(str(first / rows[2]["image"]))
    assert pixels is not None
    cv2.imwrite(str(first / "images" / "again.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])
    matte = rows[0]["alpha"]
    rows += [
        {"image": "images/cut.jpg", "alpha": matte},
        {"image": "images/text.jpg", "alpha": matte},
        {"image": "images/copy.jpg", "alpha": matte},
        {"image": "images/again.jpg", "alpha": rows[2]["alpha"]},
        {"image": "../../outside.jpg", "alpha": matte},
        {"image": "images/absent.jpg", "alpha": matte},
        dict(rows[3]),
    ]
    write_manifest(first, rows)

    second = inbox / "pixel_labeled" / "2"
    brought = []
    for row in rows[: 2 * photos : 2]:
        alpha = cv2.imread(str(first / row["alpha"]), cv2.IMREAD_GRAYSCALE)
        assert alpha is not None
        for name in ("image", "alpha"):
            (second / row[name]).parent.mkdir(parents=True, exist_ok=True)
        (second / row["image"]).write_bytes((first / row["image"]).read_bytes())
        cv2.imwrite(str(second / row["alpha"]), cv2.GaussianBlur(alpha, (0, 0), 1.5))
        brought.append(row)
    write_manifest(second, brought)

    third = write_drop(inbox, "unlabeled", "3", {"portrait": photos, "delicacy": photos}, seed=3, size=64)
    plain = _rows(third)
    for row in plain:
        row["category"] = ""
    write_manifest(third, plain)

    fourth = write_drop(inbox, "text_image", "4", {"accessories": photos}, seed=4, size=64)
    captioned = _rows(fourth)
    for source, row in [(third, plain[0]), (third, plain[2]), (first, rows[0])]:
        name = f"images/known-{len(captioned)}.jpg"
        (fourth / name).write_bytes((source / row["image"]).read_bytes())
        captioned.append({"image": name, "caption": f"Known, number {len(captioned)}.", "category": "portrait"})
    pd.DataFrame(captioned).to_parquet(fourth / "manifest.parquet")
    (fourth / "manifest.csv").unlink()

    bad = inbox / "unlabeled" / "5"
    (bad / "images").mkdir(parents=True)
    for number in range(3):
        (bad / "images" / f"{number}.jpg").write_bytes(b"no picture %d" % number)
    broken = [{"image": f"images/{number}.jpg"} for number in range(3)]
    write_manifest(bad, broken)
    return sum(map(len, (rows, brought, plain, captioned, broken)))


def _rows(batch: Path) -> list[dict[str, str]]:
    with (batch / "manifest.csv").open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def ingest(root: Path, inbox: str, store: str) -> Report:
    """One run of ingest over everything that is ready, in a workspace `root`."""
    settings = replace(Settings.from_env(root, inbox), store=store)
    return ingest_ready(StorageRun(Params(), Layout(settings)), Report("ingest"))


def state(root: Path, store: str) -> dict[str, Any]:
    """What two runs must agree on: the five tables without times, and every other object of the store by content."""
    found: dict[str, Any] = {}
    for table, schema in SCHEMAS.items():
        names = [name for name in schema.names if not name.endswith("_at")]
        frame = Catalog(store).read(table, columns=names).astype(object)
        found[table] = sorted(map(str, frame.where(frame.notna(), None).to_numpy().tolist()))
    objects: Store = open_store(store, root / "cache")
    keys = sorted(entry.key for entry in objects.list() if not entry.key.startswith("catalog/"))
    found["objects"] = [f"{key} {sha256_file(objects.fetch(key))}" for key in keys]
    return found


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What one state has and the other lacks, a line each."""
    lines = []
    for name in expected:
        lines += [f"- {name}: {line}" for line in sorted(set(expected[name]) - set(found[name]))]
        lines += [f"+ {name}: {line}" for line in sorted(set(found[name]) - set(expected[name]))]
        if len(found[name]) != len(set(found[name])):
            lines.append(f"+ {name}: {len(found[name]) - len(set(found[name]))} lines twice")
    return lines


def warm_up(folder: Path) -> None:
    """Loads everything that ingest needs, so that a forked child is at work at once.

    delta-rs is imported but not used: its threads would not survive the fork.
    """
    import deltalake  # noqa: F401
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401

    cv2.setNumThreads(1)
    for kind in KINDS:
        Judge(IngestParams(), kind, "warm", DataDocs(folder / "warm")).rows([Probe(0, "x", None, None, 0)])


def start(work: Callable[[], Any], result: Path | None = None) -> Any:
    """A forked child that does `work`, writes its text to `result`, and ends with 0, or 3 after an error."""

    def child() -> None:
        try:
            said = work()
            if result is not None:
                result.write_text(str(said))
        except BaseException:  # noqa: BLE001 - told to the parent, whatever it was
            if result is not None:
                result.write_text(traceback.format_exc())
            os._exit(3)
        os._exit(0)

    process = FORK.Process(target=child)
    process.start()
    return process
