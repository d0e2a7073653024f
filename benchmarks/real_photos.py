"""How well do the models see? Real photos, full-resolution scores, the blind matte beside every model.

    python benchmarks/real_photos.py --photos FOLDER --regimes small --arms simple --seeds 0 1 2
    python benchmarks/real_photos.py --photos FOLDER --regimes small large --arms simple sup semi text

FOLDER holds the drops `inbox` and `inbox_large`. The judged photos are of two kinds, and nothing is trained on either:

* `near`: three of ten groups of `inbox`, photos of the kind that is trained on;
* `far`: photos of `inbox_large` from sources that no training photo comes from, and half of its ECSSD photos.

Regime `small` trains on the rest of `inbox`, `large` on the rest of both. With `--unlabelled N`, up to N photos without
a label of each category come from both inboxes, with or without a caption; with `--set` a parameter has another value,
such as `--set train.semi.teacher=FILE` (docs/decisions/0054-teacher.md). Each arm is a chain of the product's own
stages, `train_stage` on frames of this split; a finished training is not done again. A row per seed, arm, judged set
and category goes into benchmarks/real_photos.csv, the table into real_photos.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from mm_core import stages
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.pins import PINNED_TABLES, ROLES
from mm_core.core.progress import Progress, quiet
from mm_core.core.records import CATEGORIES, Report, decoder_of, digest_of
from mm_core.core.settings import Settings
from mm_core.eval.metrics import category_scores
from mm_core.eval.scoring import blind_mattes, score_all
from mm_core.ingest.placement import SCHEMA, newest_labels, stable_share
from mm_core.ingest.snapshot import components, write_frames
from mm_core.model.predict import TorchPredictor
from mm_core.pinned_inputs import Run
from mm_core.storage.run import StorageRun, catalog_of, store_of
from mm_core.structuring.split import SPLIT_SCHEMA
from mm_core.training.precision import choose_precision
from mm_core.training.stage import train_stage

HERE = Path(__file__).parent
METRICS = ("mse", "conn", "biou", "maxf")
FAR_SOURCES = ("AIM", "AM-2k", "GFM", "P3M", "SmartDoc", "kalem", "Kuih", "Penn-Fudan")
"""Beginnings of the names of sources that are only ever judged."""
NEAR_SHARE, FAR_SHARE, FAR_PHOTOS = 0.3, 0.5, 24
"""Share of `inbox` groups and of ECSSD photos that are judged; far photos of each category at most."""
TEXT = {
    f"train.multimodal.{name}": weight
    for name, weight in (("consistency", 1.0), ("contrastive", 0.1), ("captioned", 0.5))
}
"""The paper's terms on text, which are off by default."""
ARMS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "scratch": [("simple", {"model.pretrained": "", "train.common.encoder_lr": 1.0})],
    "simple": [("simple", {})],
    "sup": [("simple", {}), ("hard", {})],
    "semi": [("simple", {}), ("semi", {})],
    "text": [("simple", {}), ("semi", {}), ("multimodal", TEXT)],
}
"""Arm → its stages and what they change. `sup` has the later stages' steps as further supervised ones."""


def prepare(root: Path, photos: Path) -> Layout:
    """Ingest both inboxes once into a workspace."""
    layout = Layout(replace(Settings.from_env(root), device="cpu"))
    for inbox in ("inbox", "inbox_large"):
        if not (photos / inbox).is_dir():
            raise SystemExit(f"--photos: {photos / inbox} is missing: name the folder that holds inbox and inbox_large")
        stages.ingest(Run(Params(), Layout(replace(layout.settings, inbox=str(photos / inbox)))))
    return layout


def catalog_frame(layout: Layout, photos: Path) -> pd.DataFrame:
    """Return all samples with their newest label, `source`, and `small`: the photo came with `inbox`."""
    catalog = catalog_of(layout)
    samples = catalog.read("samples").sort_values("id", ignore_index=True)
    samples["group"] = components(samples, 3).astype(str)
    labels: Any = newest_labels(catalog.read("labels"))[["sample_id", "alpha_sha256", "version", "binary"]]
    labels = labels.rename(columns={"version": "label_version", "binary": "label_binary"})
    table: Any = samples.rename(columns={"id": "sample_id"}).merge(labels, on="sample_id", how="left")
    table["decoder"] = table["category"].map(decoder_of, na_action=None).fillna("saliency")
    small = {(kind.name, batch.name) for kind in (photos / "inbox").iterdir() for batch in kind.iterdir()}
    table["small"] = [pair in small for pair in zip(table["kind"], table["batch"], strict=True)]
    return table


def split_photos(table: Any, far_photos: int = FAR_PHOTOS) -> tuple[Any, Any, Any]:
    """Return the photos to learn from, and the judged ones, near and far; a group stays on one side.

    Args:
        table: The result of `catalog_frame`.
        far_photos: Far photos of each category at most.
    """
    labelled = table[table["alpha_sha256"].notna() & table["category"].isin(CATEGORIES)]
    source = labelled["source"].fillna("")
    half = labelled["sample_id"].map(lambda sample: stable_share(sample, "bench")) < FAR_SHARE
    far = labelled[~labelled["small"] & (source.str.startswith(FAR_SOURCES) | (source.str.startswith("ECSSD") & half))]
    outside = set(table[~table["sample_id"].isin(far["sample_id"])]["group"])
    far = far[~far["group"].isin(outside)].assign(order=lambda rows: rows["sample_id"].map(_order))
    # Sources take turns, so that the largest does not stand for all.
    far = far.sort_values("order").drop_duplicates("group")
    far["turn"] = far.groupby(["category", "source"]).cumcount()
    chosen = far.sort_values(["turn", "order"]).groupby("category").head(far_photos)
    near = labelled[labelled["small"] & (labelled["group"].map(lambda g: stable_share(g, "near")) < NEAR_SHARE)]
    learned = table[~table["group"].isin({*far["group"], *near["group"]})]
    return learned, near, chosen


def _order(sample: str) -> float:
    return stable_share(sample, "half")


def frames_of(learned: Any, regime: str, unlabelled: int = 0) -> dict[str, pd.DataFrame]:
    """Return the snapshot's pools of a regime; validation is empty, so the last averaged weights are kept.

    Args:
        learned: The photos to learn from.
        regime: `small` or `large`.
        unlabelled: Unlabelled photos of each category, from all of `learned`; 0 takes those of the regime.
    """
    rows = learned[learned["small"]] if regime == "small" else learned
    labelled = rows[rows["alpha_sha256"].notna()]
    plain, caption = rows[rows["alpha_sha256"].isna()], rows["caption"].fillna("") != ""
    without = plain[~caption.reindex(plain.index)]
    if unlabelled:
        every = learned[learned["alpha_sha256"].isna() & learned["category"].notna()]
        order = every["sample_id"].map(lambda sample: stable_share(sample, "unl")).sort_values().index
        without = every.loc[order].groupby("category").head(unlabelled)
    return {
        "train_labeled": labelled,
        "train_unlabeled": without,
        "train_text_image": plain[caption.reindex(plain.index)],
        "validation": labelled.iloc[:0],
        "eval": labelled.iloc[:0],
    }


class Trainings:
    """The arms of one regime and seed on one store and pixel cache."""

    def __init__(self, base: Layout, frames: dict[str, pd.DataFrame], params: Params, name: str):
        self._base, self._frames, self._params, self._name = base, frames, params, name
        self.seconds: dict[str, float] = {}

    def run(self, arm: str) -> Path:
        """Return the weights that an arm ends with."""
        weights: Path | None = None
        self.seconds[arm] = 0.0
        for stage, changed in ARMS[arm]:
            layout = self._workspace(arm, stage)
            report = Report(stage)
            base = StorageRun(self._params, self._base, _shown(f"{self._name} {arm} {stage}"))
            run = base.with_layout(layout, self._params.with_values(**changed))
            train_stage(stage, run, report, start=weights)
            self.seconds[arm] += report.metrics[f"{stage}/train_seconds"]
            weights = layout.model(stage)
        assert weights is not None
        return weights

    def _workspace(self, arm: str, stage: str) -> Layout:
        root = self._base.root / "arms" / self._name.replace(" ", "-") / arm
        layout = Layout(replace(self._base.settings, workspace=root, store=self._base.settings.store))
        layout.root.mkdir(parents=True, exist_ok=True)
        if not layout.cache.exists():
            self._base.cache.mkdir(parents=True, exist_ok=True)
            layout.cache.symlink_to(self._base.cache, target_is_directory=True)
        shared = self._base.root / "arms" / self._name.replace(" ", "-") / "checkpoints"
        if not layout.checkpoints.exists():
            shared.mkdir(parents=True, exist_ok=True)
            layout.checkpoints.parent.mkdir(parents=True, exist_ok=True)
            layout.checkpoints.symlink_to(shared, target_is_directory=True)
        digest = digest_of({name: frame["sample_id"].tolist() for name, frame in self._frames.items()})
        # No catalog version and no judged model stand behind this split.
        pins = {"catalog": dict.fromkeys(PINNED_TABLES, 0), **dict.fromkeys(ROLES)}
        write_frames(layout.snapshot, self._frames, SCHEMA, {"digest": digest, "eval_digest": digest, **pins})
        scored = self._frames["train_labeled"].assign(difficulty=0.0)
        # The supervised arm goes on with all photos: its `hard` stage is the simple pool once more.
        sides = {"simple": scored, "hard": scored if stage == "hard" else scored.iloc[:0]}
        write_frames(layout.split, sides, SPLIT_SCHEMA)
        return layout


def _shown(what: str) -> Progress:
    def show(_: str, done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"\r{what} {done}/{total}   ", end="", file=sys.stderr)

    return show


def scores_of(frame: pd.DataFrame, weights: Path | None, base: Layout) -> pd.DataFrame:
    """Score a model, or the blind matte where `weights` is None, on judged photos: a row per category."""
    store = store_of(base)
    models: Any = {} if weights is None else {("model", "float"): TorchPredictor(weights, "cpu")}
    blind = blind_mattes(frame, store) if weights is None else None
    return category_scores(score_all(frame, models, store, Params().evaluate.max_side, quiet, blind))


def write_page(rows: pd.DataFrame, path: Path) -> None:
    """Write the table of means over seeds, as MSE and as share of the blind matte's."""
    lines = []
    for names, part in rows.groupby(["regime", "judged"], sort=False):
        regime, judged = str(names).strip("()").replace("'", "").split(", ")
        blind = part[(part["arm"] == "blind") & (part["category"] == "macro")]["mse"].mean()
        lines += ["", f"**{regime}, judged on {judged}**", ""]
        lines += ["| arm | seeds | " + " | ".join(CATEGORIES) + " | macro MSE | of blind | Conn | BIoU | MaxF | s |"]
        lines += ["|---|---|" + "---|" * (len(CATEGORIES) + 6)]
        for arm, found in part.groupby("arm", sort=False):
            means: Any = found.groupby("category")[[*METRICS]].mean()
            macro = found[found["category"] == "macro"]
            spread = f" ± {macro['mse'].std(ddof=1):.4f}" if len(macro) > 1 else ""
            cells = [f"{means.loc[c, 'mse']:.4f}" for c in CATEGORIES]
            m = means.loc["macro"]
            lines.append(
                f"| {arm} | {len(macro)} | {' | '.join(cells)} | {m['mse']:.4f}{spread} | {m['mse'] / blind:.2f} | "
                f"{m['conn']:.4f} | {m['biou']:.3f} | {m['maxf']:.3f} | {macro['seconds'].mean():.0f} |"
            )
    text = path.read_text() if path.is_file() else "# How well the models see\n\n<!-- table -->\n<!-- end -->\n"
    head, tail = text.split("<!-- table -->")[0], text.split("<!-- end -->")[1]
    path.write_text(f"{head}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- end -->{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder that holds inbox and inbox_large")
    parser.add_argument("--work", type=Path, default=Path("data/bench/real_photos"))
    parser.add_argument("--regimes", nargs="+", default=["small"], choices=["small", "large"])
    parser.add_argument("--arms", nargs="+", default=["simple"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=Params().model.size)
    parser.add_argument("--steps", type=int, nargs=3, default=[320, 100, 100], help="simple, semi, multimodal")
    parser.add_argument("--unlabelled", type=int, default=0, help="of each category, from both inboxes")
    parser.add_argument("--far-photos", type=int, default=FAR_PHOTOS, help="judged far photos of each category at most")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of all arms")
    args = parser.parse_args()
    table, threads = HERE / "real_photos.csv", torch.get_num_threads()
    base = prepare(args.work, args.photos)
    learned, near, far = split_photos(catalog_frame(base, args.photos), args.far_photos)
    for regime in args.regimes:
        frames = frames_of(learned, regime, args.unlabelled)
        for seed in args.seeds:
            simple, semi, text = args.steps
            values: dict[str, Any] = {"seed": seed, "model.size": args.size, "train.simple.steps": simple}
            values |= {"train.semi.steps": semi, "train.multimodal.steps": text, "train.hard.steps": semi + text}
            values |= {"train.common.validate_every": 10**6, "train.common.replay_share": 0.0}
            values |= {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in args.set)}
            trainings = Trainings(base, frames, Params().with_values(**values), f"{regime} {seed}")
            changed = (args.unlabelled, args.far_photos) != (0, FAR_PHOTOS)
            key = digest_of([values, args.unlabelled, args.far_photos] if changed else values)[:12]
            for arm in ["blind", *args.arms]:
                done = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["key", "arm", "regime"])
                known = (done["key"] == key) & (done["arm"] == arm) & (done["regime"] == regime)
                if known.any():
                    continue
                weights = None if arm == "blind" else trainings.run(arm)
                rows = []
                for judged, frame in (("near", near), ("far", far)):
                    scores = scores_of(frame, weights, base)
                    rows += [
                        {"key": key, "regime": regime, "judged": judged, "seed": seed, "arm": arm, "category": c,
                         **scores.loc[c, [*METRICS, "images"]], "seconds": round(trainings.seconds.get(arm, 0))}
                        for c in (*CATEGORIES, "macro")
                    ]  # fmt: skip
                pd.concat([done, pd.DataFrame(rows)]).to_csv(table, index=False, float_format="%.6g")
                print(f"\r{regime} {seed} {arm}", [round(r["mse"], 4) for r in rows if r["category"] == "macro"])
    write_page(pd.read_csv(table), HERE / "real_photos.md")
    precision = choose_precision("auto", torch.device("cpu"))
    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    print(f"{HERE / 'real_photos.md'}: {cpu}, {os.cpu_count()} cores, {threads} threads, {precision}; ", end="")
    print(f"{len(frames['train_labeled'])} labelled; judged {len(near)} near, {len(far)} far; ", end="")
    print(f"numpy {np.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
