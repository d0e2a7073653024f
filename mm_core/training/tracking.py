"""Write runs, reports, training curves and models to MLflow. Apart from the registry, only this module uses MLflow.

The experiment is `matting`, with one parent run per cycle (tags `mm.snapshot` and `mm.params`) and one child run per
stage. Each stage may run in a separate process, so runs are found by their tags; their names are for people. A stage
that runs again writes to its earlier run. Runs are RUNNING while their work is in progress; `open_runs.py` remembers
them for the case of a kill.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from mm_core.core.deferred import Deferred
from mm_core.core.errors import StoreError, TrackingServerError
from mm_core.core.layout import Layout
from mm_core.core.params import PER_ARRIVAL, Params
from mm_core.core.pins import read_snapshot
from mm_core.core.records import Report
from mm_core.core.settings import Settings
from mm_core.training.mlflow_client import open_client
from mm_core.training.open_runs import (
    OpenRuns,
    forget_open_runs,
    give_sign_of_life,
    last_sign_of_life,
    read_open_runs,
    write_open_runs,
)
from mm_core.training.run_facts import cycle_name, flatten, lock_time, metrics_before, origin_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient, entities, environment_variables, exceptions
    from mlflow.entities import DatasetInput, LoggedModel, Metric, Param
    from mlflow.system_metrics import system_metrics_monitor
else:
    entities = Deferred("mlflow.entities")
    environment_variables = Deferred("mlflow.environment_variables")
    exceptions = Deferred("mlflow.exceptions")
    system_metrics_monitor = Deferred("mlflow.system_metrics.system_metrics_monitor")

EXPERIMENT = "matting"
EXPERIMENT_TAGS = {
    # Versions of MLflow 3 other than 3.17 open an experiment by this tag; see `Tracker.page`.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One run per cycle, with a run per stage below it. `mm report` writes the same as a page.",
}
MODEL = "model"
"""Name of the logged model: `runs:/<run>/model` leads to it."""
# Characters of a tag and of a param that servers of earlier MLflow versions accept.
_TAG_LIMIT = 5000
_VALUE_LIMIT = 500
_DIGEST_LIMIT = 36
"""Characters of a dataset's digest in MLflow's table; the full digest is in the tag `mm.snapshot`."""
_log = logging.getLogger(__name__)


class Tracker:
    """Client of the tracking server in the settings (by default a sqlite database in the workspace)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._artifacts = Layout(settings).mlflow_artifacts

    def open_cycle(self, params: Params, layout: Layout, stage: str) -> str:
        """Open the run of the workspace's cycle: it is RUNNING until `close_runs`. Return its id.

        Cycles with other params on the same snapshot have runs of their own. A repeated call changes nothing.

        Args:
            params: The parameters; those that a cycle depends on are logged.
            layout: The workspace; the caller holds its cycle lock.
            stage: The stage that opens the run. If the cycle has no run yet, the metrics of the stages before it are
                taken from their reports.

        Raises:
            InputError: The snapshot is missing.
        """
        facts, opened = read_snapshot(layout), read_open_runs(layout)
        digest = facts["digest"]
        if opened and opened.run and opened.snapshot == digest:
            return opened.run
        # The file exists before the run does. A kill between the two leaves a run that its tag identifies.
        session = opened.session if opened else uuid4().hex
        write_open_runs(layout, OpenRuns(session, digest))
        client = self._client()
        identity = {"mm.stage": "cycle", "mm.snapshot": digest, "mm.params": params.cycle_digest()}
        run = self._newest(client, identity)
        if run is None:
            tags = identity | {"mm.session": session} | origin_tags(layout)
            begin = lock_time(layout)
            run = self._create(client, cycle_name(facts, begin), tags, begin)
            _log_metrics(client, run, metrics_before(layout, stage))
        else:
            client.update_run(run, "RUNNING")
            client.set_tag(run, "mm.session", session)
        # Both calls may be repeated: a process may have been killed between them.
        client.log_batch(run, params=_params_of(params))
        client.log_inputs(run, _datasets(layout, ("snapshot", "eval")))
        write_open_runs(layout, OpenRuns(session, digest, run))
        return run

    @contextmanager
    def open_stage(self, layout: Layout, stage: str) -> Iterator[str]:
        """Open the run of a stage for the body and yield its id; `log_report` or `close_runs` ends it."""
        client = self._client()
        run = self._stage_run(client, self._cycle_run(client, layout), stage, layout)
        client.update_run(run, "RUNNING")
        with self._system_metrics(run):
            yield run

    def close_runs(self, layout: Layout, status: str, *, error: str = "") -> None:
        """End all runs that are open; without any, do nothing. An unreachable server is logged, not raised.

        Args:
            layout: The workspace.
            status: Status of the cycle's run: FINISHED, FAILED or KILLED. A stage that is still open ends as FAILED,
                or as KILLED.
            error: Text for the tag `mm.error`.
        """
        opened = read_open_runs(layout)
        if opened is None:
            return
        try:
            client = self._client()
            query = f"attributes.status = 'RUNNING' and tags.`mm.session` = '{opened.session}'"
            # A killed process wrote its last number long before this process starts.
            end = last_sign_of_life(layout) if status == "KILLED" else None
            for run in client.search_runs([self._experiment(client)], query):
                if error:
                    client.set_tag(run.info.run_id, "mm.error", error[:_TAG_LIMIT])
                is_stage = run.data.tags["mm.stage"] != "cycle"
                ends = "FAILED" if is_stage and status == "FINISHED" else status
                # A run that began after the last sign of life must not end before its start.
                client.set_terminated(run.info.run_id, ends, end and max(end, run.info.start_time))
        except (exceptions.MlflowException, StoreError, TrackingServerError) as problem:
            _log.warning("MLflow cannot be reached, its runs end at the next start: %s", problem)
            return
        forget_open_runs(layout)

    def has_stage(self, layout: Layout, stage: str) -> bool:
        """Return whether the cycle's run has a run of this stage."""
        client = self._client()
        return self._newest(client, _stage_tags(self._cycle_run(client, layout), stage)) is not None

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
        run = self._stage_run(client, parent, report.stage, layout, seconds=report.seconds)
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
        give_sign_of_life(layout)
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
        run = self._stage_run(client, self._cycle_run(client, layout), stage, layout)
        logged = client.get_run(run).data.params
        flat = {name: str(value)[:_VALUE_LIMIT] for name, value in flatten(params)}
        if any(logged.get(name, value) != value for name, value in flat.items()):
            # MLflow's params cannot be changed, so other params need a new run.
            client.set_tag(run, "mm.stage", f"{stage} (superseded)")
            run = self._stage_run(client, self._cycle_run(client, layout), stage, layout)
            logged = {}
        for name, value in flat.items():
            if name not in logged:
                client.log_param(run, name, value)
        for name, value in data.items():
            client.set_tag(run, f"mm.{name}", value)
        client.update_run(run, "RUNNING")
        curve = Curve(client, run, lambda: give_sign_of_life(layout))
        try:
            with self._system_metrics(run):
                yield curve
        except BaseException:
            curve.flush()
            client.set_terminated(run, "FAILED")
            raise
        curve.flush()
        client.set_terminated(run, "FINISHED")

    def log_model(
        self, layout: Layout, digest: str, scores: Mapping[str, float], save: Callable[[Path, str], None]
    ) -> LoggedModel:
        """Log a model of the cycle as output of the runs of promotion and cycle; return MLflow's record of it.

        Args:
            layout: The workspace.
            digest: Digest of the weights. A model that was logged before is returned as it is.
            scores: Metrics of the model on the eval set.
            save: Writes an MLflow model; takes the folder to make and the id of its run.
        """
        client = self._client()
        parent = self._cycle_run(client, layout)
        run = self.log_report(layout, Report("promote", facts={"model": digest}))
        experiment = self._experiment(client)
        for logged in client.search_logged_models([experiment], f"tags.`mm.model_digest` = '{digest}'"):
            if logged.status == entities.LoggedModelStatus.READY:
                return logged
            # A killed process left it without its files.
            client.delete_logged_model(logged.model_id)
        tags = {"mm.model_digest": digest, "mm.snapshot": read_snapshot(layout)["digest"]}
        logged = client.create_logged_model(experiment, MODEL, run, tags=tags, model_type="alpha matting")
        scratch = self._settings.workspace / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="mlflow-model-", dir=scratch) as folder:
            save(Path(folder) / MODEL, run)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / MODEL))
        for linked in (run, parent):
            client.log_outputs(linked, [entities.LoggedModelOutput(logged.model_id, step=0)])
        client.log_batch(run, metrics=_scores_of(layout, scores, logged.model_id))
        return client.finalize_logged_model(logged.model_id, entities.LoggedModelStatus.READY)

    def link_version(self, digest: str, name: str, version: str) -> None:
        """Note a registered version on the logged model with these weights, where MLflow's pages look for it."""
        client = self._client()
        tag = {"mlflow.modelVersions": json.dumps([{"name": name, "version": int(version)}])}
        for logged in client.search_logged_models([self._experiment(client)], f"tags.`mm.model_digest` = '{digest}'"):
            client.set_logged_model_tags(logged.model_id, tag)

    def page(self, address: str) -> str:
        """Return the address of the experiment's runs on the MLflow server at `address`.

        MLflow 3.17 ignores the experiment's kind: it shows the view for language models, unless the address or the
        browser's own memory says otherwise.
        """
        return f"{address}/#/experiments/{self._experiment(self._client())}/runs?workflowType=machine_learning"

    @contextmanager
    def _system_metrics(self, run: str) -> Iterator[None]:
        """Log processor, memory, disk, network and GPU use for the body, if MLflow's own variable asks for it."""
        if not environment_variables.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            yield
            return
        monitor = system_metrics_monitor.SystemMetricsMonitor(
            run, resume_logging=True, tracking_uri=self._settings.mlflow_uri
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def _client(self) -> MlflowClient:
        """Return an MLflow client for the server of the settings."""
        return open_client(self._settings)

    def _experiment(self, client: MlflowClient) -> str:
        """Return the id of the experiment; create or restore it if necessary."""
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            remote = self._settings.mlflow_uri.startswith(("http://", "https://"))
            try:
                # A server chooses its own artifact folder.
                return client.create_experiment(
                    EXPERIMENT, None if remote else self._artifacts.as_uri(), tags=EXPERIMENT_TAGS
                )
            except exceptions.MlflowException:
                # Another process may have created it in the meantime.
                experiment = client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        for name, value in EXPERIMENT_TAGS.items():
            # Experiments of earlier versions have no tags; a person may have set others.
            if name not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, name, value)
        return experiment.experiment_id

    def _cycle_run(self, client: MlflowClient, layout: Layout) -> str:
        """Return the parent run of the cycle in the workspace."""
        facts, opened = read_snapshot(layout), read_open_runs(layout)
        digest = facts["digest"]
        if opened and opened.run and opened.snapshot == digest:
            return opened.run
        tags = {"mm.stage": "cycle", "mm.snapshot": digest}
        run = self._newest(client, tags)
        if run is None:
            # Nobody has opened the cycle, so that nobody would end its run: it only groups the runs of its stages.
            run = self._create(client, cycle_name(facts, None), tags)
            client.set_terminated(run, "FINISHED")
        return run

    def _stage_run(self, client: MlflowClient, parent: str, stage: str, layout: Layout, *, seconds: float = 0.0) -> str:
        """Return the run of a stage; a new one begins `seconds` ago."""
        opened = read_open_runs(layout)
        session = {"mm.session": opened.session} if opened else {}
        tags = _stage_tags(parent, stage)
        run = self._newest(client, tags)
        if run is None:
            # A report is written after its work, so its run began `seconds` ago.
            begin = int((time.time() - seconds) * 1000)
            run = self._create(client, stage, tags | session | origin_tags(layout), begin)
            client.log_inputs(run, _datasets(layout, _READS.get(stage, ("snapshot",))))
        elif opened:
            client.set_tag(run, "mm.session", opened.session)
        return run

    def _newest(self, client: MlflowClient, tags: Mapping[str, str]) -> str | None:
        """Return the newest run with these tags, or None."""
        # Names of tags contain dots, so the query needs backticks.
        wanted = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        order = ["attributes.start_time DESC"]
        matches = client.search_runs([self._experiment(client)], wanted, max_results=1, order_by=order)
        return matches[0].info.run_id if matches else None

    def _create(self, client: MlflowClient, name: str, tags: Mapping[str, str], begin: int | None = None) -> str:
        run = client.create_run(self._experiment(client), start_time=begin, run_name=name, tags=dict(tags))
        return run.info.run_id


class Curve:
    """Metrics of a run while it trains, sent in batches; `on_sent` is called after each batch."""

    def __init__(self, client: MlflowClient, run: str, on_sent: Callable[[], None] = lambda: None) -> None:
        self._client, self.run, self._on_sent = client, run, on_sent
        self._waiting: list[tuple[str, float, int, int]] = []
        self._sent = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue values of a step and send the queue every 400 values or 10 seconds."""
        self._waiting += [(name, float(value), int(time.time() * 1000), step) for name, value in values.items()]
        if len(self._waiting) > 400 or time.monotonic() - self._sent > 10:
            self.flush()

    def flush(self) -> None:
        """Send all queued values."""
        # MLflow accepts at most 1000 metrics per call.
        for start in range(0, len(self._waiting), 900):
            rows = [entities.Metric(*entry) for entry in self._waiting[start : start + 900]]
            self._client.log_batch(self.run, metrics=rows)
        self._waiting, self._sent = [], time.monotonic()
        self._on_sent()


_READS = {"evaluate": ("eval",), "gate": ("eval",), "snapshot": ()}
"""Datasets that a stage reads; the others read the snapshot."""


def _stage_tags(parent: str, stage: str) -> dict[str, str]:
    return {"mlflow.parentRunId": parent, "mm.stage": stage}


def _params_of(params: Params) -> list[Param]:
    values = params.model_dump(mode="json", exclude=set(PER_ARRIVAL))
    return [entities.Param(name, str(value)[:_VALUE_LIMIT]) for name, value in flatten(values)]


def _datasets(layout: Layout, names: Sequence[str]) -> list[DatasetInput]:
    """Return MLflow's dataset inputs: `snapshot` is the training data of the cycle, `eval` its frozen eval set."""
    facts = read_snapshot(layout)
    digests = {"snapshot": facts["digest"], "eval": facts.get("eval_digest")}
    contexts = {"snapshot": "training", "eval": "evaluation"}
    photos = {pool: sum(counts.values()) for pool, counts in facts.get("counts", {}).items()}
    rows = {"snapshot": sum(photos.values()) - photos.get("eval", 0), "eval": photos.get("eval", 0)}
    source = json.dumps({"uri": str(layout.snapshot)})
    return [
        entities.DatasetInput(
            entities.Dataset(
                name, digest[:_DIGEST_LIMIT], "local", source, profile=json.dumps({"num_rows": rows[name]} | photos)
            ),
            [entities.InputTag("mlflow.data.context", contexts[name])],
        )
        for name in names
        if (digest := digests[name])
    ]


def _scores_of(layout: Layout, scores: Mapping[str, float], model: str) -> list[Metric]:
    """Return the scores as metrics that MLflow shows with the model and its eval set."""
    now, digest = int(time.time() * 1000), str(read_snapshot(layout).get("eval_digest", ""))[:_DIGEST_LIMIT]
    data = {"dataset_name": "eval", "dataset_digest": digest} if digest else {}
    return [entities.Metric(name, value, now, 0, model_id=model, **data) for name, value in scores.items()]


def _log_metrics(client: MlflowClient, run: str, values: Mapping[str, float]) -> None:
    curve = Curve(client, run)
    curve.log(0, values)
    curve.flush()
