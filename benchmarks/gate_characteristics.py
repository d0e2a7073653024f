"""How often does the gate promote what is no gain, and miss what is? Beside two rules in common use.
And do the photos that INCONCLUSIVE asks for settle it?

    python benchmarks/gate_characteristics.py --runs 10000 --runs-power 1000

Simulated retrainings (mm_core/eval/simulate.py) judged by the gate's own code at the default params. Writes
benchmarks/gate_characteristics.md and .csv, gate_settling.csv.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mm_core.eval.gate import SETTLED
from mm_core.eval.simulate import RESAMPLES, RULES, THRESHOLD, World, rates, settling
from mm_core.params import GateParams
from mm_core.records import CATEGORIES

HERE = Path(__file__).parent
FIVE: dict[str, float] = dict.fromkeys(map(str, CATEGORIES), 0.2)
NULLS: dict[str, dict[str, float]] = {
    "no-op retrain (no gain in any category)": {},
    "no-op in one category, +20 % in five": FIVE | {"cards": 0.0},
    "-5 % in one category, +20 % in five": FIVE | {"cards": -0.05},
}
CSV, SETTLING_CSV = HERE / "gate_characteristics.csv", HERE / "gate_settling.csv"
SETTLING = ["photos", "gain", "runs", "unclear", "numbered", "median_more", "settled"]
KEYS = ["world", "case", "photos", "runs"]
GAINS = {f"+{100 * g:.0f} % in all six": dict.fromkeys(map(str, CATEGORIES), g) for g in (0.05, 0.1, 0.2, 0.3, 0.4)}
WORLDS = {
    "single photos": World(),
    "bursts of 4": World(burst=4),
    "restless retraining": World(retraining=0.5),
}


def case(job: tuple[str, str, int, int]) -> dict:
    """One line of the table."""
    world, name, photos, runs = job
    start = time.perf_counter()
    found = rates(GateParams(), replace(WORLDS[world], photos=photos), (NULLS | GAINS)[name], runs, seed=photos)
    print(
        f"{world}, {name}, {photos} photos: {found}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
    )
    return {"world": world, "case": name, "photos": photos, "runs": runs, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="per line of regressions; no-ops a fifth")
    parser.add_argument("--runs-power", type=int, default=500, help="retrainings per line of true gains")
    parser.add_argument("--photos", type=int, nargs="*", default=[16, 32, 64, 128])
    args = parser.parse_args()
    *others, regression = NULLS
    jobs = [("single photos", regression, n, args.runs) for n in args.photos]
    jobs += [("single photos", name, n, args.runs // 5) for name in others for n in args.photos]
    jobs += [(w, name, 64, args.runs // 5) for w in list(WORLDS)[1:] for name in list(NULLS)[1:]]
    jobs += [("single photos", name, n, args.runs_power) for name in GAINS for n in args.photos]
    # Lines that stand in the csv with as many runs are not made again.
    done, asked = (table_of(path, columns) for path, columns in ((CSV, [*KEYS, *RULES]), (SETTLING_CSV, SETTLING)))
    for photos, gain in [(n, g) for n in args.photos[:3] for g in (0.05, 0.1, 0.2)]:
        line = {"photos": photos, "gain": gain}
        if not stands(asked, line, args.runs_power):
            found = settling(GateParams(), World(photos=photos), gain, args.runs_power, seed=photos)
            asked = pd.concat([asked, pd.DataFrame([line | {"runs": args.runs_power} | found])], ignore_index=True)
            asked.to_csv(SETTLING_CSV, index=False, float_format="%.5g")
            write(done, asked)
    for job in jobs:
        if not stands(done, dict(zip(KEYS[:3], job, strict=False)), job[3]):
            done = pd.concat([done, pd.DataFrame([case(job)])], ignore_index=True)
            done.to_csv(CSV, index=False, float_format="%.5g")
            write(done, asked)
    write(done, asked)


def stands(table: pd.DataFrame, line: dict, runs: int) -> bool:
    """Whether the table has this line from at least as many runs."""
    return bool(((table[list(line)] == list(line.values())).all(axis=1) & (table["runs"] >= runs)).any())


def table_of(path: Path, columns: list[str]) -> pd.DataFrame:
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def write(table: pd.DataFrame, asked: pd.DataFrame) -> None:
    params = GateParams()
    noops = table.loc[table["case"] == list(NULLS)[0], :]
    if noops.empty:
        return
    noop = noops.sort_values("photos").iloc[-1]
    yearly = {rule: 1 - (1 - float(noop[rule])) ** 52 for rule in RULES}
    shown = "\n".join(
        f"| {r.world} | {r.case} | {r.photos} | {r.runs} | "
        + " | ".join(f"{100 * getattr(r, rule):.2f} %" for rule in RULES)
        + " |"
        for r in table.itertuples()
    )
    settled = "\n".join(
        f"| {100 * r.gain:.0f} % | {r.photos} | {r.runs} | {100 * r.unclear:.0f} % | {100 * r.numbered:.0f} % | "
        f"{r.median_more:.0f} | {100 * r.settled:.0f} % |"
        for r in asked.itertuples()
    )
    lines = f"""# Operating characteristics of the gate

Runner: `benchmarks/gate_characteristics.py`, on {platform.machine()}, Python {platform.python_version()}. Simulated
retrainings, judged at the default params (primary {params.primary}, alpha {params.alpha}, delta {params.delta}, guard
{params.guard} at level {params.guard_alpha}) by the gate's own code with {RESAMPLES} resamples a cell. `point`: every
mean better. `threshold`: every mean better by {100 * THRESHOLD:.0f} % (as TFMA's GenericChangeThreshold asks of means).
Figures: share promoted. Photo errors are log-normal around a log-normal difficulty that the models share
(mm_core/eval/simulate.py, `World`): no claim about any one data set.

| world | case | photos per category | runs | gate | point | threshold |
|---|---|---|---|---|---|---|
{shown}

A year of weekly no-op retrainings ({noop["photos"]} photos) promotes at least one with {100 * yearly["point"]:.0f} %
under the point rule, {100 * yearly["threshold"]:.0f} % under the threshold rule, {100 * yearly["gate"]:.2f} % under the
gate.

## The photos that INCONCLUSIVE asks for

Where a cell is not settled the verdict says how many more photos would settle it in {100 * SETTLED:.0f} % of cases,
were the gain seen the true one (`more_photos` in mm_core/eval/gate.py). Here as many more are drawn from the same world
and the cell is judged again; one category, the primary metric against the champion. The gain seen is luckier than the
true one where that is small, so that too few are asked for then; numbers beyond 100 times the photos at hand count as
not settled.

| true gain | photos | retrainings | unclear | of those told a number | median number | of those settled by it |
|---|---|---|---|---|---|---|
{settled}
"""
    (HERE / "gate_characteristics.md").write_text(lines)


if __name__ == "__main__":
    main()
