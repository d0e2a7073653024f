"""What every asset needs from outside: where the workspace is, the parameters, and how errors are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dagster as dg

from mm_core.core.errors import CatalogError, LabelServerError, MattingError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings


class Workspace(dg.ConfigurableResource):
    """The workspace that runs work on. An empty field is read from the environment when a run starts.

    Each field may be given as `dg.EnvVar("…")`; left empty, `MM_WORKSPACE`, `MM_INBOX`, `MM_STORE`, `MM_PARAMS`,
    `MLFLOW_TRACKING_URI` and `MM_DEVICE` say the same things as for the `mm` command.
    """

    workspace: str = ""
    """Folder that everything on this machine is written to."""
    inbox: str = ""
    """Folder or `s3://bucket/prefix` where drops arrive."""
    store: str = ""
    """Folder or `s3://bucket/prefix` of blobs and catalog."""
    params_file: str = ""
    """`params.yaml`."""

    def layout(self) -> Layout:
        settings = Settings.from_env(self.workspace or None, self.inbox or None)
        if self.store:
            settings = replace(settings, store=self.store)
        if self.params_file:
            settings = replace(settings, params_file=Path(self.params_file).expanduser().absolute())
        return Layout(settings)

    def params(self) -> Params:
        """Read anew by each step, so that an edited file counts from the next step on; raises ParamsError."""
        return Params.load(self.layout().settings.params_file)


class RetrainPolicy(dg.ConfigurableResource):
    """When a cycle starts before the weekly one."""

    new_labels: int = 48
    """Label versions that no cycle has learned from yet."""
    new_labels_after_refusal: int = 12
    """The same where the gate refused the last cycle's model."""
    drifted_batches: int = 1
    """Batches that drifted (`params.yaml`: drift) and that no cycle has learned from yet."""


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turns an error that the system raises on purpose into a Failure with its one line.

    Only an outage of the store, the catalog or Label Studio is worth another try; bad input and a refused release
    are not.
    """
    try:
        yield
    except MattingError as error:
        raise dg.Failure(
            str(error), allow_retries=isinstance(error, StoreError | CatalogError | LabelServerError)
        ) from error
