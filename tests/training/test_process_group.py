"""Two processes give what one gives: torchrun over gloo, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.model.files import load_model
from mm_core.model.network import build_model
from mm_core.storage.run import StorageRun
from mm_core.training import process_group
from mm_core.training.stage import train_stage

STAGES = """
import os, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.storage.run import StorageRun
from mm_core.training.stage import train_stage
layout, start = Layout(Settings.from_env(sys.argv[1])), None
params = Params.model_validate_json(Path(sys.argv[2]).read_text())
for stage in sys.argv[3:]:
    train_stage(stage, StorageRun(params, layout), Report(stage), start=start)
    start = layout.model(stage)
"""


def torchrun(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    path = folder / "worker.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path)]
    # The default host name may not be resolvable; gloo then finds no interface.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=280)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[name].float() - b[name].float()).flatten() for name in a]).norm())


def test_two_processes_end_where_one_does(workspace: Layout, params: Params, tmp_path: Path) -> None:
    """A batch of 4 over three decoders: at every step each process lacks some decoder's rows."""
    params = params.with_values(**{"train.common.precision": "fp32", "train.common.replay_share": 0.25})
    (tmp_path / "params.json").write_text(params.model_dump_json())
    stages = ("hard", "semi", "multimodal")
    done = torchrun(tmp_path, STAGES, str(workspace.root), str(tmp_path / "params.json"), *stages)
    assert done.returncode == 0, done.stderr[-3000:]
    together = load_model(workspace.model("hard"))[0].state_dict()
    # Perturbations are drawn by each process: the later stages end elsewhere, but they end.
    last = load_model(workspace.model("multimodal"))[0].state_dict()
    assert all(torch.isfinite(value).all() for value in last.values())
    for file in workspace.checkpoints.rglob("done.json"):
        file.unlink()
    train_stage("hard", StorageRun(params, workspace), Report("x"), start=None)
    alone = load_model(workspace.model("hard"))[0].state_dict()
    untrained = build_model(params.model, params.seed).state_dict()
    assert distance(together, alone) < 0.02 * distance(alone, untrained)


NORM = """
import sys, torch, torch.distributed as dist
from mm_core.training import process_group
dist.init_process_group("gloo")
torch.manual_seed(0)
norm, x = torch.nn.BatchNorm2d(3).train(), torch.randn(5, 3, 4, 4) * 2 + 1
aim = torch.randn(5, 3, 4, 4)
rows = slice(0, 4) if dist.get_rank() == 0 else slice(4, 5)
mine = x[rows].clone().requires_grad_()
with process_group.whole_batch_norms(torch.nn.Sequential(norm)):
    out = norm(mine)
((out - aim[rows]) ** 2).sum().backward()
whole = x.clone().requires_grad_()
plain = torch.nn.BatchNorm2d(3).train()
expected = plain(whole)
((expected - aim) ** 2).sum().backward()
torch.testing.assert_close(out, expected[rows])
torch.testing.assert_close(mine.grad, whole.grad[rows], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(norm.running_var, plain.running_var)
torch.testing.assert_close(norm.running_mean, plain.running_mean)
process_group.average_gradients(list(norm.parameters()))
torch.testing.assert_close(2 * norm.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
assert "forward" not in vars(norm)
assert process_group.agreed(dist.get_rank() + 7) == 7
# As `joined` does: a process that leaves while the other still sends takes it down.
dist.barrier()
dist.destroy_process_group()
"""


def test_norms_see_the_whole_batch_though_dealt_out_unevenly(tmp_path: Path) -> None:
    done = torchrun(tmp_path, NORM)
    assert done.returncode == 0, done.stderr[-3000:]


def test_alone_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.BatchNorm2d(2)
    with process_group.joined(torch.device("cpu")), process_group.whole_batch_norms(nn.Sequential(norm)):
        assert "forward" not in vars(norm)
        assert (process_group.rank(), process_group.world(), process_group.agreed("x")) == (0, 1, "x")
    monkeypatch.setattr(process_group, "world", lambda: 3)
    with pytest.raises(InputError, match="3 processes"):
        process_group.check_batch(8, process_group.world())
