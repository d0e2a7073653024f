"""Cross-fitting: no photo is judged by a model that has seen its scene, and nothing ships by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from mm_core import stages
from mm_core.cli.predict import predict_files
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import CATEGORIES, Report, decoder_of, timed
from mm_core.experiments.crossfit import NAME, cross_fit, deal, labelled_photos, report_file
from mm_core.ingest.placement import SCHEMA
from mm_core.ingest.snapshot import write_frames
from mm_core.pinned_inputs import Run
from mm_core.storage.run import StorageRun
from mm_core.training.stage import train_stage
from tests.tiny import snapshot_facts

FACTS = snapshot_facts("5" * 64)
LAX: dict[str, Any] = {"gate.floors": {"mse": 1.0}, "gate.beat_blind": False, "gate.min_images": 6}


@pytest.fixture
def few(workspace: Layout, draw, params: Params) -> Layout:
    """Six photos of each category, one of them for evaluation; a candidate that was trained on the others."""
    frame = draw(12, 7)
    frame["category"] = [CATEGORIES[n % 6] for n in range(len(frame))]
    frame["decoder"] = frame["category"].map(decoder_of)
    judging = np.arange(len(frame)) < 6
    pools = {"train_labeled": frame[~judging], "eval": frame[judging], "validation": frame.head(0)}
    write_frames(
        workspace.snapshot,
        {name: rows[SCHEMA.names] for name, rows in pools.items()},
        SCHEMA,
        FACTS,
    )
    write_frames(workspace.split, {"simple": frame.loc[~judging, SCHEMA.names]}, SCHEMA)
    train_stage("simple", StorageRun(params, workspace), Report("train-simple"), start=None)
    candidate = workspace.model("multimodal")
    candidate.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(workspace.model("simple"), candidate)
    return workspace


def fit(layout: Layout, params: Params, folds: int = 2, **values: Any) -> tuple[Report, dict]:
    """The report, and the ids that each fold was trained on."""
    trained: dict[str, set[str]] = {}

    def progress(what: str, done: int, total: int) -> None:
        for path in (layout.root / "scratch").glob("*/*/cycle/split/simple.parquet"):
            trained[path.parts[-4]] = set(pd.read_parquet(path)["sample_id"])

    with timed(Report(NAME), report_file(layout)) as report:
        cross_fit(StorageRun(params.with_values(**LAX | values), layout, progress), report, folds=folds)
    return report, trained


def test_each_photo_is_judged_by_a_model_that_has_not_seen_it_and_the_cycle_stays(few: Layout, params: Params) -> None:
    before = {path: path.read_bytes() for path in few.cycle.rglob("*") if path.is_file()}
    report, trained = fit(few, params)
    frame = labelled_photos(few)
    fold = deal(frame, 2)
    assert len(frame) == 36 and sorted(trained) == ["0", "1"]
    for index in (0, 1):
        assert trained[str(index)] == set(frame.loc[fold != index, "sample_id"])
    assert report.facts["usable"] and report.facts["photos"] == dict.fromkeys(CATEGORIES, 6)
    assert {cell["images"] for cell in report.tables["cells"]} == {6}
    assert {path: path.read_bytes() for path in few.cycle.rglob("*") if path.is_file()} == before
    for release in (stages.export, stages.promote):
        with pytest.raises(InputError, match="run `mm gate`, or"):
            release(Run(params, few))


def test_groups_stay_whole_and_categories_are_spread() -> None:
    frame = pd.DataFrame({"category": ["pets"] * 8 + ["cards"] * 4, "group": [*"aabbccdd", *"efgd"]})
    fold = deal(frame, 2)
    assert frame.assign(fold=fold).groupby("group")["fold"].nunique().eq(1).all()
    assert np.bincount(fold[:8]).tolist() == [4, 4]


def test_a_usable_candidate_predicts_with_a_warning_and_another_does_not(
    few: Layout, params: Params, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    with pytest.raises(InputError, match="mm gate crossfit"):
        predict_files(Run(Params(), few), [photo], tmp_path / "out", model="candidate")
    fit(few, params)
    report = predict_files(Run(Params(), few), [photo], tmp_path / "out", model="candidate")
    assert len(report.tables["mattes"]) == 1 and "provisional" in report.facts["warning"]
    with pytest.raises(InputError, match="the registry is empty"):
        predict_files(Run(Params(), few), [photo], tmp_path / "out", model="champion")
    report, _ = fit(few, params, **{"gate.floors": {"mse": 1e-6}})
    assert report.facts["decision"] == "REJECT" and not report.facts["usable"]
    with pytest.raises(InputError, match="cross-fitting says REJECT"):
        predict_files(Run(Params(), few), [photo], tmp_path / "out", model="candidate")
    few.model("multimodal").write_bytes(b"trained again")
    with pytest.raises(InputError, match="mm gate crossfit"):
        predict_files(Run(Params(), few), [photo], tmp_path / "out", model="candidate")


def test_it_is_off_where_the_gate_can_judge_or_a_champion_has_learnt(few: Layout, params: Params) -> None:
    frame = labelled_photos(few)
    write_frames(few.snapshot, {"eval": frame}, SCHEMA, FACTS)
    with pytest.raises(InputError, match="each category has 2 eval photos"):
        fit(few, params, **{"gate.min_images": 2})
    write_frames(
        few.snapshot,
        {"eval": frame},
        SCHEMA,
        FACTS | {"champion": {"version": "1", "digest": "c", "files": {}}},
    )
    with pytest.raises(InputError, match="a champion has learnt"):
        fit(few, params)
    with pytest.raises(InputError, match="give 2 or more"):
        fit(few, params, folds=1)
