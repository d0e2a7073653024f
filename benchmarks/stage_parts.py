"""What each part of the semi-supervised and the multimodal stage is worth: one stage, one change at a time.

Starts from the models that `stage_order.py generated` left in the same `--work`; its regime, its seeds. A row per
finished training goes into benchmarks/stage_parts.csv; killed, the next call goes on after the last of them.

    python benchmarks/stage_parts.py --work FOLDER --seeds 140 143
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from stage_order import METRICS, Trainings, judged, params_of, workspace

from mm_core.core.code_digest import code_digest

HERE = Path(__file__).parent

PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "semi": {
        "as it is": {},
        "place 0": {"train.semi.place": 0.0},
        "colour 0": {"train.semi.colour": 0.0},
        "place 0, colour 0": {"train.semi.place": 0.0, "train.semi.colour": 0.0},
        "view 2": {"train.semi.view": 2.0},
        "nothing unlabelled": {"train.semi.view": 0.0, "train.semi.weight": 0.0},
    },
    "multimodal": {
        "as it is": {},
        "its photos, no text": {
            "train.multimodal.consistency": 1e-6,
            "train.multimodal.captioned": 0.0,
            "train.multimodal.contrastive": 0.0,
            "train.multimodal.distil": 0.0,
        },
    },
}
"""Stage → what is changed → params. Without weight on the consistency its photos would not be followed at all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/bench/stage_order"))
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--stages", nargs="+", default=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "stage_parts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = args.out.with_suffix(".csv")
    base = workspace(args.work / "generated")
    for stage in args.stages:
        for seed in args.seeds:
            layout = workspace(base.root / f"seed-{seed}", base)
            arm = "common/cycle/models/hard" if stage == "semi" else "semi/cycle/models/semi"
            start = layout.root / "arms" / arm / "model.safetensors"
            for part, changed in PARTS[stage].items():
                done = (
                    pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["recipe", "stage", "part", "seed"])
                )
                row = {"recipe": code_digest("mm_core.training.stage")[:8], "stage": stage, "part": part, "seed": seed}
                if (done[list(row)] == pd.Series(row)).all(axis=1).any():
                    continue
                params = params_of("generated", args.work, changed).with_values(seed=seed)
                model = Trainings(layout, params, f"{seed} {part}").step(f"part {part}", stage, start)
                row |= {metric: judged(layout, base, model).loc["macro", metric] for metric in METRICS}
                pd.concat([done, pd.DataFrame([row])]).to_csv(table, index=False, float_format="%.6g")
                print(f"\r{row}")
    rows = pd.read_csv(table)
    write(rows.loc[rows["recipe"] == code_digest("mm_core.training.stage")[:8], :], args.out.with_suffix(".md"))


def write(rows: pd.DataFrame, out: Path) -> None:
    lines = [
        "# Parts of the semi-supervised and the multimodal stage, one at a time",
        "",
        "Runner: `benchmarks/stage_parts.py`, after `benchmarks/stage_order.py generated` in the same folder and in",
        f"its regime; seeds {', '.join(map(str, sorted(rows['seed'].unique())))}. Macro over the six categories, eval",
        "photos. Each stage once, from the same weights in all rows of its table.",
    ]
    for stage, of_stage in rows.groupby("stage", sort=False):
        lines += [
            "",
            f"## {stage}",
            "",
            "| | MSE by seed | against as it is | BIoU | MaxF | Conn |",
            "|---|---|---|---|---|---|",
        ]
        whole = of_stage[of_stage["part"] == "as it is"].set_index("seed")["mse"]
        for part, own in of_stage.groupby("part", sort=False):
            own = own.set_index("seed")
            change = 100 * (own["mse"] / whole - 1)
            by_seed = ", ".join(f"{value:.4f}" for value in own["mse"])
            against = "" if part == "as it is" else ", ".join(f"{value:+.1f} %" for value in change.dropna())
            lines.append(
                f"| {part} | {by_seed} | {against} | " + " | ".join(f"{own[m].mean():.3f}" for m in METRICS[1:]) + " |"
            )
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
