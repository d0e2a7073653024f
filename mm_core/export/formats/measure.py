"""Shared by the `run_<format>.py` programs: run one file, and report outputs and costs. Needs only numpy.

    python run_<format>.py MODEL INPUTS.npy OUT.npy [THREADS…]

INPUTS: float32 (N, 3, S, S), normalised. OUT: float32 (N, S, S) mattes. Prints one JSON line: `versions`, `latency_ms`
(thread count → median wall-clock time of one image), `cpu_ms` (the same in processor time, which other programs hardly
change), `peak_mb` of this process, and `model_mb`, the increase by the model.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

WARM_UP, RUNS, SECONDS = 3, 12, 2.0
"""Warm-up calls (the first calls are 2-3 times slower), measured calls, and the seconds after which no more start."""

Run = Callable[[np.ndarray], np.ndarray]
"""One image (1,3,S,S) → its matte, S × S values in any shape."""


def memory_mb() -> tuple[float, float]:
    """Return the memory of this process in megabytes: at present, and the peak so far."""
    # On Linux, getrusage's peak includes that of the parent process; /proc does not.
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
        return now, peak
    # macOS reports bytes, other systems kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return peak, peak


class RunCost(TypedDict):
    """The costs of a file with its runtime on this machine, the JSON line of `run_<format>.py`."""

    versions: dict[str, str]
    latency_ms: dict[str, float]
    """Thread count → median wall-clock time of one photo."""
    cpu_ms: dict[str, float]
    """Thread count → median processor time of one photo."""
    peak_mb: float
    model_mb: float


def median_ms(call: Callable[[], object], runs: int = RUNS) -> tuple[float, float]:
    """Return median milliseconds of a call after warm-up calls: wall clock, and processor time of all threads."""
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
    """Run the program's arguments; `open_model(file, threads)` loads the file, once per thread count."""
    answers, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not mix with the JSON line
    model, inputs, out, *threads = sys.argv[1:]
    images = np.load(inputs)
    before, _ = memory_mb()
    # Outputs and memory first, with one thread; then the latency per thread count.
    run = open_model(model, 1)
    np.save(out, np.stack([run(image[None]).reshape(image.shape[1:]) for image in images]).astype(np.float32))
    _, peak = memory_mb()
    answer: RunCost = {
        "versions": versions(),
        "latency_ms": {},
        "cpu_ms": {},
        "peak_mb": peak,
        "model_mb": max(0.0, peak - before),
    }
    for count in threads:
        run = open_model(model, int(count))
        answer["latency_ms"][count], answer["cpu_ms"][count] = median_ms(lambda run=run: run(images[:1]))
    print(json.dumps(answer), file=answers, flush=True)
