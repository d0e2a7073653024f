"""Kept scores are those that would be computed again, and nothing else is taken from the cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_workspace import Blurred, make, write_snapshot

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.eval import score_cache
from mm_core.eval.evaluate import evaluate_models
from mm_core.eval.score_cache import ScoreCache
from mm_core.storage.run import StorageRun

NEW, OLD, COPY = ("multimodal", "float"), ("champion", "float"), ("semi", "float")


class Counted(Blurred):
    """A model that counts the photos that it predicts."""

    def __init__(self, truths, error: float) -> None:
        super().__init__(truths, error)
        self.photos = 0

    def predict(self, photos, decoders):
        self.photos += len(photos)
        return super().predict(photos, decoders)


@pytest.fixture
def workspace(tmp_path: Path):
    layout, _, truths = make(tmp_path, per_category=3, categories=["pets", "cards"])
    return layout, truths, pd.read_parquet(layout.snapshot / "eval.parquet")


def evaluate(layout: Layout, models, digests, params: Params | None = None) -> tuple[pd.DataFrame, Report]:
    report = evaluate_models(StorageRun(params or Params(), layout), models, Report("evaluate"), digests)
    return pd.read_parquet(layout.per_image), report


def same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    curves = all(np.array_equal(*pair) for pair in zip(first["fcurve"], second["fcurve"], strict=True))
    return curves and first.drop(columns="fcurve").equals(second.drop(columns="fcurve"))


def test_only_new_models_and_new_photos_are_scored(workspace) -> None:
    layout, truths, frame = workspace
    write_snapshot(layout, frame[:4])
    old = Counted(truths, 0.4)
    _, report = evaluate(layout, {OLD: old}, {OLD: "one"})
    # Beside the photos of the set, the examples are drawn again.
    examples = old.photos - 4
    assert report.metrics["evaluate/scored"] == report.metrics["evaluate/scores"] == 4 + 4

    write_snapshot(layout, frame)
    old, new = Counted(truths, 0.4), Counted(truths, 0.2)
    kept, report = evaluate(layout, {OLD: old, NEW: new}, {OLD: "one", NEW: "two"})
    assert report.metrics["evaluate/scored"] == 2 + 6 + 6, "two photos, a new model, another blind matte"
    assert report.metrics["evaluate/scores"] == 3 * 6
    assert old.photos == 2 + new.photos - 6 and new.photos - 6 >= examples

    again, report = evaluate(layout, {OLD: old, NEW: new}, {OLD: "one", NEW: "two"})
    assert report.metrics["evaluate/scored"] == 0 and same(again, kept)
    fresh, _ = evaluate(layout, {OLD: Blurred(truths, 0.4), NEW: Blurred(truths, 0.2)}, {OLD: "three", NEW: "four"})
    assert same(fresh, kept), "kept scores are those that are computed"


def test_equal_models_are_scored_once_and_get_rows_of_their_own(workspace) -> None:
    layout, truths, _ = workspace
    first, copy = Counted(truths, 0.3), Counted(truths, 0.3)
    table, report = evaluate(layout, {NEW: first, COPY: copy}, {NEW: "one", COPY: "one"})
    assert report.metrics["evaluate/scored"] == 6 + 6 and report.metrics["evaluate/scores"] == 3 * 6
    assert first.photos - copy.photos == 6
    rows = {
        name: table[table["model"] == name].drop(columns="model").reset_index(drop=True)
        for name in ("semi", "multimodal")
    }
    assert len(rows["semi"]) == 6 and same(rows["semi"], rows["multimodal"])


def test_another_matte_size_code_or_damage_is_scored_again(workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, truths, frame = workspace

    def scored(params: Params | None = None) -> float:
        return evaluate(layout, {OLD: Blurred(truths, 0.4)}, {OLD: "one"}, params)[1].metrics["evaluate/scored"]

    assert scored() == 12 and scored() == 0
    other = frame.copy()
    other.loc[0, "alpha_sha256"] = frame.loc[1, "alpha_sha256"]
    write_snapshot(layout, other)
    assert scored() == 1 + 6
    write_snapshot(layout, frame)
    # The last blind matte is kept too.
    assert scored() == 0
    # Without digests nothing of a model is taken from the cache.
    assert evaluate(layout, {OLD: Blurred(truths, 0.4)}, None)[1].metrics["evaluate/scored"] == 6
    with monkeypatch.context() as patch:
        patch.setattr(score_cache, "code_digest", lambda *modules: "other code")
        assert scored() == 12
    for path in layout.scores.glob("*.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    assert scored() == 12


def test_the_cache_is_bounded_by_the_models_of_the_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_cache, "KEPT", 3)
    cache = ScoreCache(tmp_path, 64)
    scores = {"photo": dict.fromkeys(("mse", "mse_band", "sad", "grad", "conn", "biou", "maxf"), 0.5)}
    scores["photo"]["fcurve"] = np.linspace(0, 1, 256)
    for model in "abc":
        cache.write(model, scores)
    assert cache.read("a").keys() == {"photo"}, "reading counts as use"
    cache.write("d", scores)
    counts = Counter({model: len(cache.read(model)) for model in "abcd"})
    assert counts == {"a": 1, "b": 0, "c": 1, "d": 1}
    assert np.array_equal(cache.read("a")["photo"]["fcurve"], scores["photo"]["fcurve"])
