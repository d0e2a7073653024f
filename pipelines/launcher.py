"""Dagster's own launcher, which also says whether a run's worker is still there.

Without that answer run monitoring leaves the runs of a killed code location *started* for ever: they hold their
place in the queue, and the sensors that wait for arrivals wait for ever too.
"""

import time

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

UNREACHABLE_SECONDS = 120.0
"""How long a code location may be silent before its runs are given up: a busy one answers late."""


class WatchedRunLauncher(DefaultRunLauncher):
    """For `run_launcher` in dagster.yaml. The server that started a run knows whether its process lives; one that was
    started again does not know the run."""

    def __init__(self, inst_data=None):
        super().__init__(inst_data)
        self._silent_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            # Started by a command line: that process is its worker, and nobody can ask it.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            request = CanCancelExecutionRequest(run_id=run.run_id)
            answer = deserialize_value(client.can_cancel_execution(request), CanCancelExecutionResult)
        except DagsterUserCodeUnreachableError:
            silent = time.monotonic() - self._silent_since.setdefault(run.run_id, time.monotonic())
            if silent < UNREACHABLE_SECONDS:
                return CheckRunHealthResult(WorkerStatus.RUNNING, "its code location does not answer yet")
            return CheckRunHealthResult(WorkerStatus.FAILED, f"its code location has been silent for {silent:.0f} s")
        self._silent_since.pop(run.run_id, None)
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its code location was started again and does not know it")
