"""Two processes give what one gives: torchrun over gloo, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import Report
from mm_core.model.files import load_model
from mm_core.model.network import build_model
from mm_core.storage.run import StorageRun
from mm_core.training import process_group
from mm_core.training.stage import train_stage
from mm_core.training.supervised import Supervised

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
    assert set(last) == set(build_model(params.model, 0).state_dict())
    for file in workspace.checkpoints.rglob("done.json"):
        file.unlink()
    train_stage("hard", StorageRun(params, workspace), Report("x"), start=None)
    alone = load_model(workspace.model("hard"))[0].state_dict()
    untrained = build_model(params.model, params.seed).state_dict()
    assert distance(together, alone) < 0.02 * distance(alone, untrained)


BROKEN = """
import math, os, sys
from mm_core.core.errors import NonFiniteLoss
from mm_core.training.supervised import Supervised
plain, rank, how = Supervised.losses, os.environ["RANK"], sys.argv.pop(1)
def losses(self, batches, progress):
    terms = plain(self, batches, progress)
    odd = terms["l1"] * math.nan if how == "loss" else (0 * terms["l1"]).sqrt()
    return terms | ({"odd": odd} if rank == "1" and progress > 0.4 else {})
Supervised.losses = losses
try:
    exec(compile(STAGES, "stages", "exec"))
except NonFiniteLoss as error:
    Path(sys.argv[2]).with_name(f"{how} {rank}").write_text(str(error))
"""


@pytest.mark.parametrize(("how", "said"), [("loss", "odd = nan"), ("gradient", "its gradient")])
def test_a_loss_that_is_not_finite_in_one_process_stops_all(
    workspace: Layout, params: Params, tmp_path: Path, how: str, said: str
) -> None:
    (tmp_path / "params.json").write_text(params.model_dump_json())
    script = f"STAGES = {STAGES!r}\n{BROKEN}"
    done = torchrun(tmp_path, script, how, str(workspace.root), str(tmp_path / "params.json"), "hard")
    assert done.returncode == 0, done.stderr[-3000:]
    texts = [(tmp_path / f"{how} {rank}").read_text() for rank in range(2)]
    assert all("step 2" in text and said in text for text in texts)
    # The samples of a loss that is not finite are named by all; process 0 does not have them.
    assert how == "gradient" or texts[0] == texts[1]


NORM = """
import sys, torch, torch.distributed as dist
from mm_core.model.torchvision_shim import ensure_torchvision
ensure_torchvision()
from timm.layers import BatchNormAct2d
from mm_core.training import process_group

class Squares(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), BatchNormAct2d(3), torch.nn.Conv2d(3, 2, 1))
        self.unused = torch.nn.Linear(2, 2)

    def losses(self, x, aim):
        out = self.net(x)
        return {"a": ((out[:, :1] - aim) ** 2).sum(), "b": (out[:, 1:] * aim).sum()}

device = torch.device(sys.argv[1])
dist.init_process_group("gloo")
torch.manual_seed(0)
ours, x = Squares().to(device).train(), torch.randn(5, 3, 4, 4, device=device) * 2 + 1
plain = Squares().to(device).train()
plain.load_state_dict(ours.state_dict())
modules, names, aim = list(ours.modules()), list(ours.state_dict()), torch.randn(5, 1, 4, 4, device=device)
# The processes have 4 rows and 1, then 5 and none.
for edge in (4, 5):
    rows = slice(0, edge) if dist.get_rank() == 0 else slice(edge, 5)
    mine, whole = x[rows].clone().requires_grad_(), x.clone().requires_grad_()
    ours.zero_grad(), plain.zero_grad()
    with process_group.whole_batch(ours) as losses:
        sum(losses(mine, aim[rows]).values()).backward()
    sum(plain.losses(whole, aim).values()).backward()
    if device.type == "cpu" or len(mine):  # SyncBatchNorm gives an empty batch no gradient
        torch.testing.assert_close(mine.grad, whole.grad[rows], rtol=1e-4, atol=1e-4)
    for (name, a), b in zip(ours.net.named_parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(2 * a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")
    assert all(p.grad is None for p in ours.unused.parameters())
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    assert list(ours.state_dict()) == names and list(ours.modules()) == modules
assert all("forward" not in vars(m) and not m._forward_pre_hooks for m in ours.modules())
assert process_group.agreed(dist.get_rank() + 7) == 7
assert process_group.gathered(dist.get_rank() + 7) == [7, 8]
for value in (1.0, float("nan"), float("inf")):
    number = torch.tensor(value if dist.get_rank() == 1 else 1.0)
    assert process_group.is_finite_everywhere(number) == (value == 1)
# As `joined` does: a process that leaves while the other still sends takes it down.
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_norms_and_gradients_are_of_the_whole_batch_though_dealt_out_unevenly(tmp_path: Path, device: str) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    done = torchrun(tmp_path, NORM, device)
    assert done.returncode == 0, done.stderr[-3000:]


def test_alone_nothing_changes(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = Supervised(build_model(params.model, 0), {}, params.train.loss)
    with process_group.joined(torch.device("cpu")), process_group.whole_batch(strategy) as losses:
        assert losses == strategy.losses
        assert all("forward" not in vars(module) for module in strategy.modules())
        assert (process_group.rank(), process_group.world(), process_group.agreed("x")) == (0, 1, "x")
    monkeypatch.setattr(process_group, "world", lambda: 3)
    with pytest.raises(InputError, match="3 processes"):
        process_group.check_batch(8, process_group.world())
