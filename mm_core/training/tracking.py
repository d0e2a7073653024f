"""Write reports and training curves to MLflow. Apart from the registry, this is the only module that uses MLflow.

The experiment is `matting`, with one parent run per cycle (tag `mm.snapshot`) and one child run per stage. Each stage
may run in a separate process, so runs are found by their tags. A stage that runs again writes to its earlier run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mm_core.core.layout import Layout
from mm_core.core.pins import read_snapshot
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.training.rehome import rehome

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "matting"
_TAG_LIMIT = 5000
_VALUE_LIMIT = 500


class Tracker:
    """Client of the tracking server in the settings (by default a sqlite database in the workspace)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._artifacts = Layout(settings).mlflow_artifacts

    def log_report(self, layout: Layout, report: Report, *, files: Sequence[Path] = ()) -> str:
        """Log a stage's report to MLflow and return the run's id.

        Metrics go to the stage's run and to the cycle's. Facts become tags, tables JSON files, pictures images.

        Args:
            layout: The workspace.
            report: Report of the stage.
            files: Further files to store as artifacts.

        Raises:
            InputError: The snapshot is missing.
        """
        client = self._client()
        parent = self._cycle_run(client, layout)
        run = self._stage_run(client, parent, report.stage)
        # `v == v` leaves NaN out.
        numbers = {n: float(v) for n, v in {**report.metrics, "seconds": report.seconds}.items() if v == v}
        _log_metrics(client, run, numbers)
        _log_metrics(client, parent, {n: v for n, v in numbers.items() if n != "seconds"})
        for name, value in report.facts.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            client.set_tag(run, f"mm.{name}", text[:_TAG_LIMIT])
        for name, rows in report.tables.items():
            client.log_text(run, json.dumps(rows, indent=1, default=str), f"tables/{name}.json")
        for path in report.pictures.values():
            if Path(path).is_file():
                client.log_artifact(run, path, "pictures")
        for path in files:
            client.log_artifact(run, str(path))
        client.set_terminated(run, "FINISHED")
        return run

    @contextmanager
    def stage_run(
        self, layout: Layout, stage: str, params: Mapping[str, object], data: Mapping[str, str]
    ) -> Iterator[Curve]:
        """Open the run of a training stage; it becomes FINISHED, or FAILED if the body raises.

        Args:
            layout: The workspace.
            stage: Name of the stage.
            params: Nested as in params.yaml; logged once.
            data: Digests of the training data by name; become tags.

        Yields:
            The curve that training writes its numbers to.
        """
        client = self._client()
        run = self._stage_run(client, self._cycle_run(client, layout), stage)
        logged = client.get_run(run).data.params
        flat = {name: str(value)[:_VALUE_LIMIT] for name, value in _flat(params)}
        if any(logged.get(name, value) != value for name, value in flat.items()):
            # MLflow's params cannot be changed, so other params need a new run.
            client.set_tag(run, "mm.stage", f"{stage} (superseded)")
            run = self._stage_run(client, self._cycle_run(client, layout), stage)
            logged = {}
        for name, value in flat.items():
            if name not in logged:
                client.log_param(run, name, value)
        for name, value in data.items():
            client.set_tag(run, f"mm.{name}", value)
        client.update_run(run, "RUNNING")
        curve = Curve(client, run)
        try:
            yield curve
        except BaseException:
            curve.flush()
            client.set_terminated(run, "FAILED")
            raise
        curve.flush()
        client.set_terminated(run, "FINISHED")

    def _client(self) -> MlflowClient:
        """Return an MLflow client for the server of the settings."""
        from mlflow import MlflowClient

        # These loggers report every migration of a new database.
        for talkative in ("alembic", "mlflow.store.db.utils", "mlflow.store.sqlalchemy"):
            logging.getLogger(talkative).setLevel(logging.WARNING)
        uri = self._settings.mlflow_uri
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        rehome(self._settings)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def _experiment(self, client: MlflowClient) -> str:
        """Return the id of the experiment; create or restore it if necessary."""
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            remote = self._settings.mlflow_uri.startswith(("http://", "https://"))
            try:
                # A server chooses its own artifact folder.
                return client.create_experiment(EXPERIMENT, None if remote else self._artifacts.as_uri())
            except MlflowException:
                # Another process may have created it in the meantime.
                experiment = client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _cycle_run(self, client: MlflowClient, layout: Layout) -> str:
        """Return the parent run of the cycle in the workspace."""
        digest = read_snapshot(layout)["digest"]
        return self._find_or_make(client, f"cycle {digest[:12]}", {"mm.snapshot": digest, "mm.stage": "cycle"})

    def _stage_run(self, client: MlflowClient, parent: str, stage: str) -> str:
        return self._find_or_make(client, stage, {"mlflow.parentRunId": parent, "mm.stage": stage})

    def _find_or_make(self, client: MlflowClient, name: str, tags: Mapping[str, str]) -> str:
        """Return the newest run with these tags, or a new one."""
        experiment = self._experiment(client)
        wanted = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        matches = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
        if matches:
            return matches[0].info.run_id
        run = client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
        # The cycle's run only groups the runs of its stages.
        if tags["mm.stage"] == "cycle":
            client.set_terminated(run, "FINISHED")
        return run


class Curve:
    """Metrics of a run while it trains, sent in batches."""

    def __init__(self, client: MlflowClient, run: str) -> None:
        self._client, self.run = client, run
        self._waiting: list[tuple[str, float, int, int]] = []
        self._sent = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue values of a step and send the queue every 400 values or 10 seconds."""
        self._waiting += [(name, float(value), int(time.time() * 1000), step) for name, value in values.items()]
        if len(self._waiting) > 400 or time.monotonic() - self._sent > 10:
            self.flush()

    def flush(self) -> None:
        """Send all queued values."""
        from mlflow.entities import Metric

        # MLflow accepts at most 1000 metrics per call.
        for start in range(0, len(self._waiting), 900):
            rows = [Metric(name, value, at, step) for name, value, at, step in self._waiting[start : start + 900]]
            self._client.log_batch(self.run, metrics=rows)
        self._waiting, self._sent = [], time.monotonic()


def _log_metrics(client: MlflowClient, run: str, values: Mapping[str, float]) -> None:
    curve = Curve(client, run)
    curve.log(0, values)
    curve.flush()


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested values with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
