from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mm_core.core.params import StructureParams
from mm_core.core.records import Report
from mm_core.storage.catalog import Catalog
from mm_core.structuring import embedding
from mm_core.structuring.category_guess import EXTRACTOR, LEAST, LearnedGuesser, guess_new
from mm_core.structuring.extractors import Chosen

PLACES = {"pets": (3.0, 0, 0, 0), "cards": (0, 3.0, 0, 0), "scenery": (0, 0, 3.0, 0)}


def cloud(rng: np.random.Generator, category: str, count: int) -> np.ndarray:
    return rng.normal(PLACES[category], 1, (count, 4)).astype(np.float32)


def labelled(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[str], list[str]]:
    vectors = np.concatenate([cloud(rng, category, each) for category in PLACES])
    return vectors, [category for category in PLACES for _ in range(each)], [str(i) for i in range(len(vectors))]


def test_it_finds_clear_categories_and_its_confidence_is_the_share_of_right_guesses() -> None:
    rng = np.random.default_rng(0)
    guesser = LearnedGuesser(*labelled(rng, 80))
    new, truth, _ = labelled(rng, 300)
    guesses = guesser.guess(new)
    right = np.array([guess.category == true for guess, true in zip(guesses, truth, strict=True)])
    confidence = np.array([guess.confidence for guess in guesses])
    assert right.mean() > 0.9
    assert confidence.mean() == pytest.approx(right.mean(), abs=0.04)


def test_where_categories_look_alike_it_is_not_sure() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (240, 4)).astype(np.float32)
    guesser = LearnedGuesser(noise, [list(PLACES)[i % 3] for i in range(240)], [str(i) for i in range(240)])
    confidences = [guess.confidence for guess in guesser.guess(rng.normal(0, 1, (100, 4)))]
    assert np.mean(confidences) < 0.6


def test_frames_of_one_scene_do_not_vouch_for_each_other() -> None:
    rng = np.random.default_rng(0)
    scenes = rng.normal(0, 1, (24, 4)).repeat(10, 0)
    vectors = (scenes + rng.normal(0, 0.01, scenes.shape)).astype(np.float32)
    categories = [list(PLACES)[i // 10 % 2] for i in range(240)]
    sure = [
        np.mean([guess.confidence for guess in LearnedGuesser(vectors, categories, groups).guess(vectors)])
        for groups in ([str(i // 10) for i in range(240)], [str(i) for i in range(240)])
    ]
    assert sure[0] < sure[1]


def test_a_category_with_few_scenes_is_not_guessed() -> None:
    rng = np.random.default_rng(0)
    vectors, categories, groups = labelled(rng, LEAST)
    assert LearnedGuesser(vectors, categories, groups).classes == sorted(PLACES)
    few = [i for i, category in enumerate(categories) if category == "pets"][1:]
    kept = [i for i, category in enumerate(categories) if category != "pets"] + few
    rest = [[column[i] for i in kept] for column in (categories, groups)]
    assert LearnedGuesser(vectors[kept], *rest).classes == ["cards", "scenery"]
    one = [i for i, category in enumerate(categories) if category == "pets"]
    assert LearnedGuesser(vectors[one], ["pets"] * LEAST, [groups[i] for i in one]).guess(vectors[:2]) == [None, None]


def test_guesses_are_features_made_once_and_again_when_what_is_known_has_doubled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    catalog = Catalog(str(tmp_path))

    def arrive(category: str | None, vectors: np.ndarray, name: str) -> None:
        ids = [f"{name}{i:04d}" for i in range(len(vectors))]
        catalog.add("samples", [{"id": i, "category": category, "group": ""} for i in ids])
        source = {"extractor": embedding.EXTRACTOR, "version": embedding.VERSION}
        catalog.add("features", [{"sample_id": i, "vector": v, **source} for i, v in zip(ids, vectors, strict=True)])

    tools = Chosen([], {}, None, (embedding.EXTRACTOR, embedding.VERSION))

    def guess() -> tuple[Report, pd.DataFrame]:
        report = Report("structure")
        guess_new(StructureParams(), catalog, tools, report)
        return report, catalog.read("features", filters=[("extractor", "=", EXTRACTOR)])

    arrive(None, np.array([[0, y, 0, 0] for y in (3, 4, 5)], np.float32), "u")
    report, rows = guess()
    assert report.metrics == {"structure/guesses": 0, "structure/guesses_withheld": 3}
    assert all("too few" in texts["withheld"] for texts in rows["texts"])
    for category in PLACES:
        arrive(category, cloud(rng, category, 60), category)
    arrive(None, np.array([[0.9, 0.9, 0.9, 0]], np.float32), "between")
    report, rows = guess()
    assert report.metrics == {"structure/guesses": 3, "structure/guesses_withheld": 1}
    newest = rows[rows["version"] == rows["version"].max()].set_index("sample_id")
    assert [newest.loc[f"u{i:04d}", "texts"] for i in range(3)] == [{"category": "cards"}] * 3
    assert "not sure" in newest.loc["between0000", "texts"]["withheld"]
    version = catalog.version("features")
    assert guess()[0].metrics == {} and catalog.version("features") == version
    assert pd.isna(catalog.read("samples").set_index("id").loc["u0000", "category"])
