"""Two Ray workers leave the catalog that one process leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shapes import disk
from test_structure import PARAMS, add_label, add_photo

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, blob_key
from mm_core.structuring import on_ray
from mm_core.structuring.extractors import Extractor
from mm_core.structuring.run_extractors import Task
from mm_core.structuring.structure import structure_new


def gallery(root: Path) -> tuple[LocalStore, Catalog]:
    """Seven photos, the last of which is no photo any more; three have a label."""
    store = LocalStore(root / "store")
    catalog = Catalog(store.url)
    for i in range(7):
        sample = add_photo(catalog, store, disk(), colour=(30 * i, 90, 200 - 20 * i))
        if i < 3:
            add_label(catalog, store, sample, disk())
    (root / "store" / blob_key(sample)).write_bytes(b"no photo")
    return store, catalog


def structured(root: Path, engine: str) -> tuple[pd.DataFrame, Report]:
    store, catalog = gallery(root)
    layout, report = Layout(replace(Settings.from_env(root), engine=engine)), Report("structure")
    structure_new(StorageRun(PARAMS, layout), report)
    rows = catalog.read("features").drop(columns="computed_at")
    return rows.sort_values(["sample_id", "extractor"], ignore_index=True), report


def test_two_workers_leave_the_same_catalog(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "BATCH", 2)
    (alone, said), (together, said_together) = (structured(tmp_path / e, e) for e in ("local", "ray"))
    one, two = (np.array(frame.pop("vector").dropna().tolist()) for frame in (alone, together))
    assert len(one) == 6
    # A batch of another size, or another number of threads, rounds elsewhere.
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    numbers, numbers_together = (frame.pop("numbers").tolist() for frame in (alone, together))
    for row, row_together in zip(numbers, numbers_together, strict=True):
        assert row == pytest.approx(row_together, rel=1e-3, abs=1e-6)
    pd.testing.assert_frame_equal(alone, together)
    assert said.metrics == said_together.metrics and said.metrics["structure/unreadable"] == 1
    assert [row["sample_id"] for row in said.tables["unreadable"]] == [
        row["sample_id"] for row in said_together.tables["unreadable"]
    ]


def test_a_worker_that_has_other_extractors_is_refused(tmp_path):
    layout = Layout(replace(Settings.from_env(tmp_path), engine="ray"))
    other = Extractor("photo", "a version of tomorrow", lambda photos: [])
    with pytest.raises(InputError, match="install the same on every machine"):
        list(on_ray.measured_on_ray(Params(), layout, [Task("0" * 64, frozenset({"photo"}))], [other]))
