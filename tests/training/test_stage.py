"""A stage from frames to model file: kills, reuse, empty pools, warm starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mm_core.core.errors import InputError, NothingToTrainOn
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report, sha256_bytes, sha256_file
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.model.clip import Clip
from mm_core.model.files import load_model
from mm_core.storage.run import StorageRun
from mm_core.training.multimodal import Multimodal
from mm_core.training.stage import train_stage
from mm_core.training.tracking import Tracker
from mm_core.training.trainer import DeviceBatch


def train(stage: str, params: Params, layout: Layout, start: Path | None = None) -> Report:
    return train_stage(stage, StorageRun(params, layout), Report(f"train-{stage}"), start=start)


def test_four_stages_each_from_the_one_before(workspace: Layout, params: Params) -> None:
    """No eval frame exists here: nothing may need it."""
    assert not (workspace.snapshot / "eval.parquet").exists()
    start, before = None, float("inf")
    for stage in ("simple", "hard", "semi", "multimodal"):
        report = train(stage, params, workspace, start)
        model = workspace.model(stage)
        assert report.facts["digest"] == sha256_file(model)
        assert report.facts["start"] == (sha256_file(start) if start else None)
        _, meta = load_model(model)
        assert (meta["stage"], meta["snapshot"]) == (stage, "5" * 64)
        # The start weights are a candidate of every stage.
        assert report.metrics[f"{stage}/val_mse"] <= before + 1e-7
        before = report.metrics[f"{stage}/val_mse"]
        assert {f"{stage}/val/{c}/mse" for c in ("portrait", "pets", "scenery")} <= set(report.metrics)
        assert report.metrics[f"{stage}/images_per_s"] > 0
        start = model
    assert not list(workspace.checkpoints.rglob("*.pt"))


def test_only_photos_that_are_drawn_or_held_out_are_decoded(workspace: Layout, params: Params) -> None:
    held_out = pd.read_parquet(workspace.snapshot / "validation.parquet")
    labelled = pd.read_parquet(workspace.split / "simple.parquet")
    few = params.with_values(**{"train.simple.steps": 1, "train.common.batch": 2, "train.common.validation_photos": 1})
    report = train("simple", few, workspace)
    cache = PixelCache(workspace.cache, params.model.size)
    drawn = set(Pool(labelled, cache, few.seed, "simple/labeled").draw(0, 2).ids)
    decoded = set(cache.photos.stored())
    of_validation = decoded & set(held_out["sample_id"])
    assert drawn <= decoded and len(decoded - of_validation) <= labelled["category"].nunique() < len(labelled)
    assert len(of_validation) == held_out["category"].nunique() < len(held_out)
    assert {f"simple/val/{c}/mse" for c in held_out["category"]} <= set(report.metrics)
    # More steps decode what they lack.
    train("simple", params, workspace)
    assert decoded < set(PixelCache(workspace.cache, params.model.size).photos.stored())


def test_each_tower_of_clip_sees_a_sample_once_however_many_steps(
    workspace: Layout, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params.with_values(**{"train.multimodal.steps": 3})
    train("simple", params.with_values(**{"train.simple.steps": 0}), workspace)
    seen: Counter[str] = Counter()
    for tower in ("encode_text", "encode_image"):
        plain = getattr(Clip, tower)

        def counted(self: Clip, items, *rest, plain=plain):
            seen.update(item if isinstance(item, str) else sha256_bytes(item.tobytes()) for item in items)
            return plain(self, items, *rest)

        monkeypatch.setattr(Clip, tower, counted)
    train("multimodal", params, workspace, workspace.model("simple"))
    captions = pd.read_parquet(workspace.snapshot / "train_text_image.parquet")["caption"]
    # The image tower sees only the labelled photos, which have no caption of their own.
    photos = PixelCache(workspace.cache, params.model.size).photos
    labelled = pd.read_parquet(workspace.snapshot / "train_labeled.parquet")["sample_id"]
    assert set(seen) == {*captions, *(sha256_bytes(photos[sample].tobytes()) for sample in labelled)}
    assert set(seen.values()) == {1}
    # More steps on the same snapshot, trained in full: what was embedded is there.
    seen.clear()
    again = train(
        "multimodal", params.with_values(**{"train.multimodal.steps": 5}), workspace, workspace.model("simple")
    )
    assert "reused" not in again.facts
    assert not seen


def test_without_weights_for_text_the_multimodal_stage_passes_its_start_on(workspace: Layout, params: Params) -> None:
    train("simple", params.with_values(**{"train.simple.steps": 0}), workspace)
    off = params.with_values(
        **{f"train.multimodal.{name}": 0.0 for name in ("consistency", "contrastive", "captioned")}
    )
    report = train("multimodal", off, workspace, workspace.model("simple"))
    assert report.facts["steps"] == 0 and "text are 0" in str(report.facts["passed_through"])
    before, after = (load_file(workspace.model(stage)) for stage in ("simple", "multimodal"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_stage_is_not_trained_twice(workspace: Layout, params: Params) -> None:
    first = train("simple", params, workspace)
    workspace.model("simple").unlink()
    again = train("simple", params, workspace)
    assert "reused" in again.facts
    assert again.facts["digest"] == first.facts["digest"] == sha256_file(workspace.model("simple"))
    assert again.metrics == first.metrics
    # What this stage does not read does not matter to it; what it reads does.
    other = params.with_values(**{"train.semi.steps": 77, "gate.resamples": 500})
    assert "reused" in train("simple", other, workspace).facts
    assert "reused" not in train("simple", params.with_values(seed=1), workspace).facts


def test_who_listens_hears_the_numbers_and_which_epoch_it_is(workspace: Layout, params: Params) -> None:
    class Ear:
        def __init__(self) -> None:
            self.heard: list[dict[str, float]] = []

        def __call__(self, what: str, done: int, total: int) -> None: ...

        def numbers(self, values: Mapping[str, float]) -> None:
            self.heard.append(dict(values))

    few = params.with_values(**{"train.common.batch": 4, "train.common.replay_share": 0.5, "train.hard.steps": 6})
    train("simple", few, workspace)
    ear, start = Ear(), workspace.model("simple")
    report = train_stage("hard", StorageRun(few, workspace, ear), Report("train-hard"), start=start)
    # Six hard photos, two of each batch: three steps an epoch.
    assert ear.heard[-1]["epoch"] == report.metrics["hard/epochs"] == 2.0
    assert all(0 < heard["epoch"] <= 2 for heard in ear.heard)
    names = {name for heard in ear.heard for name in heard}
    assert {"lr", "val/pets/mse"} <= names and any(name.startswith("loss/") for name in names)


SCRIPT = """
import sys, torch
from functools import partial
from pathlib import Path
torch.set_num_threads(1)
from mm_core.training import stage
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.storage.run import StorageRun
stage.Setup = partial(stage.Setup, save_seconds=0.0)
layout = Layout(Settings.from_env(sys.argv[1]))
params = Params.model_validate_json(Path(sys.argv[2]).read_text())
def progress(what, done, total):
    print(what, done, flush=True)
stage.train_stage("semi", StorageRun(params, layout, progress), Report("x"), start=None)
"""


def test_unlabelled_and_captioned_photos_are_drawn_whole(
    workspace: Layout, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[str, np.ndarray]]] = {}
    losses = Multimodal.losses

    def watched(self: Multimodal, batches: Mapping[str, DeviceBatch], progress: float) -> dict[str, torch.Tensor]:
        for name, batch in batches.items():
            colours = batch.images.permute(0, 2, 3, 1).numpy()
            seen.setdefault(name, []).extend(zip(batch.ids, np.rint(colours * 255), strict=True))
        return losses(self, batches, progress)

    monkeypatch.setattr(Multimodal, "losses", watched)
    train("simple", params.with_values(**{"train.simple.steps": 0}), workspace)
    train("multimodal", params, workspace, workspace.model("simple"))
    cache = PixelCache(workspace.cache, params.model.size)

    def is_whole(sample: str, image: np.ndarray) -> bool:
        photo = cv2.resize(cache.photos[sample], image.shape[:2], interpolation=cv2.INTER_AREA)
        return any((image == turned).all() for turned in (photo, photo[:, ::-1]))

    shares = {name: np.mean([is_whole(*drawn) for drawn in rows]) for name, rows in seen.items()}
    assert shares == {"labeled": 0, "unlabeled": 1, "text": 1}


def test_killed_mid_training_it_ends_with_the_same_bytes(workspace: Layout, params: Params, tmp_path: Path) -> None:
    params = params.with_values(**{"train.semi.steps": 6})
    (tmp_path / "params.json").write_text(params.model_dump_json())
    command = [sys.executable, "-c", SCRIPT, str(workspace.root), str(tmp_path / "params.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train semi 3"):
                process.send_signal(signal.SIGKILL)
                break
    report = train("semi", params, workspace)
    assert report.facts["resumed_from"] >= 3
    digest = report.facts["digest"]
    for file in workspace.checkpoints.rglob("done.json"):
        file.unlink()
    whole = train("semi", params, workspace)
    assert whole.facts["resumed_from"] == 0
    assert whole.facts["digest"] == digest


def test_whoever_comes_second_waits_and_takes_the_result(workspace: Layout, params: Params) -> None:
    """Threads stand for processes: flock is between open files."""
    at_work, reports = threading.Event(), []

    def first() -> None:

        def tell(what: str, done: int, total: int) -> None:
            if what == "train simple":
                at_work.set()

        reports.append(train_stage("simple", StorageRun(params, workspace, tell), Report("a"), start=None))

    thread = threading.Thread(target=first)
    thread.start()
    assert at_work.wait(120)
    second = train("simple", params, workspace)
    thread.join()
    assert "reused" in second.facts
    assert second.facts["digest"] == reports[0].facts["digest"]


def test_killed_between_the_model_and_its_report_the_next_call_tells(
    workspace: Layout, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that has nothing to train is an MLflow run by its report alone."""
    from mlflow import MlflowClient

    class Killed(BaseException): ...

    def die(*_: object, **__: object) -> None:
        raise Killed

    idle = params.with_values(**{"train.simple.steps": 0})
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_report", die)
        with pytest.raises(Killed):
            train("simple", idle, workspace)
    assert "reused" in train("simple", idle, workspace).facts
    client = MlflowClient(workspace.settings.mlflow_uri)
    experiment = client.get_experiment_by_name("matting")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert "train-simple" in {run.data.tags["mm.stage"] for run in found}


def empty(path: Path) -> None:
    pd.read_parquet(path).iloc[:0].to_parquet(path)


@pytest.mark.parametrize(
    ("stage", "pool", "said"),
    [
        ("hard", "split/hard", "hard sample"),
        ("semi", "snapshot/train_unlabeled", "kind unlabeled"),
        ("multimodal", "snapshot/train_text_image", "kind text_image"),
    ],
)
def test_an_empty_pool_passes_the_start_weights_on(
    workspace: Layout, params: Params, stage: str, pool: str, said: str
) -> None:
    train("simple", params, workspace)
    empty(workspace.cycle / f"{pool}.parquet")
    start = workspace.model("simple")
    report = train(stage, params, workspace, start)
    assert said in report.facts["passed_through"]
    before, after = load_model(start)[0].state_dict(), load_model(workspace.model(stage))[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_labels_at_all(workspace: Layout, params: Params) -> None:
    for path in (workspace.split / "simple.parquet", workspace.snapshot / "train_labeled.parquet"):
        empty(path)
    for stage in ("simple", "semi"):
        with pytest.raises(NothingToTrainOn, match="kind pixel_labeled"):
            train(stage, params, workspace)


def test_more_photos_than_the_steps_are_meant_for_get_more_steps(workspace: Layout, params: Params) -> None:
    photos = len(pd.read_parquet(workspace.split / "simple.parquet"))
    fewer = {"train.simple.steps": 2, "train.simple.photos": photos // 2}
    report = train("simple", params.with_values(**fewer), workspace)
    assert report.facts["steps"] == round(2 * photos / (photos // 2)) == 4
    # Each photo is drawn as often as half of them in two steps.
    assert report.metrics["simple/epochs"] == pytest.approx(4 * params.train.common.batch / photos)
    # The other stages keep theirs.
    assert train("hard", params.with_values(**fewer), workspace).facts["steps"] == params.train.hard.steps


def test_without_validation_the_last_weights_are_kept(workspace: Layout, params: Params) -> None:
    empty(workspace.snapshot / "validation.parquet")
    report = train("simple", params, workspace)
    assert report.facts["kept_step"] == params.train.simple.steps
    assert "no validation photos" in report.facts["checkpoint"]
    assert "simple/val_mse" not in report.metrics


def test_a_missing_frame_names_the_command(workspace: Layout, params: Params) -> None:
    (workspace.split / "simple.parquet").unlink()
    with pytest.raises(InputError, match="run `mm split`"):
        train("simple", params, workspace)


def test_a_champion_of_another_shape_is_no_start_but_another_size_is(workspace: Layout, params: Params) -> None:
    train("simple", params, workspace)
    champion = workspace.root / "champion.safetensors"
    champion.write_bytes(workspace.model("simple").read_bytes())
    wide = train("simple", params.with_values(**{"model.width": 12}), workspace, champion)
    assert "not possible" in wide.facts["warm_start"]
    with pytest.raises(InputError, match="mm train-simple"):
        train("hard", params.with_values(**{"model.width": 16}), workspace, champion)
    larger = train("simple", params.with_values(**{"model.size": 96}), workspace, champion)
    assert larger.facts["started_from"] == "simple"
    assert load_model(workspace.model("simple"))[0].config.size == 96


def test_steps_zero_hands_a_scratch_model_on(workspace: Layout, params: Params) -> None:
    started = time.monotonic()
    report = train("simple", params.with_values(**{"train.simple.steps": 0}), workspace)
    assert "steps is 0" in report.facts["passed_through"]
    assert load_model(workspace.model("simple"))[1]["stage"] == "simple"
    assert time.monotonic() - started < 30
    assert not os.path.exists(workspace.cache / "pixels")
