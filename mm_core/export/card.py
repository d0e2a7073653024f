"""The model card of a bundle (Mitchell et al. 2019, arXiv:1810.03993), in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mm_core.core.records import CATEGORIES, HIGHER_IS_BETTER
from mm_core.export.bundle_manifest import BundleManifest

SHOWN = ("mse", "maxf", "biou", "conn")
"""Metrics in the card's table of quality."""


def model_card(manifest: BundleManifest) -> str:
    """Return the model card as Markdown, from the manifest alone."""
    verdict, size = manifest["verdict"], manifest["input"]["shape"][-1]
    metrics = manifest["metrics"]
    # One row per category and file, and the blind matte for comparison.
    quality = [
        [c, p, *(_number(metrics[c][p].get(m)) for m in SHOWN)]
        for c in metrics
        for p in ("float", "int8", "blind")
        if p in metrics[c]
    ]
    # One row per file: size, latency and speedup, memory, difference to float.
    speed = [
        [file["file"], f"{manifest['files'][file['file']]['bytes'] / 1e6:.2f} MB"]
        + [f"{file['latency_ms'][t]:.1f} ms ({file['speedup'][t]:.1f} ×)" for t in ("1", "2")]
        + [
            f"{file['peak_mb']:.0f} MB",
            f"{file['int8_against_float']['mse']:.1e}, {file['int8_against_float']['max']:.2f}",
            len(file["float_convolutions"]),
        ]
        for row in manifest["decoders"].values()
        for file in (row, *row["formats"].values())
    ]
    head = ["file", "size", "1 thread (against torch float)", "2 threads", "peak memory"]
    head += ["off float: MSE, max", "in float"]
    # The facts below the tables.
    limits = ", ".join(f"{name} {value:g}" for name, value in manifest["asked"]["limits"].items())
    sources = [[row["pool"], row["source"], row["license"], row["photos"]] for row in manifest["data"]["sources"]]
    better = ", ".join(m if m not in HIGHER_IS_BETTER else f"{m} (higher is better)" for m in SHOWN)
    return f"""# Matting model {manifest["version"]}

Alpha mattes of photos on a phone: one int8 file per kind of subject
({", ".join(f"{d}: {', '.join(row['categories'])}" for d, row in manifest["decoders"].items())}).

## Use
- The input is one photo, sRGB, resized to {size} × {size}. The output is its matte in [0, 1]; resize it to the photo.
  ONNX files also return `decoder`, the decoder to use for a photo of unknown category.
  `manifest.json` has the exact steps, and `python selfcheck.py` checks a machine's runtime against golden pairs.
- The model is meant for cutting subjects of the named kinds out of photos. It is not meant for identifying or judging
  people, nor as a measure of anything.

## Quality on the frozen evaluation set
{_table(["category", "model", *SHOWN], quality)}
{better}; the gate judged {", ".join(CATEGORIES)}. Blind: the mean matte of the category, whatever the photo shows.
Verdict: {verdict["decision"]} ({verdict["basis"]}), {verdict["created_at"]}.

## Size and speed here
{_table(head, speed)}
Measured on the machine that exported, each file in a fresh process with its format's runtime; peak memory is that
process's, with Python; × of one thread is measured in processor time. The numbers differ on a phone, their ratio
less. In float: the number of convolutions besides the last one.
The gate judged the ONNX files. Limits: {limits}.

## Training data
{_table(["pool", "source", "licence", "photos"], sources)}
Snapshot `{manifest["snapshot"][:12]}`; `mm lineage` lists every photo and label version.

## Limits
- The model sees photos at {size} × {size}: hair and lace finer than a pixel there become soft.
- Categories with few evaluation photos have wide error bars; the verdict in the registry has the bounds.
- Subjects of other kinds go through the saliency decoder and were not evaluated.

Model `{manifest["model"]}`, code `{manifest["code_revision"]}`, opset {manifest["opset"]},
onnxruntime {manifest["versions"]["onnxruntime"]}.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
