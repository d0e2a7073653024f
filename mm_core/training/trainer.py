"""Run the training loop that all four stages share.

A strategy defines the data and the losses of a stage; this module defines how they are optimised. A strategy is an
`nn.Module` with `net` (the module that is saved) and any auxiliary modules. It draws its batches as a pure function
of the step and returns named losses. The learning rate, the batches and torch's random numbers depend only on
(seed, step). The checkpoint therefore holds the whole state of a run. A run that is killed and resumed ends with
the same weights as an uninterrupted run (same machine, CPU).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

from mm_core.core.errors import InputError, NonFiniteLoss, StoreError
from mm_core.core.folders import has_file
from mm_core.core.params import CommonTrainParams, StageParams
from mm_core.imaging.pixel_cache import Batch
from mm_core.storage.retry import archive_fault, disk_fault
from mm_core.training import process_group
from mm_core.training.checkpoint import Errors, can_choose, choose_checkpoint, macro_error, mean_errors
from mm_core.training.interrupts import deferred_signals
from mm_core.training.memory import kept_memory
from mm_core.training.precision import choose_precision

WARMUP = 0.05
NEW_RATE = 5.0
"""Learning-rate multiplier of modules outside the net (auxiliary decoders, fusion), which start from random weights."""
SAVE_SECONDS = 30.0
"""Seconds between checkpoints: the most training time that a kill can cost."""
WORKERS = 4
"""Maximum number of threads that draw batches. The number changes the speed and not the result."""


class Strategy(Protocol):
    """Interface of a training stage. Implementations are `nn.Module`s."""

    net: Any

    def draw(self, step: int) -> dict[str, Batch]:
        """Return the batches of a step by pool name. Pure function, called ahead of time from other threads."""
        ...

    def losses(self, batches: Mapping[str, DeviceBatch], progress: float) -> dict[str, Tensor]:
        """Return named, weighted scalar losses, whose sum is minimised.

        Args:
            batches: The batches of the step by pool name.
            progress: Fraction of the training done, in [0, 1].
        """
        ...


@dataclass(frozen=True)
class DeviceBatch:
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
    """`unknown` for photos without a category; their entry in `decoders` is the first decoder's name."""


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to a device: uint8 images and mattes become float32 in [0, 1]."""
    alpha = torch.from_numpy(batch.alphas).to(device).float().div_(255).unsqueeze(1)
    binary = torch.from_numpy(np.asarray(batch.binary)).to(device)
    images = torch.from_numpy(batch.images).to(device).float().div_(255).permute(0, 3, 1, 2)
    return DeviceBatch(batch.ids, images, alpha, binary, batch.decoders, batch.captions, batch.categories)


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` selects the GPU if one is available."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@dataclass
class State:
    """State of a run between two steps, as saved in a checkpoint."""

    step: int = 0
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """Averaged weights with the lowest macro MSE so far; empty if validation has too few photos to choose."""
    best_errors: Errors = field(default_factory=dict)
    """Validation errors of the best weights."""
    losses: dict[str, float] = field(default_factory=dict)
    """Loss terms of the last logged step."""
    evaluations_since_best: int = 0


@dataclass
class Result:
    """Weights and figures of a finished run."""

    weights: dict[str, Tensor]
    """Averaged weights that `choose_checkpoint` keeps, on the CPU."""
    kept_step: int
    """Step of the kept weights."""
    kept_because: str
    validation: dict[str, float]
    """Mean squared error of the kept weights per category."""
    precision: str
    """Number format of the forward pass: bf16 or fp32."""
    losses: dict[str, float]
    resumed_from: int
    images: int
    """Number of photos that this process trained on."""
    seconds: float
    """Seconds that this process spent in steps, waiting for data included."""
    wait_seconds: float
    """Part of `seconds` spent waiting for data."""


@dataclass(frozen=True)
class Setup:
    """What a run trains with, beside its strategy."""

    stage: StageParams
    """Steps and peak learning rate."""
    common: CommonTrainParams
    """Optimiser, averaging and validation params."""
    seed: int
    """Seed of torch's random numbers."""
    checkpoint: Path
    """File that the run is saved to. If it exists, the run resumes from it."""
    device: torch.device
    save_seconds: float = SAVE_SECONDS
    """Seconds between two checkpoints."""


def one_cycle(optimiser: torch.optim.Optimizer, peak: float, steps: int) -> OneCycleLR:
    """Return the schedule: a warm-up over 5 % of the steps from peak / 25, then a cosine to peak / 1000.

    The peak of a parameter group is `peak` times its `lr_multiplier` (1 if it has none).
    """
    # OneCycleLR divides by zero if the rise is a single step.
    total = max(2, steps)
    return OneCycleLR(
        optimiser,
        [peak * group.get("lr_multiplier", 1.0) for group in optimiser.param_groups],
        total_steps=total,
        pct_start=max(WARMUP, 1.5 / total),
        cycle_momentum=False,
        div_factor=25,
        final_div_factor=40,
    )


def fit(
    strategy: Strategy,
    setup: Setup,
    validate: Callable[[nn.Module], Errors],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> Result:
    """Train `strategy` for `setup.stage.steps` steps and return the averaged weights of its `net`.

    `choose_checkpoint` decides whether the last averaged weights or earlier ones are kept; the start weights of the
    stage are a candidate too. SIGINT and SIGTERM are delivered between two steps, after a checkpoint.

    Args:
        strategy: Data and losses of the stage.
        setup: Params, seed, checkpoint and device.
        validate: Maps a net to the squared error of each validation photo, by category, always in the same order.
        progress: Called after each step with the steps done and the total.
        log: Called with a step and its named values (losses, learning rate, validation errors).

    Raises:
        NonFiniteLoss: A loss or its gradient is not finite.
        InputError: The checkpoint is damaged.
    """
    run, device, steps = _Training(strategy, setup, validate), setup.device, setup.stage.steps
    run.begin()
    resumed_from, clock, waited, seen = run.state.step, 0.0, 0.0, 0
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        kept_memory(),
        _float_depthwise(run.module, device),
        process_group.whole_batch(run.module) as losses,
        deferred_signals() as pending,
        _ahead(strategy.draw, run.state.step, steps) as ahead,
    ):
        # Batches are drawn a few steps ahead in threads; each step waits for its own.
        saved_at = time.monotonic()
        for batches in ahead:
            if run.has_no_patience():
                break
            begun = time.monotonic()
            drawn = batches.result()
            waited += time.monotonic() - begun
            run.step(losses, {name: to_device(batch, device) for name, batch in drawn.items()})
            seen += sum(len(batch.ids) for batch in drawn.values())
            clock += time.monotonic() - begun
            # Log, validate and save at their intervals.
            run.report(log)
            if pending.arrived or time.monotonic() - saved_at >= setup.save_seconds:
                run.save()
                saved_at = time.monotonic()
                pending.deliver()
            progress(run.state.step, steps)
    weights, step, why, errors = run.choose()
    losses = run.state.losses
    return Result(weights, step, why, mean_errors(errors), run.precision, losses, resumed_from, seen, clock, waited)


class _Training:
    """Net, averaged copy, optimiser and state of one run. Everything that must survive a kill is in its checkpoint."""

    def __init__(self, strategy: Strategy, setup: Setup, validate: Callable[[nn.Module], Errors]) -> None:
        self.strategy, self.setup, self._validate = strategy, setup, validate
        self.precision = choose_precision(setup.common.precision, setup.device)
        self.module: nn.Module = strategy  # type: ignore[assignment]
        self.module.to(setup.device)
        self.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = AveragedModel(strategy.net, multi_avg_fn=partial(_follow, setup.common.ema), use_buffers=True)
        self.average.eval().requires_grad_(False)
        # At 0 torch would copy the net at the first step; the start weights are part of our average.
        self.average.n_averaged.fill_(1)
        fused = setup.device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.AdamW(_groups(strategy, setup.common), lr=setup.stage.lr, fused=fused)
        self.schedule = one_cycle(self.optimiser, setup.stage.lr, setup.stage.steps)
        self.parameters = list(self.module.parameters())
        self.state = State()
        # Terms and learning rate of the last step, and errors of the last validation with its step.
        self._terms: Mapping[str, Tensor] = {}
        self._lr = 0.0
        self._scores, self._evaluated = Errors(), -1

    def begin(self) -> None:
        """Resume from the checkpoint, or validate the start weights as the first candidate."""
        if has_file(self.setup.checkpoint):
            self._restore()
        else:
            self._consider()

    def has_no_patience(self) -> bool:
        """Return whether too many validations in a row gained nothing."""
        return 0 < self.setup.common.patience <= self.state.evaluations_since_best

    def step(self, losses: process_group.Losses, samples: Mapping[str, DeviceBatch]) -> None:
        """Make one step: forward pass, backward pass, update, average, learning rate of the next step."""
        step = self.state.step
        # Seed each step from (seed, step), so that a resumed run draws the same random numbers.
        torch.manual_seed(self.setup.seed * 1_000_003 + step)
        self.module.train()
        # Forward pass in the chosen precision; the sum of the losses is always float32.
        with torch.autocast(self.setup.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            self._terms = losses(samples, step / self.setup.stage.steps)
        total = torch.stack([term.float() for term in self._terms.values()]).sum()
        if not process_group.is_finite_everywhere(total):
            # All processes stop here; one that went on would wait for the others' gradients.
            words = _blame(self._terms, samples, step)
            culprits = filter(None, process_group.gathered(None if torch.isfinite(total) else words))
            raise NonFiniteLoss(next(culprits, words))
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.setup.common.clip_norm)
        if not torch.isfinite(norm):
            # Clipping by a non-finite norm would destroy every weight, and the error would name the next batch.
            raise NonFiniteLoss(_blame(self._terms, samples, step, "its gradient"))
        # The rate of the net's parameters without a multiplier is logged.
        self._lr = next(group["lr"] for group in self.optimiser.param_groups if group["lr_multiplier"] == 1)
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.strategy.net)
        self.state.step += 1

    def report(self, log: Callable[[int, dict[str, float]], None]) -> None:
        """Log the losses every ten steps, and validate every `validate_every` steps; both also after the last step."""
        step, is_last = self.state.step, self.state.step == self.setup.stage.steps
        if step % 10 == 0 or is_last:
            self.state.losses = {name: float(term.detach()) for name, term in self._terms.items()}
            log(step, {f"loss/{name}": value for name, value in self.state.losses.items()} | {"lr": self._lr})
        if step % self.setup.common.validate_every == 0 or is_last:
            self._consider()
            log(step, {f"val/{category}/mse": mse for category, mse in mean_errors(self._scores).items()})

    def choose(self) -> tuple[dict[str, Tensor], int, str, Errors]:
        """Return the weights to keep, their step, the reason and their validation errors."""
        # A resumed run without remaining steps has not validated its last weights yet.
        last = self._scores if self._evaluated == self.state.step else self._errors()
        keep_best, reason = choose_checkpoint(self.state.best_errors, last, stage_start=self.state.best_step == 0)
        if keep_best:
            return self.state.best, self.state.best_step, reason, self.state.best_errors
        return _weights(self.average.module), self.state.step, reason, last

    def _errors(self) -> Errors:
        """Validate the averaged weights in process 0; the other processes receive its errors."""
        return process_group.agreed(self._validate(self.average.module) if process_group.rank() == 0 else {})

    def _consider(self) -> None:
        """Validate the averaged weights and keep them in the state if their macro MSE is the lowest so far."""
        state, errors = self.state, self._errors()
        self._scores, self._evaluated = errors, state.step
        if not can_choose(errors):
            state.best_step = state.step
        elif not state.best or macro_error(errors) < macro_error(state.best_errors):
            state.best_step, state.best, state.best_errors = state.step, _weights(self.average.module), errors
            state.evaluations_since_best = 0
        else:
            state.evaluations_since_best += 1

    def save(self) -> None:
        """Write the checkpoint to a temporary file and replace the old one atomically; only process 0 writes."""
        if process_group.rank() != 0:
            return
        path = self.setup.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        # In memory first: on a full disk torch.save raises a RuntimeError about its archive.
        archive = io.BytesIO()
        torch.save({"state": vars(self.state), **parts}, archive)
        try:
            with temporary.open("wb") as stream:
                stream.write(archive.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"{path}: {disk_fault(error)}") from error
        # The data are on the disk, so a crash leaves either the old checkpoint or the new one.
        temporary.replace(path)

    def _restore(self) -> None:
        path = self.setup.checkpoint
        # torch.load does not verify the archive's checksums.
        if fault := archive_fault(path):
            raise InputError(f"{path}: {fault}: `mm check --repair` removes it, then the stage trains again")
        saved = torch.load(path, map_location=self.setup.device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.state = State(**saved["state"])
        self.state.best = {name: tensor.cpu() for name, tensor in self.state.best.items()}

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | OneCycleLR]:
        parts = {"module": self.module, "average": self.average, "optimiser": self.optimiser}
        return parts | {"schedule": self.schedule}


@contextmanager
def _float_depthwise(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep depthwise convolutions in float32 under autocast on a CPU.

    oneDNN's bf16 backward pass of a strided depthwise convolution takes 10 to 20 times as long as in float32
    (measured: 192 channels, 12×12, kernel 5×5, stride 2: 16.3 ms against 1.0 ms).
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
    # Autocast would convert the float input back to bf16, so it is switched off for this call.
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _groups(strategy: Strategy, common: CommonTrainParams) -> list[dict[str, object]]:
    """Group the parameters by learning rate and weight decay; norms and biases get no decay."""
    module: nn.Module = strategy  # type: ignore[assignment]
    # Parameters outside the net are in neither set and get NEW_RATE.
    multipliers = {id(p): 1.0 for p in strategy.net.parameters()}
    # Pretrained weights need smaller steps than the rest of the net.
    multipliers |= {id(p): common.encoder_lr for p in strategy.net.pretrained_parameters()}
    groups: dict[tuple[bool, float], dict[str, object]] = {}
    for parameter in module.parameters():
        # Weight matrices and kernels have more than one dimension; norms and biases have one.
        multiplier, is_matrix = multipliers.get(id(parameter), NEW_RATE), parameter.ndim > 1
        group = groups.setdefault(
            (is_matrix, multiplier),
            {"params": [], "weight_decay": common.weight_decay if is_matrix else 0.0, "lr_multiplier": multiplier},
        )
        group["params"].append(parameter)
    return list(groups.values())


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


@torch.no_grad()
def _follow(ema: float, mine: PARAM_LIST, theirs: PARAM_LIST, count: Tensor | int) -> None:
    """Move averaged tensors towards the net's; batch-norm statistics are averaged too, counters are copied."""
    if not mine[0].is_floating_point():
        torch._foreach_copy_(list(mine), list(theirs))  # pyright: ignore[reportPrivateImportUsage]
        return
    # The decay rises with the step, so that the average of a short run is not dominated by the start weights.
    decay = min(ema, int(count) / (9 + int(count)))
    torch._foreach_lerp_(list(mine), list(theirs), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _blame(
    terms: Mapping[str, Tensor], samples: Mapping[str, DeviceBatch], step: int, else_bad: str = "their sum"
) -> str:
    """Return the error message of a non-finite loss: the step, the terms and the sample ids of the batch."""
    bad = ", ".join(f"{name} = {float(term.detach()):g}" for name, term in terms.items() if not torch.isfinite(term))
    ids = "; ".join(f"{pool}: {' '.join(i[:16] for i in sample.ids)}" for pool, sample in samples.items())
    remedy = "lower train.<stage>.lr in params.yaml, or look at the samples"
    return f"step {step}: the loss is not finite ({bad or else_bad}): {remedy} {ids}"


@contextmanager
def _ahead(draw: Callable[[int], dict[str, Batch]], first: int, last: int) -> Iterator[Iterator[Future]]:
    """Draw the batches of steps `first` to `last` − 1 in threads, a few steps ahead, and yield them in order."""
    workers = min(WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="draw") as pool:
        # The queue holds at most two batches per thread.
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
