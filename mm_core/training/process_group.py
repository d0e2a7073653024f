"""Training by several processes (`torchrun`): the same result as by one, up to rounding.

Each process draws every n-th sample of a step's batch, gradients are averaged, and batch norms see the whole batch.
Process 0 validates, writes and logs. Without `torchrun` everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mm_core.core.errors import InputError
from mm_core.core.records import DECODERS
from mm_core.model.network import MattingNet

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the processes that `torchrun` started (it sets WORLD_SIZE), where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # Kept to the process's end: a second group would find the first one's addresses in torchrun's store.
        atexit.register(dist.destroy_process_group)
    yield
    # Whoever is done first would otherwise take away what it still had to send.
    dist.barrier()


def own_device(device: torch.device) -> torch.device:
    """`cuda` → the GPU of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


def agreed(value: T) -> T:
    """What process 0 says."""
    if world() == 1:
        return value
    said: list[Any] = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def check_batch(count: int, processes: int) -> None:
    """Raises InputError where a batch cannot be dealt out evenly."""
    if count % processes:
        raise InputError(
            f"params.yaml: train.common.batch: {count} samples cannot be dealt out to {processes} processes; "
            "give a multiple, or another number of processes (torchrun's --nproc-per-node, MM_RAY_WORKERS)"
        )


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the processes."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(whole)
    parts = torch.split(whole / world(), [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def whole_batch_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode take mean and variance over all processes' rows (torch's own does so on GPUs alone).

    Every process must call every norm equally often, so networks decode with every decoder that some process needs.
    """
    if world() == 1:
        yield
        return
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    routers = [m for m in module.modules() if isinstance(m, MattingNet)]
    for norm in norms:
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
    flags = torch.tensor([name in names for name in DECODERS], dtype=torch.int32, device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [name for name, flag in zip(DECODERS, flags.tolist(), strict=True) if flag]


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(value))


def _normalise(norm: nn.BatchNorm2d, plain: Any, x: Tensor) -> Tensor:
    if not norm.training:
        return plain(x)
    values = x.float()
    mine = values.new_tensor([values.numel() / values.shape[1]])
    dist.all_reduce(mine)
    count = float(mine)
    mean = _sum(values.sum((0, 2, 3))) / count
    centred = values - mean.view(1, -1, 1, 1)
    variance = _sum((centred * centred).sum((0, 2, 3))) / count
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked or 1)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * count / max(count - 1, 1), share)
    scaled = centred * torch.rsqrt(variance + norm.eps).view(1, -1, 1, 1)
    out = scaled if norm.weight is None else scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    # timm's norms carry their activation.
    for name in ("drop", "act"):
        out = getattr(norm, name, nn.Identity())(out)
    return out.to(x.dtype)
