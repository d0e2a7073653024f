"""What does a training step cost against the plain loop that everyone writes first?

    python benchmarks/training_step.py

Peer: U2-NetP in float32 and contiguous memory, Adam, the sum of seven cross-entropies of sigmoids (the public recipe).
Ours: the step of the loop for the same network, batch and size, with the default losses, bf16 and channels last,
gradient clipping and moving average. Then the mobile default at 320 px. CPU time of a step on one thread.
Writes benchmarks/training_step.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mm_core.data.dataset import Batch
from mm_core.model.network import build_model
from mm_core.params import ModelParams, Params
from mm_core.training.loop import fit
from mm_core.training.supervised import Supervised

HERE = Path(__file__).parent


class OneBatch(Supervised):
    """The same batch at every step: what a step costs apart from data."""

    batch: Batch

    def draw(self, step: int) -> dict[str, Batch]:
        return {"labeled": self.batch}


def random_batch(count: int, size: int) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    alphas = np.where(rng.random((count, size, size)) < 0.5, 255, 0).astype(np.uint8)
    names = ["saliency"] * count
    return Batch([str(k) for k in range(count)], images, alphas, np.zeros(count, bool), names, [""] * count, names)


def peer_seconds(count: int, size: int, steps: int) -> float:
    """CPU seconds of a step."""
    net = build_model(ModelParams(encoder="u2netp", size=size), 0).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    images, alpha = torch.randn(count, 3, size, size), torch.rand(count, 1, size, size)
    begun = 0.0
    for step in range(steps + 1):
        if step == 1:
            begun = time.process_time()
        outputs = net.decode(net.encode(images), "saliency")
        loss = torch.stack([F.binary_cross_entropy(o.sigmoid(), alpha) for o in outputs]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (time.process_time() - begun) / steps


def our_seconds(encoder: str, precision: str, count: int, size: int, steps: int) -> float:
    """CPU seconds of a step: a run of `steps + 1` less one of a single step."""
    params = Params().with_values(**{"model.encoder": encoder, "model.size": size, "train.common.precision": precision})
    strategy = OneBatch(build_model(params.model, 0), {}, params.train.loss)
    strategy.batch = random_batch(count, size)

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            fit(
                strategy,
                params.train.simple.model_copy(update={"steps": steps}),
                params.train.common,
                seed=0,
                validate=lambda net: {},
                checkpoint=Path(folder) / "state.pt",
                device=torch.device("cpu"),
            )
            return time.process_time() - begun

    run(1)
    return max(1e-9, run(steps + 1) - run(1)) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=288, help="of U2-NetP; the public recipe's crop")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[str, float]] = []
    lines: list[str] = []
    jobs = [
        (f"peer: U2-NetP, float32, contiguous, {args.size} px", None),
        (f"ours: U2-NetP, bf16, channels last, {args.size} px", ("u2netp", "bf16", args.size)),
        (f"ours: U2-NetP, float32, channels last, {args.size} px", ("u2netp", "fp32", args.size)),
        ("ours: mobile default, bf16, 320 px", (Params().model.encoder, "bf16", 320)),
        ("ours: mobile default, float32, 320 px", (Params().model.encoder, "fp32", 320)),
    ]
    for name, job in jobs:
        if job is None:
            seconds = peer_seconds(args.batch, args.size, args.steps)
        else:
            seconds = our_seconds(job[0], job[1], args.batch, job[2], args.steps)
        rows.append((name, seconds))
        print(name, round(seconds, 3), flush=True)
        lines = [
            "# A training step",
            "",
            f"Runner: `benchmarks/training_step.py`. Batch {args.batch}, {args.steps} steps, CPU time of one thread.",
            f"Peak memory of the process, all rows: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB."
            f" {platform.machine()}, {os.cpu_count()} cores; bf16 instructions:"
            f" {'yes' if 'avx512_bf16' in Path('/proc/cpuinfo').read_text() else 'no'}.",
            "",
            "| step | images/s of CPU time | times the peer's |",
            "|---|---|---|",
            *[f"| {n} | {args.batch / s:.2f} | {rows[0][1] / s:.2f} |" for n, s in rows],
        ]
        (HERE / "training_step.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
