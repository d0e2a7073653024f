"""What the `run_<format>.py` programs share: they run one file and say what it gave and cost. Only numpy.

    python run_<format>.py MODEL INPUTS.npy OUT.npy [THREADS…]

INPUTS: float32 (N,3,S,S), normalised. OUT: float32 (N,S,S) mattes. Prints one JSON line: `versions`, `latency_ms`
(threads → median of one image, wall clock), `cpu_ms` (the same in processor time, which other work on the machine
hardly changes), `peak_mb` of this process and `model_mb`, by how much the model raised it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP, RUNS, SECONDS = 3, 12, 2.0
"""The first calls are 2-3 times slower; fewer runs where they take more than SECONDS (a busy machine)."""

Run = Callable[[np.ndarray], np.ndarray]
"""One image (1,3,S,S) → its matte, S × S values in any shape."""


def memory_mb() -> tuple[float, float]:
    """Megabytes of this process: now and at most so far.

    Linux carries the peak of the process that started this one over into getrusage's; /proc does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
        return now, peak
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return peak, peak


def median_ms(call: Callable[[], Any], runs: int = RUNS) -> tuple[float, float]:
    """Median milliseconds of a call after warm-up calls: wall clock, processor time of all threads."""
    for _ in range(WARM_UP):
        call()
    wall: list[float] = []
    spent: list[float] = []
    begin = time.perf_counter()
    while len(wall) < runs and (not wall or time.perf_counter() - begin < SECONDS):
        start, started = time.perf_counter(), time.process_time()
        call()
        spent.append(time.process_time() - started)
        wall.append(time.perf_counter() - start)
    return float(np.median(wall) * 1e3), float(np.median(spent) * 1e3)


def main(open_model: Callable[[str, int], Run], versions: Callable[[], dict[str, str]]) -> None:
    """`open_model(file, threads)` loads the file; called once per thread count."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like an answer
    model, inputs, out, *threads = sys.argv[1:]
    images = np.load(inputs)
    before, _ = memory_mb()
    run = open_model(model, 1)
    np.save(out, np.stack([run(image[None]).reshape(image.shape[1:]) for image in images]).astype(np.float32))
    _, peak = memory_mb()
    answer: dict[str, Any] = {"versions": versions(), "peak_mb": peak, "model_mb": max(0.0, peak - before)}
    answer |= {"latency_ms": {}, "cpu_ms": {}}
    for count in threads:
        run = open_model(model, int(count))
        answer["latency_ms"][count], answer["cpu_ms"][count] = median_ms(lambda run=run: run(images[:1]))
    print(json.dumps(answer), file=answers, flush=True)
