"""The whole loop as `mm run` runs it, with tiny models: arrivals to a promoted int8 model, in a folder and on S3.

The tests are in one file because they share one finished cycle, which takes most of their time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mm_core import operations, stages
from mm_core.cli.app import app
from mm_core.cli.predict import predict_files
from mm_core.cli.quarantine import say_arrivals
from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, DECODERS, Report, sha256_file
from mm_core.core.settings import Settings
from mm_core.ingest.holdout import LEARNT
from mm_core.ingest.snapshot import eval_state
from mm_core.pinned_inputs import Run, inputs_now, read_inputs, recorded_verdict
from mm_core.storage.run import StorageRun, catalog_of, store_of
from mm_core.storage.store import put_blob
from samplegen import write_drop

TINY = Params().with_values(
    **{
        "model.encoder": "test_efficientnet",
        "model.pretrained": "",
        "split.min_hard": 0,
        "model.size": 64,
        "model.width": 8,
        "train.common.batch": 2,
        "train.common.validate_every": 4,
        "train.simple.steps": 4,
        "train.hard.steps": 2,
        "train.semi.steps": 2,
        "train.multimodal.steps": 2,
        "train.multimodal.consistency": 1.0,
        "train.multimodal.contrastive": 0.1,
        "train.multimodal.captioned": 0.5,
        "clip.steps": 2,
        "gate.floors": {"mse": 1.0},
        "gate.quantised_mse": 5.0,
        "gate.min_images": 2,
        "gate.beat_blind": False,
        "export.calibration_images": 2,
    }
)


def drop_all(inbox: Path, judging: int = 5) -> None:
    """Four drops; `judging` evaluation photos of each category."""
    judges, each = dict.fromkeys(ALL_CATEGORIES, judging), dict.fromkeys(ALL_CATEGORIES, 3)
    write_drop(inbox, "pixel_labeled", "eval", judges, seed=1, size=64, role="eval", burst_share=0)
    write_drop(inbox, "pixel_labeled", "train", each, seed=50, size=64, role="train", burst_share=0)
    write_drop(inbox, "unlabeled", "plain", dict.fromkeys(ALL_CATEGORIES, 1), seed=90, size=64)
    write_drop(inbox, "text_image", "text", dict.fromkeys(ALL_CATEGORIES, 1), seed=120, size=64)


@pytest.fixture(scope="module")
def cycled(
    tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path]
) -> Iterator[tuple[Layout, dict]]:
    """A workspace after its first cycle, and that cycle's reports."""
    layout = Layout(Settings.from_env(with_tables(tmp_path_factory.mktemp("loop"))))
    drop_all(Path(layout.settings.inbox))
    yield layout, stages.run_cycle(Run(TINY, layout))


def test_a_first_model_is_promoted_and_everything_agrees(cycled) -> None:
    from mm_core.export.registry import Registry

    layout, reports = cycled
    assert reports["gate"].facts["decision"] == "PROMOTE", reports["gate"].facts["reasons"]
    pin = Registry(layout.settings).pin("champion")
    assert pin is not None
    assert pin["digest"] == sha256_file(layout.model("multimodal")) == recorded_verdict(layout).candidate
    bundles = [path for path in layout.bundles.iterdir() if path.is_dir()]
    assert len(bundles) == 1
    manifest = json.loads((bundles[0] / "manifest.json").read_text())
    shipped = {path.name for path in bundles[0].glob("*.onnx")}
    assert len(shipped) == len(DECODERS)
    for name, entry in manifest["files"].items():
        assert sha256_file(bundles[0] / name) == entry["sha256"]
    assert shipped <= set(manifest["files"])


def test_lineage_knows_what_a_champion_learnt_from(cycled) -> None:
    from mm_core.eval.independence import learnt_photos
    from mm_core.export.lineage import learnt_by
    from mm_core.ingest.placement import POOLS
    from mm_core.ingest.snapshot import read_pool

    layout, _ = cycled
    learnt = learnt_by(layout.settings, store_of(layout), [recorded_verdict(layout).candidate])
    pools = {pool: set(read_pool(layout.snapshot, pool)["sample_id"]) for pool in POOLS}
    assert set(learnt) == set.union(*(pools[pool] for pool in POOLS if pool != "eval"))
    samples = catalog_of(layout).read("samples")
    assert learnt_photos(read_pool(layout.snapshot, "eval"), samples, learnt, 3) == {}
    trained = read_pool(layout.snapshot, "train_labeled")
    assert set(learnt_photos(trained, samples, learnt, 3)) == set(trained["sample_id"])
    assert recorded_verdict(layout).left_out == {}


def test_every_stage_is_measured_in_every_category(cycled) -> None:
    _, reports = cycled
    for stage in ("simple", "hard", "semi", "multimodal"):
        for category in (*CATEGORIES, "macro", "weighted"):
            for metric in ("mse", "maxf", "biou", "conn", "sad", "grad"):
                assert np.isfinite(reports["evaluate"].metrics[f"{stage}/{category}/{metric}"])
    assert reports["evaluate"].metrics["multimodal.int8/portrait/mse"] > 0


def test_mlflow_has_one_parent_with_a_child_per_stage_and_the_metrics(cycled) -> None:
    from mlflow.tracking import MlflowClient

    layout, reports = cycled
    client = MlflowClient(layout.settings.mlflow_uri)
    experiment = client.get_experiment_by_name("matting")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = [run for run in runs if run not in children]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    names = {run.info.run_name for run in children}
    trained = {"train-simple", "train-hard", "train-semi", "train-multimodal"}
    assert names == {"snapshot", "split", *trained, "evaluate", "gate", "export", "promote", "report"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parents[0].data.tags["mlflow.source.name"] == "mm run"
    assert parents[0].data.params["train.simple.steps"] == str(TINY.train.simple.steps)
    assert parents[0].info.end_time - parents[0].info.start_time >= 1000 * reports["evaluate"].seconds
    # The promoted model is an output of the cycle, with the scores that the gate compared.
    (output,) = parents[0].outputs.model_outputs
    scores = {metric.key: metric.value for metric in client.get_logged_model(output.model_id).metrics}
    cells = recorded_verdict(layout).cells
    assert scores and scores == pytest.approx({f"{cell.category}/{cell.metric}": cell.candidate for cell in cells})
    evaluated = next(run for run in children if run.info.run_name == "evaluate")
    wanted = reports["evaluate"].metrics["multimodal/pets/mse"]
    assert evaluated.data.metrics["multimodal/pets/mse"] == pytest.approx(wanted)


def test_the_report_is_one_page_that_needs_nothing_else(cycled) -> None:
    layout, _ = cycled
    page = layout.html_report.read_text()
    assert "PROMOTE" in page and "multi" in page
    assert "data:image/" in page and "What new labels did" in page
    assert 'src="http' not in page and "<link" not in page


def test_predict_with_the_champion_gives_the_photos_size(cycled, tmp_path: Path) -> None:
    import cv2

    layout, _ = cycled
    photo = next((Path(layout.settings.inbox) / "pixel_labeled" / "eval" / "images").iterdir())
    predict_files(Run(TINY, layout), [photo], tmp_path, category="portrait", cutout=False)
    matte = cv2.imread(str(tmp_path / f"{photo.stem}.png"), cv2.IMREAD_UNCHANGED)
    assert matte is not None and matte.dtype == np.uint8
    assert matte.shape == cv2.imread(str(photo)).shape[:2]


def test_a_second_cycle_on_the_same_inputs_trains_nothing_and_promotes_nothing_new(cycled) -> None:
    """The champion is now an input: warm start from itself. The gate must not promote on noise of two steps."""
    from mm_core.export.registry import Registry

    layout, first = cycled
    inputs = layout.inputs.read_bytes()
    again = {name: stages.TRAIN[name](Run(TINY, layout)) for name in stages.TRAIN}
    for name, report in again.items():
        assert report.facts["digest"] == first[f"train-{name}"].facts["digest"]
        assert report.facts.get("reused")
    assert layout.inputs.read_bytes() == inputs
    pin = Registry(layout.settings).pin("champion")
    assert pin is not None
    stages.promote(Run(TINY, layout))
    assert Registry(layout.settings).pin("champion") == pin


def test_a_cycle_with_nothing_new_does_nothing(cycled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the champion is another than the one it began with: it is the cycle's own."""
    layout, _ = cycled
    before = {path: path.read_bytes() for path in (layout.inputs, layout.verdict)}
    monkeypatch.setattr(stages, "snapshot", None)  # whoever comes here fails
    reports = stages.run_cycle(Run(TINY, layout))
    assert list(reports) == ["ingest", "structure", "pin_inputs"]
    assert "PROMOTE" in reports["pin_inputs"].facts["nothing_new"]
    assert {path: path.read_bytes() for path in before} == before


def test_a_gate_by_hand_after_the_promotion_starts_no_other_cycle(cycled) -> None:
    layout, _ = cycled
    files = (layout.inputs, layout.verdict, layout.stage_report("gate"))
    kept = {path: path.read_bytes() for path in files}
    try:
        assert stages.gate(Run(TINY, layout)).facts["decision"] == "PROMOTE"
        assert "nothing_new" in stages.pin_inputs(Run(TINY, layout)).facts
    finally:
        for path, before in kept.items():
            path.write_bytes(before)


@pytest.mark.parametrize("why", ["params", "promotion", "catalog", "again"])
def test_a_cycle_goes_on_where_something_is_new_or_unfinished(cycled, why: str) -> None:
    layout, _ = cycled
    pinned, promoted = layout.inputs.read_bytes(), layout.stage_report("promote")
    params = TINY.with_values(**{"seed": 1}) if why == "params" else TINY
    try:
        if why == "promotion":  # killed between the verdict and the promotion
            promoted.rename(promoted.with_suffix(".aside"))
        if why == "catalog":
            catalog_of(layout).add("labels", [{"id": "x", "sample_id": "y", "version": 1, "origin": "drop"}])
        report = stages.pin_inputs(Run(params, layout), again=why == "again")
        assert "nothing_new" not in report.facts and report.facts["champion"]
        assert layout.inputs.read_bytes() != pinned
    finally:
        layout.inputs.write_bytes(pinned)
        if why == "promotion":
            promoted.with_suffix(".aside").rename(promoted)
        if why == "catalog":
            catalog_of(layout).delete("labels", "id", ["x"])


@pytest.mark.parametrize("file", ["snapshot", "verdict", "report"])
@pytest.mark.parametrize("content", [b"{", b'{"digest": "written by another version"}'])
def test_a_cycle_starts_beside_damaged_files_of_the_last_one(cycled, file: str, content: bytes) -> None:
    """`mm ingest` asked for `mm snapshot`, which asked for `mm ingest`."""
    layout, _ = cycled
    files = {
        "snapshot": layout.snapshot / "snapshot.json",
        "verdict": layout.verdict,
        "report": layout.stage_report("gate"),
    }
    path = files[file]
    kept = {path: path.read_bytes() for path in (path, layout.inputs)}
    try:
        path.write_bytes(content)
        layout.inputs.unlink()
        report = stages.pin_inputs(Run(TINY, layout))
        assert "nothing_new" not in report.facts
        assert read_inputs(layout) == inputs_now(layout)
    finally:
        for each, before in kept.items():
            each.write_bytes(before)


def test_params_of_arrivals_alone_do_not_start_a_cycle(cycled) -> None:
    layout, _ = cycled
    other = TINY.with_values(**{"route.budget": 1, "drift.alpha": 0.05})
    assert other.cycle_digest() == TINY.cycle_digest() != TINY.with_values(**{"gate.alpha": 0.1}).cycle_digest()


def test_a_model_that_was_not_judged_is_not_exported(cycled) -> None:
    layout, _ = cycled
    path = layout.model("multimodal")
    judged = path.read_bytes()
    try:
        path.write_bytes(layout.model("simple").read_bytes())
        for stage in (stages.export, stages.promote):
            with pytest.raises(InputError, match=r"model\.safetensors is damaged.*run `mm train-multimodal`"):
                stage(Run(TINY, layout))
    finally:
        path.write_bytes(judged)
    recorded = layout.verdict.read_text()
    try:
        layout.verdict.write_text(json.dumps(json.loads(recorded) | {"candidate": "0" * 64}))
        for stage in (stages.export, stages.promote):
            with pytest.raises(ReleaseRefused, match="mm gate"):
                stage(Run(TINY, layout))
    finally:
        layout.verdict.write_text(recorded)


def test_a_refusal_keeps_export_and_promotion_shut(cycled) -> None:
    layout, _ = cycled
    recorded = layout.verdict.read_text()
    try:
        layout.verdict.write_text(json.dumps(json.loads(recorded) | {"decision": "REJECT", "reasons": ["pets fell"]}))
        for stage in (stages.export, stages.promote):
            with pytest.raises(ReleaseRefused, match="pets fell"):
                stage(Run(TINY, layout))
    finally:
        layout.verdict.write_text(recorded)


def test_the_loop_on_s3(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_tables: Callable[[Path], Path]
) -> None:
    """Inbox, blobs and catalog in a bucket, over HTTP."""
    monkeypatch.setenv("MM_STORE", f"{bucket}/store")
    monkeypatch.setenv("MM_INBOX", f"{bucket}/inbox")
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    drop_all(tmp_path / "made", judging=3)
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "manifest.csv"):
        client.upload_file(str(path), name, f"inbox/{path.relative_to(tmp_path / 'made').as_posix()}")

    layout = Layout(Settings.from_env(with_tables(tmp_path / "workspace")))
    # Reading text has its turn in the loop on folders; three photos a category need a coarser gate.
    tiny = TINY.with_values(**{"structure.ocr": (), "gate.alpha": 0.4})
    reports = stages.run_cycle(Run(tiny, layout))
    assert reports["ingest"].metrics["ingest/accepted"] == len(list((tmp_path / "made").rglob("images/*")))
    assert reports["gate"].facts["decision"] == "PROMOTE"
    assert not (layout.root / "store").exists()
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=name, Prefix="store/")["Contents"]]
    assert any(key.startswith("store/catalog/samples/_delta_log/") for key in keys)
    assert any(key.endswith(sha256_file(layout.model("multimodal"))) for key in keys)
    assert stages.ingest(Run(tiny, layout)).metrics["ingest/batches"] == 0


def test_a_promoted_model_is_rebuilt_bit_for_bit(cycled) -> None:
    """From the registry's record alone: the rebuild has its own folders, and the cycle's checkpoints are not there."""
    layout, _ = cycled
    report = operations.reproduce(Run(TINY, layout), "champion")
    assert report.facts["bit_equal"] and not report.facts["differs"], report.facts
    assert [row["equal"] for row in report.tables["stages"]] == [True] * 4
    assert not list((layout.root / "scratch").iterdir())


def test_a_model_of_another_seed_is_not_the_same(cycled) -> None:
    from mm_core.export.lineage import provenance_of
    from mm_core.export.reproduce import largest_difference, params_of

    layout, _ = cycled
    made = provenance_of(layout.settings, store_of(layout), "champion")
    assert params_of(made) == TINY
    edited = made | {"params": Params().model_dump(mode="json")}
    assert params_of(edited).train == TINY.train, "what trained a stage is what its own file says"
    assert largest_difference(layout.model("simple"), layout.model("multimodal"))
    assert largest_difference(layout.model("simple"), layout.model("simple")) == 0


def test_seed_noise_is_measured_and_used(cycled) -> None:
    from mm_core.experiments.seed_noise import RECORD, recorded_noise

    layout, _ = cycled
    store = store_of(layout)
    assert recorded_noise(StorageRun(TINY, layout)) is None
    report = operations.seed_noise(Run(TINY, layout), seeds=3)
    noise = recorded_noise(StorageRun(TINY, layout))
    assert noise is not None and set(noise) == set(CATEGORIES) and all(value > 0 for value in noise.values())
    for other in ({"gate.primary": "maxf"}, {"train.simple.steps": 5}, {"model.width": 16}):
        assert recorded_noise(StorageRun(TINY.with_values(**other), layout)) is None, "measured for something else"
    record = json.loads(store.fetch(RECORD).read_text())
    for stale in ({"photos": 10 * record["photos"]}, {"measured_at": "2020-01-01T00:00:00+00:00"}):
        store.put(RECORD, json.dumps(record | stale).encode())
        assert recorded_noise(StorageRun(TINY, layout)) is None
    store.put(RECORD, json.dumps(record).encode())
    row = report.tables["noise"][0]
    values = np.array([row[f"seed {n}"] for n in (1, 2, 3)])
    assert row["noise"] == pytest.approx(np.sqrt(2) * values.std(ddof=1) / values.mean(), rel=0.02)
    with pytest.raises(InputError, match="at least 3"):
        operations.seed_noise(Run(TINY, layout), seeds=2)


def test_labels_of_people_come_round_and_are_accounted_for(cycled) -> None:
    """Route by the champion and its verdict, an answer in Label Studio's format, the next snapshot, the table."""
    from mm_core.labeling.label_studio_format import brush_region, inbox, outbox

    layout, _ = cycled
    stages.pin_inputs(Run(TINY, layout))
    before = set(catalog_of(layout).read("labels")["sample_id"])
    sent = stages.route(Run(TINY.with_values(**{"route.budget": 3}), layout))
    assert sent.metrics["route/train"] == 3 and {row["category"] for row in sent.tables["need"]} == set(CATEGORIES)
    assert len({row["category"] for row in sent.tables["routed"]}) == 3, "no category twice while others wait"
    tasks = [task for path in outbox(layout).glob("*.json") for task in json.loads(path.read_text())]
    for task in tasks:
        shown = task["predictions"][0]["result"][0]
        alpha = np.zeros((shown["original_height"], shown["original_width"]), np.uint8)
        alpha[8:40, 8:40] = 255
        choice = {"choices": [task["data"]["category"]]}
        said = {"type": "choices", "from_name": "category", "to_name": "image", "value": choice}
        task["annotations"] = [{"id": 1, "completed_by": 1, "updated_at": "2026-11-02T10:00:00Z"}]
        task["annotations"][0]["result"] = [brush_region(alpha), said]
    inbox(layout).mkdir(parents=True)
    (inbox(layout) / "export.json").write_text(json.dumps(tasks))
    assert stages.collect(Run(TINY, layout)).metrics["collect/new_labels"] == 3
    stages.structure(Run(TINY, layout))
    stages.pin_inputs(Run(TINY, layout))
    stages.snapshot(Run(TINY, layout))
    value = stages.label_value(Run(TINY, layout))
    rows = {row["category"]: row for row in value.tables["value_of_labels"]}
    routed = {category for category, row in rows.items() if row["routed"]}
    learned = {task["data"]["key"] for task in tasks} - before
    assert value.metrics["labels/routed"] == len(learned) == 3
    assert routed == {task["data"]["category"] for task in tasks}
    assert value.metrics["labels/dropped"] == 0, "the champion learned from the drops"

    with pytest.raises(InputError, match="nothing to compare the 3 routed photos with"):
        stages.compare_labels(Run(TINY, layout))
    each = dict.fromkeys(("pets", "cards", "portrait"), 2)
    write_drop(Path(layout.settings.inbox), "pixel_labeled", "unchosen", each, seed=400, size=64, role="train")
    stages.ingest(Run(TINY, layout))
    stages.structure(Run(TINY, layout))
    stages.pin_inputs(Run(TINY, layout))
    stages.snapshot(Run(TINY, layout))
    untouched = {path: path.read_bytes() for path in layout.root.rglob("*.*") if path.is_file() and _kept(layout, path)}
    compared = stages.compare_labels(Run(TINY, layout), seeds=2)
    assert compared.facts["photos_per_arm"] == 3 and compared.facts["available"]["routed"] == 3
    assert {path: path.read_bytes() for path in untouched} == untouched
    assert not list((layout.root / "scratch").iterdir())
    assert stages.label_compare(Run(TINY, layout)).facts == compared.facts, "the comparison on this snapshot is kept"
    stages.html_report(Run(TINY, layout))
    shown = layout.html_report.read_text().partition("Routed against random photos")[2].partition("</section>")[0]
    assert "Not compared" not in shown and "2 seeds" in shown


def test_routed_labels_are_compared_with_random_ones_on_request_and_no_cycle_fails_by_it(
    cycled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the test before: three routed and some other new photos."""
    from mm_core.experiments import label_ablation

    layout, first = cycled
    assert "label-compare" not in first, "it is off by default"
    path = layout.stage_report("label-compare")
    on = TINY.with_values(**{"label.compare_seeds": 2})

    def report_of(params: Params) -> str:
        path.unlink(missing_ok=True)
        why = stages.label_compare(Run(params, layout)).facts["not_compared"]
        stages.html_report(Run(params, layout))
        return why

    assert report_of(on).startswith("3 routed and ") and report_of(on).endswith("the comparison has no meaning")
    assert "below 8 on each side" in layout.html_report.read_text()
    assert report_of(TINY) == "label.compare_seeds is 0"
    assert "Routed against random photos" not in layout.html_report.read_text()

    monkeypatch.setattr(label_ablation, "FEWEST", 3)
    params = on.with_values(**{"label.compare_share": 1.0})
    began: list[str] = []

    def killed(what: str, done: int, total: int) -> None:
        began.append(what) if done == 1 and what == "train simple" else None
        if len(began) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.label_compare(Run(params, layout, killed))
    again: list[str] = []
    stages.label_compare(Run(params, layout, lambda what, done, total: again.append(what) if done == 1 else None))
    assert again.count("train simple") == 2, "two of four had been finished"
    about = Report.read(path).facts
    assert about["seeds"] == 2 and about["photos_per_arm"] == 3 and about["steps"] == 2
    assert label_ablation.affordable(on.with_values(**{"train.simple.steps": 40})) == int(0.25 * 46 / 4)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(label_ablation, "score_all", broken)
    assert report_of(on) == "failed: ZeroDivisionError: by chance"
    assert "Not compared: failed" in layout.html_report.read_text()


def _kept(layout: Layout, path: Path) -> bool:
    """The cycle's files, the gate's records of what the eval set was used for, and the MLflow of the cycles."""
    if path == layout.stage_report("label-compare"):
        return False
    return path.is_relative_to(layout.cycle) or path.parts[len(layout.root.parts)] in ("inputs.json", "mlflow", "store")


def test_an_eval_photo_of_a_scene_that_a_judged_model_has_learnt_does_not_judge(cycled, tmp_path: Path) -> None:
    """The producer corrects a manifest afterwards: the scene of an eval photo is that of a training photo."""
    from mm_core.export.provenance import read_provenance
    from mm_core.export.registry import Registry
    from mm_core.ingest.snapshot import read_pool

    layout, _ = cycled
    inbox = Path(layout.settings.inbox) / "pixel_labeled"
    learnt, judging = (pd.read_csv(inbox / batch / "manifest.csv") for batch in ("train", "eval"))
    row = judging.index[judging["category"] == "pets"][0]
    judging.loc[row, "group"] = learnt.loc[learnt["category"] == "pets", "group"].iloc[0]
    judging.to_csv(inbox / "eval" / "manifest.csv", index=False)
    stages.ingest(Run(TINY, layout))
    stages.pin_inputs(Run(TINY, layout), again=True)
    for stage in (stages.snapshot, stages.split, *stages.TRAIN.values(), stages.evaluate, stages.gate):
        stage(Run(TINY, layout))
    verdict = recorded_verdict(layout)
    photo = sha256_file(inbox / "eval" / judging.loc[row, "image"])
    assert list(verdict.left_out) == [photo]
    assert verdict.left_out[photo].endswith("(train_labeled), another photo of the scene")
    assert {cell.images for cell in verdict.cells if (cell.category, cell.against) == ("pets", "champion")} == {4}
    assert {cell.images for cell in verdict.cells if (cell.category, cell.against) == ("cards", "champion")} == {5}
    assert any(reason.startswith("left out: 1 eval photo") for reason in verdict.reasons)

    # Another line of training learnt from a photo that judges here, and holds the best value of one category.
    store, anchor = store_of(layout), verdict.anchor
    tags = Registry(layout.settings).tags("1")
    assert tags and anchor
    provenance = read_provenance(store, tags["provenance"])
    frame = read_pool(layout.snapshot, "eval")
    seen = frame.loc[frame["category"] == "cards"].iloc[:1]
    seen.to_parquet(tmp_path / "seen.parquet")
    files = provenance["snapshot_files"] | {"train_labeled.parquet": put_blob(store, tmp_path / "seen.parquet")}
    other = json.dumps(provenance | {"start": None, "snapshot_files": files}).encode()
    start = {"digest": "f" * 64, "provenance": put_blob(store, other), "catalog": {}, "snapshot": "", "when": ""}
    store.put(f"gate/starts/{start['digest']}.json", json.dumps(start).encode())
    best = json.loads(store.fetch(f"gate/best/{anchor}.json").read_bytes())
    best["cards"]["mse"].append(start["digest"])
    store.put(f"gate/best/{anchor}.json", json.dumps(best).encode())
    store.put(f"gate/best/{start['digest']}.parquet", store.fetch(f"gate/best/{anchor}.parquet").read_bytes())
    stages.gate(Run(TINY, layout))
    verdict = recorded_verdict(layout)
    assert verdict.left_out.pop(seen["sample_id"].item()) == "candidate ffffffffffff (train_labeled)"
    assert list(verdict.left_out) == [photo]
    assert {cell.images for cell in verdict.cells if (cell.category, cell.against) == ("cards", "champion")} == {4}


def test_ingest_and_status_say_which_eval_rows_cannot_judge_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(Settings.from_env(tmp_path / "data"))
    inbox = Path(layout.settings.inbox)
    write_drop(inbox, "pixel_labeled", "w1", {"pets": 3, "cards": 3}, seed=5, size=64, role="train", burst_share=0)
    first = stages.ingest(Run(TINY, layout))
    assert "pets: 0 of 8 eval photos; 3 of about 20 labelled" in first.facts["eval"]
    say_arrivals(first, Run(TINY, layout), as_json=False)
    assert "evaluation photos\n  portrait: 0 of 8 eval photos; 0 of about 20 labelled\n" in capsys.readouterr().out
    monkeypatch.setenv("MM_WORKSPACE", str(layout.root))
    shown = CliRunner().invoke(app, ["status"], env={"COLUMNS": "200"}).output
    assert "  pets: 0 of 8 eval photos; 3 of about 20 labelled\n" in shown
    assert first.tables["eval_refused"] == []
    rows = catalog_of(layout).read("samples")
    taken = {row.category: row.group or row.id for row in rows.itertuples()}
    late = inbox / "pixel_labeled" / "w2"
    write_drop(inbox, "pixel_labeled", "w2", {"pets": 2}, seed=70, size=64, role="eval", burst_share=0)
    manifest = pd.read_csv(late / "manifest.csv")
    manifest.loc[0, "group"] = taken["pets"]
    manifest.to_csv(late / "manifest.csv", index=False)
    later = rows["accepted_at"].max()
    while datetime.now(UTC).isoformat(timespec="seconds") <= later:
        time.sleep(0.05)
    second = stages.ingest(Run(TINY, layout))
    assert len(second.tables["eval_refused"]) == 1, second.tables
    assert "arrived earlier for training" in second.tables["eval_refused"][0]["why"]
    say_arrivals(second, Run(TINY, layout), as_json=False)
    refusal = f"  1 photo cannot judge and is not trained on ({LEARNT}): {manifest.loc[0, 'image']}\n"
    assert refusal in capsys.readouterr().out
    enough = TINY.with_values(**{"snapshot.eval_least": 2, "gate.min_images": 2}).snapshot
    words = eval_state(enough, catalog_of(layout))["words"]
    # Two fifths of five are two: the labels suffice, but those of role train cannot judge.
    assert "pets: 1 of 2 eval photos; 5 labelled, but only newly arriving photos can judge" in " ".join(words)
