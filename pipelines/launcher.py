"""Dagster's run launcher, extended by the health of a run's worker.

Without it run monitoring leaves the runs of a killed code location in the state *started*. They keep their place in the
queue, and the sensors that wait for arrivals never continue.
"""

import time

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import ConfigurableClassData, deserialize_value

UNREACHABLE_SECONDS = 120.0
"""Seconds without a response after which a code location's runs are given up; a busy one responds late."""


class WatchedRunLauncher(DefaultRunLauncher):
    """Launcher for `run_launcher` in dagster.yaml.

    The server that started a run can report whether its process exists. A restarted server has no record of the run.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        # Run id → time of the first request without a response.
        self._silent_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: Dagster may call `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return the health of a run's worker, as reported by the code location that started it."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            # A run started by a command line: that process is its worker, and no server can report on it.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            # A server can cancel exactly the runs whose process it has.
            request = CanCancelExecutionRequest(run_id=run.run_id)
            answer = deserialize_value(client.can_cancel_execution(request), CanCancelExecutionResult)
        except DagsterUserCodeUnreachableError:
            silent = time.monotonic() - self._silent_since.setdefault(run.run_id, time.monotonic())
            # A busy code location may respond late, so wait before giving up.
            if silent < UNREACHABLE_SECONDS:
                return CheckRunHealthResult(WorkerStatus.RUNNING, "its code location does not respond yet")
            return CheckRunHealthResult(WorkerStatus.FAILED, f"its code location has not responded for {silent:.0f} s")
        # It responds again, so the period of silence is over.
        self._silent_since.pop(run.run_id, None)
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its code location was restarted and has no record of it")
