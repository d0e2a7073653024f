"""A workspace of generated samples with the smallest model and a few steps, found through the environment."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES
from mm_core.core.settings import Settings
from samplegen import write_drop

TINY: dict[str, Any] = {
    "structure.ocr": (),
    "model.encoder": "test_efficientnet",
    "model.pretrained": "",
    "split.min_hard": 0,
    "model.size": 64,
    "model.width": 8,
    "train.common.batch": 2,
    "train.common.precision": "fp32",
    "train.common.validate_every": 2,
    "train.simple.steps": 4,
    "train.hard.steps": 2,
    "train.semi.steps": 2,
    "train.multimodal.steps": 2,
    "train.multimodal.consistency": 1.0,
    "train.multimodal.contrastive": 0.1,
    "train.multimodal.captioned": 0.5,
    "clip.steps": 2,
    "evaluate.max_side": 64,
    "export.calibration_images": 4,
    "gate.min_images": 2,
    "gate.beat_blind": False,
    "gate.resamples": 200,
    "gate.quantised_mse": 100.0,
}


@dataclass(frozen=True)
class Plant:
    """One workspace with its inbox and params file."""

    layout: Layout
    inbox: Path

    def write_params(self, **values: Any) -> None:
        params = Params().with_values(**(TINY | values))
        self.layout.settings.params_file.write_text(params.to_yaml())

    def drop(self, kind: str, batch: str, each: int, *, seed: int, role: str = "") -> Path:
        return write_drop(self.inbox, kind, batch, dict.fromkeys(ALL_CATEGORIES, each), seed=seed, size=64, role=role)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, with_tables: Callable[[Path], Path]) -> Iterator[Plant]:
    """An empty workspace; the environment points to it."""
    root = tmp_path_factory.mktemp("plant")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MM_STORE", "MLFLOW_TRACKING_URI", "MM_INBOX"):
            patch.delenv(name, raising=False)
        patch.setenv("MM_WORKSPACE", str(with_tables(root / "data")))
        patch.setenv("MM_PARAMS", str(root / "params.yaml"))
        patch.setenv("MM_DEVICE", "cpu")
        layout = Layout(Settings.from_env())
        made = Plant(layout, Path(layout.settings.inbox))
        made.write_params()
        yield made


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made
