"""A small cycle made by the real stages: generated photos, a briefly trained network, int8 files, scores."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import ExportParams, ModelParams, Params
from mm_core.core.records import ALL_CATEGORIES, DECODERS, Verdict, decoder_of, sha256_file, write_json
from mm_core.core.settings import Settings
from mm_core.export import bundle
from mm_core.export.bundle_costs import FileRun
from mm_core.export.formats.measure import RunCost
from mm_core.export.runtime import OnnxPredictor
from mm_core.imaging.images import encode_alpha
from mm_core.model.files import save_model
from mm_core.model.network import MattingNet, build_model
from mm_core.model.preprocess import prepare
from mm_core.storage.run import catalog_of, store_of
from mm_core.storage.seals import seal_folder
from mm_core.storage.store import Store, put_blob
from mm_core.training.stage_data import read_data
from samplegen import generate

SIZE = 64
PARAMS = Params(
    model=ModelParams(pretrained="", encoder="test_efficientnet", size=SIZE, width=8),
    export=ExportParams(calibration_images=6),
)


def layout_at(root: Path) -> Layout:
    return Layout(
        Settings(
            root, str(root / "inbox"), str(root / "store"), f"sqlite:///{root}/mlflow/mlflow.db", root / "p", "cpu"
        )
    )


def verdict_of(layout: Layout, decision: str = "PROMOTE", champion: str | None = None) -> Verdict:
    """A verdict about the candidate that lies in `layout`, recorded as the gate records it."""
    snapshot = json.loads((layout.snapshot / "snapshot.json").read_text())
    verdict = Verdict(
        decision=decision,  # type: ignore[arg-type]
        basis="paired" if champion else "bootstrap",
        reasons=["all six categories improve"],
        candidate=sha256_file(layout.model(TRAIN_STAGES[-1])),
        champion=champion,
        anchor=champion,
        snapshot=snapshot["digest"],
        eval_digest=snapshot["eval_digest"],
        cells=[],
        created_at="2026-01-01T00:00:00+00:00",
    )
    write_json(layout.verdict, verdict.model_dump())
    return verdict


def trained_net() -> MattingNet:
    """A few steps: enough for mattes that are neither flat nor noise."""
    torch.manual_seed(0)
    net = build_model(PARAMS.model, 0).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(21):
        category = ALL_CATEGORIES[step % len(ALL_CATEGORIES)]
        samples = [generate(category, 100 + step * 4 + i, size=SIZE) for i in range(4)]
        images = torch.from_numpy(np.stack([prepare(s.image, SIZE) for s in samples]))
        alphas = torch.from_numpy(np.stack([cv2.resize(s.alpha, (SIZE, SIZE)) for s in samples]))[:, None]
        features, decoder = net.encode(images), decoder_of(category)
        logits = net.decode(features, decoder)[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, alphas)
        truth = torch.full((len(images),), DECODERS.index(decoder))
        loss = loss + torch.nn.functional.cross_entropy(net.choice(features), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Every format must apply it.
    net.foreground_scale = 0.7
    return net.eval()


def fill_catalog(layout: Layout, per_category: int = 9) -> None:
    store, catalog = store_of(layout), catalog_of(layout)
    samples, labels = [], []
    for category in ALL_CATEGORIES:
        for seed in range(per_category):
            drawn = generate(category, seed, size=SIZE)
            sample = put_blob(store, cv2.imencode(".png", drawn.image[..., ::-1])[1].tobytes())
            height, width = drawn.alpha.shape
            samples.append(
                {"id": sample, "kind": "pixel_labeled", "batch": "b", "category": category, "group": drawn.group}
                | {"role": "eval" if seed == 0 else "", "width": width, "height": height, "format": "PNG"}
                | {"source": "drawn", "license": "CC0-1.0" if seed % 2 else "", "name": f"{category}{seed}.png"}
            )
            labels.append(
                {"id": f"{sample}-1", "sample_id": sample, "alpha_sha256": put_blob(store, encode_alpha(drawn.alpha))}
                | {"version": 1, "origin": "drop", "batch": "b", "binary": False}
            )
    catalog.add("samples", samples)
    catalog.add("labels", labels)


def write_models(layout: Layout, net: MattingNet, seed: int) -> None:
    """One network as every stage's model, each with the record that training writes."""
    snapshot, start = json.loads((layout.snapshot / "snapshot.json").read_text())["digest"], None
    for stage in TRAIN_STAGES:
        record = {"snapshot": snapshot, "data": read_data(stage, layout).digest(), "start": start}
        start = save_model(layout.model(stage), net, {"stage": stage, "params": {"seed": seed}, **record})


def seal_evaluation(layout: Layout) -> None:
    """Seals what `mm evaluate` wrote, after a test has changed a part of it."""
    seal_folder(layout.evaluation, [path for path in sorted(layout.quantised.iterdir()) if path.is_file()])


def stop_clocks(patch: pytest.MonkeyPatch) -> None:
    """Spares bundles the stopwatch and a process a file, which the shared bundle has shown at work."""

    def run_all(folder: Path, layout: Layout, store: Store, golden: dict[str, np.ndarray], *made: object) -> dict:
        predictor = OnnxPredictor.of_folder(folder, threads=1)
        cost: RunCost = {
            "latency_ms": {"1": 1.0, "2": 1.0},
            "cpu_ms": {"1": 1.0},
            "peak_mb": 1.0,
            "model_mb": 1.0,
            "versions": {},
        }
        return {
            decoder: {"onnx": FileRun(cost, predictor.alpha(prepare(photo, SIZE), decoder))}
            for decoder, photo in golden.items()
        }

    patch.setattr(bundle, "torch_latencies", lambda model: dict.fromkeys(DECODERS, {"1": 1.0, "2": 1.0, "cpu": 1.0}))
    patch.setattr(bundle, "run_all", run_all)


def clone(layout: Layout, root: Path) -> Layout:
    """A copy of a whole workspace; MLflow remembers absolute places, so they are moved too."""
    shutil.copytree(layout.root, root)
    with sqlite3.connect(root / "mlflow" / "mlflow.db") as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(layout.root), str(root)))
    database.close()
    return layout_at(root)
