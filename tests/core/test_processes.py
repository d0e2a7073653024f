"""Kill what started a step or a server, and it is gone, with all that it started."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mm_core.core import processes
from mm_core.core.errors import InputError
from mm_core.core.ports import require_free_port

PROJECT = Path(__file__).resolve().parents[2]


def step(report: Path) -> None:
    """What Dagster's step does first, and then works for long."""
    import pipelines

    assert pipelines
    report.write_text(f"{os.getpid()} {os.getppid()}\n")
    time.sleep(120)


def work(method: str, report: Path) -> None:
    """A run's worker: starts a step and waits for it."""
    child = multiprocessing.get_context(method).Process(target=step, args=(report,))
    child.start()
    child.join()


def written(report: Path) -> list[int]:
    """The process ids, once they stand there."""
    for _ in range(600):
        if report.exists() and report.read_text().endswith("\n"):
            break
        time.sleep(0.05)
    return [*map(int, report.read_text().split())]


@pytest.mark.parametrize(("method", "killed"), [("spawn", "worker"), ("forkserver", "worker"), ("forkserver", "above")])
def test_a_step_ends_with_its_worker_and_with_its_fork_server(tmp_path: Path, method: str, killed: str) -> None:
    report = tmp_path / "pids"
    program = f"import tests.core.test_processes as t; t.work({method!r}, t.Path({str(report)!r}))"
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, start_new_session=True)
    try:
        mine, above = written(report)
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


SERVER = """#!/usr/bin/env python3
import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}\\n")
time.sleep(120)
"""


def serve(program: Path, report: Path) -> None:
    """What `mm ui` does."""
    processes.start([str(program), str(report)])
    time.sleep(120)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A server that starts another and outlives no one by its own will."""
    (tmp_path / "program").write_text(SERVER)
    return tmp_path / "program"


def gone(pids: list[int]) -> bool:
    """Whether all of them end within seconds."""
    members = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    left = psutil.wait_procs(members, timeout=20)[1]
    for process in left:
        process.kill()
    return not left


def test_a_server_and_all_that_it_started_end_with_who_started_it(tmp_path: Path, program: Path) -> None:
    report = tmp_path / "pids"
    code = f"import tests.core.test_processes as t; t.serve(t.Path({str(program)!r}), t.Path({str(report)!r}))"
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT)
    pids = written(report)
    time.sleep(2 * processes.LOOK_EVERY)
    assert all(psutil.pid_exists(pid) for pid in pids)
    starter.kill()
    starter.wait()
    assert gone(pids)


def test_what_a_killed_server_left_is_ended_with_the_others(tmp_path: Path, program: Path) -> None:
    report = tmp_path / "pids"
    server = processes.start([str(program), str(report)])
    pids = written(report)
    server.kill()
    server.wait()
    assert psutil.pid_exists(pids[1])
    processes.end([server], signal.SIGINT, 1.0)
    assert gone(pids)


def test_a_server_whose_starter_is_dead_already_ends_too(tmp_path: Path, program: Path) -> None:
    """It was killed in the moment between the two."""
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    command = [sys.executable, "-P", processes.__file__, str(nobody.pid), str(program), str(tmp_path / "pids")]
    late = subprocess.Popen(command, start_new_session=True)
    assert late.wait(20) == -signal.SIGKILL


def test_a_port_in_use_is_named_with_the_option_that_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use: choose another with --port"):
            require_free_port(port)
    require_free_port(port)
