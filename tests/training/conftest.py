"""A small workspace with a snapshot and a split, made without the rooms that make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import decoder_of, write_json
from mm_core.core.settings import Settings
from mm_core.imaging.images import encode_alpha
from mm_core.storage.store import LocalStore, put_blob
from tests.tiny import snapshot_facts

TINY = Params().with_values(
    **{
        "model.encoder": "test_efficientnet",
        "model.pretrained": "",
        "model.size": 64,
        "model.width": 8,
        "train.common.batch": 4,
        "train.common.validate_every": 4,
        "train.simple.steps": 6,
        "train.hard.steps": 4,
        "train.semi.steps": 4,
        "train.multimodal.steps": 4,
        "train.multimodal.consistency": 1.0,
        "train.multimodal.contrastive": 0.1,
        "train.multimodal.captioned": 0.5,
        "clip.steps": 4,
    }
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def params() -> Params:
    return TINY


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_tables: Callable[[Path], Path]) -> Layout:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Layout(Settings.from_env(with_tables(tmp_path / "ws")))


@pytest.fixture
def store(layout: Layout) -> LocalStore:
    return LocalStore(Path(layout.settings.store))


Drawer = Callable[..., pd.DataFrame]


@pytest.fixture
def draw(store: LocalStore) -> Drawer:
    """`draw(per_category, seed, …)`: rows of photos with one bright shape whose matte is exactly that shape."""

    def drawer(per_category: int, seed: int, *, labelled: bool = True, captions: bool = False) -> pd.DataFrame:
        rows = []
        for c, category in enumerate(("portrait", "pets", "scenery")):
            for i in range(per_category):
                rng = np.random.default_rng([seed, c, i])
                alpha = np.zeros((72, 96), np.float32)
                centre = (int(rng.integers(25, 70)), int(rng.integers(25, 48)))
                cv2.ellipse(alpha, centre, (16 + 4 * c, 14), 0, 0, 360, 1.0, -1)
                alpha = cv2.GaussianBlur(alpha, (0, 0), 1.2)
                colour = np.array([[220, 60, 60], [60, 200, 60], [80, 90, 230]][c], np.float32)
                photo = alpha[..., None] * colour + (1 - alpha[..., None]) * rng.uniform(20, 90, 3)
                photo = (photo + rng.normal(0, 4, photo.shape)).clip(0, 255).astype(np.uint8)
                rows.append(
                    {
                        "sample_id": put_blob(store, cv2.imencode(".png", photo[..., ::-1])[1].tobytes()),
                        "category": category,
                        "decoder": decoder_of(category),
                        "group": f"{seed}-{category}-{i}",
                        "caption": f"a {category} of kind {i}" if captions else None,
                        "alpha_sha256": put_blob(store, encode_alpha(alpha)) if labelled else None,
                        "label_version": 1 if labelled else None,
                        "label_binary": False if labelled else None,
                        "width": 96,
                        "height": 72,
                        "kind": "pixel_labeled",
                        "batch": "b",
                    }
                )
        return pd.DataFrame(rows).astype({"label_version": "Int32", "label_binary": "boolean"})

    return drawer


@pytest.fixture
def workspace(layout: Layout, draw: Drawer) -> Layout:
    """3 categories: 4 simple, 2 hard, 2 validation, 2 unlabelled, 2 captioned each; no eval frame at all."""
    simple, hard = draw(4, 1), draw(2, 2)
    frames = {
        layout.split / "simple.parquet": simple.assign(difficulty=0.1),
        layout.split / "hard.parquet": hard.assign(difficulty=0.9),
        layout.snapshot / "train_labeled.parquet": pd.concat([simple, hard], ignore_index=True),
        layout.snapshot / "validation.parquet": draw(2, 3),
        layout.snapshot / "train_unlabeled.parquet": draw(2, 4, labelled=False),
        layout.snapshot / "train_text_image.parquet": draw(2, 5, labelled=False, captions=True),
    }
    for path, frame in frames.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path)
    write_json(layout.snapshot / "snapshot.json", snapshot_facts("5" * 64))
    return layout
