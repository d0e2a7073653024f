"""Kill what started a step, and the step is gone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]


def step(report: Path) -> None:
    """What Dagster's step does first, and then works for long."""
    import pipelines

    assert pipelines
    report.write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(120)


def work(method: str, report: Path) -> None:
    """A run's worker: starts a step and waits for it."""
    child = multiprocessing.get_context(method).Process(target=step, args=(report,))
    child.start()
    child.join()


@pytest.mark.parametrize(("method", "killed"), [("spawn", "worker"), ("forkserver", "worker"), ("forkserver", "above")])
def test_a_step_ends_with_its_worker_and_with_its_fork_server(tmp_path: Path, method: str, killed: str) -> None:
    report = tmp_path / "pids"
    program = f"import tests.pipelines.test_lifeline as t; t.work({method!r}, t.Path({str(report)!r}))"
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, start_new_session=True)
    try:
        for _ in range(600):
            if report.exists() and report.read_text():
                break
            time.sleep(0.05)
        mine, above = map(int, report.read_text().split())
        child = psutil.Process(mine)
        time.sleep(0.2)
        assert child.is_running()
        os.kill(worker.pid if killed == "worker" else above, signal.SIGKILL)
        child.wait(timeout=30)
    finally:
        worker.kill()
        worker.wait()
        for left in map(int, report.read_text().split()):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
