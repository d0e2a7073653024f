"""What does a training step cost against the plain loop that everyone writes first?

    python benchmarks/training_step.py

Peer: U2-NetP in float32 and contiguous memory, Adam, the sum of seven cross-entropies of sigmoids (the public recipe).
Ours: the step of the loop for the same network, batch and size, with the default losses, bf16 and channels last,
gradient clipping and moving average. Then the mobile default at 320 px. Each measurement is a process of its own, on
one thread; peer and ours take turns, and a round's ratio is of neighbours in time. Then both learn from the same
generated samples: how far apart do losses and mattes end? Writes benchmarks/training_step.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mm_core.core.params import ModelParams, Params
from mm_core.core.records import CATEGORIES
from mm_core.imaging.pixel_cache import Batch
from mm_core.model.network import MattingNet, build_model
from mm_core.training.memory import kept_memory
from mm_core.training.supervised import Supervised
from mm_core.training.trainer import Setup, fit, one_cycle, to_device
from samplegen import generate

HERE = Path(__file__).parent
CPU = torch.device("cpu")
JOBS = {
    "peer": "peer: U2-NetP, float32, contiguous, {size} px",
    "peer kept": "the peer within `kept_memory`",
    "u2netp bf16": "ours: U2-NetP, bf16, channels last, {size} px",
    "u2netp fp32": "ours: U2-NetP, float32, channels last, {size} px",
    "mobile bf16": "ours: mobile default, bf16, 320 px",
    "mobile fp32": "ours: mobile default, float32, 320 px",
}


class Fixed(Supervised):
    """The same few batches in turn: what a step costs apart from data."""

    batches: list[Batch]

    def draw(self, step: int) -> dict[str, Batch]:
        return {"labeled": self.batches[step % len(self.batches)]}


def random_batch(count: int, size: int) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    alphas = np.where(rng.random((count, size, size)) < 0.5, 255, 0).astype(np.uint8)
    return batch_of(images, alphas)


def batch_of(images: np.ndarray, alphas: np.ndarray) -> Batch:
    count = len(images)
    names = ["saliency"] * count
    return Batch([str(k) for k in range(count)], images, alphas, np.zeros(count, bool), names, [""] * count, names)


def plain_step(net: MattingNet, optimiser: torch.optim.Optimizer, images: Tensor, alpha: Tensor) -> float:
    outputs = net.decode(net.encode(images), "saliency")
    loss = torch.stack([F.binary_cross_entropy(o.sigmoid(), alpha) for o in outputs]).sum()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def peer_cost(count: int, size: int, steps: int) -> tuple[float, float]:
    """CPU and clock seconds of a step."""
    net = build_model(ModelParams(pretrained="", encoder="u2netp", size=size), 0).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    images, alpha = torch.randn(count, 3, size, size), torch.rand(count, 1, size, size)
    plain_step(net, optimiser, images, alpha)
    cpu, clock = time.process_time(), time.perf_counter()
    for _ in range(steps):
        plain_step(net, optimiser, images, alpha)
    return (time.process_time() - cpu) / steps, (time.perf_counter() - clock) / steps


def our_cost(encoder: str, precision: str, count: int, size: int, steps: int) -> tuple[float, float]:
    """CPU and clock seconds of a step, between the ends of the first and the last one."""
    params = Params().with_values(
        **{"model.pretrained": "", "model.encoder": encoder, "model.size": size, "train.common.precision": precision}
    )
    strategy = Fixed(build_model(params.model, 0), {}, params.train.loss)
    strategy.batches = [random_batch(count, size)]
    at: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        fit(
            strategy,
            Setup(
                params.train.simple.model_copy(update={"steps": steps + 1}),
                params.train.common,
                0,
                Path(folder) / "state.pt",
                CPU,
            ),
            lambda net: {},
            progress=lambda done, total: at.append((time.process_time(), time.perf_counter())),
        )
    return (at[-1][0] - at[0][0]) / steps, (at[-1][1] - at[0][1]) / steps


def measure(job: str, count: int, size: int, steps: int) -> dict[str, float]:
    """Of this process: seconds of a step, and its peak memory above what it held before, in GB."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if job == "peer kept":
        with kept_memory():
            cpu, clock = peer_cost(count, size, steps)
    elif job == "peer":
        cpu, clock = peer_cost(count, size, steps)
    else:
        name, precision = job.split()
        encoder, side = ("u2netp", size) if name == "u2netp" else (Params().model.encoder, 320)
        cpu, clock = our_cost(encoder, precision, count, side, steps)
    return {"cpu": cpu, "clock": clock, "gb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6}


def in_a_process(job: str, args: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--one",
        job,
        "--batch",
        args.batch,
        "--size",
        args.size,
        "--steps",
        args.steps,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def learnt(steps: int, seeds: int, size: int = 64) -> list[str]:
    """Rows: both loops on the same samples, in the same order, at the same rates and with the public recipe's loss."""
    train, test = drawn(96, size, 0), drawn(48, size, 1)
    batches = [batch_of(train[0][at : at + 8], train[1][at : at + 8]) for at in range(0, 96, 8)]
    held = to_device(batch_of(*test), CPU)
    values = {
        "model.pretrained": "",
        "model.encoder": "u2netp",
        "model.size": size,
        "train.common.ema": 0.0,
        "train.common.clip_norm": 1e9,
    }
    values |= {"train.common.weight_decay": 0.0, "train.simple.steps": steps, "train.simple.lr": 1e-3}
    values |= {f"train.loss.{name}": 0.0 for name in ("l1", "band", "laplacian", "gradient")}
    values |= {"train.loss.bce": 1.0, "train.loss.deep": 1.0}

    def error(net: MattingNet) -> float:
        with torch.inference_mode():
            return float(((net.eval()(held.images, "saliency").sigmoid() - held.alpha) ** 2).mean())

    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        params = Params().with_values(**values)
        net = build_model(params.model, seed).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        schedule = one_cycle(optimiser, 1e-3, steps)
        losses = []
        for step in range(steps):
            sample = to_device(batches[step % len(batches)], CPU)
            losses.append(plain_step(net, optimiser, sample.images.contiguous(), sample.alpha))
            schedule.step()
        found.setdefault("plain loop, float32", []).append((float(np.mean(losses[-10:])), error(net)))
        for precision in ("fp32", "bf16"):
            params = params.with_values(**{"train.common.precision": precision})
            net = build_model(params.model, seed)
            strategy = Watched(net, {}, params.train.loss)
            strategy.batches, strategy.seen = batches, []
            with tempfile.TemporaryDirectory() as folder:
                where = Path(folder) / "state.pt"
                stage, common = params.train.simple, params.train.common
                fit(strategy, Setup(stage, common, 0, where, CPU), lambda net: {})
            found.setdefault(f"ours, {precision}", []).append((float(np.mean(strategy.seen[-10:])), error(net)))
        print(seed, {name: rows[-1] for name, rows in found.items()}, flush=True)

    def shown(rows: list[tuple[float, float]], column: int) -> str:
        part = [row[column] for row in rows]
        return f"{np.mean(part):.4f} ± {np.std(part, ddof=1):.4f}"

    return [f"| {name} | {shown(rows, 0)} | {shown(rows, 1)} |" for name, rows in found.items()]


class Watched(Fixed):
    seen: list[float]

    def losses(self, *args, **options) -> dict[str, Tensor]:
        terms = super().losses(*args, **options)
        self.seen.append(float(torch.stack(list(terms.values())).sum().detach()))
        return terms


def drawn(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    samples = [generate(CATEGORIES[k % len(CATEGORIES)], 1000 * seed + k, size=size) for k in range(count)]
    return np.stack([s.image for s in samples]), np.stack([np.rint(s.alpha * 255).astype(np.uint8) for s in samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=288, help="of U2-NetP; the public recipe's crop")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--learn", type=int, default=60, help="steps of the comparison of what is learnt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", choices=JOBS, help="a single measurement, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.batch, args.size, args.steps)))
        return
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(args.rounds):
        rounds.append({job: in_a_process(job, args) for job in JOBS})
        print({job: round(row["cpu"], 3) for job, row in rounds[-1].items()}, flush=True)
        (HERE / "training_step.md").write_text("\n".join(costs(rounds, args)) + "\n")
    whole = costs(rounds, args) + what_is_learnt(args.learn, args.seeds)
    (HERE / "training_step.md").write_text("\n".join(whole) + "\n")


def costs(rounds: list[dict[str, dict[str, float]]], args: argparse.Namespace) -> list[str]:
    rows = []
    for job, name in JOBS.items():
        cpu, clock, memory = (np.median([r[job][key] for r in rounds]) for key in ("cpu", "clock", "gb"))
        times = sorted(r["peer"]["cpu"] / r[job]["cpu"] for r in rounds)
        wall = np.median([r["peer"]["clock"] / r[job]["clock"] for r in rounds])
        rows.append(
            f"| {name.format(size=args.size)} | {args.batch / cpu:.2f} | {np.median(times):.2f} "
            f"({times[0]:.2f} … {times[-1]:.2f}) | {args.batch / clock:.2f} | {wall:.2f} | {memory:.2f} |"
        )
    bf16 = "yes" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else "no"
    return [
        "# A training step",
        "",
        f"Runner: `benchmarks/training_step.py`. Batch {args.batch}, {args.steps} steps, {len(rounds)} rounds in which"
        f" all rows take turns, each in a process of its own with one thread; medians, and the range over rounds."
        f" {platform.machine()}, {os.cpu_count()} cores, shared with other work; bf16 instructions: {bf16}.",
        "",
        "| step | images/s of CPU time | times the peer's | images/s by the clock | times | GB added at the peak |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Part of the gain is memory that stays with the process (`mm_core/training/memory.py`): the second row is the"
        " peer with it, the only change.",
    ]


def what_is_learnt(steps: int, seeds: int) -> list[str]:
    return [
        "",
        f"What is learnt: U2-NetP at 64 px, 96 generated samples, the public recipe's loss in both, the same order and"
        f" rates, {steps} steps of 8; mean ± standard deviation over {seeds} seeds.",
        "",
        "| loop | loss, last ten steps | MSE of 48 held-out samples |",
        "|---|---|---|",
        *learnt(steps, seeds),
    ]


if __name__ == "__main__":
    main()
