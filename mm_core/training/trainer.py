"""The one training loop. Strategies say what to learn from; this says how.

A strategy is an `nn.Module` holding `net` (what is saved) and whatever else it trains. It draws its batches as a pure
function of the step and returns named losses. The learning rate, the batches and torch's random numbers depend on
(seed, step) alone, so that the state of a run is what the checkpoint holds and nothing more: killed at any point and
resumed, it ends with the very weights of an uninterrupted run (same machine, CPU).
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mm_core.core.errors import InputError, NonFiniteLoss
from mm_core.core.params import CommonTrainParams, StageParams
from mm_core.imaging.pixel_cache import Batch
from mm_core.storage.retry import archive_fault
from mm_core.training import process_group
from mm_core.training.checkpoint import Errors, can_choose, choose_checkpoint, macro_error, mean_errors
from mm_core.training.interrupts import deferred_signals
from mm_core.training.memory import kept_memory
from mm_core.training.precision import choose_precision

WARMUP = 0.05
NEW_RATE = 5.0
"""What a strategy adds to the net (auxiliary decoders, fusion) starts from nothing and learns this much faster."""
SAVE_SECONDS = 30.0
"""Time between checkpoints; what a kill can cost."""
WORKERS = 4
"""Threads that draw batches at most. How many changes nothing but the time."""


class Strategy(Protocol):
    """What the loop asks of a stage; implementations are `nn.Module`s."""

    net: Any

    def draw(self, step: int) -> dict[str, Batch]:
        """The batches of a step by pool; a pure function, called ahead of time from other threads."""
        ...

    def losses(self, batches: Mapping[str, Sample], progress: float, teacher: Any) -> dict[str, Tensor]:
        """Named, weighted scalars whose sum is minimised; `progress` runs from 0 to 1.

        `teacher`: the best averaged weights of `net` so far by validation (without validation photos the latest), in
        eval mode, without gradient.
        """
        ...


@dataclass(frozen=True)
class Sample:
    """A `Batch` on the device."""

    ids: list[str]
    images: Tensor
    """RGB (B, 3, S, S) in [0, 1], channels last."""
    alpha: Tensor
    """(B, 1, S, S) in [0, 1]; zeros where there is no matte."""
    binary: Tensor
    """(B,) bool."""
    decoders: list[str]
    captions: list[str]
    categories: list[str]
    """`unknown` where there is none; `decoders` then has the first one's name."""
    lit: Tensor | None = None
    """`Batch.lit`, as `images`."""
    taught: bool = False
    """`alpha` is a teacher's matte."""


def to_device(batch: Batch, device: torch.device) -> Sample:
    alpha = torch.from_numpy(batch.alphas).to(device).float().div_(255).unsqueeze(1)
    binary = torch.from_numpy(np.asarray(batch.binary)).to(device)
    images = _as_floats(batch.images, device)
    lit = None if batch.lit is None else _as_floats(batch.lit, device)
    return Sample(batch.ids, images, alpha, binary, batch.decoders, batch.captions, batch.categories, lit)


def _as_floats(photos: np.ndarray, device: torch.device) -> Tensor:
    """Turn uint8 (B, S, S, 3) into float32 (B, 3, S, S) in [0, 1], channels last."""
    return torch.from_numpy(photos).to(device).float().div_(255).permute(0, 3, 1, 2)


def pick_device(name: str) -> torch.device:
    """`auto`: the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@dataclass
class State:
    """All that a run is, between two steps; what a checkpoint holds."""

    step: int = 0
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """The averaged weights with the lowest macro MSE so far; empty where validation cannot choose."""
    best_errors: Errors = field(default_factory=dict)
    """Of the best weights."""
    losses: dict[str, float] = field(default_factory=dict)
    """The last values."""
    evaluations_since_best: int = 0


@dataclass
class Result:
    """How a run ended."""

    weights: dict[str, Tensor]
    """The averaged weights that `choose_checkpoint` keeps, on the CPU."""
    kept_step: int
    """Their step."""
    kept_because: str
    validation: dict[str, float]
    """Mean squared error per category of these weights."""
    precision: str
    """Number format of the forward pass: bf16 or fp32."""
    losses: dict[str, float]
    resumed_from: int
    images: int
    """Seen by this process."""
    seconds: float
    """Spent in steps by this process, waiting for data included."""
    wait_seconds: float
    """Of those, spent waiting for data."""


def rate(step: int, steps: int, peak: float) -> float:
    """One-cycle learning rate: linear warm-up over 5 % of the steps, then a cosine to peak / 1000."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    return peak * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * along)))


def fit(
    strategy: Strategy,
    stage: StageParams,
    common: CommonTrainParams,
    *,
    seed: int,
    validate: Callable[[nn.Module], Errors],
    checkpoint: Path,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    save_seconds: float = SAVE_SECONDS,
) -> Result:
    """Train `strategy` for `stage.steps` steps and return the averaged weights of its `net`.

    `validate` maps a net to the squared error of each validation photo, by category and always in the same order.
    `choose_checkpoint` says whether the last averaged weights or earlier ones are kept; the weights that the stage
    starts with are a candidate too. Goes on from `checkpoint` where that exists. SIGINT and SIGTERM are answered
    between two steps, after a checkpoint. Raises NonFiniteLoss.
    """
    precision = choose_precision(common.precision, device)
    module: nn.Module = strategy  # type: ignore[assignment]
    module.to(device)
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = copy.deepcopy(strategy.net).eval().requires_grad_(False)
    fused = device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(_groups(strategy, common), lr=stage.lr, fused=fused)
    pairs = list(zip(average.state_dict().values(), strategy.net.state_dict().values(), strict=True))
    state, scores, evaluated = State(), Errors(), -1
    if checkpoint.is_file():
        _restore(checkpoint, state, module, average, optimiser, device)
    else:
        scores, evaluated = _consider(state, average, validate), 0
    # At a high rate the average is for a while worse than where the stage began; who follows it learns its mistakes.
    teacher = average
    if state.best:
        teacher = copy.deepcopy(average)
        teacher.load_state_dict(state.best)
    resumed_from, clock, waited, seen = state.step, 0.0, 0.0, 0
    devices = [device] if device.type == "cuda" else []
    parameters = list(module.parameters())
    with (
        torch.random.fork_rng(devices),
        kept_memory(),
        _float_depthwise(module, device),
        process_group.whole_batch_norms(module),
        deferred_signals() as pending,
        _ahead(strategy.draw, state.step, stage.steps) as ahead,
    ):
        saved_at = time.monotonic()
        for batches in ahead:
            if common.patience and state.evaluations_since_best >= common.patience:
                break
            begun = time.monotonic()
            drawn = batches.result()
            waited += time.monotonic() - begun
            samples = {name: to_device(batch, device) for name, batch in drawn.items()}
            step = state.step
            torch.manual_seed(seed * 1_000_003 + step)
            lr = rate(step, stage.steps, stage.lr)
            for group in optimiser.param_groups:
                group["lr"] = lr * group["lr_multiplier"]
            module.train()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                terms = strategy.losses(samples, step / stage.steps, teacher)
            total = torch.stack([term.float() for term in terms.values()]).sum()
            if not torch.isfinite(total):
                raise NonFiniteLoss(_blame(terms, samples, step))
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            process_group.average_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, common.clip_norm)
            if not torch.isfinite(norm):
                # Clipped by it, every weight would be lost, and the next batch would be named.
                raise NonFiniteLoss(_blame(terms, samples, step, "its gradient"))
            optimiser.step()
            # A short run would otherwise be averaged with its start for most of its length.
            _follow(pairs, min(common.ema, (1 + step) / (10 + step)) if common.ema else 0.0)
            state.step += 1
            seen += sum(len(sample.ids) for sample in samples.values())
            clock += time.monotonic() - begun
            if state.step % 10 == 0 or state.step == stage.steps:
                state.losses = {name: float(term.detach()) for name, term in terms.items()}
                log(state.step, {f"loss/{name}": value for name, value in state.losses.items()} | {"lr": lr})
            if state.step % common.validate_every == 0 or state.step == stage.steps:
                scores, evaluated = _consider(state, average, validate), state.step
                if state.best and state.best_step == state.step:
                    teacher.load_state_dict(state.best)
                log(state.step, {f"val/{category}/mse": mse for category, mse in mean_errors(scores).items()})
            if pending.arrived or time.monotonic() - saved_at >= save_seconds:
                if process_group.rank() == 0:
                    _save(checkpoint, state, module, average, optimiser)
                saved_at = time.monotonic()
                pending.deliver()
            progress(state.step, stage.steps)
    # A run that was resumed with no step left to take has not evaluated its last weights.
    last = (
        scores
        if evaluated == state.step
        else process_group.agreed(validate(average) if process_group.rank() == 0 else {})
    )
    keep_best, reason = choose_checkpoint(state.best_errors, last, stage_start=state.best_step == 0)
    weights, kept, errors = _weights(average), state.step, last
    if keep_best:
        weights, kept, errors = state.best, state.best_step, state.best_errors
    return Result(
        weights, kept, reason, mean_errors(errors), precision, state.losses, resumed_from, seen, clock, waited
    )


@contextmanager
def _float_depthwise(module: nn.Module, device: torch.device) -> Iterator[None]:
    """On a CPU, depthwise convolutions stay in float32 under autocast.

    oneDNN's bf16 backward of a strided one takes 10 to 20 times as long (measured: 192 channels, 12×12, 5×5,
    stride 2: 16.3 ms against 1.0 ms).
    """
    chosen = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1 and device.type == "cpu"]
    for conv in chosen:
        conv.forward = partial(_in_float, conv.forward)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for conv in chosen:
            del conv.forward


def _in_float(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _groups(strategy: Strategy, common: CommonTrainParams) -> list[dict[str, Any]]:
    """Split the parameters by learning rate and decay: norms and biases are not decayed."""
    module: nn.Module = strategy  # type: ignore[assignment]
    multipliers = {id(p): 1.0 for p in strategy.net.parameters()}
    multipliers |= {id(p): common.encoder_lr for p in strategy.net.pretrained_parameters()}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for parameter in module.parameters():
        multiplier, is_matrix = multipliers.get(id(parameter), NEW_RATE), parameter.ndim > 1
        group = groups.setdefault(
            (is_matrix, multiplier),
            {"params": [], "weight_decay": common.weight_decay if is_matrix else 0.0, "lr_multiplier": multiplier},
        )
        group["params"].append(parameter)
    return list(groups.values())


def _consider(state: State, average: nn.Module, validate: Callable[[nn.Module], Errors]) -> Errors:
    """Validate the averaged weights and remember them if their macro MSE is the lowest so far."""
    errors = process_group.agreed(validate(average) if process_group.rank() == 0 else {})
    if not can_choose(errors):
        state.best_step = state.step
    elif not state.best or macro_error(errors) < macro_error(state.best_errors):
        state.best_step, state.best, state.best_errors = state.step, _weights(average), errors
        state.evaluations_since_best = 0
    else:
        state.evaluations_since_best += 1
    return errors


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


@torch.no_grad()
def _follow(pairs: Sequence[tuple[Tensor, Tensor]], decay: float) -> None:
    """Moves the average towards the net; batch-norm statistics are averaged too, counters copied."""
    floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
    torch._foreach_lerp_([m for m, _ in floats], [t for _, t in floats], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for counter, theirs in pairs:
        if not counter.is_floating_point():
            counter.copy_(theirs)


def _blame(terms: Mapping[str, Tensor], samples: Mapping[str, Sample], step: int, else_bad: str = "their sum") -> str:
    bad = ", ".join(f"{name} = {float(term.detach()):g}" for name, term in terms.items() if not torch.isfinite(term))
    ids = "; ".join(f"{pool}: {' '.join(i[:16] for i in sample.ids)}" for pool, sample in samples.items())
    remedy = "lower train.<stage>.lr in params.yaml, or look at the samples"
    return f"step {step}: the loss is not finite ({bad or else_bad}): {remedy} {ids}"


def _save(path: Path, state: State, module: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Replaces the checkpoint in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        torch.save(
            {
                "state": vars(state),
                "module": module.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
            stream,
        )
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _restore(
    path: Path,
    state: State,
    module: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    if fault := archive_fault(path):  # torch itself does not compare the archive's checksums
        raise InputError(f"{path}: {fault}: `mm check --repair` removes it, then the stage trains anew")
    saved = torch.load(path, map_location=device, weights_only=True)
    module.load_state_dict(saved["module"])
    average.load_state_dict(saved["average"])
    optimiser.load_state_dict(saved["optimiser"])
    for name, value in saved["state"].items():
        setattr(state, name, value)
    state.best = {name: tensor.cpu() for name, tensor in state.best.items()}


@contextmanager
def _ahead(draw: Callable[[int], dict[str, Batch]], first: int, last: int) -> Iterator[Iterator[Future]]:
    """Draws the batches of steps first … last − 1 in threads, a few steps ahead, and hands them out in order."""
    workers = min(WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="draw") as pool:

        def stream() -> Iterator[Future]:
            waiting = [pool.submit(draw, step) for step in range(first, min(first + 2 * workers, last))]
            for step in range(first, last):
                if step + 2 * workers < last:
                    waiting.append(pool.submit(draw, step + 2 * workers))
                yield waiting.pop(0)

        try:
            yield stream()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
