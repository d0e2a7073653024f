"""Small drops, written as a producer writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import samplegen
from mm_core.core.layout import Layout
from mm_core.core.params import IngestParams, Params
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.ingest import ingest_ready
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.schemas import SCHEMAS
from mm_core.storage.store import LocalStore, Store, open_store

Row = Mapping[str, Any]


def photo(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture uint8 (H, W, 3) with structure of its own: no two seeds resemble each other."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def scene(seed: int) -> np.ndarray:
    """A picture uint8 (192, 256, 3) with things in it that are found again when it is cropped."""
    return samplegen.generate("pets", seed, size=256, aspect=4 / 3).image


def matte(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A soft disc uint8 (H, W)."""
    y, x = np.mgrid[:height, :width]
    radius = height / 4 + seed % 7
    return np.clip((radius - np.hypot(x - width / 2, y - height / 2)) * 40 + 128, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, format: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **({"quality": 92} if format == "JPEG" else {}) | options)
    return stream.getvalue()


def good_row(seed: int, **more: Any) -> dict[str, Any]:
    """A labelled row: names, and the bytes to write under them."""
    return {
        "image": f"images/{seed}.jpg",
        "image_bytes": encoded(photo(seed)),
        "alpha": f"alphas/{seed}.png",
        "alpha_bytes": encoded(matte(seed), "PNG"),
        "category": "pets",
    } | more


def mixed_rows() -> list[dict[str, Any]]:
    """Two good rows, a copy, a copy saved again, a bad one, a row listed twice, a burst of two."""
    first = good_row(1)
    burst = photo(7)
    return [
        first,
        good_row(2),
        good_row(1, image="images/copy.jpg"),
        good_row(1, image="images/again.jpg", image_bytes=encoded(photo(1), quality=60)),
        good_row(3, image_bytes=b"<html>"),
        first,
        good_row(7, group="burst"),
        good_row(8, image_bytes=encoded(burst, quality=50), group="burst"),
    ]


def write_rows(folder: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> Path:
    """The files of the rows, then manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        for name in ("image", "alpha"):
            if f"{name}_bytes" in row:
                path = folder / row[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(row[f"{name}_bytes"])
    names = list(columns) or sorted({n for row in rows for n in row if not n.endswith("_bytes")}, reverse=True)
    with (folder / "manifest.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, names, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@dataclass
class Workshop:
    """An inbox, a store and its catalog."""

    root: Path
    inbox: Store
    store: Store
    catalog: Catalog
    params: IngestParams

    @property
    def run(self) -> StorageRun:
        """A run of this workshop's own inbox, store and catalog, which some tests replace."""
        run = StorageRun(Params(ingest=self.params), Layout(Settings.from_env(self.root)))
        vars(run).update(inbox=self.inbox, store=self.store, catalog=self.catalog)
        return run

    def drop(self, kind: str, batch: str, rows: Sequence[Row], columns: Sequence[str] = ()) -> Path:
        """Writes a drop; on S3 the files go up, the manifest last."""
        if isinstance(self.inbox, LocalStore):
            return write_rows(self.inbox.root / kind / batch, rows, columns)
        folder = write_rows(self.root / "outgoing" / kind / batch, rows, columns)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.csv")
        for path in [*files, folder / "manifest.csv"]:
            self.inbox.put(path.relative_to(self.root / "outgoing").as_posix(), path)
        return folder

    def ingest(self, batch: str | None = None) -> Report:
        return ingest_ready(self.run, Report("ingest"), batch=batch)

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """The catalog without its times: what two runs must agree on."""
        found = {}
        for table, schema in SCHEMAS.items():
            names = [name for name in schema.names if not name.endswith("_at")]
            frame = self.catalog.read(table, columns=names).astype(object)
            frame = frame.where(frame.notna(), None)
            found[table] = sorted(map(tuple, frame.to_numpy().tolist()), key=repr)
        return found

    def verdicts(self) -> dict[str, tuple[str, str]]:
        """Image name → (verdict, reason) of the refused rows."""
        rejects = self.catalog.read("rejects")
        return dict(zip(rejects["image"], zip(rejects["verdict"], rejects["reason"], strict=True), strict=True))


@pytest.fixture
def workshop_at(tmp_path: Path) -> Callable[..., Workshop]:
    def make(inbox: str | Path = tmp_path / "inbox", store: str | Path = tmp_path / "store") -> Workshop:
        return Workshop(
            tmp_path,
            open_store(str(inbox), tmp_path / "cache" / "inbox"),
            open_store(str(store), tmp_path / "cache"),
            Catalog(str(store)),
            IngestParams(),
        )

    return make


@pytest.fixture
def workshop(workshop_at: Callable[..., Workshop], monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """On folders; without pages of Data Docs, which take longest and have tests of their own."""
    monkeypatch.setattr(DataDocs, "build", lambda self: None)
    return workshop_at()


@pytest.fixture(params=["folder", "s3"])
def any_workshop(request: pytest.FixtureRequest, workshop_at: Callable[..., Workshop]) -> Workshop:
    """On folders, and on S3 over HTTP."""
    if request.param == "folder":
        return workshop_at()
    url = request.getfixturevalue("bucket")
    return workshop_at(f"{url}/drops", f"{url}/store")


@pytest.fixture
def make() -> Any:
    """The makers of photos, mattes, files and rows."""
    from types import SimpleNamespace

    pixels = {"photo": photo, "scene": scene, "matte": matte, "encoded": encoded}
    return SimpleNamespace(**pixels, row=good_row, mixed=mixed_rows, write_rows=write_rows)
