"""Hard limits of released files, independent of the gate: `export.limits` in params.yaml."""

from __future__ import annotations

from collections.abc import Mapping

from mm_core.core.errors import ReleaseRefused
from mm_core.core.params import LimitParams
from mm_core.export.bundle_manifest import FormatEntry
from mm_core.export.runtime import SUFFIX as JUDGED


def require_within(limits: LimitParams, entries: Mapping[str, FormatEntry], sizes: Mapping[str, int]) -> None:
    """Check files against the hard limits.

    Args:
        limits: `export.limits`.
        entries: File name → `speedup`, `peak_mb`, `int8_against_float`, and `undelegated` if the format has it.
        sizes: File name → bytes.

    Raises:
        ReleaseRefused: Names every file above a limit, the measured value and the remedy.
    """
    beyond = []
    for file, entry in entries.items():
        mse = entry["int8_against_float"]["mse"]
        beyond += too_large(limits, file, sizes[file], entry["peak_mb"])
        ratio = 1 / entry["speedup"]["1"]
        if ratio > limits.max_latency_ratio:
            beyond.append(
                f"{file} takes {ratio:.2f} × the float network's time, export.limits.max_latency_ratio is "
                f"{limits.max_latency_ratio}: choose a model.encoder that int8 speeds up, or leave this format out"
            )
        # The gate judges the quality of ONNX files; the checks below are for the other formats.
        if file.endswith(JUDGED):
            continue
        # Written as `not <=`, so that NaN fails too.
        if not mse <= limits.max_diff_mse:
            beyond.append(
                f"{file} strays {mse:.2g} (mean square) from the float mattes, export.limits.max_diff_mse is "
                f"{limits.max_diff_mse:g}: raise export.calibration_images, or leave this format out"
            )
        if undelegated := entry.get("undelegated", 0):
            beyond.append(
                f"{file} leaves {undelegated} operators to slow portable kernels: choose a model.encoder "
                "whose operators XNNPACK takes, or leave executorch out of export.formats"
            )
    if beyond:
        raise ReleaseRefused("beyond the hard limits: " + "; ".join(beyond))


def too_large(limits: LimitParams, file: str, size: int, peak_mb: float) -> list[str]:
    """Return the limits on size and memory that a file exceeds on any device, with remedies; empty if none."""
    beyond = []
    if size > limits.max_bytes:
        beyond.append(
            f"{file} has {size} bytes, export.limits.max_bytes is {limits.max_bytes}: "
            "choose a smaller model.encoder or model.width"
        )
    if peak_mb > limits.max_peak_mb:
        beyond.append(
            f"{file} needed {peak_mb:.0f} MB, export.limits.max_peak_mb is {limits.max_peak_mb:g}: "
            "lower model.size or model.width"
        )
    return beyond
