"""What does training cost on a GPU: images/s, memory, utilisation, and does it wait for data?

    python benchmarks/training_gpu.py

The steps of benchmarks/training_step.py on CUDA: the plain U2-NetP loop (float32, contiguous, which lets cuDNN use
TF32) against ours for the same network, batch and size, then the mobile default. Then whole stages of the mobile
default on generated photos, drawn and augmented by the loader as in a cycle. Utilisation is NVML's: the share of
time in which any kernel ran. Last, does the GPU end where the CPU ends? Needs torch with CUDA, timm, pydantic,
pymatting and pynvml; no MLflow, no store. Writes benchmarks/training_gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pandas as pd
import torch
from training_step import Fixed, plain_step, random_batch
from words import replace_tables

from mm_core.core.params import ModelParams, Params
from mm_core.core.records import CATEGORIES, decoder_of
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.model.network import build_model
from mm_core.training import trainer
from mm_core.training.semi import Semi
from mm_core.training.supervised import Supervised
from mm_core.training.trainer import Setup, fit
from samplegen import generate

HERE = Path(__file__).parent
CUDA = torch.device("cuda")
FOLLOWS = "\n## What it comes to\n"
WARM = 8
"""Steps before the clock starts."""
PHOTOS = 96
SIDE = 320
STEPS = {
    f"{name} {size} {batch}": batch
    for name, size, batches in (
        ("peer", 288, (12, 64)),
        ("u2netp-fp32", 288, (12, 64)),
        ("u2netp-bf16", 288, (12, 64)),
        ("mobile-fp32", SIDE, (8, 64)),
        ("mobile-bf16", SIDE, (8, 64, 256)),
    )
    for batch in batches
}
STAGES = {f"{stage} {batch}": batch for stage in ("supervised", "semi") for batch in (8, 64)}


class Watch:
    """NVML's utilisation of the card while open, in percent, sampled every 50 ms."""

    def __init__(self) -> None:
        import pynvml  # pyright: ignore[reportMissingImports]  # of machines with a GPU

        pynvml.nvmlInit()
        self._nvml, self._card = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.samples: list[float] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.05):
                self.samples.append(self._nvml.nvmlDeviceGetUtilizationRates(self._card).gpu)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def peer(batch: int, size: int, steps: int, watch: Watch) -> float:
    """Seconds of a step."""
    net = build_model(ModelParams(pretrained="", encoder="u2netp", size=size), 0).train().to(CUDA)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    images, alpha = torch.randn(batch, 3, size, size, device=CUDA), torch.rand(batch, 1, size, size, device=CUDA)
    for _ in range(WARM):
        plain_step(net, optimiser, images, alpha)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    with watch.open():
        for _ in range(steps):
            plain_step(net, optimiser, images, alpha)
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def ours(strategy: Supervised, params: Params, steps: int, watch: Watch) -> tuple[float, trainer.Result]:
    """Seconds of a step after the first ones, and how the run ended."""
    opened = watch.open()
    begun = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if done == WARM:
            torch.cuda.synchronize()
            begun = time.perf_counter()
            opened.__enter__()

    with tempfile.TemporaryDirectory() as folder:
        stage = params.train.simple.model_copy(update={"steps": steps + WARM})
        where = Path(folder) / "state.pt"
        result = fit(strategy, Setup(stage, params.train.common, 0, where, CUDA), lambda net: {}, progress=progress)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / steps
    opened.__exit__(None, None, None)
    return seconds, result


def step_cost(job: str, steps: int, watch: Watch) -> dict[str, float]:
    name, size, batch = job.split()
    if name == "peer":
        return {"seconds": peer(int(batch), int(size), steps, watch)}
    kind, precision = name.split("-")
    encoder = "u2netp" if kind == "u2netp" else Params().model.encoder
    values = {
        "model.pretrained": "",
        "model.encoder": encoder,
        "model.size": int(size),
        "train.common.precision": precision,
    }
    params = Params().with_values(**values)
    strategy = Fixed(build_model(params.model, 0), {}, params.train.loss)
    strategy.batches = [random_batch(int(batch), int(size))]
    return {"seconds": ours(strategy, params, steps, watch)[0]}


def stage_cost(job: str, photos: Path, steps: int, watch: Watch) -> dict[str, float]:
    stage, batch = job.split()
    params = Params().with_values(**{"train.common.precision": "bf16", "model.size": SIDE})
    strategy = strategy_of(stage, photos, int(batch), params)
    seconds, result = ours(strategy, params, steps, watch)
    return {"seconds": seconds, "wait": result.wait_seconds / result.seconds}


def decoded(folder: Path) -> Path:
    """Generated photos as `PixelCache.fill` leaves them."""
    cache = PixelCache(folder, SIDE)
    rows = []
    for k in range(PHOTOS):
        category = CATEGORIES[k % len(CATEGORIES)]
        made = generate(category, k, size=cache.side)
        key = f"{k:064d}"
        cache.photos.append([(key, made.image)])
        cache.mattes.append([(key, np.rint(made.alpha * 255).astype(np.uint8))])
        rows.append({"sample_id": key, "alpha_sha256": key, "label_binary": False, "category": category})
        rows[-1] |= {"decoder": decoder_of(category), "caption": ""}
    frame = pd.DataFrame(rows)
    frame.to_parquet(folder / "frame.parquet")
    return folder


def strategy_of(stage: str, photos: Path, batch: int, params: Params) -> Supervised:
    """A stage as `training/stage.py` sets it up, half of the photos without their mattes."""
    cache, frame = PixelCache(photos, params.model.size), pd.read_parquet(photos / "frame.parquet")
    half = len(frame) // 2
    labelled = Pool(frame.iloc[:half], cache, 0, "labeled")
    pools = {"labeled": [(labelled, batch)]}
    net = build_model(params.model, 0)
    if stage == "supervised":
        return Supervised(net, pools, params.train.loss)
    hidden = frame.iloc[half:].assign(alpha_sha256=None, label_binary=None)
    pools["unlabeled"] = [(Pool(hidden, cache, 0, "unlabeled", whole=True), batch)]
    torch.manual_seed(0)  # the auxiliary decoders' beginning
    return Semi(net, pools, params.train.loss, params.train.semi)


def alike(photos: Path, steps: int = 20) -> dict[str, float]:
    """Relative distance of the state that the same semi steps end with, in float32: of GPU and CPU, of two runs on
    the GPU, and of a run that was killed half way and resumed."""
    torch.backends.cudnn.allow_tf32 = False
    params = Params().with_values(**{"train.common.precision": "fp32", "model.size": SIDE, "train.semi.steps": steps})

    class Killed(Exception):
        pass

    def run(device: torch.device, killed: bool = False) -> torch.Tensor:
        def progress(done: int, total: int) -> None:
            if killed and done == steps // 2:
                raise Killed

        with tempfile.TemporaryDirectory() as folder:
            for attempt in range(1 + killed):
                strategy = strategy_of("semi", photos, 4, params)
                with suppress(Killed):
                    result = fit(
                        strategy,
                        Setup(params.train.semi, params.train.common, 0, Path(folder) / "state.pt", device, 0),
                        lambda net: {},
                        progress=(lambda done, total: None) if attempt else progress,
                    )
        return torch.cat([w.float().flatten() for w in result.weights.values()])

    whole = run(CUDA)

    def apart(other: torch.Tensor) -> float:
        return float((other - whole).norm() / whole.norm())

    return {"cpu": apart(run(torch.device("cpu"))), "again": apart(run(CUDA)), "resumed": apart(run(CUDA, killed=True))}


def measure(job: str, args: argparse.Namespace, photos: Path | None = None) -> dict[str, float]:
    """Seconds of a step, GB of the card at the peak, utilisation in percent."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    watch = Watch()
    cost = step_cost(job, args.steps, watch) if photos is None else stage_cost(job, photos, args.steps, watch)
    gb = torch.cuda.max_memory_allocated() / 1e9
    row = {**cost, "gb": gb, "util": fmean(watch.samples) if watch.samples else float("nan")}
    print(job, {key: round(value, 4) for key, value in row.items()}, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[trainer.WORKERS], help="threads that draw, at most")
    parser.add_argument("--out", type=Path, default=HERE / "training_gpu.md")
    args = parser.parse_args()
    rounds = [{job: measure(job, args) for job in STEPS} for _ in range(args.rounds)]
    lines = heading(args) + steps_table(rounds)
    replace_tables(args.out, lines, FOLLOWS)
    with tempfile.TemporaryDirectory() as folder:
        photos = decoded(Path(folder))
        staged: dict[int, list[dict[str, dict[str, float]]]] = {workers: [] for workers in args.workers}
        for _ in range(args.rounds):
            for trainer.WORKERS in args.workers:
                staged[trainer.WORKERS].append({job: measure(job, args, photos) for job in STAGES})
        lines += stages_table(staged)
        replace_tables(args.out, lines, FOLLOWS)
        lines += how_alike(alike(photos))
    replace_tables(args.out, lines, FOLLOWS)
    print("\n".join(lines))


def middle(rounds: list[dict[str, dict[str, float]]], job: str, key: str) -> float:
    found = [row[job][key] for row in rounds if key in row[job]]
    return median(found) if found else float("nan")


def heading(args: argparse.Namespace) -> list[str]:
    card = torch.cuda.get_device_name()
    return [
        "# Training on a GPU",
        "",
        f"Runner: `benchmarks/training_gpu.py`. {card}, {os.cpu_count()} CPU cores, torch {torch.__version__};"
        f" {args.steps} steps after {WARM} warm ones, {args.rounds} rounds in turn, medians; fp32 lets cuDNN"
        " use TF32. GB: torch's peak of allocated memory. Utilisation: share of time in which any kernel ran (NVML).",
    ]


def steps_table(rounds: list[dict[str, dict[str, float]]]) -> list[str]:
    rows = []
    for job, batch in STEPS.items():
        name, size, _ = job.split()
        seconds, gb, util = (middle(rounds, job, key) for key in ("seconds", "gb", "util"))
        times = middle(rounds, f"peer {size} {batch}", "seconds") / seconds if not name.startswith("mobile") else None
        shown = "" if times is None else f"{times:.2f}"
        rows.append(f"| {name} | {size} | {batch} | {batch / seconds:.0f} | {shown} | {gb:.2f} | {util:.0f} % |")
    return [
        "",
        "## A step, without data",
        "",
        "| step | px | batch | images/s | times the peer's | GB | utilisation |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def stages_table(staged: dict[int, list[dict[str, dict[str, float]]]]) -> list[str]:
    rows = []
    for workers, rounds in staged.items():
        for job, batch in STAGES.items():
            seconds, gb, util, wait = (middle(rounds, job, key) for key in ("seconds", "gb", "util", "wait"))
            stage = job.split()[0]
            images = batch * (2 if stage == "semi" else 1) / seconds
            rows.append(
                f"| {stage} | {batch} | {workers} | {images:.0f} | {gb:.2f} | {util:.0f} % | {100 * wait:.1f} % |"
            )
    return [
        "",
        f"## Stages of the mobile default, bf16, {SIDE} px, with their data",
        "",
        "| stage | batch of each pool | threads that draw | images/s | GB | utilisation | waiting for data |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def how_alike(far: dict[str, float]) -> list[str]:
    return [
        "",
        "## The same numbers",
        "",
        "20 semi steps of 4 and 4 photos, float32 without TF32; relative distance of the state (batch norms' statistics"
        f" included) from that of an uninterrupted run on the GPU: on the CPU {far['cpu']:.1e}, on the GPU again"
        f" {far['again']:.1e}, killed half way and resumed {far['resumed']:.1e}.",
    ]


if __name__ == "__main__":
    main()
