"""How fast are all metrics of a megapixel matte, and are they the textbook's?

    python benchmarks/metric_suite.py

Peer: PySODMetrics for MaxF and the textbook definitions of MSE, Conn, Grad and BIoU (`tests/eval/textbook.py`, on
scikit-image and scipy), one photo after the other. Both score the same pairs in turn, in one process: CPU time of one
thread, so that other work on the machine counts little, and time by the clock with as many threads as `evaluate`
takes; what numba compiles at first use is outside. Writes benchmarks/metric_suite.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from mm_core.core.records import CATEGORIES
from mm_core.eval.metrics import TruthMatte
from mm_core.eval.scoring import THREADS
from samplegen import render

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "eval"))
SIDE = 1000
Pair = tuple[np.ndarray, np.ndarray]
Scores = Mapping[str, float]
METRICS = ("mse", "conn", "grad", "biou", "maxf")


def generated(count: int) -> list[Pair]:
    """True mattes of generated samples; predictions softened, with a neighbour's matte faintly in them, in 8 bits."""
    truths = []
    for k in range(count):
        alpha = render(CATEGORIES[k % len(CATEGORIES)], 700_000 + k, size=SIDE, mode="hard" if k % 2 else "easy").alpha
        truths.append(np.asarray(alpha, np.float64))
    return [(_predicted(truth, truths[k - 1]), truth) for k, truth in enumerate(truths)]


def fields(count: int) -> list[Pair]:
    """The worst case: smooth random fields, half of whose pixels are soft, in dozens of parts."""

    def field(seed: int) -> np.ndarray:
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 20)
        return np.clip(((noise - noise.min()) / np.ptp(noise) - 0.5) * 4 + 0.5, 0, 1)

    truths = [field(seed) for seed in range(count)]
    return [(_predicted(truth, truths[k - 1]), truth) for k, truth in enumerate(truths)]


def _predicted(truth: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.round(np.clip(0.85 * ndimage.gaussian_filter(truth, 3) + 0.15 * other, 0, 1) * 255) / 255


def ours(prediction: np.ndarray, truth: np.ndarray) -> Scores:
    scores = TruthMatte(truth).score(prediction)
    return {name: float(scores[name]) for name in METRICS}


def peer(prediction: np.ndarray, truth: np.ndarray) -> Scores:
    import py_sod_metrics
    from textbook import (  # pyright: ignore[reportMissingImports]
        textbook_boundary_iou,
        textbook_connectivity,
        textbook_gradient,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fmeasure = py_sod_metrics.Fmeasure()
    # A hair more, so that its truncation to 8 bits keeps the level; no rescaling, which changes predictions.
    fmeasure.step(pred=np.minimum(prediction + 1e-9, 1.0), gt=truth > 0.5, normalize=False)
    return {
        "mse": float(np.mean((prediction - truth) ** 2)),
        "conn": textbook_connectivity(prediction, truth),
        "grad": textbook_gradient(prediction, truth),
        "biou": textbook_boundary_iou(prediction, truth),
        "maxf": float(fmeasure.get_results()["fm"]["curve"].max()),
    }


def cpu_seconds(score: Callable[[np.ndarray, np.ndarray], Scores], pair: Pair) -> tuple[float, Scores]:
    begun = time.process_time()
    scores = score(*pair)
    return time.process_time() - begun, scores


def measure(pairs: list[Pair], rounds: int) -> dict[str, float]:
    """CPU milliseconds a pair of both (best round each), clock milliseconds, and the largest difference of a metric."""
    cv2.setNumThreads(1)
    best = {name: np.full(len(pairs), np.inf) for name in ("ours", "peer")}
    clock = {"ours": np.inf, "peer": np.inf}
    apart = 0.0
    for _ in range(rounds):
        found: dict[str, list[Scores]] = {"ours": [], "peer": []}
        for k, pair in enumerate(pairs):
            for name, score in (("ours", ours), ("peer", peer)):
                seconds, scores = cpu_seconds(score, pair)
                best[name][k] = min(best[name][k], seconds)
                found[name].append(scores)
        apart = max(abs(a[m] - b[m]) for a, b in zip(found["ours"], found["peer"], strict=True) for m in METRICS)
        begun = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda pair: ours(*pair), pairs))
        clock["ours"] = min(clock["ours"], time.monotonic() - begun)
        begun = time.monotonic()
        for pair in pairs:
            peer(*pair)
        clock["peer"] = min(clock["peer"], time.monotonic() - begun)
    each = {f"{name} cpu": 1000 * float(values.mean()) for name, values in best.items()}
    return each | {f"{name} clock": 1000 * value / len(pairs) for name, value in clock.items()} | {"apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lines = [
        "# The metric suite on 1-megapixel mattes",
        "",
        f"Runner: `benchmarks/metric_suite.py`. {args.pairs} pairs of {SIDE} px on the long side per row, best of"
        f" {args.rounds} rounds. MSE, Conn, Grad, BIoU and MaxF; ours also gives SAD and the band's MSE, and prepares"
        f" each truth anew (`evaluate` prepares it once for all models). {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| mattes | ours, CPU ms | peer, CPU ms | times faster | ours, 2 threads, clock ms | peer, clock ms |"
        " times faster | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, pairs in (("generated samples", generated(args.pairs)), ("random fields", fields(args.pairs))):
        got = measure(pairs, args.rounds)
        lines.append(
            f"| {name} | {got['ours cpu']:.1f} | {got['peer cpu']:.0f} | {got['peer cpu'] / got['ours cpu']:.1f}"
            f" | {got['ours clock']:.1f} | {got['peer clock']:.0f} | {got['peer clock'] / got['ours clock']:.1f}"
            f" | {got['apart']:.1e} |"
        )
        print(lines[-1])
    (HERE / "metric_suite.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
