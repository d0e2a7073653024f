"""What do the arms of `stage_order.py` get wrong: do they hold too much for the subject, or leave some of it out?

    python benchmarks/stage_errors.py real real-128 --work FOLDER

The models are those of its table (run it first, same `--work`), the photos the eval ones of each seed, at the model's
size. Per category: the share of a photo that is subject, the share that each arm holds for it (the mean of its matte),
and how much of its squared error lies outside, where the truth is below one half. Writes benchmarks/stage_errors.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from stage_order import ARMS, REGIMES, workspace

from mm_core import stages
from mm_core.core.layout import Layout
from mm_core.core.records import CATEGORIES
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.ingest.snapshot import read_pool
from mm_core.model.files import load_model
from mm_core.training.trainer import to_device

HERE = Path(__file__).parent
CPU = torch.device("cpu")
STAGE = dict(zip(ARMS, ("hard", "semi", "multimodal"), strict=True))
BATCH = 32


@torch.no_grad()
def errors(model: Path, photos: Pool) -> pd.DataFrame:
    """A row per photo: category, shares of its pixels that are subject and that are held for it, squared error in all
    and outside."""
    net = load_model(model)[0].eval()
    rows = []
    for batch in photos.in_order(BATCH):
        sample = to_device(batch, CPU)
        held = net.route(net.encode(sample.images), sample.decoders)[0].sigmoid()
        squared = (held - sample.alpha).square()
        each = (sample.alpha, held, squared, squared * (sample.alpha < 0.5))
        values = [part.mean((1, 2, 3)).tolist() for part in each]
        rows += zip(sample.categories, *values, strict=True)
    return pd.DataFrame(rows, columns=["category", "subject", "held", "error", "outside"])


def of_seed(layout: Layout, base: Layout, size: int) -> pd.DataFrame:
    """Means by arm and category."""
    frame = read_pool(layout.snapshot, "eval")
    cache = PixelCache(base.cache, size)
    cache.fill(stages.store_of(base), frame)
    found = []
    for arm, stage in STAGE.items():
        model = layout.root / "arms" / arm.strip("+") / "cycle/models" / stage / "model.safetensors"
        means = pd.DataFrame(errors(model, Pool(frame, cache, 0, "eval")).groupby("category").mean())
        found.append(means.assign(arm=arm))
    return pd.concat(found).reset_index()


def table(data: str, rows: pd.DataFrame) -> list[str]:
    lines = [
        "",
        f"## {data}",
        "",
        f"{rows['seed'].nunique()} seeds; means, least and most over seeds.",
        "",
        "| category | subject, % of a photo | arm | held for it, % | error outside, % of all |",
        "|---|---|---|---|---|",
    ]
    for category in CATEGORIES:
        for arm in ARMS:
            own = rows[(rows["category"] == category) & (rows["arm"] == arm)]
            shares = (own["subject"], own["held"], own["outside"] / own["error"])
            subject, held, outside = (
                f"{100 * s.mean():.0f} ({100 * s.min():.0f} … {100 * s.max():.0f})" for s in shares
            )
            lines.append(f"| {category} | {subject} | {arm} | {held} | {outside} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=REGIMES)
    parser.add_argument("--work", type=Path, default=Path("data/bench/stage_order"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--out", type=Path, default=HERE / "stage_errors.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# What the arms get wrong",
        "",
        "Runner: `benchmarks/stage_errors.py`, on the models of [stage_order.md](stage_order.md), at the model's size.",
    ]
    for data in args.data:
        base = workspace(args.work / data)
        found = []
        for seed in args.seeds:
            layout = workspace(base.root / f"seed-{seed}", base)
            found.append(of_seed(layout, base, REGIMES[data].size).assign(seed=seed))
            print(data, seed, flush=True)
        lines += table(data, pd.concat(found))
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
