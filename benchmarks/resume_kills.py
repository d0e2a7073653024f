"""A training stage that is killed again and again ends with the very weights of an undisturbed one.

    python benchmarks/resume_kills.py

Trains the semi-supervised stage (its perturbations draw random numbers) on generated samples in a forked process, kills
it with SIGKILL after a random time, goes on from what is on disk, and so on. Compares the weights bit by bit.
Writes benchmarks/resume_kills.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mm_core.data.dataset import PixelCache, Pool
from mm_core.data.samplegen import write_drop
from mm_core.model.network import build_model
from mm_core.params import Params
from mm_core.records import CATEGORIES, decoder_of, sha256_bytes
from mm_core.store import LocalStore, put_blob
from mm_core.training.loop import fit
from mm_core.training.semi import Semi

HERE = Path(__file__).parent
PARAMS = Params().with_values(
    **{
        "model.encoder": "test_efficientnet",
        "model.size": 64,
        "model.width": 8,
        "train.common.batch": 4,
        "train.common.validate_every": 10,
    }
)


def prepare(folder: Path) -> dict[str, pd.DataFrame]:
    """Frames of generated samples, decoded: `labeled` and `unlabeled`."""
    store, cache = LocalStore(folder / "store"), PixelCache(folder / "cache", PARAMS.model.size)
    frames = {}
    for name, kind in (("labeled", "pixel_labeled"), ("unlabeled", "unlabeled")):
        counts: dict[str, int] = dict.fromkeys(CATEGORIES[:3], 4)  # pyright: ignore[reportAssignmentType]
        drop = write_drop(folder / "inbox", kind, name, counts, seed=5, size=96)
        rows = []
        for row in list[Any](pd.read_csv(drop / "manifest.csv").itertuples(index=False)):
            alpha = put_blob(store, (drop / row.alpha).read_bytes()) if name == "labeled" else None
            rows.append(
                {
                    "sample_id": put_blob(store, (drop / row.image).read_bytes()),
                    "alpha_sha256": alpha,
                    "category": row.category,
                    "decoder": decoder_of(row.category),
                    "caption": None,
                    "label_binary": False,
                    "width": 96,
                    "height": 96,
                }
            )
        frames[name] = pd.DataFrame(rows).astype({"label_binary": "boolean"})
        cache.fill(store, frames[name])
    return frames


def train(folder: Path, frames: dict[str, pd.DataFrame], steps: int, name: str) -> None:
    """Trains, or goes on where `name`'s checkpoint is, and writes `<name>.pt` at the end."""
    torch.set_num_threads(1)
    cache = PixelCache(folder / "cache", PARAMS.model.size)
    pools = {key: [(Pool(frame, cache, 0, f"semi/{key}"), 4)] for key, frame in frames.items()}
    torch.manual_seed(0)
    strategy = Semi(build_model(PARAMS.model, 0), pools, PARAMS.train.loss, PARAMS.train.semi)
    result = fit(
        strategy,
        PARAMS.train.semi.model_copy(update={"steps": steps}),
        PARAMS.train.common,
        seed=0,
        validate=lambda net: {},
        checkpoint=folder / f"{name}.state",
        device=torch.device("cpu"),
        save_seconds=0.2,
    )
    torch.save({"best": result.weights}, folder / f"{name}.tmp")
    (folder / f"{name}.tmp").replace(folder / f"{name}.pt")


def forked(folder: Path, frames: dict[str, pd.DataFrame], steps: int, name: str, kill_after: float | None) -> bool:
    """Whether the child came to its end before it was killed."""
    child = os.fork()
    if child == 0:
        train(folder, frames, steps, name)
        os._exit(0)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
            return True
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)


def digest(folder: Path, name: str) -> str:
    saved = torch.load(folder / f"{name}.pt", weights_only=True)
    weights = [saved["best"][key].contiguous().numpy().tobytes() for key in sorted(saved["best"])]
    return sha256_bytes(b"".join(weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        frames = prepare(folder)
        begun = time.monotonic()
        forked(folder, frames, args.steps, "whole", None)
        whole = time.monotonic() - begun
        kills, runs, equal = 0, 0, 0
        while kills < args.kills:
            runs += 1
            name = f"cut{runs}"
            # Short lives first, then longer ones, so that a run that never gets to a checkpoint still ends.
            life = 0.3 * whole
            while not forked(folder, frames, args.steps, name, rng.uniform(0, life) if kills < args.kills else None):
                kills, life = kills + 1, life * 1.1
            equal += digest(folder, name) == digest(folder, "whole")
            print(f"{kills} kills, {runs} runs, {equal} equal", flush=True)
            write(args.steps, kills, runs, equal)


def write(steps: int, kills: int, runs: int, equal: int) -> None:
    lines = [
        "# Training killed and resumed",
        "",
        f"Runner: `benchmarks/resume_kills.py`. Semi-supervised stage, {steps} steps, a checkpoint every 0.2 s."
        f" {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| SIGKILLs | runs they hit | final weights bit-equal to an undisturbed run's |",
        "|---|---|---|",
        f"| {kills} | {runs} | {equal} of {runs} |",
    ]
    (HERE / "resume_kills.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
