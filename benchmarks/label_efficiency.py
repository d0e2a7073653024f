"""How many labels does each way of choosing photos need for the same error? Generated samples.

The unlabelled pool is like a phone's gallery: a few categories make up most of it, most scenes are easy, and many are
bursts of near-identical photos that nobody declared as groups. Error is the mean MSE of the six categories on photos of
scenes of their own, the same number of each category, half of them hard. Every arm starts from the same few randomly
drawn labels, adds photos round by round, and trains the same network anew from the same seeds with the project's own
loop, augmentation and category balance, for as many steps as any other arm with that many labels. Every error is the
mean over several trainings. Where ours asks which category is weak, it is told by further
photos that no arm trains or is judged on.

    python benchmarks/label_efficiency.py --work data/bench/label_efficiency --minutes 60

Every finished training is a row of <work>/runs-<categories>.csv: killed or out of minutes, the same command goes on.
Writes benchmarks/label_efficiency.md and .csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.isotonic import IsotonicRegression

from mm_core.core.params import CommonTrainParams, LossParams, ModelParams, StageParams, StructureParams
from mm_core.core.records import CATEGORIES, decoder_of
from mm_core.eval.blind import BlindMattes
from mm_core.eval.rows import eval_rows
from mm_core.imaging.pixel_cache import Pool, rng_of
from mm_core.labeling.need import LEAST, MOST
from mm_core.labeling.selection import Looked, choose, spread_out
from mm_core.labeling.signals import UNCERTAINTY, look
from mm_core.model.files import save_model
from mm_core.model.network import build_model
from mm_core.model.predict import TorchPredictor
from mm_core.structuring.category_guess import LearnedGuesser
from mm_core.structuring.embedding import embedding
from mm_core.training.supervised import Supervised
from mm_core.training.trainer import Setup, fit
from samplegen.render import generate

HERE = Path(__file__).parent
SIZE = 64
SHARES = {
    "portrait": 0.40, "delicacy": 0.22, "multi_person": 0.14, "accessories": 0.10, "pets": 0.09, "cards": 0.05,
}  # fmt: skip
"""Of the gallery's scenes."""
HARD_SHARE, BURST_SHARE, LONGEST_BURST = 0.15, 0.5, 9
TARGET = 0.7
ARMS = ("ours", "uncertainty", "random")
MODEL = ModelParams(pretrained="", encoder="test_efficientnet", size=SIZE, width=16)


@dataclass(frozen=True)
class Gallery:
    """Photos with their exact mattes, scenes and categories."""

    frame: pd.DataFrame
    """sample_id, category, decoder, scene, mode."""
    photos: np.ndarray
    """uint8 (N, SIZE, SIZE, 3)."""
    alphas: np.ndarray
    """uint8 (N, SIZE, SIZE)."""
    vectors: np.ndarray
    """float32 (N, D), the embedding of structuring."""


def draw(rows: list[tuple[str, int, int, str]], place: Path) -> Gallery:
    """Generates (category, seed, variant, mode) rows once; later calls read the file."""
    if not place.is_file():
        made = [generate(c, s, size=SIZE, mode=m, variant=v) for c, s, v, m in rows]
        photos, alphas = np.stack([g.image for g in made]), np.stack([g.alpha for g in made])
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as stream:
            np.savez(stream, photos=photos, alphas=np.rint(alphas * 255).astype(np.uint8))
        Path(stream.name).replace(place)
    with np.load(place) as held:
        photos, alphas = held["photos"], held["alphas"]
    frame = pd.DataFrame(rows, columns=["category", "seed", "variant", "mode"])
    frame["scene"] = [f"{c}-{s}" for c, s in zip(frame["category"], frame["seed"], strict=True)]
    frame["sample_id"] = [f"{scene}-{v}" for scene, v in zip(frame["scene"], frame["variant"], strict=True)]
    frame["alpha_sha256"], frame["label_binary"], frame["caption"] = frame["sample_id"], False, None
    frame["decoder"] = [decoder_of(c) for c in frame["category"]]
    return Gallery(frame, photos, alphas, np.stack([embedding(p) for p in photos]))


def gallery(seed: int, photos: int, work: Path) -> Gallery:
    rng = np.random.default_rng([seed, 1])
    rows: list[tuple[str, int, int, str]] = []
    names, shares = list(SHARES), np.array(list(SHARES.values()))
    scene = 100_000 * (seed + 1)
    while len(rows) < photos:
        category = str(rng.choice(names, p=shares))
        length = 2 + min(int(rng.geometric(0.25)), LONGEST_BURST - 2) if rng.random() < BURST_SHARE else 1
        mode = "hard" if rng.random() < HARD_SHARE else "easy"
        scene += 1
        rows += [(category, scene, variant, mode) for variant in range(length)]
    return draw(rows[:photos], work / f"pool-{seed}-{photos}.npz")


def held_out(name: str, first: int, each: int, work: Path) -> Gallery:
    rows = [(c, first + n, 0, ("easy", "hard")[n % 2]) for c in CATEGORIES for n in range(each)]
    return draw(rows, work / f"{name}-{each}.npz")


def blind_errors(judged: Gallery) -> dict[str, float]:
    """Return the MSE of each category's blind matte, the mean of the other judged mattes (`mm_core.eval.blind`)."""
    rows = eval_rows(judged.frame.assign(group=judged.frame["scene"]))
    mattes = judged.alphas.astype(np.float32) / 255
    blind = BlindMattes(rows, mattes)
    errors = [float(np.square(blind.predict(row, SIZE, SIZE) - a).mean()) for row, a in zip(rows, mattes, strict=True)]
    return {c: float(np.mean(np.array(errors)[judged.frame["category"] == c])) for c in CATEGORIES}


class Learner:
    """The model of one round, and what it says."""

    def __init__(self, pool: Gallery, chosen: list[int], seed: int, steps: int, lr: float):
        ids = pool.frame["sample_id"].to_numpy()
        cache: Any = SimpleNamespace(
            size=SIZE, photos={i: pool.photos[n] for n, i in enumerate(ids)},
            mattes={i: pool.alphas[n] for n, i in enumerate(ids)},
        )  # fmt: skip
        net = build_model(MODEL, seed)
        common = CommonTrainParams(precision="fp32", ema=0.98)
        strategy = Supervised(
            net, {"labeled": [(Pool(pool.frame.iloc[chosen], cache, seed, "labels"), common.batch)]}, LossParams()
        )
        with tempfile.TemporaryDirectory() as folder:
            result = fit(
                strategy,
                Setup(StageParams(steps=steps, lr=lr), common, seed, Path(folder) / "state.pt", torch.device("cpu")),
                lambda net: {},
            )
            net.load_state_dict(result.weights)
            save_model(Path(folder) / "model.safetensors", net, {"stage": "benchmark"})
            self.predictor = TorchPredictor(Path(folder) / "model.safetensors", "cpu", batch=32)

    def errors(self, judged: Gallery) -> dict[str, float]:
        """MSE of each category."""
        mattes = np.stack(self.predictor.predict(list(judged.photos), list(judged.frame["decoder"])))
        squared = np.square(mattes - judged.alphas / 255.0).mean((1, 2))
        return {c: float(squared[(judged.frame["category"] == c).to_numpy()].mean()) for c in CATEGORIES}

    def signals(self, pool: Gallery, rows: np.ndarray, categories: list[str | None]) -> Any:
        found = []
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            decoders = [decoder_of(c) for c in categories[start : start + 64]]
            found += look([pool.photos[n] for n in part], decoders, self.predictor)
        return pd.DataFrame(found)


def guessed(pool: Gallery, chosen: list[int], rows: np.ndarray) -> list[str | None]:
    """What structuring would say of each photo's category, from the labelled ones."""
    frame = pool.frame.iloc[chosen]
    guesses = LearnedGuesser(pool.vectors[chosen], list(frame["category"]), list(frame["scene"])).guess(
        pool.vectors[rows]
    )
    sure = StructureParams().guess_confidence
    return [g.category if g and g.confidence >= sure else None for g in guesses]


def pick(
    arm: str, learner: Learner, galleries: tuple[Gallery, Gallery], chosen: list[int], count: int, args: Any
) -> list[int]:
    """The next rows of the pool (the first gallery) that an arm has labelled; the second gallery shows its errors."""
    pool, dev = galleries
    free = np.setdiff1d(np.arange(len(pool.frame)), chosen)
    if arm == "random":
        return rng_of(args.seed, "random", len(chosen)).choice(free, count, replace=False).tolist()
    known = pool.frame["category"].tolist()
    if arm == "uncertainty":
        categories = [known[n] for n in free] if args.categories == "known" else guessed(pool, chosen, free)
        signals = learner.signals(pool, free, categories)
        score = signals[list(UNCERTAINTY)].rank(pct=True).mean(axis=1).to_numpy()
        return free[np.argsort(-score, kind="stable")[:count]].tolist()
    errors = learner.errors(dev)
    mean = float(np.mean(list(errors.values())))
    need = {c: float(np.clip(e / mean, LEAST, MOST)) for c, e in errors.items()}
    if args.categories == "known":
        said: list[str | None] = [known[n] for n in free]
    else:
        said = guessed(pool, chosen, free)
    ids = pool.frame["sample_id"].iloc[free].tolist()
    seen = spread_out(ids, said, pool.vectors[free], need, args.look, args.seed)
    rows, categories = free[seen], [said[n] for n in seen]
    signals = learner.signals(pool, rows, categories)
    looked = pd.DataFrame(
        {
            "sample_id": pool.frame["sample_id"].iloc[rows].to_numpy(), "category": categories,
            "group": pool.frame["sample_id"].iloc[rows].to_numpy(), "seen": False, "feedback": False,
        }
    )  # fmt: skip
    parts = {"uncertainty": signals[list(UNCERTAINTY)], "difficulty": signals[["matte_difficulty"]]}
    left_out = arm.removeprefix("ours").removeprefix("-")
    parts.pop(left_out, None)
    vectors = pool.vectors[rows] * (np.nan if left_out == "diversity" else 1)
    if left_out == "need":
        looked["category"], need = None, {}
    found = choose(Looked(looked, vectors, pool.vectors[chosen]), parts, need, budget=count, seed=args.seed)
    row_of = dict(zip(looked["sample_id"], rows, strict=True))
    return [int(row_of[i]) for i in found["sample_id"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/bench/label_efficiency"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14, 15])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--pool", type=int, default=1200)
    parser.add_argument("--each", type=int, default=60, help="photos judged per category")
    parser.add_argument("--rounds", type=int, nargs="+", default=[24, 48, 96, 192], help="labels")
    parser.add_argument("--steps", type=int, default=160, help="of a training, at least")
    parser.add_argument("--steps-per-label", type=int, default=2)
    parser.add_argument("--trainings", type=int, default=2, help="from other seeds, averaged")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--look", type=int, default=360)
    parser.add_argument("--categories", choices=["known", "guessed"], default="known")
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    runs = args.work / f"runs-{args.categories}.csv"
    judged, dev = held_out("judged", 90_000, args.each, args.work), held_out("dev", 80_000, 16, args.work)
    for seed in args.seeds:
        args.seed = seed
        pool = gallery(seed, args.pool, args.work)
        first = rng_of(seed, "first").choice(len(pool.frame), args.rounds[0], replace=False).tolist()
        for arm in args.arms:
            chosen = first
            for goal, then in zip(args.rounds, [*args.rounds[1:], None], strict=True):
                scored = read(runs, arm if goal > len(first) else None, seed, "score", goal)
                following = read(runs, arm, seed, "pick", then) if then else chosen
                if scored is None or following is None:
                    if time.monotonic() - began > 60 * args.minutes:
                        print("out of minutes: run again", flush=True)
                        return
                    steps = max(args.steps, args.steps_per_label * goal)
                    learner = Learner(pool, chosen, seed, steps, args.lr)
                    if scored is None:
                        others = (
                            Learner(pool, chosen, seed + 1000 * n, steps, args.lr) for n in range(1, args.trainings)
                        )
                        found = [one.errors(judged) for one in (learner, *others)]
                        errors = {c: float(np.mean([each[c] for each in found])) for c in CATEGORIES}
                        row = {"macro": float(np.mean(list(errors.values()))), "chosen": json.dumps(chosen)} | errors
                        row["scenes"] = pool.frame["scene"].iloc[chosen].nunique()
                        append(runs, {"arm": arm, "seed": seed, "what": "score", "labels": goal} | row)
                        print(f"{time.monotonic() - began:5.0f} s", arm, seed, goal, f"{row['macro']:.4f}", flush=True)
                    if following is None:
                        following = chosen + pick(arm, learner, (pool, dev), chosen, then - goal, args)
                        row = {"arm": arm, "seed": seed, "what": "pick", "labels": then}
                        append(runs, row | {"chosen": json.dumps(following)})
                chosen = following
    print("complete", flush=True)
    write(args, blind_errors(judged))


def crossing(labels: np.ndarray, errors: Any, wanted: float) -> float:
    """Labels at which the falling curve through (labels, errors) reaches an error; inf where it does not.

    The curve is the isotonic fit over log labels, straight between its points: noise alone makes no crossing.
    """
    fitted = IsotonicRegression(increasing=False).fit_transform(np.log(labels), errors)
    below = np.flatnonzero(fitted <= wanted + 1e-12)
    if not len(below):
        return float("inf")
    n = int(below[0])
    if n == 0:
        return float(labels[0])
    along = (fitted[n - 1] - wanted) / (fitted[n - 1] - fitted[n])
    return float(np.exp(np.log(labels[n - 1]) + along * np.log(labels[n] / labels[n - 1])))


def curves(runs: Path) -> Any:
    """Scores of all arms; the first round, which all share, counts for each."""
    table: Any = pd.read_csv(runs).query("what == 'score'")
    first = table[table["labels"] == table["labels"].min()]
    arms = sorted(set(table["arm"]))
    copies = [first.assign(arm=arm) for arm in arms]
    return pd.concat([table[table["labels"] > table["labels"].min()], *copies]).sort_values(["arm", "seed", "labels"])


def write(args: argparse.Namespace, blind: dict[str, float]) -> None:
    shares = ", ".join(f"{category} {share:.0%}" for category, share in SHARES.items())
    lines = [
        "# Labels needed for the same error: ours, uncertainty only, random (generated samples)",
        "",
        f"Runner: `benchmarks/label_efficiency.py`. Seeds, each a gallery of its own of {args.pool}"
        f" photos ({shares} of the scenes; {HARD_SHARE:.0%} of them hard; {BURST_SHARE:.0%} bursts of 3 to"
        f" {LONGEST_BURST}, undeclared) and the same {args.rounds[0]} random labels to begin with; judged on"
        f" {args.each} other photos of each category, half of them hard. {MODEL.encoder} of width {MODEL.width} at"
        f" {SIZE} px, from scratch in every round, {args.steps} steps of 8 or {args.steps_per_label} per label, the"
        f" larger; each error is the mean of {args.trainings} trainings. Ours looks at {args.look} photos, uncertainty"
        " at all. Seeds, steps and trainings were fixed before any arm but random was seen.",
        "",
        f"The blind matte (the mean matte of the category, whatever the photo shows) has an error of"
        f" {np.mean(list(blind.values())):.4f} on the same photos. An arm above it has learnt less than the usual place"
        " of a subject: the table compares the choice of labels, not models that are of use.",
        "",
    ]
    tables = []
    for how, said in (("known", "the manifest says each photo's category"), ("guessed", "guessed by structuring")):
        runs = args.work / f"runs-{how}.csv"
        if runs.is_file():
            table = curves(runs)
            tables.append(table.assign(categories=how).drop(columns=["what", "chosen"]))
            lines += [f"## Categories: {said}", "", *section(table, blind)]
    (HERE / "label_efficiency.md").write_text("\n".join(lines))
    pd.concat(tables).to_csv(HERE / "label_efficiency.csv", index=False, float_format="%.6g")


def section(scores: Any, blind: dict[str, float]) -> list[str]:
    table: Any = scores
    arms = list(dict.fromkeys(a for a in (*ARMS, *table["arm"]) if a in set(table["arm"])))
    table = table[table.groupby(["arm", "seed"])["labels"].transform("size") == table["labels"].nunique()]
    of: dict[str, set[int]] = {a: set(table.loc[table["arm"] == a, "seed"]) for a in arms}
    table = table[table["seed"].isin(of["ours"] & of["random"])]
    of = {a: set(table.loc[table["arm"] == a, "seed"]) for a in arms}
    named = [a if of[a] == of["random"] else f"{a} ({len(of[a])} seeds)" for a in arms]
    means = table.groupby(["arm", "labels"])["macro"].agg(["mean", "std"])
    counts = sorted(table["labels"].unique())
    lines = [f"MSE, mean of the six categories, mean ± standard deviation over {len(of['random'])} seeds:", ""]
    lines += ["| labels | " + " | ".join(named) + " | ours / random |", "|---|" + "---|" * (len(arms) + 1)]
    for count in counts:
        cells = [f"{means.loc[(a, count), 'mean']:.4f} ± {means.loc[(a, count), 'std']:.4f}" for a in arms]
        ratio = means.loc[("ours", count), "mean"] / means.loc[("random", count), "mean"]
        lines.append(f"| {count} | " + " | ".join(cells) + f" | {ratio:.2f} |")
    lines += ["", "A row is the controlled comparison: the same number of labels, everything else equal.", ""]
    lines += ["Labels needed for the error that random reaches with all of its labels (isotonic fit, log labels):", ""]
    lines += ["| arm | mean curve | share of random's | seed by seed |", "|---|---|---|---|"]
    x = np.array(counts, float)

    def needed(arm: str, seed: int | None, of_arm: str | None = None) -> float:
        """Labels of an arm for random's last error: in one seed, or on the mean of the seeds that `of_arm` has."""
        rows, peers = (table[table["arm"] == a] for a in (arm, "random"))
        which = of[arm if of_arm is None else of_arm] if seed is None else {seed}
        rows, peers = rows[rows["seed"].isin(which)], peers[peers["seed"].isin(which)]
        mine, other = (part.groupby("labels")["macro"].mean().to_numpy() for part in (rows, peers))
        return crossing(x, mine, float(IsotonicRegression(increasing=False).fit_transform(np.log(x), other)[-1]))

    seeds = sorted(of["random"])
    for arm in arms:
        own, reference = needed(arm, None), needed("random", None, of_arm=arm)
        each = [needed(arm, s) / needed("random", s) for s in sorted(of[arm])]
        shown = ["not reached" if not np.isfinite(v) else f"{v:.0%}" for v in (own / reference, *each)]
        count = f"{own:.0f}" if np.isfinite(own) else "not reached"
        lines.append(f"| {arm} | {count} | {shown[0]} | {', '.join(shown[1:])} |")
    ratios = [needed("ours", s) / needed("random", s) for s in seeds]
    won = sum(
        float(table.query("arm == 'ours' and seed == @s and labels == @n")["macro"].iloc[0])
        < float(table.query("arm == 'random' and seed == @s and labels == @n")["macro"].iloc[0])
        for s in seeds
        for n in counts[1:]
    )
    lines += [
        "",
        f"The target, at most {TARGET:.0%} of random's labels: on the mean curve"
        f" {'met' if needed('ours', None) <= TARGET * needed('random', None) else 'missed'}, in"
        f" {sum(r <= TARGET for r in ratios)} of {len(seeds)} seeds taken alone. With as many labels ours has"
        f" the smaller error in {won} of {len(seeds) * (len(counts) - 1)} pairs. A single training scatters by about as"
        " much as neighbouring rows differ, so one seed alone says little, and the last rows of a curve may rise.",
    ]
    last = table[table["labels"] == counts[-1]].groupby("arm")
    lines += ["", f"With {counts[-1]} labels, MSE by category, and how many different scenes were labelled:", ""]
    lines += ["| arm | " + " | ".join(CATEGORIES) + " | scenes |", "|---|" + "---|" * 7]
    for arm in arms:
        row = last[[*CATEGORIES, "scenes"]].mean().loc[arm]
        lines.append(f"| {arm} | " + " | ".join(f"{row[c]:.4f}" for c in CATEGORIES) + f" | {row['scenes']:.0f} |")
    lines.append("| blind | " + " | ".join(f"{blind[c]:.4f}" for c in CATEGORIES) + " | 0 |")
    return [*lines, ""]


def read(runs: Path, arm: str | None, seed: int, what: str, labels: int) -> list[int] | None:
    """The rows of the pool that a finished step of an arm (None: of any arm) is about; None where it is not done."""
    if not runs.is_file():
        return None
    table: Any = pd.read_csv(runs).query("seed == @seed and what == @what and labels == @labels")
    table = table if arm is None else table[table["arm"] == arm]
    return json.loads(table["chosen"].iloc[0]) if len(table) else None


def append(runs: Path, row: dict[str, Any]) -> None:
    names = ["arm", "seed", "what", "labels", "macro", *CATEGORIES, "scenes", "chosen"]
    with runs.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        if not stream.tell():
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
