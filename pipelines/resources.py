"""Resources of the assets: the workspace, its params, the retraining policy, and the handling of errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Optional

import dagster as dg
from pydantic import Field, PrivateAttr

from mm_core.core.errors import CatalogError, LabelServerError, MattingError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.params_file import merge_values
from mm_core.core.progress import quiet
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from pipelines.metadata import Observations
from pipelines.run_names import run_name
from pipelines.run_params import RunParams, dotted, given_values

PARAMS_TAG = "matting/params"
"""Tag of a run with parameters of its own."""


class Workspace(dg.ConfigurableResource):
    """The workspace of a run. An empty field is read from the environment when a run starts.

    Each field may be given as `dg.EnvVar("…")`. Empty fields use `MM_WORKSPACE`, `MM_INBOX`, `MM_STORE`, `MM_PARAMS`,
    `MLFLOW_TRACKING_URI` and `MM_DEVICE`, with the same meaning as for the `mm` command.
    """

    workspace: str = Field(
        default="", description="Folder for all output on this machine. Empty: MM_WORKSPACE of the code location."
    )
    inbox: str = Field(default="", description="Folder or s3://bucket/prefix in which drops arrive. Empty: MM_INBOX.")
    store: str = Field(default="", description="Folder or s3://bucket/prefix of blobs and catalog. Empty: MM_STORE.")
    params_file: str = Field(default="", description="Path of params.yaml. Empty: MM_PARAMS.")
    overrides: Optional[RunParams] = Field(  # pyright: ignore[reportInvalidTypeForm]  # noqa: UP045  built at run time
        default=None,
        description="Values for this run that replace those of params.yaml, in the same sections. They are recorded "
        "with the run, in its config and in its tag matting/params.",
    )

    _started_by: str = PrivateAttr(default="")
    """The name of the run that this process works for."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Keep the run's name, and record its own values as a tag, so that lists of runs show them."""
        self._started_by = f"dagster {run_name(context.run)}" if context.run else ""
        values = ", ".join(dotted(given_values(self.overrides)))
        if values and context.run and context.instance:
            context.instance.add_run_tags(context.run.run_id, {PARAMS_TAG: values})

    def layout(self) -> Layout:
        """Return the workspace of the environment with the given fields replaced."""
        settings = Settings.from_env(self.workspace or None, self.inbox or None)
        # Fields of the resource take precedence over the environment.
        if self.store:
            settings = replace(settings, store=self.store)
        if self.params_file:
            # Runs may start in another folder, so the path is made absolute.
            settings = replace(settings, params_file=Path(self.params_file).expanduser().absolute())
        return Layout(settings)

    def params(self) -> Params:
        """Load the params with the values of this run; each step reads the file again. Raises ParamsError."""
        params = Params.load(self.layout().settings.params_file)
        return merge_values(params, given_values(self.overrides), "workspace.overrides of this run")

    def run(self, context: dg.AssetExecutionContext | None = None) -> Run:
        """Return the run of a stage; with the context of an asset, its progress is logged there. Raises ParamsError."""
        progress = quiet if context is None else Observations(context)
        return Run(self.params(), self.layout(), progress, self._started_by)


class RetrainPolicy(dg.ConfigurableResource):
    """Conditions under which a cycle starts before the weekly one."""

    new_labels: int = Field(default=48, description="Number of label versions that no cycle has used yet.")
    new_labels_after_refusal: int = Field(
        default=12, description="The same number after the gate rejected the last cycle's model."
    )
    drifted_batches: int = Field(
        default=1, description="Number of batches that drifted (params.yaml: drift) and that no cycle has used yet."
    )


@contextmanager
def plain_failures() -> Iterator[None]:
    """Convert an error of this project into a Dagster Failure with its one-line message.

    Only an outage of the store, the catalog or Label Studio is retried. Bad input and a refused release would fail
    again.
    """
    try:
        yield
    except MattingError as error:
        raise dg.Failure(
            # Other errors would fail again in the same way.
            str(error),
            allow_retries=isinstance(error, StoreError | CatalogError | LabelServerError),
        ) from error
