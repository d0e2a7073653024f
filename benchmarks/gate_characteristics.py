"""How often does the gate promote what is no gain, and miss what is? Four rules side by side, and a year of weeks.

    python benchmarks/gate_characteristics.py --runs 400 --years 20
    python benchmarks/gate_characteristics.py --per-image data/cycle/evaluation/per_image.parquet

Simulated retrainings (mm_core/eval/simulate.py) judged by the gate's own code at the default params. Writes
benchmarks/gate_characteristics.md and .csv; lines that stand in the csv with as many runs are not made again. With
--per-image the noise is that of the table's candidate and champion, and the table is printed instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mm_core.core.params import GateParams
from mm_core.eval.bootstrap import Quantity, confidence, softened, student
from mm_core.eval.evidence import CHAMPION, INT8
from mm_core.eval.simulate import HEAVY, RULES, SIX, World, pairs_of, photos_needed, rates, settling, year

HERE = Path(__file__).parent
CSV, PAGE = HERE / "gate_characteristics.csv", HERE / "gate_characteristics.md"
WORLDS = {"mild": World(), "heavy": HEAVY}
FIVE: dict[str, float] = dict.fromkeys(SIX, 0.2)
CASES: dict[str, dict[str, float]] = {
    "no-op retrain": {},
    "-5 % in one, +20 % in five": FIVE | {"cards": -0.05},
    "no gain in one, +20 % in five": FIVE | {"cards": 0.0},
    "+5 % in all six": dict.fromkeys(SIX, 0.05),
    "+10 % in all six": dict.fromkeys(SIX, 0.1),
    "+20 % in all six": dict.fromkeys(SIX, 0.2),
}
HALVED = GateParams(margins={"mse": 0.05, "maxf": 0.01, "biou": 0.015, "conn": 0.05})
COLUMNS = ["part", "world", "case", "photos", "runs", *RULES]


def lines(runs: int, years: int) -> Iterator[dict]:
    """What is asked, one dict per line of the table."""
    for world in WORLDS:
        for photos in (16, 60, 150):
            for case in CASES:
                yield {"part": "rates", "world": world, "case": case, "photos": photos, "runs": runs}
        yield {"part": "year", "world": world, "case": "+1 % a week", "photos": 150, "runs": years}
        for photos in (16, 30, 60):
            yield {
                "part": "level",
                "world": world,
                "case": "one category, no gain",
                "photos": photos,
                "runs": 10 * runs,
            }
    for case in ("-5 % in one, +20 % in five", "+10 % in all six"):
        yield {"part": "halved margins", "world": "mild", "case": case, "photos": 60, "runs": runs}
    for gain in (5, 10):
        yield {"part": "settling", "world": "mild", "case": f"+{gain} %", "photos": 60, "runs": runs}


def measure(line: dict) -> dict[str, float]:
    params, world = GateParams(), replace(WORLDS[line["world"]], photos=line["photos"])
    seed, runs, part = line["photos"], line["runs"], line["part"]
    if part == "year":
        found = {}
        for rule in ("gate", "primary"):
            some = runs if rule == "gate" else max(1, runs // 4)
            found[rule] = float(np.mean([year(params, world, 0.01, seed + run, rule=rule)[0] for run in range(some)]))
        return found
    if part == "level":
        return level(world, runs, seed)
    if part == "settling":
        found = settling(params, world, float(line["case"].split()[0]) / 100, runs, seed)
        return {"gate": found["unclear"], "primary": found["numbered"], "point": found["settled"]}
    if part == "halved margins":
        return rates(HALVED, world, CASES[line["case"]], runs, seed, rules=("gate",))
    return rates(params, world, CASES[line["case"]], runs, seed)


def level(world: World, runs: int, seed: int) -> dict[str, float]:
    """Share of bounds above zero where there is no gain, at nominal 5 %: `gate`, Student on softened errors; `primary`,
    the bootstrap of the plain mean; `point`, Student on the plain mean."""
    from mm_core.eval.simulate import Photos

    rng, wrong = np.random.default_rng(seed), np.zeros(3)
    for run in range(runs):
        photos = Photos(world, SIX[0], rng)
        one, other = (photos.model(1.0)["mse"][:, 0] for _ in range(2))
        plain = Quantity(((1.0, (other - one)[:, None]),))
        soft = Quantity(((1.0, softened(one, other, 1e-4)[:, None]),))
        names = np.arange(len(one))
        wrong[0] += student([soft], names, alpha=0.05)[0].lower > 0
        wrong[2] += student([plain], names, alpha=0.05)[0].lower > 0
        if run < runs // 4:
            wrong[1] += confidence([plain], names, alpha=0.05, resamples=1000, rng=rng)[0].lower > 0
    return {"gate": wrong[0] / runs, "primary": wrong[1] / (runs // 4), "point": wrong[2] / runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="retrainings per line")
    parser.add_argument("--years", type=int, default=20)
    parser.add_argument("--per-image", type=Path, help="a per_image.parquet with candidate and champion")
    args = parser.parse_args()
    if args.per_image:
        return of_table(args.per_image, args.runs)
    done = pd.read_csv(CSV) if CSV.exists() else pd.DataFrame(columns=COLUMNS)
    keys = COLUMNS[:4]
    for line in lines(args.runs, args.years):
        stands = (done[keys] == [line[key] for key in keys]).all(axis=1) & (done["runs"] >= line["runs"])
        if not stands.any():
            found = line | measure(line)
            print(found, file=sys.stderr, flush=True)
            done = pd.concat([done, pd.DataFrame([found])], ignore_index=True)
            done.to_csv(CSV, index=False, float_format="%.4g")
            write(done)
    write(done)


def of_table(path: Path, runs: int) -> None:
    """The same cases with the noise of a real evaluation."""
    pairs = pairs_of(pd.read_parquet(path), INT8, CHAMPION)
    print(pd.DataFrame(photos_needed(GateParams(), pairs)).to_string(index=False))
    world = World(pairs=pairs)
    for photos in (60, 150):
        for case, gains in CASES.items():
            found = rates(GateParams(), replace(world, photos=photos), gains, runs, photos)
            print(photos, case, {rule: round(share, 3) for rule, share in found.items()}, flush=True)


def table(done: pd.DataFrame, part: str, columns: dict[str, str], unit: float = 100) -> str:
    rows: Any = done[done["part"] == part]
    head = ["noise", "case", "photos", "runs", *columns.values()]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows.to_dict("records"):
        shown = [f"{unit * row[name]:.3g}" + (" %" if unit == 100 else "") for name in columns]
        text.append("| " + " | ".join([row["world"], row["case"], f"{row['photos']}", f"{row['runs']}", *shown]) + " |")
    return "\n".join(text)


def write(done: pd.DataFrame) -> None:
    rules = {"gate": "new rule", "primary": "old rule", "point": "point rule", "threshold": "TFMA-like"}
    levels = {"gate": "softened, Student", "primary": "plain, bootstrap", "point": "plain, Student"}
    settled = {"gate": "unclear", "primary": "told a number", "point": "settled by it"}
    PAGE.write_text(f"""# Operating characteristics of the gate

The default rule (`gate.mode: macro`) promotes a true gain several times as often as the rule of `primary`, and a loss
of 5 % in one category hardly more often than its level of 5 % (docs/decisions/0025).

Run: `benchmarks/gate_characteristics.py`. Photos' errors are drawn by formula (mean MSE 0.05, log-normal): mild, where
errors of two trainings correlate to 0.88; heavy, to 0.8, where a tenth of the photos makes four tenths of the error.
With `--per-image` the noise is that of a real evaluation. TFMA-like: every mean better by 1 %.

{table(done, "rates", rules)}

A year of weekly retrainings, each 1 % better than the week before, 150 photos a category; mean number of promotions:

{table(done, "year", {"gate": "new rule", "primary": "old rule"}, 1)}

Level: share of bounds above zero where there is no gain, 5 % is nominal:

{table(done, "level", levels)}

Margins of maxf 0.01, biou 0.015 and conn 0.05, half of those before, under the new rule:

{table(done, "halved margins", {"gate": "new rule"})}

The photos that an INCONCLUSIVE cell asks for (80 % is aimed at, were the gain seen the true one):

{table(done, "settling", settled)}

What this does not show: the noise of the user's own models. `mm gate simulate` reads it off the last evaluation.
""")


if __name__ == "__main__":
    main()
