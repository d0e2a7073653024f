"""The circle: a bad cut in the page becomes a drop, is routed, corrected, learned from, and named by the lineage."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from mm_core import operations, stages
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, sha256_file
from mm_core.core.settings import Settings
from mm_core.export.lineage import lineage
from mm_core.export.signature import make_keys
from mm_core.gallery.application import application
from mm_core.gallery.library import Library
from mm_core.ingest.placement import stable_share
from mm_core.labeling.label_studio_format import brush_region, inbox, outbox
from mm_core.pinned_inputs import Run
from mm_core.storage.run import catalog_of
from samplegen import generate, write_drop
from samplegen.gallery import jpeg

TINY = Params().with_values(
    **{
        "model.encoder": "test_efficientnet",
        "model.pretrained": "",
        "split.min_hard": 0,
        "model.size": 64,
        "model.width": 8,
        "structure.ocr": [],
        "train.common.batch": 2,
        "train.common.validate_every": 1,
        "train.simple.steps": 1,
        "train.hard.steps": 1,
        "train.semi.steps": 1,
        "train.multimodal.steps": 1,
        "train.multimodal.consistency": 1.0,
        "train.multimodal.contrastive": 0.1,
        "train.multimodal.captioned": 0.5,
        "clip.steps": 1,
        "evaluate.shadow_photos": 0,
        "gate.floors": {"mse": 1.0},
        "gate.quantised_mse": 5.0,
        "gate.min_images": 2,
        "gate.beat_blind": False,
        "export.calibration_images": 1,
    }
)
SCENE = next(
    name
    for name in (f"scene {n}" for n in range(99))
    if stable_share(name, "eval") >= TINY.snapshot.eval_share
    and stable_share(name, "validation") >= TINY.snapshot.validation_share
)
"""A group that snapshots put on the training side."""


@pytest.mark.timeout(1200)  # a whole cycle: slow where other programs run
def test_from_a_bad_cut_to_the_model_that_learned_from_it(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    layout = Layout(Settings.from_env(tmp_path / "workspace"))
    arrivals = Path(layout.settings.inbox)
    write_drop(
        arrivals, "pixel_labeled", "eval", dict.fromkeys(ALL_CATEGORIES, 3), seed=1, size=64, role="eval", burst_share=0
    )
    write_drop(
        arrivals,
        "pixel_labeled",
        "train",
        dict.fromkeys(ALL_CATEGORIES, 2),
        seed=50,
        size=64,
        role="train",
        burst_share=0,
    )
    write_drop(arrivals, "unlabeled", "plain", {"pets": 2}, seed=90, size=64)
    write_drop(arrivals, "text_image", "text", {"pets": 2}, seed=120, size=64)
    stages.ingest(Run(TINY, layout))

    # Moments by a model that is out there already, on the page; somebody does not like a cut.
    gallery, truth = tmp_path / "gallery", {}
    gallery.mkdir()
    for number in range(2):
        made = generate("pets", 700 + number, size=96)
        path = gallery / f"IMG_{number}.jpg"
        path.write_bytes(jpeg(made.image, datetime(2026, 5, 2, 12, number), None))
        truth[sha256_file(path)] = made.alpha
    operations.moments(Run(TINY, layout), gallery, layout.moments, model=str(bundle))
    library = Library(gallery, layout.moments, bundle, layout.root / "uploads", 10**7)
    page = application(library, catalog_of(layout), arrivals, Path("/nowhere"))
    photo = sorted(truth)[0]
    asked = {"photo": photo, "said": "bad_cut", "consent": "yes", "group": SCENE, "device": "test"}
    client = TestClient(page, base_url="http://127.0.0.1")
    batch = client.post("/api/feedback", params=asked, headers={"x-mm": "1"}).json()["batch"]

    # The drop is ingested like any other, and routed before the other unlabelled photos.
    assert stages.ingest(Run(TINY, layout)).metrics["ingest/accepted"] == 1, "only the photo that was complained of"
    stages.structure(Run(TINY, layout))
    stages.pin_inputs(Run(TINY, layout))
    stages.route(Run(TINY, layout))
    tasks = [task for path in sorted(outbox(layout).glob("*.json")) for task in json.loads(path.read_text())]
    task = next(task for task in tasks if task["data"]["key"] == photo)
    routed = catalog_of(layout).read("features", filters=[("extractor", "=", "routed")])
    numbers = dict(routed.set_index("sample_id").loc[photo, "numbers"])
    assert numbers["feedback"] > 1

    # A person paints the matte in Label Studio.
    matte = np.rint(truth[photo] * 255).astype(np.uint8)
    choice = {"type": "choices", "from_name": "category", "to_name": "image", "value": {"choices": ["pets"]}}
    work = {"id": 1, "completed_by": 5, "was_cancelled": False, "updated_at": "2026-11-02T10:00:00Z"}
    inbox(layout).mkdir(parents=True, exist_ok=True)
    answer = task | {"id": 1, "annotations": [work | {"result": [brush_region(matte), choice]}]}
    (inbox(layout) / "export.json").write_text(json.dumps([answer]))
    assert stages.collect(Run(TINY, layout)).metrics["collect/new_labels"] == 1

    # The next cycle trains on it. Nothing says that two steps make a better model: a person signs for it.
    make_keys(tmp_path / "key")
    monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
    again = stages.run_cycle(Run(TINY, layout))
    if again["gate"].facts["decision"] != "PROMOTE":
        stages.override(Run(TINY, layout), "candidate", reason="the circle's test", days=1)
    told = lineage(layout.settings, "champion")
    mine = [sample for sample in told["samples"] if sample["sample_id"] == photo]
    assert mine and {sample["pool"] for sample in mine} == {"train_labeled"}
    assert {sample["batch"] for sample in mine} == {batch}
    with (arrivals / "unlabeled" / batch / "manifest.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["image"].endswith(f"{photo}.jpg") and row["group"] == SCENE and "consent" in row["license"]
