"""Train with several processes (`torchrun`); the result equals that of one process up to rounding.

Each process draws every n-th sample of a step's batch. Gradients are averaged, and batch norms normalise over the whole
batch. Process 0 validates, writes and logs. Without `torchrun` every function here is a no-op.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.model.network import MattingNet

T = TypeVar("T")


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


def check_batch(count: int, processes: int) -> None:
    """Raise InputError if `count` samples cannot be divided evenly among `processes`."""
    if count % processes:
        raise InputError(
            f"params.yaml: train.common.batch: {count} samples cannot be divided evenly among {processes} processes; "
            "give a multiple, or another number of processes (torchrun's --nproc-per-node, MM_RAY_WORKERS)"
        )


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if world() == 1:
        return
    # One message for all gradients is faster than one per parameter.
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(whole)
    means = torch.split(whole / world(), [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


@contextmanager
def whole_batch_norms(module: nn.Module) -> Iterator[None]:
    """Let batch norms in training mode take mean and variance over all processes' rows.

    torch's SyncBatchNorm supports GPUs only. Every process must call every norm equally often, so each network decodes
    with every decoder that any process needs.
    """
    if world() == 1:
        yield
        return
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    routers = [m for m in module.modules() if isinstance(m, MattingNet)]
    for norm in norms:
        # Replace `forward` on the instance only, so that deleting the attribute restores the class's method.
        norm.forward = partial(_normalise, norm, norm.forward)  # pyright: ignore[reportAttributeAccessIssue]
    for router in routers:
        router.needed = partial(_needed, device=next(router.parameters()).device)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
        for router in routers:
            router.needed = None


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
