"""Params of cycles that take seconds, and what their snapshots record, for tests of what is around the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.pins import PINNED_TABLES
from mm_core.core.settings import Settings

ONE_STEP = Params().with_values(
    **{
        "structure.ocr": (),
        "model.encoder": "test_efficientnet",
        "model.pretrained": "",
        "split.min_hard": 0,
        "model.size": 64,
        "model.width": 8,
        "train.common.batch": 2,
        "train.common.precision": "fp32",
        "train.simple.steps": 1,
        "train.hard.steps": 1,
        "train.semi.steps": 1,
        "train.multimodal.steps": 1,
        "train.multimodal.consistency": 1.0,
        "train.multimodal.contrastive": 0.1,
        "train.multimodal.captioned": 0.5,
        "clip.steps": 1,
        "evaluate.max_side": 64,
        "gate.beat_blind": False,
        "gate.floors": {"mse": 1.0},
        "gate.quantised_mse": 100.0,
        "gate.min_images": 2,
        "gate.resamples": 200,
        "export.calibration_images": 2,
    }
)
"""One step in each stage at 64 px; gates that a first model passes."""


def snapshot_facts(digest: str, **others: object) -> dict[str, Any]:
    """What `snapshot.json` must hold: version 0 of each table, no champion, and these digests and further facts."""
    pins = {"catalog": dict.fromkeys(PINNED_TABLES, 0), "champion": None, "anchor": None}
    return {"digest": digest, "eval_digest": "e" * 64} | pins | others


def link_graphs(workspace: Path, kept_graphs: Path) -> None:
    """Give a workspace that other processes write the ONNX graphs which the tests share (`conftest.kept_graphs`)."""
    cache = Layout(Settings.from_env(workspace)).cache
    cache.mkdir(parents=True)
    (cache / "graphs").symlink_to(kept_graphs)
