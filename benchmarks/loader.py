"""Does data wait for the model or the model for data?

    python benchmarks/loader.py --real ../shared/data/inbox

Peer: the loader that everyone writes first, PIL and torchvision's transforms in a torch DataLoader, which decodes every
photo and matte in every epoch (crop, mirror, turn, colours, blur: the same kinds of change as ours). Ours: `PixelCache`
and `Pool`, decoded once. Both give normalised float batches of the same photos. CPU time per image of one thread, and
images per second by the clock with as many workers as there are cores (its processes, our threads; one thread of torch
and OpenCV in each), started and warm, the two in turn, the best of several rounds. Then the share of a training step
spent waiting. Writes benchmarks/loader.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import torch
from PIL import Image

from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, decoder_of
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.model.network import build_model
from mm_core.model.torchvision_shim import ensure_torchvision
from mm_core.storage.store import LocalStore, put_blob
from mm_core.training.supervised import Supervised
from mm_core.training.trainer import Setup, fit, to_device
from samplegen import write_drop

HERE = Path(__file__).parent
CPU = torch.device("cpu")
BATCH = 8


def read_drops(folder: Path) -> pd.DataFrame:
    """image, alpha (paths) and category of every labelled photo below an inbox."""
    frames = []
    for manifest in sorted(folder.glob("pixel_labeled/*/manifest.csv")):
        frame = pd.read_csv(manifest)[["image", "alpha", "category"]]
        frames.append(frame.assign(**{name: manifest.parent / frame[name] for name in ("image", "alpha")}))
    return pd.concat(frames, ignore_index=True)


class PlainDataset(torch.utils.data.Dataset):
    """PIL and torchvision, photo and matte cut alike."""

    def __init__(self, drops: pd.DataFrame, size: int):
        self.rows: list[Any] = list(drops.itertuples(index=False))
        self.size = size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        ensure_torchvision()
        from torchvision import transforms as T
        from torchvision.transforms import functional as F

        row, side = self.rows[index], round(self.size * 1.25)
        with Image.open(row.image) as image, Image.open(row.alpha) as matte:
            # Typed loosely: torchvision's annotations know tensors alone, its functions take pictures too.
            photo: Any = image.convert("RGB").resize((side, side))
            alpha: Any = matte.convert("L").resize((side, side))
        if torch.rand(()) < 0.5:
            angle = float(torch.empty(()).uniform_(-8, 8))
            photo, alpha = (F.rotate(x, angle, F.InterpolationMode.BILINEAR) for x in (photo, alpha))
        box = T.RandomResizedCrop.get_params(photo, [0.44, 1.0], [0.9, 1.1])
        photo, alpha = (F.resized_crop(x, *box, [self.size, self.size]) for x in (photo, alpha))
        if torch.rand(()) < 0.5:
            photo, alpha = F.hflip(photo), F.hflip(alpha)
        photo = T.ColorJitter(0.2, 0.2, 0.3, 0.02)(photo)
        if torch.rand(()) < 0.15:
            photo = T.GaussianBlur(5)(photo)
        normalise = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return normalise(F.to_tensor(photo)), F.to_tensor(alpha)


def cached_pool(drops: pd.DataFrame, folder: Path, size: int) -> tuple[Pool, float]:
    """Ours, and the CPU milliseconds an image that filling the cache took, once."""
    store = LocalStore(folder / "store")
    rows, drawn = [], list[Any](drops.itertuples(index=False))
    for row in drawn:
        with Image.open(row.image) as image:
            width, height = image.size
        rows.append(
            {
                "sample_id": put_blob(store, row.image.read_bytes()),
                "alpha_sha256": put_blob(store, row.alpha.read_bytes()),
                "category": row.category,
                "decoder": decoder_of(row.category),
                "caption": None,
                "label_binary": False,
                "width": width,
                "height": height,
            }
        )
    frame = pd.DataFrame(rows).astype({"label_binary": "boolean"})
    cache, begun = PixelCache(folder / "cache", size), time.process_time()
    cache.fill(store, frame)
    once = 1000 * (time.process_time() - begun) / len(frame)
    assert cache.fill(store, frame) == 0
    return Pool(frame, cache, 0, "bench"), once


def cpu_ms(draw: Callable[[int], object], batches: int) -> float:
    """CPU milliseconds an image, after one batch to warm up."""
    draw(0)
    begun = time.process_time()
    for step in range(1, batches + 1):
        draw(step)
    return 1000 * (time.process_time() - begun) / (batches * BATCH)


def rate(draw: Callable[[], object], batches: int) -> float:
    """Images per second by the clock."""
    begun = time.monotonic()
    draw()
    return batches * BATCH / (time.monotonic() - begun)


def measure(drops: pd.DataFrame, size: int, batches: int, steps: int, rounds: int) -> dict[str, float]:
    workers = os.cpu_count() or 1
    plain = PlainDataset(drops, size)

    def endless(workers: int) -> Iterator[object]:
        loader = torch.utils.data.DataLoader(
            plain, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        while True:
            yield from loader

    with tempfile.TemporaryDirectory() as folder:
        pool, once = cached_pool(drops, Path(folder), size)

        def ours(step: int) -> object:
            return to_device(pool.draw(step, BATCH), CPU)

        torch.set_num_threads(1)
        one, many = endless(0), endless(workers)
        found = {"once": once, "peer cpu": cpu_ms(lambda step: next(one), batches), "ours cpu": cpu_ms(ours, batches)}
        rates: dict[str, list[float]] = {"peer": [], "ours": []}
        with ThreadPoolExecutor(workers) as threads:
            for warm in range(len(drops) // BATCH + 1):
                next(many)
                threads.submit(ours, warm).result()
            for _ in range(rounds):
                rates["peer"].append(rate(lambda: [next(many) for _ in range(batches)], batches))
                # So short a burst says little of a machine with other work: as many images as take a second or two.
                rates["ours"].append(rate(lambda: list(threads.map(ours, range(6 * batches))), 6 * batches))
        found |= {f"{name} rate": max(values) for name, values in rates.items()}
        torch.set_num_threads(workers)
        params = Params().with_values(**{"model.size": size, "train.simple.steps": steps})
        strategy = Supervised(build_model(params.model, 0), {"labeled": [(pool, BATCH)]}, params.train.loss)
        result = fit(
            strategy,
            Setup(params.train.simple, params.train.common, 0, Path(folder) / "state.pt", CPU),
            lambda net: {},
        )
        found |= {"wait": result.wait_seconds / result.seconds, "step": 1000 * result.seconds / steps}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="an inbox with labelled photos")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="training steps whose waiting is measured")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        counts: dict[str, int] = dict.fromkeys(ALL_CATEGORIES, 6)  # pyright: ignore[reportAssignmentType]
        write_drop(Path(folder), "pixel_labeled", "bench", counts, seed=77, size=1024)
        sets = {"generated samples, 1024 px": read_drops(Path(folder))}
        if args.real and args.real.is_dir():
            sets["real photos, up to 768 px"] = read_drops(args.real).iloc[::3]
        for name, drops in sets.items():
            results[name] = measure(drops.reset_index(drop=True), args.size, args.batches, args.steps, args.rounds)
            print(name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
            write(results, args)


def write(results: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    lines = [
        "# Loader: decoded once and cut, against PIL and torchvision's transforms",
        "",
        f"Runner: `benchmarks/loader.py`. Batches of {BATCH} at {args.size} px, {args.batches} of them;"
        f" {args.steps} training steps of {Params().model.encoder}. {platform.machine()}, {os.cpu_count()} cores."
        f" Images per second by the clock: {os.cpu_count()} workers on each side (the peer's are processes, ours"
        f" threads), started and warm, one thread in each, the best of {args.rounds} rounds in turn. Filling the cache"
        f" is outside of both.",
        "",
        "| photos | ours, CPU ms an image | peer | times faster | ours, images/s, all cores | peer | times faster |"
        " filling the cache, CPU ms an image, once | paid back after epochs | share of a training step spent waiting |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        lines.append(
            f"| {name} | {r['ours cpu']:.2f} | {r['peer cpu']:.1f} | {r['peer cpu'] / r['ours cpu']:.1f}"
            f" | {r['ours rate']:.0f} | {r['peer rate']:.0f} | {r['ours rate'] / r['peer rate']:.1f}"
            f" | {r['once']:.1f} | {r['once'] / (r['peer cpu'] - r['ours cpu']):.1f} | {r['wait']:.2%} |"
        )
    (HERE / "loader.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
