"""Train with several processes (`torchrun`); the result equals that of one process up to rounding.

Each process draws every n-th sample of a step's batch. Gradients are averaged by torch's DistributedDataParallel, and
batch norms normalise over the whole batch. Process 0 validates, writes and logs. Without `torchrun` every function here
is a no-op.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.parallel import DistributedDataParallel

from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.model.network import MattingNet
from mm_core.model.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from timm.layers import norm_act
else:
    norm_act = Deferred("timm.layers.norm_act")

T = TypeVar("T")
Losses = Callable[..., dict[str, Tensor]]
"""The method `losses` of a strategy."""


def rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the process group of `torchrun` (it sets WORLD_SIZE); no-op for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if device.type == "cuda":
        # Messages of Python objects go through the current device, which would be GPU 0 in every process.
        torch.cuda.set_device(own_device(device))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # The group stays until the process ends: a second one would read the first one's addresses in torchrun's store.
        atexit.register(dist.destroy_process_group)
    yield
    # Wait for all: a process that ends early would drop messages it still has to send.
    dist.barrier()


def own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process for `cuda`; other devices are returned unchanged."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def agreed(value: T) -> T:
    """Return the value of process 0 in every process."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes in every process, in the order of their numbers."""
    if world() == 1:
        return [value]
    values = [value] * world()
    dist.all_gather_object(values, value)
    return values


def is_finite_everywhere(value: Tensor) -> bool:
    """Return whether a scalar is finite in every process."""
    total = value.detach().clone()
    if world() > 1:
        # A sum with a NaN or an infinity is not finite.
        dist.all_reduce(total)
    return bool(torch.isfinite(total))


def check_batch(count: int, processes: int) -> None:
    """Raise InputError if `count` samples cannot be divided evenly among `processes`."""
    if count % processes:
        raise InputError(
            f"params.yaml: train.common.batch: {count} samples cannot be divided evenly among {processes} processes; "
            "give a multiple, or another number of processes (torchrun's --nproc-per-node, MM_RAY_WORKERS)"
        )


@contextmanager
def whole_batch(strategy: nn.Module) -> Iterator[Losses]:
    """Yield the method `losses` of a strategy, so that training follows the whole batch of all processes.

    Batch norms in training mode take mean and variance over all processes' rows. The backward pass averages the
    gradients over the processes; it sends each group of gradients as soon as these are computed. Every process must
    call every norm equally often, so each network decodes with every decoder that any process needs.
    """
    if world() == 1:
        yield strategy.losses  # pyright: ignore[reportReturnType]
        return
    device = next(strategy.parameters()).device
    routers = [m for m in strategy.modules() if isinstance(m, MattingNet)]
    for router in routers:
        router.needed = partial(_needed, device=device)
    try:
        with (_synchronised_norms if device.type == "cuda" else _summed_norms)(strategy):
            # Decoders that no process needs get no gradient. Buffers are equal without being sent: norms see all rows.
            yield DistributedDataParallel(_Losses(strategy), forward_sync_buffers=False, find_unused_parameters=True)
    finally:
        for router in routers:
            router.needed = None


class _Losses(nn.Module):
    """A strategy whose `forward` is its `losses`, because DistributedDataParallel follows `forward` alone."""

    def __init__(self, strategy: nn.Module) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, *arguments: object) -> dict[str, Tensor]:
        return self.strategy.losses(*arguments)  # pyright: ignore[reportCallIssue]


@contextmanager
def _synchronised_norms(module: nn.Module) -> Iterator[None]:
    """Replace batch norms by torch's SyncBatchNorm, which supports GPUs only, and put them back at the end.

    Both share their weights and statistics, and the names in `state_dict` stay the same.
    """
    ensure_torchvision()
    plain = {name: m for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    # timm's function knows its norm layers that contain an activation. It must not convert a module twice.
    norm_act.convert_sync_batchnorm(module)
    for name in plain:
        module.get_submodule(name).register_forward_pre_hook(_in_float_if_empty)
    try:
        yield
    finally:
        for name, norm in plain.items():
            module.set_submodule(name, norm)


def _in_float_if_empty(norm: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
    """Convert an empty batch to float32; other batches stay as they are.

    torch's SyncBatchNorm sends the statistics of an empty batch in the batch's number format and those of other batches
    in float32. In mixed precision the messages of the processes would not match.
    """
    return None if inputs[0].numel() else inputs[0].float()


@contextmanager
def _summed_norms(module: nn.Module) -> Iterator[None]:
    """Let batch norms compute their statistics by sums over the processes, on any device."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        # Replace `forward` on the instance only, so that deleting the attribute restores the class's method.
        norm.forward = partial(_normalise, norm, norm.forward)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _needed(names: Sequence[str], device: torch.device) -> list[str]:
    """Return the decoders that any process needs, in the order of `DECODERS`."""
    flags = torch.tensor([name in names for name in DECODERS], dtype=torch.int32, device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [name for name, flag in zip(DECODERS, flags.tolist(), strict=True) if flag]


class _Sum(torch.autograd.Function):
    """Sum over processes whose gradient is summed over the processes too."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(value))


def _normalise(norm: nn.BatchNorm2d, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Replace `BatchNorm2d.forward`: normalise (B, C, H, W) by the statistics of all processes' rows."""
    if not norm.training:
        return plain(x)
    # Number of values per channel over all processes.
    values = x.float()
    mine = values.new_tensor([values.numel() / values.shape[1]])
    dist.all_reduce(mine)
    count = float(mine)
    mean = _sum(values.sum((0, 2, 3))) / count
    centred = values - mean.view(1, -1, 1, 1)
    variance = _sum((centred * centred).sum((0, 2, 3))) / count
    # Update the running statistics as torch does: with the unbiased variance.
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked or 1)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * count / max(count - 1, 1), share)
    # Scale and shift per channel, unless the norm has no affine weights.
    scaled = centred * torch.rsqrt(variance + norm.eps).view(1, -1, 1, 1)
    out = scaled if norm.weight is None else scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    # Norm layers of timm contain their activation.
    for name in ("drop", "act"):
        out = getattr(norm, name, nn.Identity())(out)
    return out.to(x.dtype)
