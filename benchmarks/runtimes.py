"""`mm bench-bundle` on a real bundle of all formats: which runtime and how many threads are fastest here.

    make formats gallery
    python benchmarks/runtimes.py [--work FOLDER]

A briefly trained mobile network is exported to all formats, signed, and measured in every runtime. With `--work` the
bundle is kept and taken again. Writes benchmarks/runtimes.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from mm_core import stages
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.export.bench import BenchRow, bench_bundle
from mm_core.export.signature import make_keys
from mm_core.pinned_inputs import Run

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "export"))
import export_cycle as cycle  # noqa: E402  # pyright: ignore[reportMissingImports]

NETWORK = {"model.pretrained": "", "model.encoder": "mobilenetv4_conv_small", "model.size": 96, "model.width": 32}
TOOLS = ("executorch_python", "litert_python", "onnxruntime_web")
ABOUT = """Runner: `benchmarks/runtimes.py`. {network}, briefly trained, all formats in one signed bundle. Each
decoder's file in a process of its own, median of its runs, after it gave its golden matte. onnxruntime-web: in headless
Chromium; its memory is the page's process, Chromium's share included. {machine}."""


def made_bundle(root: Path) -> tuple[Layout, Path]:
    """The workspace and the signed bundle under `root`; taken as it is where one is there."""
    here = Settings.from_env(root)
    plain = cycle.layout_at(root / "data")
    layout = Layout(replace(plain.settings, **{name: getattr(here, name) for name in TOOLS}))
    if not (root / "key").exists():
        make_keys(root / "key")
    os.environ["MM_SIGNING_KEY"] = str(root / "key")
    params = cycle.PARAMS.with_values(**NETWORK, **{"export.formats": ["onnx", "executorch", "litert"]})
    cycle.PARAMS, cycle.SIZE = params, params.model.size
    if not list(layout.bundles.glob("*/manifest.json.sig")):
        cycle.fill_catalog(layout)
        stages.pin_inputs(Run(params, layout))
        stages.snapshot(Run(params, layout))
        layout.split.mkdir(parents=True)
        for name in ("simple", "hard"):
            shutil.copyfile(layout.snapshot / "train_labeled.parquet", layout.split / f"{name}.parquet")
        cycle.write_models(layout, cycle.trained_net(), seed=0)
        stages.evaluate(Run(params, layout))
        cycle.verdict_of(layout)
        stages.export(Run(params, layout))
    return layout, next(layout.bundles.glob("*/manifest.json.sig")).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    work = parser.parse_args().work
    with tempfile.TemporaryDirectory() as folder:
        layout, bundle = made_bundle(work or Path(folder))
        report = bench_bundle(layout, bundle, cycle.PARAMS.export.limits)
        size = cycle.PARAMS.model.size
        network = f"{NETWORK['model.encoder']}, {size} x {size}"
        machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        lines = [
            "# The runtimes of this device",
            "",
            ABOUT.format(network=network, machine=machine),
            "",
            "| decoder | runtime | threads | ms | over onnx, 1 thread | peak MB | bytes | golden mse | beyond limits |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        rows: list[BenchRow] = report.rows("runs")
        base = {r["decoder"]: r["ms"] for r in rows if (r["runtime"], r["threads"]) == ("onnx", 1)}
        for r in rows:
            times = f"{r['ms']:.2f} | {r['ms'] / base[r['decoder']]:.2f}"
            rest = f"{r['bytes']} | {r['golden_mse']:.1e} | {'; '.join(r['beyond']) or 'no'}"
            lines.append(
                f"| {r['decoder']} | {r['runtime']} | {r['threads']} | {times} | {r['peak_mb']:.0f} | {rest} |"
            )
        picked = "; ".join(
            f"{d}: {p['runtime']}, {p['threads']} threads" for d, p in report.fact("picked", dict).items()
        )
        left = "; ".join(f"{name}: {why}" for name, why in report.fact("left_out", dict).items()) or "nothing"
        lines += ["", f"Picked: {picked}. Left out: {left}.", f"Limits: {report.facts['limits']}."]
    (HERE / "runtimes.md").write_text("\n".join(lines) + "\n")
    print(HERE / "runtimes.md")


if __name__ == "__main__":
    main()
