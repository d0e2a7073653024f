"""Resources of the assets: the workspace, its params, the retraining policy, and the handling of errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dagster as dg

from mm_core.core.errors import CatalogError, LabelServerError, MattingError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from pipelines.metadata import Observations


class Workspace(dg.ConfigurableResource):
    """The workspace of a run. An empty field is read from the environment when a run starts.

    Each field may be given as `dg.EnvVar("…")`. Empty fields use `MM_WORKSPACE`, `MM_INBOX`, `MM_STORE`, `MM_PARAMS`,
    `MLFLOW_TRACKING_URI` and `MM_DEVICE`, with the same meaning as for the `mm` command.
    """

    workspace: str = ""
    """Folder for all output on this machine."""
    inbox: str = ""
    """Folder or `s3://bucket/prefix` in which drops arrive."""
    store: str = ""
    """Folder or `s3://bucket/prefix` of blobs and catalog."""
    params_file: str = ""
    """Path of `params.yaml`."""

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
        """Load the params; each step reads the file again. Raises ParamsError."""
        return Params.load(self.layout().settings.params_file)

    def run(self, context: dg.AssetExecutionContext | None = None) -> Run:
        """Return the run of a stage; with the context of an asset, its progress is logged there. Raises ParamsError."""
        return Run(self.params(), self.layout(), quiet if context is None else Observations(context))


class RetrainPolicy(dg.ConfigurableResource):
    """Conditions under which a cycle starts before the weekly one."""

    new_labels: int = 48
    """Number of label versions that no cycle has used yet."""
    new_labels_after_refusal: int = 12
    """The same number after the gate refused the last cycle's model."""
    drifted_batches: int = 1
    """Number of batches that drifted (`params.yaml`: drift) and that no cycle has used yet."""


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
