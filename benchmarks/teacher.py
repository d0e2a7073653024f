"""How good are the mattes that the semi-supervised stage learns from? Errors on photos whose truth is known.

The models are those that the stages start from in `stage_order.py` (run it first, same `--work`); the photos are the
eval ones, which no training sees, at the model's size. Peer: OpenCV's GrabCut, begun from the same mattes.

    python benchmarks/teacher.py --work FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from stage_order import workspace
from torch import Tensor

from mm_core import stages
from mm_core.data.augment import augment
from mm_core.data.dataset import PixelCache, Pool, rng_of
from mm_core.data.snapshot import read_pool
from mm_core.model.files import load_model
from mm_core.model.network import MattingNet
from mm_core.training.colours import by_colour
from mm_core.training.loop import Sample, to_device
from mm_core.training.places import by_evidence, evidence, usual_places

HERE = Path(__file__).parent
CPU = torch.device("cpu")
BATCH, CUTS = 32, 3
PLACED = "with place by {:g}, then 50 % by colour"
MODELS = {
    "after the supervised stages": "common/cycle/models/hard/model.safetensors",
    "after the semi-supervised one": "semi/cycle/models/semi/model.safetensors",
}
"""Whose mattes the semi-supervised and the multimodal stage begin with."""


def grab_cut(sample: Sample, photos: np.ndarray, matte: Tensor) -> Tensor:
    """OpenCV's GrabCut, five iterations, from a mask of four kinds cut at 0.1, 0.5 and 0.9."""
    cut = torch.zeros_like(matte)
    for row, (photo, values) in enumerate(zip(photos, matte[:, 0].numpy(), strict=True)):
        mask = np.select([values > 0.9, values > 0.5, values > 0.1], [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD])
        mask = mask.astype(np.uint8)  # GC_BGD is 0
        if {cv2.GC_BGD, cv2.GC_PR_BGD} & set(mask.flat) and {cv2.GC_FGD, cv2.GC_PR_FGD} & set(mask.flat):
            back, front = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.setRNGSeed(0)
            cv2.grabCut(photo[..., ::-1].copy(), mask, (0, 0, 1, 1), back, front, 5, cv2.GC_INIT_WITH_MASK)
        cut[row, 0] = torch.from_numpy(np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32))
    return cut


@torch.no_grad()
def told(net: MattingNet, sample: Sample, photos: np.ndarray, usual: dict[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's mattes of a batch, by what was done to them."""

    def asked(images: Tensor) -> Tensor:
        return net.route(net.encode(images), sample.decoders)[0].sigmoid()

    own = asked(sample.images)
    both = (own + asked(sample.images.flip(-1)).flip(-1)) / 2
    alike = by_colour(sample.images, both)
    mattes = {"its own": own, "with the mirror image": both}
    mattes |= {f"of that, {100 * w:.0f} % by colour": torch.lerp(both, alike, w) for w in (0.25, 0.5, 0.75, 1.0)}
    places = torch.stack([usual.get(category, usual[""]) for category in sample.categories]).unsqueeze(1)
    said = evidence(sample.images, places)
    for weight in (0.25, 0.5, 1.0, 2.0):
        placed = by_evidence(both, said, weight)
        mattes[PLACED.format(weight)] = torch.lerp(placed, by_colour(sample.images, placed), 0.5)
    grabbed = grab_cut(sample, photos, both)
    mattes |= {"50 % by GrabCut instead": torch.lerp(both, grabbed, 0.5), "GrabCut alone": grabbed}
    return mattes | {"the usual place alone": places, "the mean of that by colour": by_colour(sample.images, places)}


Errors = dict[str, dict[str, list[float]]]
"""Mean squared errors by kind of matte and category."""


def add(errors: Errors, sample: Sample, mattes: dict[str, Tensor]) -> None:
    for name, matte in mattes.items():
        mse = (matte - sample.alpha).square().mean((1, 2, 3)).tolist()
        for category, value in zip(sample.categories, mse, strict=True):
            errors.setdefault(name, {}).setdefault(category, []).append(value)


def errors_of(root: Path, seed: Path, model: str) -> dict[str, Errors]:
    """Of a model of a seed, on eval photos and on cuts of them, by what the table's title says of that."""
    layout = workspace(seed, workspace(root))
    net, _ = load_model(seed / "arms" / model)
    net.eval()
    cache, frame = PixelCache(layout.cache, net.config.size), read_pool(layout.snapshot, "eval")
    labelled = read_pool(layout.snapshot, "train_labeled")
    for photos in (frame, labelled):
        cache.fill(stages.store_of(layout), photos)
    usual = usual_places([(Pool(labelled, cache, 0, "teacher"), 8)])
    pool, whole, cut, kept = Pool(frame, cache, 0, "teacher"), Errors(), Errors(), dict[str, np.ndarray]()
    for batch in pool.in_order(BATCH):
        sample = to_device(batch, CPU)
        mattes = told(net, sample, batch.images, usual)
        add(whole, sample, mattes)
        squares = (mattes[PLACED.format(1.0)][:, 0].numpy() * 255).round().astype(np.uint8)
        kept |= {
            i: cv2.resize(np.asarray(square), (cache.side, cache.side))
            for i, square in zip(sample.ids, squares, strict=True)
        }
    for step in range(-(-CUTS * len(pool) // BATCH)):
        batch = pool.draw(step, BATCH)
        sample = to_device(batch, CPU)
        # The random numbers that the pool cut the photos by.
        rngs = [rng_of(0, "teacher", "cut", slot) for slot in range(step * BATCH, (step + 1) * BATCH)]
        pairs = zip(sample.ids, rngs, strict=True)
        alike = [augment(cache.photos[i], kept[i], cache.size, rng)[1] for i, rng in pairs]
        then_cut = torch.from_numpy(np.stack(alike)).float().div(255).unsqueeze(1)  # pyright: ignore
        mattes = told(net, sample, batch.images, usual)
        add(cut, sample, mattes | {f"{PLACED.format(1.0)}, of the whole photo, cut afterwards": then_cut})
    return {"": whole, ", cut": cut}


def table(rows: pd.DataFrame) -> list[str]:
    lines = ["| teacher's matte | macro MSE | against its own | categories that gain |", "|---|---|---|---|"]
    own = rows[rows["matte"] == "its own"]
    for name, of_name in rows.groupby("matte", sort=False):
        macro, whole = (np.asarray(part.groupby("seed")["mse"].mean()) for part in (of_name, own))
        better, before = (np.asarray(part.groupby("category")["mse"].mean()) for part in (of_name, own))
        ratio, spread, gain = 100 * (macro / whole - 1), "", ""
        if name != "its own":
            spread = f"{ratio.mean():+.1f} % ({ratio.min():+.1f} to {ratio.max():+.1f})"
            gain = f"{int((better < before).sum())} of {len(before)}"
        lines.append(f"| {name} | {macro.mean():.4f} | {spread} | {gain} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/bench/stage_order"))
    parser.add_argument("--seeds", type=int, nargs="*", help="of those in the folder; all without")
    parser.add_argument("--out", type=Path, default=HERE / "teacher.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# What the semi-supervised stage is told: the teacher's mattes",
        "",
        "Runner: `benchmarks/teacher.py`, after `benchmarks/stage_order.py` in the same folder. Mattes of the models",
        "that the stages start from, on the eval photos, at 64 px; mean over seeds, in brackets the extremes. Photos",
        "cut: as labelled ones are in training, other light, blur and noise included; about three cuts of a photo.",
        "Place is the mean over whole mattes in all tables.",
    ]
    for data in ("generated", "real"):
        for what, model in MODELS.items():
            found = sorted((args.work / data).glob(f"seed-*/arms/{model}"))
            seeds = [path.parents[5] for path in found]
            seeds = [seed for seed in seeds if not args.seeds or int(seed.name.removeprefix("seed-")) in args.seeds]
            of_seeds = {seed.name: errors_of(args.work / data, seed, model) for seed in seeds}
            for kind in ("", ", cut") if seeds else ():
                rows = [
                    {"seed": seed, "matte": name, "category": category, "mse": np.mean(values)}
                    for seed, by_kind in of_seeds.items()
                    for name, by_category in by_kind[kind].items()
                    for category, values in by_category.items()
                ]
                lines += ["", f"## {data.capitalize()} photos{kind}, {what}, {len(seeds)} seeds", ""]
                lines += table(pd.DataFrame(rows))
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
