"""`mm bench-bundle`: measure runtimes and thread counts of a bundle on this device, and pick the fastest.

The paper's heterogeneous engine chooses its inference back end by measurements on the device. A file takes part only
if its bundle's signature and digests are valid and a fresh process reproduces the golden mattes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from mm_core.core.errors import InputError, MattingError
from mm_core.core.layout import Layout
from mm_core.core.params import LimitParams
from mm_core.core.records import Report, timed
from mm_core.export.bundle_manifest import InputSpec, checked_manifest, load_golden, read_manifest
from mm_core.export.formats.measure import RunCost
from mm_core.export.formats.run import SUFFIX, run_file
from mm_core.export.formats.run_web import run_web
from mm_core.export.limits import too_large
from mm_core.export.runtime import open_session
from mm_core.export.trust import check_signer, require_bundle

WEB = "onnxruntime-web"
RUNTIMES = (*SUFFIX, WEB)
"""onnxruntime, ExecuTorch and LiteRT in processes of their own, and the ONNX file in a browser, as on phones."""


class Picked(TypedDict):
    """The fastest run of a decoder."""

    runtime: str
    threads: int
    ms: float
    """Milliseconds per photo."""
    beyond: list[str]
    """The limits that the file exceeds."""


class BenchRow(Picked):
    """One decoder in one runtime with one thread count."""

    decoder: str
    peak_mb: float
    bytes: int
    golden_mse: float


def bench_bundle(
    layout: Layout,
    bundle: Path,
    limits: LimitParams,
    *,
    runtimes: Sequence[str] = (),
    threads: Sequence[int] = (),
    unsigned: bool = False,
) -> Report:
    """Measure every file of a bundle in its runtime, each in a process of its own, and pick the fastest.

    Args:
        layout: The workspace; its settings name the environments of the runtimes.
        bundle: The bundle's folder.
        limits: Hard limits of `export.limits`; a run above them is picked only if no other run exists.
        runtimes: Some of RUNTIMES; empty: all.
        threads: Thread counts; empty: 1, 2, 4, … up to the device's cores.
        unsigned: Accept a bundle that the configured key did not sign.

    Returns:
        A report. `facts["picked"]`: decoder → runtime, threads, milliseconds. `facts["left_out"]`: runtimes that are
        not available or do not reproduce the golden mattes, with the reason. `facts["warning"]`: present if the
        signer was not checked. `tables["runs"]`: a row per decoder, runtime and thread count, with the exceeded
        limits in `beyond`.

    Raises:
        InputError: The signature or a digest is wrong, a runtime is unknown, or no runtime runs the bundle.
    """
    unknown = sorted(set(runtimes) - set(RUNTIMES))
    if unknown:
        raise InputError(f"--runtime {unknown[0]}: unknown; one of {', '.join(RUNTIMES)}")
    # Powers of two up to the number of cores.
    counts = tuple(threads) or tuple(2**n for n in range((os.cpu_count() or 1).bit_length()))
    with timed(Report("bench-bundle"), layout.root / "reports" / "bench-bundle.json") as report:
        # Trust first: no file is opened before the signature and the digests are checked.
        require_bundle(bundle, layout.bundles)
        read_manifest(bundle)
        signer, warning = check_signer(bundle / "manifest.json", unsigned=unsigned)
        report.facts |= {"bundle": str(bundle), "signed_by": signer} | ({"warning": warning} if warning else {})
        manifest = checked_manifest(bundle)
        rows: list[BenchRow] = []
        left_out: dict[str, str] = {}
        golden = load_golden(bundle, manifest)
        for decoder, entry in manifest["decoders"].items():
            # The programs below open whatever a network names.
            open_session(bundle / entry["file"])
            format_files = {name: f["file"] for name, f in entry.get("formats", {}).items()}
            # The web runtime uses the ONNX file; further formats have files of their own.
            files = {"onnx": entry["file"], WEB: entry["file"]} | format_files
            image = _prepared(golden[f"{decoder}_image"], manifest["input"])
            for runtime in runtimes or RUNTIMES:
                # A missing runtime is reported, and the others are still measured.
                if runtime not in files:
                    left_out[runtime] = "the bundle has no files for it"
                    continue
                wanted = golden.get(f"{decoder}_{runtime}_alpha" if runtime in format_files else f"{decoder}_alpha")
                if wanted is None:
                    left_out[runtime] = "the bundle has no golden mattes for it"
                    continue
                try:
                    alphas, cost = _run(runtime, layout, bundle / files[runtime], image[None], counts)
                except MattingError as error:
                    left_out[runtime] = f"not available because: {error}"
                    continue
                # A fast runtime with wrong mattes must not be picked.
                off, tolerance = _off(alphas[0], wanted), manifest["golden"]["tolerance"]
                if not all(off[name] <= tolerance[name] for name in off):
                    left_out[f"{runtime}/{decoder}"] = f"its mattes are not the golden ones: {json.dumps(off)}"
                    continue
                size = manifest["files"][files[runtime]]["bytes"]
                beyond = too_large(limits, files[runtime], size, cost["peak_mb"])
                measured: list[BenchRow] = [
                    {
                        "decoder": decoder,
                        "runtime": runtime,
                        "threads": int(n),
                        "ms": round(ms, 2),
                        "peak_mb": round(cost["peak_mb"], 1),
                        "bytes": size,
                        "golden_mse": off["mse"],
                        "beyond": beyond,
                    }
                    for n, ms in cost["latency_ms"].items()
                ]
                rows += measured
        if not rows:
            raise InputError(f"{bundle}: no runtime here runs it: {json.dumps(left_out)}")
        report.tables["runs"] = rows
        picked = _picked(rows)
        report.facts |= {"picked": picked, "left_out": left_out, "cores": os.cpu_count()}
        report.facts["limits"] = {"max_bytes": limits.max_bytes, "max_peak_mb": limits.max_peak_mb}
        report.metrics |= {f"bench/{decoder}/ms": row["ms"] for decoder, row in picked.items()}
        report.metrics["bench/beyond_limits"] = sum(bool(row["beyond"]) for row in rows)
    return report


def _run(
    runtime: str, layout: Layout, file: Path, images: np.ndarray, threads: Sequence[int]
) -> tuple[np.ndarray, RunCost]:
    if runtime == WEB:
        return run_web(layout.settings, file, images, threads)
    return run_file(runtime, layout.settings, file, images, threads)


def _picked(rows: list[BenchRow]) -> dict[str, Picked]:
    """Return each decoder's fastest run within the limits; among runs within 3 % of it, the one with fewest threads."""
    picked: dict[str, Picked] = {}
    for decoder in dict.fromkeys(row["decoder"] for row in rows):
        mine = [row for row in rows if row["decoder"] == decoder]
        # Runs above a limit count only if the decoder has no other run.
        mine = [row for row in mine if not row["beyond"]] or mine
        fastest = min(row["ms"] for row in mine)
        near = [row for row in mine if row["ms"] <= 1.03 * fastest]
        best = min(near, key=lambda row: (row["threads"], row["ms"]))
        picked[decoder] = {
            "runtime": best["runtime"],
            "threads": best["threads"],
            "ms": best["ms"],
            "beyond": best["beyond"],
        }
    return picked


def _off(alpha: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    # Mean squared and largest absolute difference of two mattes in [0, 1]; mattes of two sizes cannot be compared.
    if alpha.shape != wanted.shape:
        return {"mse": float("inf"), "max": float("inf")}
    return {"mse": float(np.mean((alpha - wanted) ** 2)), "max": float(np.abs(alpha - wanted).max())}


def _prepared(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return a golden photo, uint8 (S, S, 3), as the network's input: float32 (3, S, S), normalised by the manifest."""
    # The network expects channels first.
    scaled = (image.astype(np.float32) / 255 - np.array(spec["mean"], np.float32)) / np.array(spec["std"], np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
