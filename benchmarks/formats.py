"""What do the three int8 formats cost and give? Size, latency against float torch eager, scores per category.

    make demo formats
    python -m benchmarks.formats --workspace data/demo

Makes the files of the demo's champion as `mm evaluate` and `mm export` do, and those of the same weights at the default
input size; scores every file on the eval set in a fresh process with its format's runtime; times files and torch in
turns. What was made is kept in `--work`: killed, the next run goes on. Writes benchmarks/formats.md and .csv.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.catalog_scale import processor
from mm_core.core.layout import Layout
from mm_core.core.params import ExportParams, ModelParams, Params
from mm_core.core.records import CATEGORIES, DECODERS, Report, write_json
from mm_core.core.settings import Settings
from mm_core.eval.metrics import TruthMatte, category_scores
from mm_core.eval.scoring import blind_mattes, load_item
from mm_core.export.float_reference import float_alphas, served
from mm_core.export.formats.convert import convert
from mm_core.export.formats.run import SUFFIX, run_file
from mm_core.export.quantise import quantise
from mm_core.export.registry import Registry
from mm_core.ingest.snapshot import read_pool
from mm_core.model.files import load_model, save_model
from mm_core.model.preprocess import finish, prepare
from mm_core.storage.run import StorageRun, store_of
from mm_core.storage.store import fetch_blob

HERE = Path(__file__).parent
FORMATS = tuple(SUFFIX)
TIMED = "portrait"
"""The decoder whose files are timed: the three are of one shape."""


def made_files(
    model: Path, source: Layout, work: Path, decoders: tuple[str, ...], **changed: float
) -> tuple[Layout, dict[str, Any]]:
    """The formats' files of a model under `work`; also format → decoder → record."""
    params = ExportParams.model_validate({"formats": list(FORMATS), **changed})
    layout = Layout(replace(source.settings, workspace=work))
    if not layout.snapshot.exists():
        layout.snapshot.parent.mkdir(parents=True, exist_ok=True)
        layout.snapshot.symlink_to(source.snapshot.absolute(), target_is_directory=True)
    run = StorageRun(Params(export=params), layout)
    quantise(run, model, layout.quantised, Report("quantise"))
    record = json.loads((layout.quantised / "quantised.json").read_text())
    record["calibration"] = {decoder: record["calibration"][decoder] for decoder in decoders}
    return layout, {"onnx": record["decoders"], **convert(run, model, record)}


def file_of(layout: Layout, name: str, decoder: str) -> Path:
    return (layout.quantised if name == "onnx" else layout.formats) / f"{decoder}{SUFFIX[name]}"


def scores(model: Path, layout: Layout, source: Layout, size: int) -> pd.DataFrame:
    """Per category the metrics of float, of each format and of the blind matte: columns model, category, mse, …"""
    frame, store, rows = read_pool(source.snapshot, "eval"), store_of(source), []
    blind = blind_mattes(frame, store)
    for decoder in DECODERS:
        items = [load_item(row, store, 1024) for row in frame.loc[frame["decoder"] == decoder].itertuples(index=False)]
        images = np.stack([prepare(item.photo, size) for item in items])
        alphas = {"float": float_alphas(model, decoder, images)}
        for name in FORMATS:
            alphas[name], _ = run_file(name, layout.settings, file_of(layout, name, decoder), images, ())
        for index, item in enumerate(items):
            truth = TruthMatte(item.alpha)
            height, width = item.photo.shape[:2]
            mattes = {name: finish(found[index], (height, width)) for name, found in alphas.items()}
            mattes["blind"] = blind.predict(item.row, height, width)
            for name, matte in mattes.items():
                rows.append({"model": name, "category": item.row.category} | truth.score(matte))
        print(f"scored {decoder}", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    tables = [
        category_scores(part).reset_index(names="category").assign(model=name) for name, part in table.groupby("model")
    ]
    return pd.concat(tables)


def timings(model: Path, layout: Layout, size: int, rounds: int, kept: Path) -> pd.DataFrame:
    """A row per round and program: `ms_1`, `ms_2` (wall clock), `cpu_1` (processor time of one thread), `peak_mb`."""
    import torch

    image = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    program = layout.root / "float.pt2"
    torch.export.save(torch.export.export(served(model, TIMED), (torch.from_numpy(image),)), program)
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for turn in range(len({row["round"] for row in rows}), rounds):
        found = []
        for name in ("torch", *FORMATS):
            file = program if name == "torch" else file_of(layout, name, TIMED)
            _, cost = run_file(name, layout.settings, file, image, (1, 2))
            found.append(
                {"round": turn, "model": name, "cpu_1": cost["cpu_ms"]["1"], "peak_mb": cost["peak_mb"]}
                | {f"ms_{threads}": ms for threads, ms in cost["latency_ms"].items()}
            )
        rows += found
        write_json(kept, rows)
        print(f"round {turn}: " + ", ".join(f"{r['model']} {r['cpu_1']:.1f}" for r in found), file=sys.stderr)
    return pd.DataFrame(rows)


def ratios(table: pd.DataFrame, column: str) -> dict[str, float]:
    """Program → how many times faster than torch: the median over rounds of the ratio within a round."""
    wide = table.pivot(index="round", columns="model", values=column)
    return {name: float(np.median(wide["torch"].to_numpy() / wide[name].to_numpy())) for name in FORMATS}


def write(
    table: pd.DataFrame,
    times: dict[int, pd.DataFrame],
    made: dict[int, dict[str, Any]],
    sizes: dict[tuple[int, str], int],
    config: ModelParams,
) -> None:
    table.to_csv(HERE / "formats.csv", index=False, float_format="%.6g")
    lines = [
        "# The three int8 formats of the demo's champion",
        "",
        f"Runner: `benchmarks/formats.py`. {config.encoder}, width {config.width}; {processor()}, "
        f"{os.cpu_count()} cores. Each file in a fresh process with its format's runtime; `torch`: the float network, "
        "eager, likewise. Programs take turns; milliseconds an image are medians over rounds, `×` the median over "
        "rounds of torch's time by the file's. Other work on the machine stretches the wall clock and hardly touches "
        "the processor time of one thread; torch's two threads then wait for each other, so that its column of two "
        "threads on a busy machine flatters the files.",
        "",
    ]
    for size, rows in times.items():
        rounds = rows["round"].nunique()
        lines += [
            f"## {size} px, decoder {TIMED}, {rounds} rounds",
            "",
            "| file | MB | processor time, 1 thread | wall clock, 1 thread | wall clock, 2 threads | peak MB | "
            "in float besides the last convolution |",
            "|---|---|---|---|---|---|---|",
        ]
        speed = {column: ratios(rows, column) for column in ("cpu_1", "ms_1", "ms_2")}
        for name in ("torch", *FORMATS):
            own = rows.loc[rows["model"] == name]
            cells = [
                f"{own[column].median():.1f} ms" + (f" ({speed[column][name]:.1f} ×)" if name != "torch" else "")
                for column in speed
            ]
            kept = len(made[size][name][TIMED]["float_convolutions"]) if name != "torch" else "all"
            megabytes = f"{sizes[size, name] / 1e6:.2f}"
            lines.append(f"| {name} | {megabytes} | {' | '.join(cells)} | {own['peak_mb'].median():.0f} | {kept} |")
        lines.append("")
    lines += [
        "## Scores on the demo's eval set",
        "",
        "MSE, and in brackets by how much int8 raises it; then MaxF, BIoU, Conn. Blind: the mean matte of the "
        "category, whatever the photo shows.",
        "",
        "| category | metric | float | " + " | ".join(FORMATS) + " | blind |",
        "|---|---|---|" + "---|" * (len(FORMATS) + 1),
    ]
    at = {(str(row["category"]), str(row["model"])): row for row in table.to_dict("records")}
    largest = dict.fromkeys(FORMATS, (-np.inf, -np.inf))
    """Format → the largest rise in per cent, and the largest in MSE."""
    for category in CATEGORIES:
        for metric in ("mse", "maxf", "biou", "conn"):
            plain = float(at[category, "float"][metric])
            cells = []
            for name in FORMATS:
                value = float(at[category, name][metric])
                cost = 100 * (value / plain - 1)
                cells.append(f"{value:.4f}" + (f" ({cost:+.2f} %)" if metric == "mse" else ""))
                if metric == "mse":
                    share, rise = largest[name]
                    largest[name] = max(share, cost), max(rise, value - plain)
            cells.append(f"{float(at[category, 'blind'][metric]):.4f}")
            lines.append(f"| {category} | {metric} | {plain:.4f} | " + " | ".join(cells) + " |")
    worst = "; ".join(f"{name} {share:+.2f} %, {rise:+.1e}" for name, (share, rise) in largest.items())
    lines += ["", f"Largest rises of a category's MSE: {worst} (asked: at most 1 % or 5e-4)."]
    (HERE / "formats.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("data/demo"))
    parser.add_argument("--work", type=Path, default=Path("data/bench/formats"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    source = Layout(Settings.from_env(args.workspace))
    champion = Registry(source.settings).pin("champion")
    assert champion is not None, f"{args.workspace} has no champion: run `mm demo`"
    model = fetch_blob(store_of(source), champion["digest"])
    net, meta = load_model(model)
    own, default = net.config.size, ModelParams().size
    large = args.work / "large.safetensors"
    net.config = net.config.model_copy(update={"size": default})
    save_model(large, net, {"stage": meta.get("stage")})

    layout, small = made_files(model, source, args.work / str(own), tuple(DECODERS))
    kept = args.work / "scores.csv"
    table = pd.read_csv(kept) if kept.exists() else scores(model, layout, source, own)
    table.to_csv(kept, index=False)
    # The weights were not trained at the default size: only the time counts, and no layer needs float for it.
    big, of_large = made_files(large, source, args.work / str(default), (TIMED,), max_int8_mse=1.0)
    made = {default: of_large, own: small}
    places = {default: (large, big), own: (model, layout)}
    times = {
        size: timings(file, place, size, args.rounds, args.work / f"times{size}.json")
        for size, (file, place) in places.items()
    }
    sizes = {(size, name): file_of(places[size][1], name, TIMED).stat().st_size for size in made for name in FORMATS}
    sizes |= {(size, "torch"): (places[size][1].root / "float.pt2").stat().st_size for size in made}
    write(table, times, made, sizes, net.config)
    print(HERE / "formats.md")


if __name__ == "__main__":
    main()
