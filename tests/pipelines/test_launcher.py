"""Whether a run's worker is there, asked at a real code server; what run monitoring makes of the answer."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._daemon.monitoring.run_monitoring import monitor_started_run
from dagster._grpc.client import DagsterGrpcClient

from pipelines.launcher import UNREACHABLE_SECONDS, WatchedRunLauncher
from tests.pipelines.operated import free_port

LAUNCHER = {"module": "pipelines.launcher", "class": "WatchedRunLauncher"}
MONITORING = {"enabled": True, "poll_interval_seconds": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "empty.py").write_text("import dagster as dg\ndefs = dg.Definitions()\n")
    command = [Path(sys.executable).parent / "dagster", "api", "grpc", "-f", folder / "empty.py", "-p", str(port)]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = DagsterGrpcClient(host="localhost", port=port)
    for _ in range(400):
        try:
            client.ping("x")
            break
        except dg.DagsterError:
            time.sleep(0.2)
    yield process, port
    process.kill()
    process.wait()


def started(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun:
    @dg.job
    def nothing() -> None: ...

    return instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)


def test_a_run_that_its_server_does_not_know_is_over(server: tuple[subprocess.Popen[bytes], int]) -> None:
    """And one whose server is silent, but only after a while; a run of the command line is nobody's to judge."""
    process, port = server
    with dg.instance_for_test(overrides={"run_launcher": LAUNCHER, "run_monitoring": MONITORING}) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, WatchedRunLauncher)
        where = f'{{"host": "localhost", "port": {port}}}'
        forgotten, silent, by_hand = (started(instance, tags) for tags in ({GRPC_INFO_TAG: where},) * 2 + ({},))
        assert launcher.check_run_worker_health(by_hand).status is WorkerStatus.RUNNING
        assert launcher.check_run_worker_health(forgotten).status is WorkerStatus.NOT_FOUND

        def monitored(run: dg.DagsterRun) -> dg.DagsterRunStatus:
            record = instance.get_run_record_by_id(run.run_id)
            assert record is not None
            monitor_started_run(instance, None, record, logging.getLogger("test"))  # type: ignore[arg-type]
            found = instance.get_run_by_id(run.run_id)
            assert found is not None
            return found.status

        assert monitored(forgotten) is dg.DagsterRunStatus.FAILURE
        assert monitored(by_hand) is dg.DagsterRunStatus.STARTED
        process.kill()
        process.wait()
        assert monitored(silent) is dg.DagsterRunStatus.STARTED
        launcher._silent_since[silent.run_id] -= UNREACHABLE_SECONDS
        assert monitored(silent) is dg.DagsterRunStatus.FAILURE
