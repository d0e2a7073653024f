"""Small networks and drawn samples for the model room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mm_core.core.params import ModelParams
from mm_core.model.network import MattingNet, build_model

TINY = ModelParams(pretrained="", encoder="test_efficientnet", size=64, width=8)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> ModelParams:
    return TINY


@pytest.fixture
def net() -> MattingNet:
    return build_model(TINY, seed=0)


@pytest.fixture(scope="session")
def drawn() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return draw


def draw(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A soft disc on noise: (uint8 photo, float32 alpha)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    cy, cx = rng.uniform(0.35, 0.65, 2) * size
    radius = rng.uniform(0.2, 0.3) * size
    alpha = np.clip(radius - np.hypot(y - cy, x - cx) + 0.5, 0, 1).astype(np.float32)
    ground = rng.uniform(0, 110, 3) + rng.normal(0, 12, (size, size, 3))
    subject = rng.uniform(150, 255, 3)
    photo = alpha[..., None] * subject + (1 - alpha[..., None]) * ground
    return np.clip(photo, 0, 255).astype(np.uint8), alpha
