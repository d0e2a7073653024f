"""The room's shared cycle, made once by the real stages."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from export_cycle import PARAMS, clone, fill_catalog, layout_at, trained_net, verdict_of, write_models  # noqa: E402

from mm_core import stages  # noqa: E402
from mm_core.core.layout import Layout  # noqa: E402
from mm_core.pinned_inputs import Run  # noqa: E402


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """An evaluated cycle with a recorded PROMOTE; read-only: tests that write take `cycle`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    layout = layout_at(tmp_path_factory.mktemp("export") / "data")
    fill_catalog(layout)
    stages.pin_inputs(Run(PARAMS, layout))
    stages.snapshot(Run(PARAMS, layout))
    layout.split.mkdir(parents=True)
    for name in ("simple", "hard"):
        shutil.copyfile(layout.snapshot / "train_labeled.parquet", layout.split / f"{name}.parquet")
    write_models(layout, trained_net(), seed=0)
    stages.evaluate(Run(PARAMS, layout))
    verdict_of(layout)
    torch.set_num_threads(threads)
    return layout


@pytest.fixture(scope="session")
def exported(base: Layout) -> Layout:
    """`base` with its bundle; read-only."""
    stages.export(Run(PARAMS, base))
    return base


@pytest.fixture
def cycle(exported: Layout, tmp_path: Path) -> Layout:
    """A copy of the exported cycle to write to."""
    return clone(exported, tmp_path / "data")
