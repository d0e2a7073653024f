"""Does each stage of the hierarchical strategy earn its place? Matting Moments, Table 1, ours.

Three arms, the same optimiser steps in each, the same first two stages, several seeds:

* Pixel_Sup: simple, hard, then supervised on simple and hard, twice;
* +Semi_Sup: simple, hard, then cross-consistency with unlabelled photos, twice;
* +Mlt_Sup:  simple, hard, cross-consistency, then text-image consistency, contrast and distillation.

    python benchmarks/stage_order.py generated generated-128 --seeds 130 --arms Pixel_Sup
    python benchmarks/stage_order.py generated real --seeds 1 2 3 --photos FOLDER
    python benchmarks/stage_order.py real-128 --seeds 1 2 3 --photos FOLDER

Each seed draws its own labelled and validation photos as well as its own weights. A row per finished training and
category goes into benchmarks/stage_order.csv; killed, the next call goes on after the last of them. `--set` and `--out`
try other params without touching the result.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mm_core import stages
from mm_core.core.code_digest import code_digest
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import CATEGORIES, Report, digest_of
from mm_core.core.settings import Settings
from mm_core.eval.evaluate import score_all
from mm_core.eval.metrics import category_scores
from mm_core.ingest.snapshot import POOLS, SCHEMA, read_pool, write_frames
from mm_core.model.clip import LOCAL_NAME, train_local_clip
from mm_core.model.predict import TorchPredictor
from mm_core.storage.catalog import Catalog
from mm_core.structuring.split import split_by_difficulty
from mm_core.training.stage import train_stage
from samplegen import generate, write_drop

ARMS = ("Pixel_Sup", "+Semi_Sup", "+Mlt_Sup")
METRICS = ("mse", "biou", "maxf", "conn")
HERE = Path(__file__).parent
MARKS = ("<!-- tables -->", "<!-- end of tables -->")
CHAMPION = 130
"""The seed of generated photos whose Pixel_Sup model real photos start from."""
PAIRS = 300
"""Generated photos with captions per category that the stand-in for a pretrained CLIP learns from."""


@dataclass(frozen=True)
class Regime:
    """What one data set offers; counts are per category."""

    labelled: int
    """Photos with mattes to train on; those left over lend their photo alone."""
    validation: int
    """Photos with mattes that choose checkpoints."""
    judged: int
    """Photos with mattes that are drawn for judging; 0: the drops name them."""
    steps: tuple[int, int, int, int]
    """Of the four stages."""
    rates: tuple[float, float]
    """Peak learning rates of the last two, alike in all arms."""
    champion: str = ""
    """The data set whose Pixel_Sup model all arms start from; without, from scratch."""
    size: int = 64
    precision: str = "fp32"


GENERATED = Regime(labelled=12, validation=20, judged=0, steps=(1500, 300, 600, 600), rates=(4e-3, 2e-3))
REAL = Regime(8, validation=4, judged=12, steps=(40, 20, 150, 150), rates=(3e-3, 2e-3), champion="generated")
REGIMES = {
    "generated": GENERATED,
    "generated-128": replace(GENERATED, size=128, precision="bf16"),
    "real": REAL,
    "real-128": replace(REAL, champion="generated-128", size=128, precision="bf16"),
}


def workspace(root: Path, like: Layout | None = None) -> Layout:
    """A workspace, on the store and decoded photos of another if given."""
    settings = replace(Settings.from_env(root), device="cpu")
    if like is None:
        return Layout(settings)
    layout = Layout(replace(settings, inbox=like.settings.inbox, store=like.settings.store))
    if not layout.cache.exists():
        layout.root.mkdir(parents=True, exist_ok=True)
        like.cache.mkdir(parents=True, exist_ok=True)
        layout.cache.symlink_to(like.cache, target_is_directory=True)
    return layout


def prepare(data: str, root: Path, photos: Path | None, extra: int, pool: int, held_out: int) -> Layout:
    """Drops ingested and frozen once for all arms and seeds."""
    layout = workspace(root)
    if (layout.snapshot / "snapshot.json").exists():
        return layout
    if data.startswith("real"):
        if photos is None:
            raise SystemExit(f"--photos: name the folder of drops for `{data}`")
        layout = Layout(replace(layout.settings, inbox=str(photos)))
    else:
        inbox = Path(layout.settings.inbox)
        for kind, batch, count, seed, role in (
            ("pixel_labeled", "eval", held_out, 9000, "eval"),
            ("pixel_labeled", "train", pool, 1000, "train"),
            ("unlabeled", "plain", extra, 2000, ""),
            ("text_image", "captions", extra, 3000, ""),
        ):
            if not (inbox / kind / batch / "manifest.csv").exists():
                write_drop(inbox, kind, batch, dict.fromkeys(CATEGORIES, count), seed=seed, size=96, role=role)
    # Nothing of photos is needed here but how hard they are.
    params = Params().with_values(**{"structure.ocr": ()})
    for stage in (stages.ingest, stages.structure, stages.pin_inputs, stages.snapshot):
        stage(params, layout)
    return layout


def draw(base: Layout, regime: Regime, params: Params, seed: int) -> Layout:
    """A workspace with the photos of one seed; a scene stays on one side."""
    layout = workspace(base.root / f"seed-{seed}", base)
    if layout.split.exists():
        return layout
    frames: dict[str, Any] = {name: read_pool(base.snapshot, name) for name in POOLS}
    frames = {name: frame[frame["category"].isin(CATEGORIES)] for name, frame in frames.items()}
    pools = ["train_labeled", "validation"] + (["eval"] if regime.judged else [])
    labelled = pd.concat([frames[name] for name in pools])
    rng = np.random.default_rng(seed)
    sides: dict[Any, str] = {}
    for _, rows in labelled.groupby("category"):
        sizes = rows["group"].value_counts().to_dict()
        wanted = {"eval": regime.judged, "validation": regime.validation, "train_labeled": regime.labelled}
        for group in rng.permutation(sorted(sizes)):
            side = next((name for name, room in wanted.items() if room > 0), "train_unlabeled")
            sides[group] = side
            wanted[side] = wanted.get(side, 0) - sizes[group]
    for side in ("eval", "validation", "train_labeled"):
        if side != "eval" or regime.judged:
            frames[side] = labelled[labelled["group"].map(sides.get) == side]
    spare = labelled[labelled["group"].map(sides.get) == "train_unlabeled"]
    if regime.judged:
        hidden = spare.assign(alpha_sha256=None, label_version=None, label_binary=None)
        shared = set(frames["eval"]["group"]) | set(frames["validation"]["group"])
        frames["train_unlabeled"] = pd.concat([frames["train_unlabeled"], hidden]).drop_duplicates("sample_id")
        for side in ("train_unlabeled", "train_text_image"):
            frames[side] = frames[side][~frames[side]["group"].isin(shared)]
    write_frames(
        layout.snapshot, frames, SCHEMA, {"digest": digest_of({n: f["sample_id"].tolist() for n, f in frames.items()})}
    )
    split_by_difficulty(
        params.split,
        Catalog(base.settings.store),
        stages.read_inputs(base),
        layout.snapshot,
        layout.split,
        Report("split"),
    )
    return layout


def stand_in(root: Path, steps: int) -> Path:
    """A small CLIP trained on generated pairs that no arm sees: what pretrained towers would be elsewhere."""
    path = root / f"clip-{PAIRS}-{steps}.safetensors"
    if not path.is_file():
        scenes = [
            generate(c, 7_000_000 + n, size=96, mode="hard" if n % 4 == 0 else "easy")
            for c in CATEGORIES
            for n in range(PAIRS)
        ]
        made = train_local_clip([(s.image, s.caption) for s in scenes], steps, 0, path, progress=shown("train clip"))
        print(f"\nstand-in CLIP: of {made.held_out} held-out photos {made.retrieval:.0%} find their own caption")
    return path


def champion(root: Path, data: str) -> Path:
    """The Pixel_Sup model of a seed of generated photos: all arms on real ones start from it."""
    path = root / data / f"seed-{CHAMPION}" / "arms/Pixel_Sup/cycle/models/hard/model.safetensors"
    if not path.is_file():
        raise SystemExit(f"run `{data} --seeds {CHAMPION} --arms Pixel_Sup` first: real photos start from its model")
    return path


def shown(what: str) -> Any:
    def show(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"\r{what} {done}/{total}   ", end="", file=sys.stderr)

    return show


class Trainings:
    """The arms of one seed; a training that is done is not done again (its content key says so)."""

    def __init__(self, layout: Layout, params: Params, name: str):
        self._layout, self._params, self._name = layout, params, name
        self.seconds, self.images = {}, {}

    def step(self, arm: str, stage: str, start: Path | None, **changed: Any) -> Path:
        own = workspace(self._layout.root / "arms" / arm.strip("+"), self._layout)
        for source, target in ((self._layout.snapshot, own.snapshot), (self._layout.split, own.split)):
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source, target_is_directory=True)
        report, say = Report(stage), shown(f"{self._name} {arm} {stage}")
        train_stage(
            stage, self._params.with_values(**changed), own, stages.store_of(self._layout), report,
            start=start, progress=lambda what, done, total: say(done, total),
        )  # fmt: skip
        seconds = report.metrics[f"{stage}/train_seconds"]
        self.seconds[arm] = self.seconds.get(arm, 0) + seconds
        self.images[arm] = self.images.get(arm, 0) + seconds * report.metrics.get(f"{stage}/images_per_s", 0)
        return own.model(stage)

    def arm(self, arm: str, start: Path | None) -> Path:
        """The final weights of an arm: after the common stages two cycles of the learning rate, alike in all."""
        train = self._params.train
        hard = self.step("common", "hard", self.step("common", "simple", start))
        if arm == "Pixel_Sup":
            share = 1 - self._params.split.hard_share
            for part in (train.semi, train.multimodal):
                values = {"train.hard.steps": part.steps, "train.hard.lr": part.lr, "train.common.replay_share": share}
                hard = self.step(arm, "hard", hard, **values)
            return hard
        semi = self.step("semi", "semi", hard)
        if arm == "+Semi_Sup":
            rest = {"train.semi.steps": train.multimodal.steps, "train.semi.lr": train.multimodal.lr}
            return self.step(arm, "semi", semi, **rest)
        return self.step(arm, "multimodal", semi)


def params_of(data: str, work: Path, changed: dict[str, Any], clip_steps: int = 600) -> Params:
    """The params of a data set's regime, but for what is changed."""
    regime = REGIMES[data]
    values: dict[str, Any] = {
        "model.size": regime.size,
        "train.common.precision": regime.precision,
        "train.common.validate_every": 30,
        "train.semi.perturbations": (),
        "snapshot.validation_share": 0.3,
        "split.hard_share": 0.25,
        "clip.model": LOCAL_NAME,
        "clip.pretrained": str(stand_in(work, clip_steps).absolute()),
    }
    stages_of = ("simple", "hard", "semi", "multimodal")
    values |= {f"train.{s}.steps": n for s, n in zip(stages_of, regime.steps, strict=True)}
    values |= {f"train.{s}.lr": lr for s, lr in zip(stages_of[2:], regime.rates, strict=True)}
    return Params().with_values(**values | changed)


def judged(layout: Layout, base: Layout, model: Path) -> pd.DataFrame:
    """Scores of a model on the eval photos of `layout`, a row per category."""
    predictor = {("m", "float"): TorchPredictor(model, "cpu")}
    judges = read_pool(layout.snapshot, "eval")
    return category_scores(score_all(judges, predictor, stages.store_of(base), 1024, stages.quiet))


def value_of(text: str) -> Any:
    if "," in text or text in ("()",):
        return tuple(part for part in text.strip("()").split(",") if part)
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["generated"], help=", ".join(REGIMES))
    parser.add_argument("--work", type=Path, default=Path("data/bench/stage_order"))
    parser.add_argument("--photos", type=Path, help="inbox of real drops")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument(
        "--extra", type=int, default=150, help="generated unlabelled, and captioned photos per category"
    )
    parser.add_argument(
        "--pool", type=int, default=80, help="generated labelled photos per category that seeds draw from"
    )
    parser.add_argument("--held-out", type=int, default=50, help="generated photos per category that judge")
    parser.add_argument("--clip-steps", type=int, default=600)
    parser.add_argument("--set", nargs="*", default=[], help="further parameters, name=value")
    parser.add_argument("--out", type=Path, default=HERE / "stage_order")
    args = parser.parse_args()

    table = args.out.with_suffix(".csv")
    for data in args.data:
        regime = REGIMES[data]
        torch.set_num_threads(1)
        changed = {name: value_of(value) for name, value in (item.split("=") for item in args.set)}
        params = params_of(data, args.work, changed, args.clip_steps)
        base = prepare(data, args.work / data, args.photos, args.extra, args.pool, args.held_out)
        for seed in args.seeds:
            layout, own = draw(base, regime, params, seed), params.with_values(seed=seed)
            key = f"{data}-{code_digest('mm_core.training.stage')[:8]}-{own.cycle_digest()[:12]}"
            for arm in args.arms:
                done = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["key", "arm"])
                if len(done[(done["key"] == key) & (done["arm"] == arm)]):
                    continue
                trainings = Trainings(layout, own, f"{data} {seed}")
                start = champion(args.work, regime.champion) if regime.champion else None
                scores = judged(layout, base, trainings.arm(arm, start))
                parts = ("common", arm) if arm == ARMS[0] else ("common", "semi", arm)
                seconds = sum(trainings.seconds[part] for part in parts)
                images = sum(trainings.images[part] for part in parts)
                rows = [
                    {"key": key, "data": data, "seed": seed, "arm": arm, "category": category,
                     **scores.loc[category, [*METRICS, "images"]], "seconds": round(seconds), "seen": round(images)}
                    for category in (*CATEGORIES, "macro", "weighted")
                ]  # fmt: skip
                pd.concat([done, pd.DataFrame(rows)]).to_csv(table, index=False, float_format="%.6g")
                print(f"\r{data} {seed} {arm} {[round(r['mse'], 4) for r in rows]} {seconds:.0f} s")
        rows = pd.read_csv(table)
        write(rows[rows["key"].str.contains(code_digest("mm_core.training.stage")[:8])], args.out.with_suffix(".md"))


def change(before: np.ndarray, after: np.ndarray) -> str:
    """Mean relative change over seeds, and in how many of them the value fell."""
    ratio = after / before - 1
    return f"{100 * ratio.mean():+.1f} % ({int((ratio < 0).sum())} of {len(ratio)} lower)"


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=min(1, len(values) - 1)):.4f}"


def write(table: Any, out: Path) -> None:
    """The tables between the two marks of `out`; what people wrote around them stays."""
    lines = [MARKS[0], ""]
    for data, rows in table.groupby("data"):
        if set(rows["arm"]) < set(ARMS):  # a champion, or Pixel_Sup at other rates: nothing to compare
            continue
        regime, whole = REGIMES[str(data)], rows[rows["category"] == "macro"]
        common = "/".join(map(str, regime.steps))
        kind, _, size = str(data).partition("-")
        lines += [f"### {kind.capitalize()} photos{f', {size} px' if size else ''}", ""]
        lines += [
            f"{whole['seed'].nunique()} seeds; per category about {regime.labelled} labelled photos and"
            f" {regime.validation} that choose checkpoints, {whole['images'].mean():.0f} judged in all; steps {common}"
            f"{f', all arms from Pixel_Sup of seed {CHAMPION} of `{regime.champion}`' if regime.champion else ''};"
            f" {regime.size} px, {regime.precision}."
            f" {platform.machine()}, {os.cpu_count()} cores, one thread. Mean ± standard deviation over seeds.",
            "",
            "| arm | optimiser steps | images seen | seconds |",
            "|---|---|---|---|",
        ]
        for arm in ARMS:
            own = whole[whole["arm"] == arm]
            lines.append(f"| {arm} | {sum(regime.steps)} | {own['seen'].mean():.0f} | {own['seconds'].mean():.0f} |")
        lines += [
            "",
            "| category | metric | " + " | ".join(ARMS) + " | +Semi vs Pixel | +Mlt vs Pixel | +Mlt vs +Semi |",
        ]
        lines += ["|---|---|" + "---|" * 6]
        for category in (*CATEGORIES, "macro", "weighted"):
            chosen = rows[rows["category"] == category].sort_values(by="seed")
            for metric in METRICS:
                by_arm = {arm: chosen.loc[chosen["arm"] == arm, metric].to_numpy(float) for arm in ARMS}
                if len({len(values) for values in by_arm.values()}) > 1:
                    continue
                pairs = ((ARMS[0], ARMS[1]), (ARMS[0], ARMS[2]), (ARMS[1], ARMS[2]))
                shown = [spread(v) for v in by_arm.values()] + [change(by_arm[a], by_arm[b]) for a, b in pairs]
                lines.append(f"| {category} | {metric} | " + " | ".join(shown) + " |")
        lines.append("")
    text = out.read_text() if out.exists() else f"{MARKS[0]}\n{MARKS[1]}\n"
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[-1]
    out.write_text(before + "\n".join([*lines, MARKS[1]]) + after)


if __name__ == "__main__":
    main()
