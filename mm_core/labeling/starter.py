"""Initial mattes before there is a champion, so that people never start from an empty canvas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import RouteParams
from mm_core.core.records import sha256_file
from mm_core.model.onnx_matting import OnnxInput, OnnxMatting
from mm_core.model.predict import TorchPredictor

if TYPE_CHECKING:
    from mm_core.model.predict import Predictor


def cold_start(params: RouteParams, layout: Layout) -> tuple[Predictor | None, str]:
    """Return the model for initial mattes without a champion, and its version for the tasks.

    The model that params name comes first: somebody chose it. Otherwise it is the candidate of the last cycle, whatever
    the gate says of it. Without either the predictor is None and the version `none`.

    Args:
        params: `starter` and its input.
        layout: The workspace.

    Raises:
        InputError: The file of `route.starter` is missing or is no such model.
    """
    if params.starter:
        path = Path(params.starter).expanduser()
        expected = OnnxInput(params.starter_size, params.starter_mean, params.starter_std)
        model = OnnxMatting(path, "route.starter", expected)
        return model, f"starter:{path.stem}:{sha256_file(path)[:12]}"
    weights = layout.model(TRAIN_STAGES[-1])
    if has_file(weights):
        return TorchPredictor(weights, layout.settings.device), f"candidate:{sha256_file(weights)[:12]}"
    return None, "none"
