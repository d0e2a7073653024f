"""Candidate against champion on photos without truth, lost photos, and flips: known differences come out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_workspace import make, simulate, tables
from test_gate import INPUTS, PARAMS, workspace

from mm_core.core.params import Params
from mm_core.core.records import Report, write_json
from mm_core.eval.evaluate import flips, identity
from mm_core.eval.examples import choose_regressions
from mm_core.eval.gate import decide
from mm_core.eval.shadow import disagreement, newest_unlabelled, run_shadow
from mm_core.imaging.images import load_rgb
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun


class Constant:
    """A predictor of one grey value, or of one per photo size."""

    def __init__(self, value: float):
        self.value = value

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        return [np.full(photo.shape[:2], self.value, np.float32) for photo in photos]


class Bright(Constant):
    """As bright as the photo's mean: photos differ."""

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        return [np.full(photo.shape[:2], photo.mean() / 255, np.float32) for photo in photos]


def test_only_the_newest_photos_without_label_of_the_pinned_versions(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path))
    catalog.add(
        "samples", [{"id": i, "category": "pets", "accepted_at": f"2026-01-0{n}"} for n, i in enumerate("abcde")]
    )
    catalog.add("labels", [{"id": "l", "sample_id": "e", "version": 1}])
    pinned = catalog.versions()
    catalog.add("samples", [{"id": "f", "accepted_at": "2026-02-01"}])
    assert newest_unlabelled(catalog, pinned, 2)["id"].tolist() == ["d", "c"]


def test_difference_is_the_mean_absolute_one_and_the_largest_are_shown(tmp_path: Path) -> None:
    layout, store, _ = make(tmp_path, per_category=2)
    frame = pd.read_parquet(layout.snapshot / "eval.parquet").rename(columns={"sample_id": "id"})
    missing = pd.DataFrame([{"id": "0" * 64, "category": "pets"}])
    report, about = Report("evaluate"), {"candidate": "c"}
    photos = pd.concat([frame[["id", "category"]], missing], ignore_index=True)
    run_shadow(StorageRun(Params(), layout), photos, Bright(0), Constant(0.0), about, report)
    found = json.loads(layout.shadow.read_text())
    assert len(found["photos"]) == len(frame) and found["unreadable"] == 1
    row = found["photos"][0]
    blob = store.root / "blobs" / row["sample_id"][:2] / row["sample_id"][2:4] / row["sample_id"]
    assert row["difference"] == pytest.approx(load_rgb(blob).mean() / 255, abs=1e-5)
    shown = [entry["difference"] for entry in report.tables["shadow"]]
    assert shown == sorted((entry["difference"] for entry in found["photos"]), reverse=True)[:6]
    strips = [Path(path) for title, path in report.pictures.items() if title.startswith("shadow")]
    assert len(strips) == 6
    worst = load_rgb(strips[0])
    assert worst[:, -60:-10].mean() / 255 == pytest.approx(shown[0], abs=0.01), "the last picture is the difference"
    share = np.mean([entry["difference"] > 0.4 for entry in found["photos"]])
    assert disagreement(layout, about, 0.4) == (pytest.approx(share), len(frame))
    assert disagreement(layout, {"candidate": "another"}, 0.4) is None


def test_disagreement_holds_a_promotion_back_only_where_params_say_so(tmp_path: Path) -> None:
    layout = workspace(tmp_path, *tables(simulate(1, gains=0.3)))
    photos = [{"sample_id": str(n), "category": "pets", "difference": 0.3 if n < 4 else 0.0} for n in range(10)]
    write_json(layout.shadow, {"about": identity(layout, INPUTS), "photos": photos, "unreadable": 0})
    assert decide(PARAMS, layout, INPUTS).decision == "PROMOTE"
    careful = PARAMS.model_copy(update={"shadow_share": 0.3})
    held = decide(careful, layout, INPUTS)
    assert held.decision == "INCONCLUSIVE" and "on 40 % of the 10 newest unlabelled photos" in held.reasons[0]
    assert decide(careful.model_copy(update={"shadow_difference": 0.5}), layout, INPUTS).decision == "PROMOTE"


def test_flips_and_lost_photos() -> None:
    before = pd.DataFrame({"sample_id": list("abcd"), "maxf": [0.95, 0.95, 0.5, 0.5], "mse": [0.1, 0.1, 0.3, 0.3]})
    after = pd.DataFrame({"sample_id": list("abcd"), "maxf": [0.95, 0.5, 0.95, 0.5], "mse": [0.1, 0.4, 0.1, 0.35]})
    before["category"] = after["category"] = ["pets", "pets", "cards", "cards"]
    assert flips(after, before) == [
        {"category": "cards", "photos": 2, "negative": 0, "positive": 1},
        {"category": "pets", "photos": 2, "negative": 1, "positive": 0},
    ]
    assert choose_regressions(after, before) == [
        ("pets", "regression", "b", 0.4),
        ("cards", "regression", "d", 0.35),
    ]
    assert choose_regressions(before, before) == []
