from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from mm_core.core.params import DriftParams
from mm_core.core.records import Report
from mm_core.storage.catalog import Catalog
from mm_core.structuring import embedding, photo_features
from mm_core.structuring.drift import FEATURES, Side, compare, drift_of_new, energy

SOURCE = (embedding.EXTRACTOR, embedding.VERSION)
MEASURED = (photo_features.EXTRACTOR, photo_features.VERSION)


def side(rng: np.random.Generator, count: int, shift: float = 0.0, mix: tuple[str, ...] = ("pets", "cards")) -> Side:
    numbers = pd.DataFrame(rng.normal(0, 1, (count, len(FEATURES))), columns=list(FEATURES))
    numbers["brightness"] += shift
    return Side(numbers, pd.Series(rng.choice(mix, count)), rng.normal(shift / 3, 1, (count, 8)))


def drifted(rows: list[dict]) -> set[str]:
    return {row["what"] for row in rows if row["drifted"]}


def test_what_moved_is_named_and_what_did_not_is_not() -> None:
    rng = np.random.default_rng(0)
    assert drifted(compare(DriftParams(), side(rng, 80), side(rng, 300))) == set()
    assert drifted(compare(DriftParams(), side(rng, 80, 1.5), side(rng, 300))) == {"brightness", "vectors"}
    only_pets = side(rng, 80, mix=("pets",))
    assert drifted(compare(DriftParams(), only_pets, side(rng, 300))) == {"category"}


def test_a_large_batch_does_not_warn_of_what_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    rows = compare(DriftParams(), side(rng, 500, 0.4), side(rng, 500))
    brightness = next(row for row in rows if row["what"] == "brightness")
    assert brightness["p"] < 0.01 and not brightness["drifted"]


def test_the_energy_distance_is_the_definition_and_its_p_is_fair() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (7, 3)), rng.normal(1, 1, (5, 3))
    across = cdist(x, y).mean()
    within = cdist(x, x).sum() / 42 + cdist(y, y).sum() / 20
    assert energy(x, y, rng)[0] == pytest.approx((2 * across - within) / (2 * across), abs=1e-5)
    assert energy(np.zeros((4, 2)), np.zeros((6, 2)), rng) == (0, 1)
    ps = [energy(rng.normal(0, 1, (12, 3)), rng.normal(0, 1, (15, 3)), rng)[1] for _ in range(60)]
    assert 0.35 < np.mean(ps) < 0.65, "uniform where nothing moved"
    assert energy(np.zeros((9, 2)), np.ones((9, 2)), rng)[0] == pytest.approx(1)


def arrive(catalog: Catalog, batch: str, hour: int, vectors: np.ndarray, brightness: np.ndarray, scenes: int) -> None:
    ids = [f"{batch}-{i}" for i in range(len(vectors))]
    about = {"kind": "unlabeled", "batch": batch, "accepted_at": f"2026-01-01T{hour:02d}:00:00+00:00"}
    catalog.add("samples", [about | {"id": i, "group": f"{batch}-{k % scenes}"} for k, i in enumerate(ids)])
    catalog.add("features", [
        {"sample_id": i, "extractor": name, "version": version, "vector": v, "numbers": numbers}
        for i, vector, light in zip(ids, vectors, brightness, strict=True)
        for name, version, v, numbers in ((*SOURCE, vector, {}), (*MEASURED, None, {"brightness": light}))
    ])  # fmt: skip
    row = {"key": batch, "kind": "unlabeled", "batch": batch, "state": "ingested", "ingested_at": about["accepted_at"]}
    catalog.add("batches", [row])


def test_each_batch_is_compared_once_with_what_was_there_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    catalog, out = Catalog(str(tmp_path / "store")), tmp_path / "drift"

    def vectors(count: int, at: float) -> np.ndarray:
        return rng.normal(at, 1, (count, 4)).astype(np.float32)

    arrive(catalog, "first", 1, vectors(60, 0), rng.normal(0.5, 0.1, 60), 60)
    arrive(catalog, "same", 2, vectors(40, 0), rng.normal(0.5, 0.1, 40), 40)
    arrive(catalog, "dark", 3, vectors(40, 1.5), rng.normal(0.2, 0.1, 40), 40)
    arrive(catalog, "burst", 4, vectors(40, 1.5), rng.normal(0.2, 0.1, 40), 6)
    report = Report("structure")
    drift_of_new(DriftParams(), catalog, SOURCE, out, report)
    said = report.facts["drift"]
    assert said["unlabeled/first"].startswith("too few") and said["unlabeled/same"] == "no drift"
    assert said["unlabeled/dark"].startswith("drifted") and "brightness" in said["unlabeled/dark"]
    assert said["unlabeled/burst"].startswith("too few: 6 scenes, 140 before")
    assert set(report.pictures) == {"drift unlabeled/same", "drift unlabeled/dark"}
    assert all(Path(png).read_bytes().startswith(b"\x89PNG") for png in report.pictures.values())
    assert json.loads((out / "unlabeled" / "dark.json").read_text())["said"] == said["unlabeled/dark"]
    again = Report("structure")
    drift_of_new(DriftParams(), catalog, SOURCE, out, again, asked="unlabeled/dark")
    assert again.facts["drift"] == {"unlabeled/dark": said["unlabeled/dark"]}, (
        "the rest is known; what came later plays no part"
    )
