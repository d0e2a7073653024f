"""Outputs and costs of the bundle's files on this machine: fresh processes with each runtime, compared with torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_core.core.deferred import Deferred
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import ALL_CATEGORIES, DECODERS, decoder_of
from mm_core.export.bundle_manifest import Cost, DecoderEntry, Deviation, FormatEntry
from mm_core.export.calibration import calibration_images
from mm_core.export.float_reference import float_alphas
from mm_core.export.formats.convert import Converted
from mm_core.export.formats.measure import RunCost, median_ms
from mm_core.export.formats.run import SUFFIX, run_file
from mm_core.export.quantise import QuantisedFile
from mm_core.model.preprocess import prepare
from mm_core.storage.store import Store

if TYPE_CHECKING:
    import torch
else:
    torch = Deferred("torch")

THREADS = (1, 2)
"""Thread counts of the measurements."""


@dataclass
class FileRun:
    """One file of a bundle, run in a fresh process with its runtime."""

    cost: RunCost
    golden: np.ndarray
    """Matte of the golden photo, float32 (S, S)."""
    difference: Deviation | None = None
    """Difference from the float network on the calibration photos; None for ONNX, which `quantise` compared."""


def run_all(
    folder: Path,
    layout: Layout,
    store: Store,
    golden: dict[str, np.ndarray],
    made: Converted,
    calibration: Mapping[str, list[str]],
) -> dict[str, dict[str, FileRun]]:
    """Run every file of a bundle in a fresh process with its format's runtime.

    ONNX runs only the golden photo, because the gate has judged it on the evaluation set.

    Args:
        folder: The bundle's folder with the files.
        layout: The workspace.
        store: Holds the calibration photos.
        golden: Decoder → photo, uint8 (S, S, 3).
        made: Result of `convert`.
        calibration: Decoder → ids of the calibration photos of `quantise`.

    Returns:
        Decoder → format → run.
    """
    model = layout.model(TRAIN_STAGES[-1])
    runs: dict[str, dict[str, FileRun]] = {}
    for decoder, photo in golden.items():
        image = prepare(photo, photo.shape[0])[None]
        runs[decoder] = {}
        for name in ("onnx", *made):
            images, photos = image, image[:0]
            if name != "onnx":
                photos = calibration_images(calibration[decoder], image.shape[-1], store)
                # The golden photo is last: its matte is the last of the results.
                images = np.concatenate([photos, image])
            file = folder / f"{decoder}{SUFFIX[name]}"
            alphas, cost = run_file(name, layout.settings, file, images, THREADS)
            runs[decoder][name] = FileRun(cost, alphas[-1])
            if name != "onnx":
                # Only other formats are compared here: `quantise` has compared ONNX.
                difference = alphas[:-1] - float_alphas(model, decoder, images[:-1])
                runs[decoder][name].difference = {
                    "mse": float(np.mean(difference**2)),
                    "max": float(np.abs(difference).max()),
                    "photos": len(photos),
                }
    return runs


def decoder_entry(
    decoder: str,
    row: QuantisedFile,
    made: Converted,
    runs: dict[str, FileRun],
    torch_ms: dict[str, float],
) -> DecoderEntry:
    """Return one decoder's manifest entry from `row` of `quantise`, `made` of `convert` and `runs` of `run_all`."""

    def cost(name: str) -> Cost:
        run = runs[name].cost
        latency = {threads: round(ms, 2) for threads, ms in run["latency_ms"].items()}
        speedup = {threads: round(torch_ms[threads] / ms, 2) for threads, ms in run["latency_ms"].items()}
        # On one thread, processor time equals latency, and other programs on the machine do not disturb it.
        speedup["1"] = round(torch_ms["cpu"] / run["cpu_ms"]["1"], 2)
        peak, model = round(run["peak_mb"], 1), round(run["model_mb"], 1)
        return {"latency_ms": latency, "speedup": speedup, "peak_mb": peak, "model_mb": model}

    # Entries of the further formats.
    others: dict[str, FormatEntry] = {}
    for name, rows in made.items():
        record, difference = rows[decoder], runs[name].difference
        assert difference is not None, "only the ONNX file is compared elsewhere"
        others[name] = {
            "file": record["file"],
            "versions": record["versions"] | runs[name].cost["versions"],
            "int8_against_float": difference,
            "float_convolutions": record["float_convolutions"],
            **cost(name),
        }
        if "undelegated" in record:
            others[name]["undelegated"] = record["undelegated"]
    return {
        "file": f"{decoder}{SUFFIX['onnx']}",
        "categories": [c for c in ALL_CATEGORIES if decoder_of(c) == decoder],
        "float_convolutions": row["float_convolutions"],
        "int8_against_float": {"mse": row["diff_mse"], "max": row["diff_max"], "photos": row["calibration_images"]},
        "torch_float_ms": torch_ms,
        **cost("onnx"),
        "formats": others,
    }


def torch_latencies(model: Path) -> dict[str, dict[str, float]]:
    """Return median milliseconds of torch's eager float network on one photo.

    Returns:
        Decoder → thread count → wall-clock time, and `cpu` → processor time on one thread.
    """
    from mm_core.model.files import load_model

    net, _ = load_model(model)
    image = torch.zeros(1, 3, net.config.size, net.config.size)
    # Thread settings are global to the process; they are restored afterwards.
    before = torch.get_num_threads()
    latencies: dict[str, dict[str, float]] = {decoder: {} for decoder in DECODERS}
    try:
        with torch.inference_mode():
            for threads in THREADS:
                torch.set_num_threads(threads)
                for decoder, row in latencies.items():
                    wall, spent = median_ms(lambda d=decoder: net(image, d))
                    row |= {str(threads): round(wall, 2)} | ({"cpu": round(spent, 2)} if threads == 1 else {})
    finally:
        torch.set_num_threads(before)
    return latencies
