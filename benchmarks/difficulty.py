"""Which photos will the next model find hard? What the label says, what the champion says, and both.

    python benchmarks/difficulty.py

Generated photos. A champion learns from a first week. The labelled photos of the second week get their difficulty from
the label (`structuring/difficulty.py`) and from the champion: its error (`measure` below), its entropy, its
disagreement with itself over mirrored and relit views (`labeling/signals.py`), between a photo and its mirror image,
and between its two decoders (six categories train no third). The truth: the error of later models, warm from the
champion, trained on the first week and one half of the second and judged on the other half, so that no photo is judged
by a model that saw its label; the mean over several seeds. Agreement is Spearman's within each category, as the split
ranks there.

Then what a wrong label does: mattes that show the wrong things, for one photo in ten, and how many of them the hard set
takes. Last, what it is worth: simple and hard stages from the champion, split by each, judged on photos held out.
Writes benchmarks/difficulty.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from words import replace_tables

from mm_core.core.params import Params
from mm_core.core.records import CATEGORIES, decoder_of
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.labeling.signals import look
from mm_core.model.files import load_model, save_model
from mm_core.model.network import build_model
from mm_core.model.predict import TorchPredictor
from mm_core.model.preprocess import resize
from mm_core.storage.store import LocalStore, fetch_blob, put_blob
from mm_core.structuring import difficulty
from mm_core.structuring.difficulty import SOFT
from mm_core.structuring.split import hard_count
from mm_core.training.supervised import Supervised
from mm_core.training.trainer import Setup, fit
from samplegen import write_drop

HERE = Path(__file__).parent
PARAMS = Params().with_values(**{"model.size": 64, "train.common.precision": "fp32"})
SHARES = (0.25, 0.5, 0.75)
WRONG = 0.1
"""Share of labels that are wrong in the second part."""
ERRORS = ("band", "error")
FOLLOWS = "\n## What follows\n"
"""What people wrote below this stays."""
REACH = 5
"""Side of the square by which the band is widened, in pixels of the matte."""
Frame = Any
Series = Any


def measure(truth: np.ndarray, matte: np.ndarray) -> dict[str, float]:
    """The signals of one label (H, W) and one matte (h, w), both in [0, 1]; compared at the matte's size."""
    truth = resize(truth.astype(np.float32), *matte.shape)
    off = np.abs(matte.astype(np.float64) - truth)
    square = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(truth, square) - cv2.erode(truth, square) > 0.5
    soft = ((truth > SOFT[0]) & (truth < SOFT[1])) | edge
    band = cv2.dilate(soft.astype(np.uint8), np.ones((REACH, REACH), np.uint8)) > 0
    p = np.clip(matte.astype(np.float64), 1e-6, 1 - 1e-6)
    return {
        "band": float(off[band].mean()) if band.any() else float(off.mean()),
        "error": float((off**2).mean()),
        "entropy": float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()),
    }


"""Of pandas, whose annotations know too little of what an index may be."""
Stages = Sequence[tuple[list[tuple[Frame, int]], int, float]]
"""Frames with their samples of a batch, optimiser steps and peak rate, one after the other."""


@dataclass
class House:
    """Photos of all weeks, decoded, and models."""

    root: Path
    store: LocalStore
    cache: PixelCache

    def drop(self, name: str, count: int, seed: int, poison: str | None = None) -> Frame:
        """A frame of `count` labelled photos per category (of the poisoned one alone, if any)."""
        names = CATEGORIES if poison is None else (poison,)
        counts: dict[str, int] = dict.fromkeys(names, count)  # pyright: ignore[reportAssignmentType]
        # The pictures depend on the batch's name and the category: those of the wrong mattes are the second week's.
        folder = self.root / (poison or "right")
        path = write_drop(folder, "pixel_labeled", name, counts, seed=seed, size=96, burst_share=0, poison=poison)
        rows = []
        for row in list[Any](pd.read_csv(path / "manifest.csv").itertuples(index=False)):
            image, alpha = ((path / getattr(row, kind)).read_bytes() for kind in ("image", "alpha"))
            rows.append(
                {
                    "sample_id": put_blob(self.store, image),
                    "alpha_sha256": put_blob(self.store, alpha),
                    "category": row.category,
                    "decoder": decoder_of(row.category),
                    "caption": None,
                    "label_binary": False,
                    "width": 96,
                    "height": 96,
                }
            )
        frame = pd.DataFrame(rows).astype({"label_binary": "boolean"})
        self.cache.fill(self.store, frame)
        return frame

    def trained(self, name: str, stages: Stages, seed: int, start: Path | None = None) -> Path:
        """A model of the stages given, the averaged weights of the last step."""
        net = build_model(PARAMS.model, seed) if start is None else load_model(start)[0]
        path = self.root / f"{name}.safetensors"
        for n, (parts, steps, lr) in enumerate(stages):
            pools = [(Pool(frame, self.cache, seed, f"{n}/{k}"), count) for k, (frame, count) in enumerate(parts)]
            result = fit(
                Supervised(net, {"labeled": pools}, PARAMS.train.loss),
                Setup(
                    PARAMS.train.simple.model_copy(update={"steps": steps, "lr": lr}),
                    PARAMS.train.common,
                    seed,
                    self.root / f"{name}.state",
                    torch.device("cpu"),
                ),
                lambda net: {},
            )
            (self.root / f"{name}.state").unlink(missing_ok=True)
            net.load_state_dict(result.weights)
        save_model(path, net, {})
        return path

    def photos(self, frame: Frame) -> list[np.ndarray]:
        return [load_rgb(fetch_blob(self.store, sample)) for sample in frame["sample_id"]]

    def truths(self, frame: Frame) -> list[np.ndarray]:
        return [load_alpha(fetch_blob(self.store, alpha)) for alpha in frame["alpha_sha256"]]

    def errors(self, model: Path, frame: Frame) -> Frame:
        """`band`, `error` and `entropy` of each photo."""
        mattes = TorchPredictor(model, "cpu").predict(self.photos(frame), frame["decoder"].tolist())
        rows = [measure(truth, matte) for truth, matte in zip(self.truths(frame), mattes, strict=True)]
        return pd.DataFrame(rows, index=frame.index)

    def signals(self, champion: Path, frame: Frame) -> Frame:
        """All that may say how hard a photo is, before the next model is trained; higher is harder."""
        predictor, photos, decoders = TorchPredictor(champion, "cpu"), self.photos(frame), frame["decoder"].tolist()
        found = self.errors(champion, frame).rename(columns={name: f"champion: {name}" for name in ERRORS})
        found = found.rename(columns={"entropy": "champion: entropy"})
        views = look(photos, decoders, predictor)
        found["champion: views"] = [row["tta_variance"] for row in views]
        plain = predictor.predict(photos, decoders)
        mirrored = predictor.predict([np.ascontiguousarray(photo[:, ::-1]) for photo in photos], decoders)
        found["champion: mirror"] = [np.abs(a - b[:, ::-1]).mean() for a, b in zip(plain, mirrored, strict=True)]
        one, other = (predictor.predict(photos, [name] * len(photos)) for name in ("saliency", "portrait"))
        found["champion: decoders"] = [np.abs(a - b).mean() for a, b in zip(one, other, strict=True)]
        found["label"] = [
            difficulty.measure(photo, truth).score for photo, truth in zip(photos, self.truths(frame), strict=True)
        ]
        return found


def mixed(signals: Frame, other: str, share: float) -> Series:
    """As `split_by_difficulty` mixes."""
    return (1 - share) * signals["label"] + share * signals[other]


def agreement(signal: Series, error: Series, categories: Series) -> float:
    """Spearman's correlation within each category, mean over them."""
    groups = categories.groupby(categories).groups.values()
    ranks: list[Any] = [spearmanr(signal[rows], error[rows])[0] for rows in groups]
    return float(np.mean(ranks))


def hard_set(signal: Series, categories: Series) -> Series:
    """Whether each photo comes into the hard set."""
    chosen = pd.Series(False, index=signal.index)
    for rows in categories.groupby(categories).groups.values():
        count = hard_count(len(rows), PARAMS.split.hard_share)
        chosen[signal[rows].sort_values(ascending=False).index[:count]] = True
    return chosen


def candidates(signals: Frame) -> Frame:
    """Every signal, and the label's mixed with the champion's error and with its entropy."""
    found = signals.copy()
    for other in ("champion: band", "champion: entropy"):
        for share in SHARES:
            found[f"label, {share:.0%} {other}"] = mixed(signals, other, share)
    first = ["label", *(name for name in found if name != "label")]
    return found[first]


def agreements(found: Frame, errors: Frame, categories: Series, draws: int) -> list[dict[str, Any]]:
    """Per candidate: agreement with both errors, the 95 % interval of what it has beyond the label's, and the share of
    the truly hardest photos that come into the hard set."""
    rng, groups = np.random.default_rng(0), categories.groupby(categories).groups
    again = [np.concatenate([rng.choice(rows, len(rows)) for rows in groups.values()]) for _ in range(draws)]
    hardest = hard_set(errors["band"], categories)
    rows = []
    for name in found:
        row: dict[str, Any] = {"difficulty": name}
        for error in ERRORS:
            row[error] = agreement(found[name], errors[error], categories)
            beyond = []
            for drawn in again:
                sample = (frame.loc[drawn].reset_index(drop=True) for frame in (found, errors, categories))
                signals, truth, names = sample
                beyond.append(
                    agreement(signals[name], truth[error], names) - agreement(signals["label"], truth[error], names)
                )
            row[f"{error} beyond"] = np.percentile(beyond, [2.5, 97.5])
        row["hardest found"] = float((hard_set(found[name], categories) & hardest).sum() / hardest.sum())
        rows.append(row)
    return rows


def wrongly_labelled(house: House, second: Frame, count: int, seed: int) -> tuple[Frame, Series]:
    """The second week with one label in ten showing the wrong things, and which those are."""
    parts = [house.drop("second", count, 22, poison=category) for category in CATEGORIES]
    poisoned: Any = pd.concat(parts, ignore_index=True)
    assert poisoned["sample_id"].tolist() == second["sample_id"].tolist(), "the same photos"
    wrong = pd.Series(np.random.default_rng(seed).random(len(second)) < WRONG, index=second.index)
    return second.where(~wrong, poisoned), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=16, help="photos per category of the first week")
    parser.add_argument("--second", type=int, default=60, help="of the second")
    parser.add_argument("--judged", type=int, default=40, help="held out")
    parser.add_argument("--steps", type=int, default=240, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=400, help="bootstrap samples")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mm-difficulty-") as folder:
        root = Path(folder)
        house = House(root, LocalStore(root / "store"), PixelCache(root / "cache", PARAMS.model.size))
        first, second = house.drop("first", args.first, 11), house.drop("second", args.second, 22)
        champion = house.trained("champion", [([(first, 8)], args.steps, 2e-3)], 0)
        found, categories = candidates(house.signals(champion, second)), second["category"]
        print("champion", house.errors(champion, second)[list(ERRORS)].mean().round(4).to_dict(), flush=True)

        later = []
        for seed in range(args.seeds):
            half = pd.Series(np.random.default_rng(seed).permutation(len(second)) % 2 == 0, index=second.index)
            for side in (half, ~half):
                model = house.trained("later", [([(first, 4), (second[~side], 4)], args.steps, 1e-3)], seed, champion)
                later.append(house.errors(model, second[side]))
                print("later", seed, later[-1][list(ERRORS)].mean().round(4).to_dict(), flush=True)
        errors = pd.concat(later).groupby(level=0).mean()
        table = agreements(found, errors, categories, args.draws)
        for row in table:
            print(row, flush=True)

        labels, wrong = wrongly_labelled(house, second, args.second, 1)
        misled = candidates(house.signals(champion, labels))
        for row in table:
            chosen = hard_set(misled[row["difficulty"]], categories)
            row |= {"wrong taken": float(chosen[wrong].mean()), "wrong among hard": float(wrong[chosen].mean())}

        held_out, worth = house.drop("judged", args.judged, 33), []
        arms = ("label", "label, 50% champion: band", "label, 50% champion: entropy", "chance")
        for seed in range(args.seeds):
            found["chance"] = misled["chance"] = np.random.default_rng(seed).random(len(second))
            for frame, signals, about in ((second, found, "right"), (labels, misled, "1 in 10 wrong")):
                for arm in arms:
                    hard = hard_set(signals[arm], categories)
                    stages: Stages = [
                        ([(frame[~hard], 8)], args.steps, 2e-3),
                        ([(frame[hard], 4), (frame[~hard], 4)], args.steps // 3, 1e-3),
                    ]
                    scores = house.errors(house.trained("worth", stages, seed, champion), held_out)
                    worth.append({"seed": seed, "labels": about, "arm": arm, **scores[list(ERRORS)].mean()})
                    print(worth[-1], flush=True)
            write(table, pd.DataFrame(worth), args, float(wrong.mean()), seed + 1)


def write(table: list[dict[str, Any]], worth: Any, args: argparse.Namespace, wrong: float, seeds: int) -> None:
    count, share = 6 * args.second, PARAMS.split.hard_share
    lines = [
        "# What makes a photo hard: the label, the champion, or both",
        "",
        f"Runner: `benchmarks/difficulty.py`. Generated photos, {PARAMS.model.encoder} at {PARAMS.model.size} px: a"
        f" champion of {6 * args.first} photos, {count} new labelled ones, errors of {2 * args.seeds} later models on"
        f" those that they did not see ({args.seeds} seeds, two halves). {platform.machine()}, {os.cpu_count()} cores,"
        " one thread.",
        "",
        "Agreement: Spearman's correlation with the later error, within each category, mean of six; in brackets the"
        f" 95 % interval of what it has beyond the label's own ({args.draws} bootstrap samples). Hardest found: of the"
        f" {share:.0%} of each category with the highest later band error, the share that comes into the hard set"
        f" (chance {share:.0%}). Wrong labels: {wrong:.0%} of the mattes show the wrong things; of those, the share"
        " that comes into the hard set, and how much of that set they are.",
        "",
        "| difficulty | agreement with the band error | with the whole matte's | hardest found | wrong labels taken |"
        " hard set that is wrong |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        cells = []
        for error in ERRORS:
            low, high = row[f"{error} beyond"]
            cells.append(f"{row[error]:.2f}" + ("" if row["difficulty"] == "label" else f" ({low:+.2f} … {high:+.2f})"))
        lines.append(
            f"| {row['difficulty']} | {cells[0]} | {cells[1]} | {row['hardest found']:.0%} | {row['wrong taken']:.0%}"
            f" | {row['wrong among hard']:.0%} |"
        )
    lines += [
        "",
        f"Simple ({args.steps} steps), then hard ({args.steps // 3}, half of each batch hard) from the champion on the"
        f" second week, split by each; mean over {seeds} seed{'s' * (seeds > 1)} of the error on {6 * args.judged}"
        " photos held out, and the paired change against the label's own split.",
        "",
        "| labels | split by | mse | band error | mse against label's | in seeds better |",
        "|---|---|---|---|---|---|",
    ]
    for about, rows in worth.groupby("labels", sort=False):
        own = rows[rows["arm"] == "label"].set_index("seed")
        for arm, part in rows.groupby("arm", sort=False):
            part = part.set_index("seed")
            ratio = part["error"] / own["error"] - 1
            against = "" if arm == "label" else f"{100 * ratio.mean():+.1f} %"
            better = "" if arm == "label" else f"{int((ratio < 0).sum())} of {len(ratio)}"
            lines.append(
                f"| {about} | {arm} | {part['error'].mean():.4f} | {part['band'].mean():.4f} | {against} | {better} |"
            )
    replace_tables(HERE / "difficulty.md", lines, FOLLOWS)


if __name__ == "__main__":
    main()
